//! What a pod's containers share: the namespaces, the tmpfs at /dev/shm, and the reaper of a shared pid namespace.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::sched::CloneFlags;
use podwright_plan::wire::{Cause, NamespaceMode, PodPlan};
use podwright_sys::clone::Child;
use rustix::io::Errno;
use rustix::process::{DumpableBehavior, Signal, set_dumpable_behavior};

use crate::failure::{Failure, Named};
use crate::procfs::Procfs;
use crate::shared_mounts::SharedMounts;
use crate::sysctl::{self, Own};
use crate::{cgroup, reaper};

/// A pod that was set up; the shim is inside its network, IPC and UTS namespaces.
#[derive(Debug)]
pub struct Pod {
    netns: OwnedFd,
    own: Own,
    mounts: Option<SharedMounts>,
    reaper: Option<Child>,
}

impl Pod {
    /// Moves the calling process into a new pod: its cgroup, oom score and namespaces, then hostname, sysctls, the
    /// loopback device, the shared /dev/shm and the reaper.
    ///
    /// The caller stays in the host's mount namespace, and nothing appears in that namespace's mount table. The process
    /// is non-dumpable from here on, and so is every process forked from it until it executes a program. Descriptors 0, 1
    /// and 2 must be open (on /dev/null at least) from here on.
    ///
    /// # Errors
    /// Names the failed step. The caller is then half inside the pod and should end.
    pub fn set_up(plan: &PodPlan) -> Result<Self, Failure> {
        // A container's process must not trace, or open by /proc, what is forked into its namespaces before it has become
        // the user's program. Forks inherit this, so there is no moment without it.
        set_dumpable_behavior(DumpableBehavior::NotDumpable).in_shim("become non-dumpable", "")?;
        if let Some(group) = &plan.cgroup {
            cgroup::make(group)?;
            let unified = (!group.unified.is_empty()).then_some(&group.unified);
            unified.into_iter().chain(&group.join).try_for_each(|dir| cgroup::join(Path::new(dir), Cause::Internal))?;
        }
        adjust_oom_score(plan.oom_score_adj).in_shim("set oom_score_adj", plan.oom_score_adj)?;
        let own = isolate(plan)?;
        sysctl::write_all(&plan.sysctls, own, Cause::Internal)?;
        let mounts = (plan.shm_size > 0 || plan.shared_pid).then(|| SharedMounts::make(plan.shm_size)).transpose()?;
        let reaper = match &mounts {
            Some(mounts) if plan.shared_pid => Some(reaper::spawn(mounts)?),
            _ => None,
        };
        Ok(Self { netns: namespace("net")?, own, mounts: if plan.shm_size > 0 { mounts } else { None }, reaper })
    }

    /// The pod's network namespace (the host's when the plan says so).
    pub fn netns(&self) -> BorrowedFd<'_> {
        self.netns.as_fd()
    }

    /// The init of the pod's shared pid namespace as the host numbers it, `None` when there is no such namespace.
    ///
    /// It is a child of the calling process; its end is the end of every process in the namespace.
    pub fn reaper_pid(&self) -> Option<u32> {
        self.reaper.as_ref().map(|child| child.pid)
    }

    /// Ends the reaper, and with it every process in the shared pid namespace. The caller reaps it. Harmless when there is
    /// none, or it has ended.
    ///
    /// # Errors
    /// The kernel's; none is expected.
    pub fn kill_reaper(&self) -> Result<(), Failure> {
        let Some(reaper) = &self.reaper else { return Ok(()) };
        match rustix::process::pidfd_send_signal(&reaper.pidfd, Signal::KILL) {
            Ok(()) | Err(Errno::SRCH) => Ok(()),
            Err(errno) => Err(Failure::internal("kill the pid namespace's init", reaper.pid, errno)),
        }
    }

    pub(crate) fn shared_pid(&self) -> Option<BorrowedFd<'_>> {
        self.reaper.as_ref().map(|reaper| reaper.pidfd.as_fd())
    }

    pub(crate) fn own(&self) -> Own {
        self.own
    }

    pub(crate) fn mounts(&self) -> Option<&SharedMounts> {
        self.mounts.as_ref()
    }
}

/// Leaves the host's namespaces as asked, and makes the new ones usable.
fn isolate(plan: &PodPlan) -> Result<Own, Failure> {
    let private = |mode: NamespaceMode| mode == NamespaceMode::NamespacePrivate;
    let own = Own { network: private(plan.network()), ipc: private(plan.ipc()), uts: private(plan.uts()) };
    let mut flags = CloneFlags::empty();
    flags.set(CloneFlags::CLONE_NEWNET, own.network);
    flags.set(CloneFlags::CLONE_NEWIPC, own.ipc);
    flags.set(CloneFlags::CLONE_NEWUTS, own.uts);
    nix::sched::unshare(flags).in_shim("unshare namespaces", format!("{flags:?}"))?;
    if own.uts && !plan.hostname.is_empty() {
        nix::unistd::sethostname(&plan.hostname).in_shim("set hostname", &plan.hostname)?;
    }
    if own.network {
        podwright_sys::loopback::up().in_shim("set network device up", "lo")?;
    }
    Ok(own)
}

/// Sets the calling process's badness for the OOM killer. Lowering it takes `CAP_SYS_RESOURCE`, which a host may have
/// kept from us: the default score is no reason not to run.
pub(crate) fn adjust_oom_score(score: i32) -> Result<(), Errno> {
    match Procfs::open()?.write("self/oom_score_adj", score.to_string().as_bytes()) {
        Err(Errno::ACCESS | Errno::PERM) => Ok(()),
        result => result,
    }
}

fn namespace(kind: &str) -> Result<OwnedFd, Failure> {
    Procfs::open().and_then(|procfs| procfs.namespace(kind)).in_shim("open namespace", kind)
}
