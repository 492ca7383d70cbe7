//! Starts a container: what the shim does before and at the fork of its init.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use podwright_plan::wire::{CgroupPlan, ContainerPlan, NamespaceMode};
use podwright_sys::clone::{Child, Fork};

use crate::failure::{Failure, Named};
use crate::init::Init;
use crate::namespaces::{Namespaces, PidNamespace};
use crate::pending::{Pending, Stdio};
use crate::pod::Pod;
use crate::program::Program;
use crate::status::{self, Reporter};
use crate::streams::Streams;
use crate::{cgroup, pid_namespace};

/// Makes the container's cgroups, forks its init into them and returns at once.
///
/// # Errors
/// When the plan cannot be followed, a cgroup cannot be made, or the kernel refuses the fork. Cgroup directories made by
/// this call are removed again then.
pub fn start(pod: &Pod, plan: &ContainerPlan) -> Result<Pending, Failure> {
    let missing = |field: &str| Failure::plan("start", field, "missing");
    let process = plan.process.as_ref().ok_or_else(|| missing("process"))?;
    let rootfs = plan.rootfs.as_ref().ok_or_else(|| missing("rootfs"))?;
    let program = Program::of(process)?;
    let pid_namespace = match plan.pid() {
        NamespaceMode::NamespacePod => {
            PidNamespace::Of(pod.shared_pid().ok_or_else(|| missing("the pod's pid namespace"))?)
        }
        NamespaceMode::NamespacePrivate => PidNamespace::New,
        NamespaceMode::NamespaceHost => PidNamespace::Inherited,
    };
    let (streams, stdio) = match process.terminal {
        true => (Streams::default(), Stdio::AwaitsConsole),
        false => Streams::pipes(plan.stdin).in_shim("make pipes", "")?,
    };
    let (receiver, reporter) = status::pair().in_shim("make status socket", "")?;
    let group = plan.cgroup.clone().unwrap_or_default();
    let made = cgroup::make(&group)?;
    let namespaces = Namespaces::in_pod(plan, pod.own());
    let shared = pod.mounts();
    let init = Init { shared, namespaces, plan, process, rootfs, program, streams, reporter, standalone: None };
    match fork(&group, pid_namespace, &init) {
        Ok(child) => {
            let init = child.pid;
            Ok(Pending::new(child, stdio, receiver).with_listener(process.seccomp_listener.clone(), init))
        }
        Err(failure) => {
            made.undo();
            Err(failure)
        }
    }
}

fn fork(group: &CgroupPlan, pid_namespace: PidNamespace<'_>, init: &Init<'_>) -> Result<Child, Failure> {
    let cgroup = open_unified(&group.unified)?;
    let keep: Vec<_> = init.descriptors().collect();
    let fork = Fork { cgroup: cgroup.as_ref().map(AsFd::as_fd), keep: &keep, ..Fork::default() };
    pid_namespace::fork(pid_namespace, &fork, &group.unified, || init.run())
}

/// The v2 directory to clone into, `None` on a pure v1 host.
pub(crate) fn open_unified(dir: &str) -> Result<Option<OwnedFd>, Failure> {
    if dir.is_empty() {
        return Ok(None);
    }
    cgroup::open_dir(Path::new(dir)).in_shim("open cgroup", dir).map(Some)
}

/// Ends a forked process that has not become its program: with the reason told to the shim.
pub(crate) fn tell(reporter: &Reporter, failure: Failure) -> i32 {
    // When even that fails, the shim learns from the end of file that the process is gone.
    match reporter.failed(failure) {
        Ok(()) => 1,
        Err(_) => 2,
    }
}
