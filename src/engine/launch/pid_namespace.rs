//! Forks into a pid namespace that is not the caller's: a process never changes its own, only that of its children.

use std::os::fd::AsFd;

use podwright_sys::clone::{Child, Fork};
use rustix::process::Signal;
use rustix::thread::{LinkNameSpaceType, ThreadNameSpaceType, move_into_link_name_space, move_into_thread_name_spaces};

use crate::failure::{Failure, Named};
use crate::namespaces::PidNamespace;
use crate::procfs::Procfs;

/// Forks into the pid namespace. The kernel refuses mostly for the cgroup: `subject` names it.
pub(crate) fn fork(
    namespace: PidNamespace<'_>,
    fork: &Fork<'_>,
    subject: &str,
    child: impl FnOnce() -> i32,
) -> Result<Child, Failure> {
    let of = match namespace {
        PidNamespace::Inherited => return fork.spawn(child).in_shim("fork", subject),
        PidNamespace::New => return Fork { new_pid_namespace: true, ..*fork }.spawn(child).in_shim("fork", subject),
        PidNamespace::Of(of) => of,
    };
    // The one that the caller's children are in, not the caller.
    let kind = "pid_for_children";
    let home = Procfs::open().and_then(|procfs| procfs.namespace(kind)).in_shim("open namespace", kind)?;
    move_into_thread_name_spaces(of, ThreadNameSpaceType::PROCESS_ID).in_shim("enter the pid namespace", "")?;
    let forked = fork.spawn(child).in_shim("fork", subject);
    let returned = move_into_link_name_space(home.as_fd(), Some(LinkNameSpaceType::ProcessID))
        .in_shim("return to the pid namespace", "");
    if let (Err(_), Ok(child)) = (&returned, &forked) {
        // Nobody would know of it; that it is gone already is no matter.
        let _ = rustix::process::pidfd_send_signal(&child.pidfd, Signal::KILL);
    }
    returned.and(forked)
}
