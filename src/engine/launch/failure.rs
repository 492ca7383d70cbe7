//! Why a launch did not happen: one step by name, what it worked on, and the kernel's answer.

use podwright_plan::wire::{self, Cause};
use rustix::io::Errno;

/// A failed step of a set-up, a start or an exec.
///
/// It is made in the process where the step ran (the shim or the container's own), so it is plain data that fits into
/// one message and becomes a [`wire::Failure`] without a loss.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{step}{}{}{}", Prefixed(" ", .subject), Prefixed(": ", &errno_text(*.errno)), Prefixed(": ", .detail))]
pub struct Failure {
    /// Whose fault it is, as the daemon tells it on.
    pub cause: Cause,
    /// The step by name: "mount", "pivot_root", "execve".
    pub step: String,
    /// The path, user, capability or id that the step worked on; may be empty.
    pub subject: String,
    /// The kernel's error number; 0 when the step failed for another reason.
    pub errno: i32,
    /// What step, subject and errno do not say; may be empty.
    pub detail: String,
}

impl Failure {
    /// A failure of a step in the shim itself.
    pub(crate) fn internal(step: &str, subject: impl ToString, errno: Errno) -> Self {
        Self::new(Cause::Internal, step, subject, errno)
    }

    /// A failure of a step in the container's own process.
    pub(crate) fn launch(step: &str, subject: impl ToString, errno: Errno) -> Self {
        Self::new(Cause::LaunchFailed, step, subject, errno)
    }

    /// A plan with a field that cannot be followed.
    pub(crate) fn plan(step: &str, subject: impl ToString, detail: &str) -> Self {
        Self {
            cause: Cause::InvalidPlan,
            step: step.to_owned(),
            subject: subject.to_string(),
            errno: 0,
            detail: detail.to_owned(),
        }
    }

    pub(crate) fn new(cause: Cause, step: &str, subject: impl ToString, errno: Errno) -> Self {
        Self {
            cause,
            step: step.to_owned(),
            subject: subject.to_string(),
            errno: errno.raw_os_error(),
            detail: String::new(),
        }
    }

    pub(crate) fn with_detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = detail.into();
        self
    }

    /// The kernel's error, when there was one.
    pub fn kernel_error(&self) -> Option<Errno> {
        (self.errno != 0).then(|| Errno::from_raw_os_error(self.errno))
    }
}

impl From<Failure> for wire::Failure {
    fn from(failure: Failure) -> Self {
        Self {
            cause: failure.cause.into(),
            step: failure.step,
            subject: failure.subject,
            errno: failure.errno,
            detail: failure.detail,
        }
    }
}

impl From<wire::Failure> for Failure {
    fn from(failure: wire::Failure) -> Self {
        Self {
            cause: failure.cause(),
            step: failure.step,
            subject: failure.subject,
            errno: failure.errno,
            detail: failure.detail,
        }
    }
}

/// Names a step as it fails, with what it worked on.
pub(crate) trait Named<T> {
    /// Makes a [`Failure`] of a step in the container's own process.
    fn in_child(self, step: &str, subject: impl ToString) -> Result<T, Failure>;
    /// Makes a [`Failure`] of a step in the shim.
    fn in_shim(self, step: &str, subject: impl ToString) -> Result<T, Failure>;
}

impl<T, E: Into<KernelError>> Named<T> for Result<T, E> {
    fn in_child(self, step: &str, subject: impl ToString) -> Result<T, Failure> {
        self.map_err(|error| Failure::launch(step, subject, error.into().0))
    }

    fn in_shim(self, step: &str, subject: impl ToString) -> Result<T, Failure> {
        self.map_err(|error| Failure::internal(step, subject, error.into().0))
    }
}

/// One type for the errors of the crates that make system calls.
pub(crate) struct KernelError(pub(crate) Errno);

impl From<Errno> for KernelError {
    fn from(errno: Errno) -> Self {
        Self(errno)
    }
}

impl From<nix::errno::Errno> for KernelError {
    fn from(errno: nix::errno::Errno) -> Self {
        Self(Errno::from_raw_os_error(errno as i32))
    }
}

impl From<std::io::Error> for KernelError {
    fn from(error: std::io::Error) -> Self {
        Self(Errno::from_io_error(&error).unwrap_or(Errno::IO))
    }
}

fn errno_text(errno: i32) -> String {
    if errno == 0 { String::new() } else { nix::errno::Errno::from_raw(errno).desc().to_owned() }
}

/// Text with something in front of it, or nothing when there is no text.
struct Prefixed<'a>(&'a str, &'a str);

impl std::fmt::Display for Prefixed<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.1.is_empty() { Ok(()) } else { write!(f, "{}{}", self.0, self.1) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_known_is_printed() {
        let full = Failure::launch("open bind source", "/srv/x", Errno::NOENT).with_detail("volume");
        assert_eq!(full.to_string(), "open bind source /srv/x: No such file or directory: volume");
        let bare = Failure { subject: String::new(), errno: 0, detail: String::new(), ..full };
        assert_eq!(bare.to_string(), "open bind source");
    }

    #[test]
    fn nothing_is_lost_on_the_wire() {
        let failure = Failure::launch("mount", "/proc", Errno::PERM).with_detail("proc");
        assert_eq!(Failure::from(wire::Failure::from(failure.clone())), failure);
    }
}
