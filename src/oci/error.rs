//! Why a command failed.

use std::io;
use std::path::PathBuf;

use podwright_compile::CompileError;
use podwright_host::HostError;
use podwright_launch::Failure;
use podwright_netlink::NetlinkError;
use podwright_sys::netns::EnterError;
use rustix::io::Errno;

/// A failed command.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The command line.
    #[error(transparent)]
    Usage(#[from] lexopt::Error),
    /// A flag's value, or what stands where.
    #[error("{argument}: {value:?} {problem}")]
    Argument {
        /// The flag or the argument's name.
        argument: &'static str,
        /// What was given.
        value: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The id is taken.
    #[error("container {id:?} exists already: delete it, or choose another id")]
    Exists {
        /// The id.
        id: String,
    },
    /// There is no such container.
    #[error("container {id:?} does not exist")]
    NotFound {
        /// The id.
        id: String,
    },
    /// The container is in a state that the operation is not for.
    #[error("cannot {operation} container {id:?}: it is {status}")]
    Status {
        /// What was wanted.
        operation: &'static str,
        /// The container.
        id: String,
        /// How it is.
        status: &'static str,
    },
    /// A step with a file.
    #[error("{step} {}", path.display())]
    File {
        /// What was done.
        step: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A file that is not what it should be.
    #[error("read {}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: serde_json::Error,
    },
    /// A state directory of another version.
    #[error("{}: written by another version of podwright-oci (format {found}, this one reads {known})", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u32,
        /// Ours.
        known: u32,
    },
    /// A plan in a state directory that is none.
    #[error("read {}", path.display())]
    Plan {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: prost::DecodeError,
    },
    /// The specification.
    #[error("{}", path.display())]
    Specification {
        /// The `config.json`.
        path: PathBuf,
        /// Which field.
        source: CompileError,
    },
    /// This host.
    #[error(transparent)]
    Host(#[from] HostError),
    /// A step of the launch.
    #[error(transparent)]
    Launch(#[from] Failure),
    /// A step of the kernel's.
    #[error("{step} {subject}")]
    Step {
        /// What was done.
        step: &'static str,
        /// What with.
        subject: String,
        /// Why not.
        source: Errno,
    },
    /// A network device.
    #[error("move network device {device:?} into the container")]
    NetDevice {
        /// The device.
        device: String,
        /// Why not.
        source: NetlinkError,
    },
    /// The container's network namespace.
    #[error("enter the container's network namespace")]
    Enter(#[source] EnterError),
    /// systemd.
    #[error(transparent)]
    Systemd(#[from] podwright_systemd::Error),
    /// What could not be cleaned up.
    #[error("{}", .0.join("; "))]
    CleanUp(Vec<String>),
    /// Nobody reads our output.
    #[error("write to standard output")]
    Output(#[source] io::Error),
}

impl Error {
    /// Names a step with a file.
    pub(crate) fn file(step: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { step, path, source }
    }

    /// Names a step of the kernel's.
    pub(crate) fn step(step: &'static str, subject: impl ToString) -> impl FnOnce(Errno) -> Self {
        let subject = subject.to_string();
        move |source| Self::Step { step, subject, source }
    }

    /// Makes the error of a bad argument.
    pub(crate) fn argument(argument: &'static str, value: impl ToString, problem: &'static str) -> Self {
        Self::Argument { argument, value: value.to_string(), problem }
    }
}
