//! A process on its way, seen by a caller that has nothing else to do than to wait for it.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use podwright_plan::wire::SeccompListener;
use podwright_sys::clone::Child;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::{Pid, WaitOptions};

use crate::failure::{Failure, Named};
use crate::pending::ended_early;
use crate::status::{Receiver, Report};
use crate::{cgroup, listener};

/// What it tells, and the word by which it goes on.
#[derive(Debug)]
pub struct Progress {
    pid: u32,
    /// `None` of a process that another one has forked.
    pidfd: Option<OwnedFd>,
    status: Receiver,
    /// Who is asked by the system call filter, and the pid of the container's init.
    listener: Option<(SeccompListener, u32)>,
    ready: bool,
}

/// How far it has come.
#[derive(Debug)]
pub enum Stage {
    /// The master of its terminal.
    Console(OwnedFd),
    /// Namespaces, root and mounts are there; it waits for [`Progress::go`] to make them its own.
    Environment,
    /// It waits for its start.
    Created,
    /// The user's program has been executed.
    Running,
}

impl Progress {
    /// Of a child of the calling process.
    pub(crate) fn of_child(child: Child, status: Receiver) -> Self {
        Self { pid: child.pid, pidfd: Some(child.pidfd), status, listener: None, ready: false }
    }

    /// Of a process that somebody else has forked.
    pub(crate) fn of_other(pid: u32, status: Receiver) -> Self {
        Self { pid, pidfd: None, status, listener: None, ready: false }
    }

    /// Has what the process's system call filter asks by delivered to who is asked.
    pub(crate) fn with_listener(self, listener: Option<SeccompListener>, init: u32) -> Self {
        Self { listener: listener.map(|listener| (listener, init)), ..self }
    }

    /// The process as the caller's pid namespace numbers it.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Refers to the process, if it is the caller's child; readable once it has exited.
    pub fn pidfd(&self) -> Option<BorrowedFd<'_>> {
        self.pidfd.as_ref().map(AsFd::as_fd)
    }

    /// Takes the pidfd out.
    pub fn into_pidfd(self) -> Option<OwnedFd> {
        self.pidfd
    }

    /// Lets the process go on: a new container's at first, and after [`Stage::Environment`].
    ///
    /// # Errors
    /// When it is gone; [`Progress::advance`] says why.
    pub fn go(&self) -> Result<(), Failure> {
        self.status.go().in_shim("let the container's process go on", self.pid)
    }

    /// Waits for what comes next. The process may be another one afterwards, a sibling of the first, which is reaped here:
    /// into a user namespace it takes two.
    ///
    /// # Errors
    /// The step that failed in the process, which has exited by then or is about to.
    pub fn advance(&mut self) -> Result<Stage, Failure> {
        loop {
            let pid = self.pid;
            let failed = |errno| Failure::internal("read the launch status", pid, errno);
            match self.status.receive() {
                Ok(Report::Console(master)) => return Ok(Stage::Console(master)),
                Ok(Report::Environment) => return Ok(Stage::Environment),
                Ok(Report::Created) => return Ok(Stage::Created),
                Ok(Report::Init(pidfd)) => self.follow(pidfd)?,
                Ok(Report::Listener(listener)) => self.deliver(listener)?,
                Ok(Report::Ready) => self.ready = true,
                Ok(Report::Failed(failure)) => return Err(failure),
                Ok(Report::End) if self.ready => return Ok(Stage::Running),
                Ok(Report::End) => return Err(ended_early(self.pid)),
                Err(Errno::AGAIN) => self.wait().map_err(failed)?,
                Err(Errno::INTR) => {}
                Err(errno) => return Err(failed(errno)),
            }
        }
    }

    fn deliver(&self, listener: OwnedFd) -> Result<(), Failure> {
        let to = self.listener.as_ref().ok_or_else(|| Failure::plan("start", "seccomp listener", "missing"));
        let (to, init) = to?;
        listener::deliver(to, listener, self.pid, *init)?;
        self.go()
    }

    fn wait(&self) -> Result<(), Errno> {
        match poll(&mut [PollFd::new(&self.status, PollFlags::IN)], None) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(errno) => Err(errno),
        }
    }

    /// Takes the second process in the first one's place, which ends.
    fn follow(&mut self, pidfd: OwnedFd) -> Result<(), Failure> {
        let first = i32::try_from(self.pid).ok().and_then(Pid::from_raw);
        rustix::process::waitpid(first, WaitOptions::empty()).in_shim("wait for the helper", self.pid)?;
        self.pid = pid_of(pidfd.as_fd()).in_shim("find the container's process", "")?;
        self.pidfd = Some(pidfd);
        Ok(())
    }
}

/// The number of the process behind a pidfd, in the caller's pid namespace.
pub(crate) fn pid_of(pidfd: BorrowedFd<'_>) -> Result<u32, Errno> {
    let info = cgroup::read_file(Path::new(&format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd())))?;
    let info = String::from_utf8_lossy(&info);
    let pid = info.lines().find_map(|line| line.strip_prefix("Pid:")?.trim().parse().ok());
    // -1 of a process that has ended.
    pid.ok_or(Errno::SRCH)
}
