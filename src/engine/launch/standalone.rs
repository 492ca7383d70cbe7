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

use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use podwright_plan::wire::{CgroupPlan, ContainerPlan, SeccompListener};
use podwright_sys::clone::Fork;
use rustix::process::{DumpableBehavior, set_dumpable_behavior};

use crate::cgroup::{self, Made};
use crate::door::{self, Door};
use crate::failure::{Failure, Named};
use crate::init::Init;
use crate::namespaces::Namespaces;
use crate::pid_namespace;
use crate::program::Program;
use crate::progress::Progress;
use crate::start::open_unified;
use crate::status;
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

/// A container that was forked.
#[derive(Debug)]
pub struct Creating {
    /// The container's process, a child of the caller; it waits for a first [`Progress::go`].
    pub progress: Progress,
    made: Made,
}

impl Creating {
    /// Makes the cgroups of a plan that a unit of systemd is the first of, before the process's first word to go on.
    /// systemd has put the process into the unit, unless that is a slice, which takes none: then it is put there here.
    ///
    /// # Errors
    /// When a cgroup cannot be made or limited; what was made is removed again then.
    pub fn make_cgroups(&mut self, group: &CgroupPlan) -> Result<(), Failure> {
        self.made = cgroup::make(group)?;
        match &group.systemd {
            Some(unit) if unit.name.ends_with(".slice") && !group.unified.is_empty() => {
                cgroup::place(Path::new(&group.unified), self.progress.pid())
            }
            _ => Ok(()),
        }
    }

    /// Removes the cgroups that were made for the container, after it has failed and was reaped.
    pub fn undo(self) {
        self.made.undo();
    }
}

/// Makes the container's cgroups and forks its init into them; where a unit of systemd is to be made for it, the fork stays
/// where the caller is, and [`Creating::make_cgroups`] is the caller's to call. The calling process has one thread and is
/// non-dumpable from here on; the container's process inherits its standard streams, or gets a terminal of the container's.
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
    // systemd puts a process into a unit that is there.
    let (made, unified) = match group.systemd {
        Some(_) => (Made::default(), String::new()),
        None => (cgroup::make(&group)?, group.unified),
    };
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
    let forked = open_unified(&unified).and_then(|cgroup| {
        let keep: Vec<_> = init.descriptors().collect();
        let fork = Fork {
            cgroup: cgroup.as_ref().map(AsFd::as_fd),
            keep: &keep,
            keep_first: process.preserve_fds,
            ..Fork::default()
        };
        pid_namespace::fork(init.first_pid(), &fork, &unified, || init.run())
    });
    match forked {
        Ok(child) => Ok(Creating { progress: Progress::of_child(child, status), made }),
        Err(failure) => {
            made.undo();
            Err(failure)
        }
    }
}

/// Starts a created container by its state directory: [`Stage::Running`] or a failure is what comes last. Where its system
/// call filter asks, `listener` is who is asked.
///
/// # Errors
/// `ECONNREFUSED` when the container's process is gone, `ENOENT` when it was started before.
///
/// [`Stage::Running`]: crate::Stage::Running
pub fn release(directory: BorrowedFd<'_>, pid: u32, listener: Option<&SeccompListener>) -> Result<Progress, Failure> {
    Ok(Progress::of_other(pid, door::knock(directory)?).with_listener(listener.cloned(), pid))
}
