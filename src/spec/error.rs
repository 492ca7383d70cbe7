//! Why a container's configuration cannot become an OCI specification.

use std::path::PathBuf;

/// A field of the request or of the image that cannot be accepted.
///
/// `Display` tells the problem and its remedy; [`SpecError::field`] tells where it is, relative to the CRI message that
/// holds it: `ContainerConfig`, for sysctls `PodSandboxConfig`, for the command of an exec its request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// Neither the request nor the image says what to run.
    #[error("neither the request nor the image {image:?} names a command: give command or args")]
    NoCommand {
        /// The image as the request named it.
        image: String,
    },
    /// A command to run in a container that names no program.
    #[error("the command is empty: name a program")]
    EmptyCommand,
    /// An argument that `execve(2)` cannot carry.
    #[error("argument {index} of the command line holds a NUL byte")]
    ArgumentNul {
        /// Its place, counted from 0.
        index: usize,
    },
    /// A variable that has no name, or one with `=` or NUL in it.
    #[error("{name:?} is no name for a variable: it needs at least one character, and neither '=' nor NUL")]
    VariableName {
        /// Its place in the request.
        index: usize,
        /// The name.
        name: String,
    },
    /// A variable whose value `config.json` or `execve(2)` cannot carry.
    #[error("the value of variable {name:?} {problem}")]
    VariableValue {
        /// Its place in the request.
        index: usize,
        /// The name.
        name: String,
        /// What is wrong with the value.
        problem: &'static str,
    },
    /// A mount's place in the container.
    #[error("{path:?} {problem}")]
    MountTarget {
        /// The mount's place in the request.
        index: usize,
        /// The path.
        path: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A mount's source.
    #[error("{} is no absolute path", path.display())]
    MountSource {
        /// The mount's place in the request.
        index: usize,
        /// The path.
        path: PathBuf,
    },
    /// An image volume that would be more than a read-only view.
    #[error("an image volume {problem}")]
    ImageVolume {
        /// The mount's place in the request.
        index: usize,
        /// The field that says so.
        field: &'static str,
        /// Why it cannot be.
        problem: &'static str,
    },
    /// A recursively read-only mount with other fields that forbid it.
    #[error("a recursively read-only mount {needs} ({path:?})")]
    RecursiveReadOnly {
        /// The mount's place in the request.
        index: usize,
        /// The mount's place in the container.
        path: String,
        /// What it needs.
        needs: &'static str,
    },
    /// A device's permissions.
    #[error("{permissions:?} is not made of the letters r, w and m")]
    DevicePermissions {
        /// The device's place in the request.
        index: usize,
        /// The permissions.
        permissions: String,
    },
    /// A capability that does not exist.
    #[error("there is no capability {name:?}")]
    UnknownCapability {
        /// Which of the lists names it.
        field: &'static str,
        /// The capability.
        name: String,
    },
    /// A capability that this host cannot give.
    #[error("capability {name:?} is not available on this host: its kernel or podwright itself does not have it")]
    UnavailableCapability {
        /// Which of the lists names it.
        field: &'static str,
        /// The capability.
        name: String,
    },
    /// A privileged container in an ordinary pod.
    #[error("a privileged container needs a pod whose linux.security_context.privileged is set")]
    PrivilegedInOrdinaryPod,
    /// A namespace that the pod was to hold, and does not.
    #[error("the pod holds no {kind} namespace to share")]
    NoPodNamespace {
        /// The namespace option's name.
        kind: &'static str,
    },
    /// The container whose process namespace was to be joined.
    #[error("container {id:?} has no process namespace to join: it must be a running container of the same pod")]
    NoTargetNamespace {
        /// The container as the request named it.
        id: String,
    },
    /// A seccomp profile that was not handed in with the configuration.
    #[error("the profile {name:?} is not loaded")]
    NoSeccompProfile {
        /// The profile.
        name: String,
    },
    /// A profile for a security module that the host does not have.
    #[error("profile {name:?} needs AppArmor, which this host does not have")]
    NoApparmor {
        /// The profile.
        name: String,
    },
    /// A number outside what the kernel takes.
    #[error("{value} is out of range: {range}")]
    OutOfRange {
        /// The field's name in `linux.resources`.
        field: &'static str,
        /// The value.
        value: i64,
        /// What it may be.
        range: &'static str,
    },
    /// A kernel parameter that a pod may not or cannot set.
    #[error("{key:?} {problem}")]
    Sysctl {
        /// The parameter.
        key: String,
        /// Why not.
        problem: &'static str,
    },
    /// A signal that does not exist.
    #[error("there is no signal {name:?}: give a name such as SIGTERM or SIGRTMIN+3, or a number from 1 to 64")]
    UnknownSignal {
        /// The signal.
        name: String,
    },
    /// A container's specification without a process, to which a command cannot be added.
    #[error("the container's specification has no process")]
    NoProcess,
}

impl SpecError {
    /// Names the field that cannot be accepted.
    pub fn field(&self) -> String {
        let fixed = match self {
            Self::NoCommand { .. } | Self::ArgumentNul { .. } => "command",
            Self::EmptyCommand => "cmd",
            Self::VariableName { index, .. } => return format!("envs[{index}].key"),
            Self::VariableValue { index, .. } => return format!("envs[{index}].value"),
            Self::MountTarget { index, .. } => return format!("mounts[{index}].container_path"),
            Self::MountSource { index, .. } => return format!("mounts[{index}].host_path"),
            Self::ImageVolume { index, field, .. } => return format!("mounts[{index}].{field}"),
            Self::RecursiveReadOnly { index, .. } => return format!("mounts[{index}].recursive_read_only"),
            Self::DevicePermissions { index, .. } => return format!("devices[{index}].permissions"),
            Self::UnknownCapability { field, .. } | Self::UnavailableCapability { field, .. } => {
                return format!("linux.security_context.capabilities.{field}");
            }
            Self::PrivilegedInOrdinaryPod => "linux.security_context.privileged",
            Self::NoPodNamespace { kind } => return format!("linux.security_context.namespace_options.{kind}"),
            Self::NoTargetNamespace { .. } => "linux.security_context.namespace_options.target_id",
            Self::NoSeccompProfile { .. } => "linux.security_context.seccomp",
            Self::NoApparmor { .. } => "linux.security_context.apparmor",
            Self::OutOfRange { field, .. } => return format!("linux.resources.{field}"),
            Self::Sysctl { .. } => "linux.sysctls",
            Self::UnknownSignal { .. } => "image",
            Self::NoProcess => "process",
        };
        fixed.to_owned()
    }
}
