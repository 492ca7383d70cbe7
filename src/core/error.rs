//! Why an operation failed, in the terms of the operation; `cri` maps [`Class`] to gRPC codes.

use std::time::Duration;

pub use podwright_base::chain;
use podwright_base::{ContainerId, PodId};
use rustix::io::Errno;

use crate::shim::ShimError;

/// A failed operation on pods, containers or images.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No such pod sandbox.
    #[error("pod sandbox {id:?} does not exist")]
    PodNotFound {
        /// As the caller gave it.
        id: String,
    },
    /// No such container.
    #[error("container {id:?} does not exist")]
    ContainerNotFound {
        /// As the caller gave it.
        id: String,
    },
    /// An id prefix fits more than one object.
    #[error("id prefix {prefix:?} fits {count} objects: give more digits")]
    AmbiguousId {
        /// As the caller gave it.
        prefix: String,
        /// How many it fits.
        count: usize,
    },
    /// The image is not on this node.
    #[error("config.image.image: {image:?} is not on this node: pull it first")]
    ImageNotFound {
        /// As the caller gave it.
        image: String,
    },
    /// The image of an image volume is not on this node. The first word is the one that the kubelet knows it by.
    #[error("ImageVolumeMountFailed: config.mounts[{index}].image.image: {image:?} is not on this node: pull it first")]
    VolumeImageNotFound {
        /// The mount's place in the request.
        index: usize,
        /// As the caller gave it.
        image: String,
    },
    /// What an image volume asks for is not in its image. The first word is the one that the kubelet knows it by.
    #[error("ImageVolumeMountFailed: config.mounts[{index}].{field}: {problem}")]
    ImageVolume {
        /// The mount's place in the request.
        index: usize,
        /// The field of the mount.
        field: &'static str,
        /// The value and what is wrong with it.
        problem: String,
    },
    /// A field of the request cannot be accepted.
    #[error("{field}: {problem}")]
    Invalid {
        /// The CRI field's path.
        field: String,
        /// The value and what to do about it.
        problem: String,
    },
    /// The pod sandbox is not ready.
    #[error("pod sandbox {pod} is not ready: {reason}")]
    PodNotReady {
        /// The sandbox.
        pod: PodId,
        /// Why.
        reason: String,
    },
    /// The container's state does not allow the operation.
    #[error("container {container}: {problem}")]
    WrongState {
        /// The container.
        container: ContainerId,
        /// Its state and what the operation needs.
        problem: String,
    },
    /// The same name was created with another configuration.
    #[error("{what} {name:?} exists as {id} with another configuration: remove it, or raise the attempt")]
    NameInUse {
        /// "pod sandbox" or "container".
        what: &'static str,
        /// The name.
        name: String,
        /// Who has it.
        id: String,
    },
    /// An exec ran into its time limit; its processes are gone.
    #[error("the command did not end within {}s and was killed with all its processes", limit.as_secs())]
    ExecTimeout {
        /// The request's limit.
        limit: Duration,
    },
    /// A step did not end within its bound.
    #[error("{what} has been in stage {stage:?} for {}s", waited.as_secs())]
    Stalled {
        /// The object.
        what: String,
        /// Where it hangs.
        stage: &'static str,
        /// For how long.
        waited: Duration,
    },
    /// The daemon is going down.
    #[error("the daemon is shutting down")]
    ShuttingDown,
    /// A configured feature that this version does not have.
    #[error("{field}: {feature} is not supported by this version")]
    Unsupported {
        /// The CRI field's path.
        field: String,
        /// What was asked for.
        feature: String,
    },
    /// Something of the node's is in the way of a step, until somebody removes it.
    #[error("{step}")]
    Blocked {
        /// Which step, or the field that asks for it.
        step: String,
        /// What is in the way.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A step needs what is used up, until somebody gives some of it back.
    #[error("{step}")]
    UsedUp {
        /// Which step.
        step: String,
        /// What there is no more of.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A step of the operation failed.
    #[error("{step}")]
    Step {
        /// Which, and on what.
        step: String,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Some of what an object held could not be given back; the rest was.
    #[error("{what}: {} of the clean-up failed: {}", count(.failures), list(.failures))]
    CleanUp {
        /// Whose.
        what: String,
        /// Each failed step.
        failures: Vec<Error>,
    },
    /// The outcome of the operation this call has joined.
    #[error(transparent)]
    Joined(std::sync::Arc<Error>),
}

/// What kind of failure an [`Error`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// The object does not exist.
    NotFound,
    /// The request can never succeed as it is.
    InvalidArgument,
    /// The object's or the node's state forbids it.
    FailedPrecondition,
    /// The name is taken.
    AlreadyExists,
    /// A bound was reached.
    DeadlineExceeded,
    /// Disk, memory, addresses or a limit are exhausted.
    ResourceExhausted,
    /// The daemon cannot serve now.
    Unavailable,
    /// This version cannot do it.
    Unimplemented,
    /// Anything else.
    Internal,
}

impl Error {
    /// Wraps a failed step; `step` names what was tried and on what.
    pub fn step(step: impl Into<String>, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Step { step: step.into(), source: source.into() }
    }

    /// Makes the error of a field whose value cannot be accepted.
    pub fn invalid(field: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Invalid { field: field.into(), problem: problem.into() }
    }

    /// Tells what kind of failure this is.
    pub fn class(&self) -> Class {
        match self {
            Self::PodNotFound { .. }
            | Self::ContainerNotFound { .. }
            | Self::ImageNotFound { .. }
            | Self::VolumeImageNotFound { .. } => Class::NotFound,
            Self::AmbiguousId { .. } | Self::Invalid { .. } | Self::ImageVolume { .. } => Class::InvalidArgument,
            Self::PodNotReady { .. } | Self::WrongState { .. } | Self::Blocked { .. } => Class::FailedPrecondition,
            Self::NameInUse { .. } => Class::AlreadyExists,
            Self::ExecTimeout { .. } | Self::Stalled { .. } => Class::DeadlineExceeded,
            Self::ShuttingDown => Class::Unavailable,
            Self::Unsupported { .. } => Class::Unimplemented,
            Self::UsedUp { .. } => Class::ResourceExhausted,
            Self::Step { source, .. } if is_out_of_space(source.as_ref()) => Class::ResourceExhausted,
            Self::Step { .. } | Self::CleanUp { .. } => Class::Internal,
            Self::Joined(error) => error.class(),
        }
    }
}

/// Collects what went wrong in a clean-up that goes on regardless.
#[derive(Debug, Default)]
pub(crate) struct Failures(Vec<Error>);

impl Failures {
    /// Notes a step's failure, if it failed.
    pub(crate) fn note<E>(&mut self, step: impl Into<String>, result: Result<(), E>)
    where
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        if let Err(source) = result {
            self.0.push(Error::step(step, source));
        }
    }

    /// Makes one error of all failures, if there were any.
    pub(crate) fn into_result(self, what: impl Into<String>) -> Result<(), Error> {
        if self.0.is_empty() { Ok(()) } else { Err(Error::CleanUp { what: what.into(), failures: self.0 }) }
    }
}

fn count(failures: &[Error]) -> String {
    if failures.len() == 1 { "a step".to_owned() } else { format!("{} steps", failures.len()) }
}

fn list(failures: &[Error]) -> String {
    failures.iter().map(|failure| chain(failure)).collect::<Vec<_>>().join("; ")
}

/// Looks through a chain of causes for a full disk or quota, here or in the shim.
fn is_out_of_space(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if errno(error).is_some_and(|errno| matches!(errno, Errno::NOSPC | Errno::DQUOT)) {
            return true;
        }
        cause = error.source();
    }
    false
}

/// Returns the system's error that a cause is, if it is one.
fn errno(error: &(dyn std::error::Error + 'static)) -> Option<Errno> {
    if let Some(io) = error.downcast_ref::<std::io::Error>() {
        return match io.kind() {
            std::io::ErrorKind::StorageFull => Some(Errno::NOSPC),
            std::io::ErrorKind::QuotaExceeded => Some(Errno::DQUOT),
            _ => Errno::from_io_error(io),
        };
    }
    match error.downcast_ref::<ShimError>() {
        Some(ShimError::Failed(failure)) if failure.errno != 0 => Some(Errno::from_raw_os_error(failure.errno)),
        _ => error.downcast_ref::<Errno>().copied(),
    }
}
