//! Containers outside of a pod: created by one command, which then ends, and started by another one.
//!
//! ```text
//! creator                          container's process
//!   fork                      ->     waits: its cgroup may be another's to give
//!   go                        ->     namespaces, root, mounts
//!                             <-     ENVIRONMENT: all is there but the pivot
//!   createRuntime hooks, go   ->     createContainer hooks, pivot
//!                             <-     CREATED
//!   ends                             waits at its door
//!
//! starter                          container's process
//!   go                        ->     startContainer hooks, user, capabilities, seccomp, execve
//!                             <-     READY, and the end of file
//! ```

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use podwright_plan::wire::{ContainerPlan, SeccompListener};
use podwright_sys::clone::Fork;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::{DumpableBehavior, Pid, WaitOptions, set_dumpable_behavior};

use crate::cgroup::{self, Made};
use crate::door::{self, Door};
use crate::failure::{Failure, Named};
use crate::init::Init;
use crate::listener;
use crate::namespaces::Namespaces;
use crate::pending::ended_early;
use crate::pid_namespace;
use crate::program::Program;
use crate::start::open_unified;
use crate::status::{self, Receiver, Report};
use crate::streams::Streams;

/// At which point of a container's life a hook is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Its environment is being made.
    Creating,
    /// It waits for its start.
    Created,
    /// Its program runs.
    Running,
    /// Its process has ended.
    Stopped,
}

/// What a container has in place of a pod.
#[derive(Clone, Copy)]
pub struct Standalone<'a> {
    /// Where it waits for its start.
    pub door: &'a Door,
    /// Writes the container's state as hooks are told it: its phase, and the pid of its process as the hook numbers it.
    pub state: &'a dyn Fn(Phase, u32) -> Vec<u8>,
}

/// A process on its way, seen by the one that waits for it.
#[derive(Debug)]
struct Progress {
    pid: u32,
    status: Receiver,
    ready: bool,
}

/// How far it has come.
#[derive(Debug)]
pub enum Stage {
    /// The master of its terminal.
    Console(OwnedFd),
    /// Namespaces, root and mounts are there; it waits for [`Creating::go`] to make them its own.
    Environment,
    /// It waits for its start.
    Created,
    /// The user's program has been executed.
    Running,
}

/// What the process itself says.
enum Step {
    /// Another one takes its place.
    Init(OwnedFd),
    /// What its system call filter asks by; it waits for the word that this was delivered.
    Listener(OwnedFd),
    Stage(Stage),
}

/// A container that was forked.
#[derive(Debug)]
pub struct Creating {
    /// The container's init as the caller's pid namespace numbers it. It is the caller's child.
    pub pid: u32,
    /// Refers to the process; readable once it has exited.
    pub pidfd: OwnedFd,
    progress: Progress,
    made: Made,
}

impl Creating {
    /// Lets the process go on: at first, and after [`Stage::Environment`].
    ///
    /// # Errors
    /// When it is gone; [`Creating::advance`] says why.
    pub fn go(&self) -> Result<(), Failure> {
        self.progress.status.go().in_shim("let the container's process go on", self.pid)
    }

    /// Waits for what comes next. The process may be another one afterwards, up to [`Stage::Environment`]: that of a user
    /// namespace is a second one.
    ///
    /// # Errors
    /// The step that failed in the process, which has exited by then or is about to.
    pub fn advance(&mut self) -> Result<Stage, Failure> {
        loop {
            match self.progress.advance()? {
                Step::Init(pidfd) => self.follow(pidfd)?,
                Step::Stage(stage) => return Ok(stage),
                // That is of its start.
                Step::Listener(_) => {
                    return Err(Failure::internal("read the launch status", self.pid, Errno::BADMSG));
                }
            }
        }
    }

    /// Takes the second process in the first one's place, which ends.
    fn follow(&mut self, pidfd: OwnedFd) -> Result<(), Failure> {
        let first = i32::try_from(self.pid).ok().and_then(Pid::from_raw);
        rustix::process::waitpid(first, WaitOptions::empty()).in_shim("wait for the helper", self.pid)?;
        self.pid = pid_of(&pidfd).in_shim("find the container's process", "")?;
        self.progress.pid = self.pid;
        self.pidfd = pidfd;
        Ok(())
    }

    /// Removes the cgroups that were made for the container, after it has failed and was reaped.
    pub fn undo(self) {
        self.made.undo();
    }
}

/// Makes the container's cgroups and forks its init into them. The calling process has one thread and is non-dumpable from
/// here on; the container's process inherits its standard streams, or gets a terminal of the container's.
///
/// # Errors
/// When the plan cannot be followed, a cgroup cannot be made, a namespace cannot be opened, or the kernel refuses the
/// fork. Nothing is left then.
pub fn create(plan: &ContainerPlan, standalone: Standalone<'_>) -> Result<Creating, Failure> {
    let missing = |field: &str| Failure::plan("create", field, "missing");
    let process = plan.process.as_ref().ok_or_else(|| missing("process"))?;
    let rootfs = plan.rootfs.as_ref().ok_or_else(|| missing("rootfs"))?;
    let program = Program::of(process)?;
    let namespaces = Namespaces::listed(plan)?;
    if rustix::process::geteuid().is_root() {
        // A process of a namespace that is joined must not trace, or open by /proc, what has not become the user's program
        // yet. Without root its own files of /proc would be closed to it: it does this as it enters.
        set_dumpable_behavior(DumpableBehavior::NotDumpable).in_shim("become non-dumpable", "")?;
    }
    let streams = match process.terminal {
        true => Streams::default(),
        false => Streams::inherited().in_shim("copy standard streams", "")?,
    };
    let (status, reporter) = status::pair().in_shim("make status socket", "")?;
    let group = plan.cgroup.clone().unwrap_or_default();
    let made = cgroup::make(&group)?;
    let init = Init {
        shared: None,
        namespaces,
        plan,
        process,
        rootfs,
        program,
        streams,
        reporter,
        standalone: Some(standalone),
    };
    let forked = open_unified(&group.unified).and_then(|cgroup| {
        let keep: Vec<_> = init.descriptors().collect();
        let fork = Fork {
            cgroup: cgroup.as_ref().map(AsFd::as_fd),
            keep: &keep,
            keep_first: process.preserve_fds,
            ..Fork::default()
        };
        pid_namespace::fork(init.first_pid(), &fork, &group.unified, || init.run())
    });
    match forked {
        Ok(child) => {
            let progress = Progress { pid: child.pid, status, ready: false };
            Ok(Creating { pid: child.pid, pidfd: child.pidfd, progress, made })
        }
        Err(failure) => {
            made.undo();
            Err(failure)
        }
    }
}

/// Starts a created container by its state directory, and waits until the user's program was executed. Where its system
/// call filter asks, `listener` is who is asked.
///
/// # Errors
/// `ECONNREFUSED` when the container's process is gone, `ENOENT` when it was started before, or the step that failed in
/// the process.
pub fn release(directory: BorrowedFd<'_>, pid: u32, listener: Option<&SeccompListener>) -> Result<(), Failure> {
    let mut progress = Progress { pid, status: door::knock(directory)?, ready: false };
    loop {
        match progress.advance()? {
            Step::Stage(Stage::Running) => return Ok(()),
            Step::Listener(descriptor) => {
                let to = listener.ok_or_else(|| Failure::plan("start", "seccomp listener", "missing"))?;
                listener::deliver(to, descriptor, pid, pid)?;
                progress.status.go().in_shim("start the container", pid)?;
            }
            Step::Stage(_) | Step::Init(_) => {}
        }
    }
}

/// The number of the process behind a pidfd, in the caller's pid namespace.
pub(crate) fn pid_of(pidfd: impl AsFd) -> Result<u32, Errno> {
    let info = cgroup::read_file(Path::new(&format!("/proc/self/fdinfo/{}", pidfd.as_fd().as_raw_fd())))?;
    let info = String::from_utf8_lossy(&info).into_owned();
    let pid = info.lines().find_map(|line| line.strip_prefix("Pid:")).and_then(|pid| pid.trim().parse().ok());
    // -1 of a process that has ended.
    pid.ok_or(Errno::SRCH)
}

impl Progress {
    fn advance(&mut self) -> Result<Step, Failure> {
        let failed = |errno| Failure::internal("read the launch status", self.pid, errno);
        loop {
            match self.status.receive() {
                Ok(Report::Console(master)) => return Ok(Step::Stage(Stage::Console(master))),
                Ok(Report::Environment) => return Ok(Step::Stage(Stage::Environment)),
                Ok(Report::Created) => return Ok(Step::Stage(Stage::Created)),
                Ok(Report::Init(pidfd)) => return Ok(Step::Init(pidfd)),
                Ok(Report::Listener(listener)) => return Ok(Step::Listener(listener)),
                Ok(Report::Ready) => self.ready = true,
                Ok(Report::Failed(failure)) => return Err(failure),
                Ok(Report::End) if self.ready => return Ok(Step::Stage(Stage::Running)),
                Ok(Report::End) => return Err(ended_early(self.pid)),
                Err(Errno::AGAIN) => {
                    poll(&mut [PollFd::new(&self.status, PollFlags::IN)], None)
                        .map(drop)
                        .or_else(interrupted)
                        .map_err(failed)?;
                }
                Err(errno) => interrupted(errno).map_err(failed)?,
            }
        }
    }
}

fn interrupted(errno: Errno) -> Result<(), Errno> {
    if errno == Errno::INTR { Ok(()) } else { Err(errno) }
}
