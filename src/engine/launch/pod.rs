//! What a pod's containers share: the namespaces, the tmpfs at /dev/shm, and the reaper of a shared pid namespace.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use podwright_plan::wire::PodPlan;

use crate::failure::Failure;

/// A pod that was set up; the shim is inside its network, IPC and UTS namespaces.
#[derive(Debug)]
pub struct Pod {
    netns: OwnedFd,
}

impl Pod {
    /// Moves the calling process into a new pod: its cgroup, oom score and namespaces, then hostname, sysctls, the
    /// loopback device, the shared /dev/shm and the reaper.
    ///
    /// The caller stays in the host's mount namespace, and nothing appears in that namespace's mount table. The process
    /// is non-dumpable from here on, and so is every process forked from it until it executes a program.
    ///
    /// # Errors
    /// Names the failed step. The caller is then half inside the pod and should end.
    pub fn set_up(_plan: &PodPlan) -> Result<Self, Failure> {
        todo!()
    }

    /// The pod's network namespace (the host's when the plan says so).
    pub fn netns(&self) -> BorrowedFd<'_> {
        self.netns.as_fd()
    }

    /// The init of the pod's shared pid namespace as the host numbers it, `None` when there is no such namespace.
    ///
    /// It is a child of the calling process; its end is the end of every process in the namespace.
    pub fn reaper_pid(&self) -> Option<u32> {
        todo!()
    }

    /// Ends the reaper, and with it every process in the shared pid namespace. The caller reaps it. Harmless when there is
    /// none, or it has ended.
    pub fn kill_reaper(&self) {
        todo!()
    }
}
