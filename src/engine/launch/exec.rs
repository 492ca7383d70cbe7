//! Runs another process in a running container.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::PathBuf;

use podwright_plan::wire::{ContainerPlan, ExecPlan, NamespaceMode};

use crate::failure::Failure;
use crate::pending::Pending;
use crate::pod::Pod;

/// What has to be remembered of a container's plan to exec into it, kill it and clean up after it.
#[derive(Debug, Clone)]
pub struct Facts {
    pid: NamespaceMode,
    unified: Option<PathBuf>,
    join: Vec<PathBuf>,
    exec_parent: PathBuf,
    dirs: Vec<PathBuf>,
    memory_events: Option<PathBuf>,
}

impl Facts {
    /// Keeps the facts of a plan.
    pub fn of(plan: &ContainerPlan) -> Self {
        todo!()
    }

    /// The cgroup that holds every process of the container and can be killed whole; `None` when the plan names none.
    pub fn kill_dir(&self) -> Option<&std::path::Path> {
        todo!()
    }

    /// The cgroup that holds an exec's processes, below [`Facts::kill_dir`]; removed by the caller after the exec's end.
    pub fn exec_dir(&self, exec_id: &str) -> Option<PathBuf> {
        todo!()
    }

    /// Every cgroup directory that the plan made for the container itself, for [`crate::cgroup::remove`].
    pub fn cgroup_dirs(&self) -> &[PathBuf] {
        &self.dirs
    }

    /// Where the container's OOM kills are counted, for [`crate::cgroup::oom_kills`].
    pub fn memory_events(&self) -> Option<&std::path::Path> {
        self.memory_events.as_deref()
    }
}

/// A running container.
#[derive(Debug, Clone, Copy)]
pub struct Target<'a> {
    /// The container's init.
    pub pidfd: BorrowedFd<'a>,
    /// What was kept of its plan.
    pub facts: &'a Facts,
}

/// The descriptors that become an exec's standard streams; what is absent is /dev/null. Not used with a terminal.
#[derive(Debug, Default)]
pub struct ExecStdio {
    /// Becomes descriptor 0.
    pub stdin: Option<OwnedFd>,
    /// Becomes descriptor 1.
    pub stdout: Option<OwnedFd>,
    /// Becomes descriptor 2.
    pub stderr: Option<OwnedFd>,
}

/// Forks a process into the container's namespaces and a cgroup of its own ([`Facts::exec_dir`]), and returns at once.
///
/// The descriptors are closed in the calling process. With `process.terminal` the console's master comes by
/// [`Pending::stdio`].
///
/// # Errors
/// When the plan cannot be followed, the cgroup cannot be made, the container is gone (`ESRCH`), or the kernel refuses
/// the fork.
pub fn exec(_pod: &Pod, _container: Target<'_>, _plan: &ExecPlan, _stdio: ExecStdio) -> Result<Pending, Failure> {
    todo!()
}
