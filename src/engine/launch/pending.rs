//! A process between its fork and the user's program.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use podwright_plan::wire::{Cause, SeccompListener};
use podwright_sys::clone::Child;
use rustix::io::Errno;
use rustix::process::Signal;

use crate::failure::{Failure, Named};
use crate::listener;
use crate::status::{Receiver, Report};

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
    /// Nothing for the caller: the process has the descriptors that [`crate::ExecStdio`] named, or they were taken.
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
    /// The caller's ends of the standard streams; see [`Pending::take_stdio`].
    pub stdio: Stdio,
    status: Receiver,
    ready: bool,
    listener: Option<(SeccompListener, u32)>,
}

impl Pending {
    pub(crate) fn new(child: Child, stdio: Stdio, status: Receiver) -> Self {
        Self { pid: child.pid, pidfd: child.pidfd, stdio, status, ready: false, listener: None }
    }

    /// Remembers who is asked by the process's system call filter, and the init of its container.
    pub(crate) fn with_listener(self, listener: Option<SeccompListener>, init: u32) -> Self {
        Self { listener: listener.map(|listener| (listener, init)), ..self }
    }

    /// Becomes readable when [`Pending::outcome`] has something to do.
    pub fn status(&self) -> BorrowedFd<'_> {
        self.status.as_fd()
    }

    /// Moves the standard streams out. Pipes may be taken at once, a console once the outcome is known.
    pub fn take_stdio(&mut self) -> Stdio {
        std::mem::replace(&mut self.stdio, Stdio::Passed)
    }

    /// Tells how the launch went, `None` while it is under way. Never blocks.
    ///
    /// `Ok` means that the user's program has been executed. Call it no more after it has answered.
    pub fn outcome(&mut self) -> Option<Result<(), Failure>> {
        loop {
            match self.status.receive() {
                Ok(Report::Console(master)) => {
                    if let Err(errno) = rustix::io::ioctl_fionbio(&master, true) {
                        return Some(Err(Failure::internal("make the console non-blocking", "", errno)));
                    }
                    self.stdio = Stdio::Console(master);
                }
                Ok(Report::Listener(listener)) => {
                    if let Err(failure) = self.deliver(&listener) {
                        // It waits for a word that will not come. That it is gone already is no matter.
                        let _ = rustix::process::pidfd_send_signal(&self.pidfd, Signal::KILL);
                        return Some(Err(failure));
                    }
                }
                Ok(Report::Ready) => self.ready = true,
                Ok(Report::Failed(failure)) => return Some(Err(failure)),
                // What only a container without a pod says.
                Ok(Report::Init(_) | Report::Environment | Report::Created) => {
                    return Some(Err(Failure::internal("read the launch status", self.pid, Errno::BADMSG)));
                }
                Ok(Report::End) if self.ready => return Some(Ok(())),
                Ok(Report::End) => return Some(Err(ended_early(self.pid))),
                Err(Errno::AGAIN) => return None,
                Err(Errno::INTR) => {}
                Err(errno) => return Some(Err(Failure::internal("read the launch status", self.pid, errno))),
            }
        }
    }

    fn deliver(&self, listener: &OwnedFd) -> Result<(), Failure> {
        let Some((to, init)) = &self.listener else {
            return Err(Failure::internal("read the launch status", self.pid, Errno::BADMSG));
        };
        listener::deliver(to, listener, self.pid, *init)?;
        self.status.go().in_shim("let the process go on", self.pid)
    }
}

/// The child is gone without a word: killed, by the OOM killer most likely, since the limits hold during the set-up.
pub(crate) fn ended_early(pid: u32) -> Failure {
    Failure {
        cause: Cause::LaunchFailed,
        step: "set up".to_owned(),
        subject: format!("process {pid}"),
        errno: 0,
        detail: "killed before the program was executed; its memory limit may be too low".to_owned(),
    }
}
