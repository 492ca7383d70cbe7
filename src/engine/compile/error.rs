//! Why a specification cannot be compiled: always with the path of the field, as it stands in `config.json`.

use crate::seccomp::SeccompError;

/// What is wrong with a specification, or too much for this version or host.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CompileError {
    /// The field asks for something that the engine cannot do.
    #[error("{field} is not supported by this version")]
    Unsupported {
        /// The field's path.
        field: String,
    },
    /// A field that must be there.
    #[error("{field} is missing")]
    Missing {
        /// The field's path.
        field: String,
    },
    /// A value that contradicts the specification or the kernel's rules.
    #[error("{field}: {value:?} {problem}")]
    Invalid {
        /// The field's path.
        field: String,
        /// The value.
        value: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A limit whose cgroup controller this host has not.
    #[error("{field} needs the cgroup controller {controller:?}, which is not mounted on this host")]
    NoController {
        /// The field's path.
        field: String,
        /// The controller.
        controller: &'static str,
    },
    /// A limit that this host's cgroup version has no file for.
    #[error("{field} does not exist on cgroup {version}")]
    NotOnThisCgroup {
        /// The field's path.
        field: String,
        /// `v1` or `v2`.
        version: &'static str,
    },
    /// A setting that needs a security module.
    #[error("{field}: {value:?} needs {module}, which this host does not run")]
    NoSecurityModule {
        /// The field's path.
        field: &'static str,
        /// The value.
        value: String,
        /// AppArmor or SELinux.
        module: &'static str,
    },
    /// The seccomp profile.
    #[error(transparent)]
    Seccomp(#[from] SeccompError),
}

/// Makes the error of a field that this version cannot do.
pub(crate) fn unsupported(field: impl Into<String>) -> CompileError {
    CompileError::Unsupported { field: field.into() }
}

/// Makes the error of a field that is not there.
pub(crate) fn missing(field: impl Into<String>) -> CompileError {
    CompileError::Missing { field: field.into() }
}

/// Makes the error of a bad value.
pub(crate) fn invalid(field: impl Into<String>, value: impl Into<String>, problem: &'static str) -> CompileError {
    CompileError::Invalid { field: field.into(), value: value.into(), problem }
}
