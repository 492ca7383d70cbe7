//! A process between its fork and the user's program.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::failure::Failure;

/// The caller's ends of a started process's standard streams. Every descriptor is close-on-exec and non-blocking.
#[derive(Debug)]
pub enum Stdio {
    /// Pipes. `stdin` is there when the plan asked to keep one open.
    Pipes {
        /// Write end; closing it is the process's end of input.
        stdin: Option<OwnedFd>,
        /// Read end.
        stdout: OwnedFd,
        /// Read end.
        stderr: OwnedFd,
    },
    /// A terminal whose master has not arrived yet; it does before [`Pending::outcome`] says `Ok`.
    AwaitsConsole,
    /// The master of the terminal in the container's own devpts.
    Console(OwnedFd),
    /// Nothing for the caller: the process has the descriptors that [`crate::ExecStdio`] named.
    Passed,
}

/// A process that was forked and is on its way to the user's program.
///
/// Poll [`Pending::status`] for reading and call [`Pending::outcome`] each time it is readable or hung up.
#[derive(Debug)]
pub struct Pending {
    /// The process as the host numbers it. It is the caller's child.
    pub pid: u32,
    /// Refers to the process; readable once it has exited.
    pub pidfd: OwnedFd,
    /// The caller's ends of the standard streams. Take it (leaving [`Stdio::Passed`]) once the outcome is known.
    pub stdio: Stdio,
    status: OwnedFd,
}

impl Pending {
    /// Becomes readable when [`Pending::outcome`] has something to do.
    pub fn status(&self) -> BorrowedFd<'_> {
        self.status.as_fd()
    }

    /// Tells how the launch went, `None` while it is under way. Never blocks.
    ///
    /// `Ok` means that the user's program has been executed. Call it no more after it has answered.
    pub fn outcome(&mut self) -> Option<Result<(), Failure>> {
        todo!()
    }
}
