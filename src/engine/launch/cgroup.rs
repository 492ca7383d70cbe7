//! Control groups as plans name them: made, changed, killed, removed, and asked for OOM kills.

use std::path::Path;

use podwright_plan::wire::CgroupDir;
use rustix::io::Errno;

use crate::failure::Failure;

/// Writes a container's new limits, all or nothing: when a write fails, the values before it come back.
///
/// # Errors
/// Names the file and the kernel's answer; the directories hold their earlier values then.
pub fn update(_dirs: &[CgroupDir]) -> Result<(), Failure> {
    todo!()
}

/// Sends SIGKILL to every process in a cgroup and below it, in one sweep that a forking process cannot outrun.
///
/// # Errors
/// The kernel's. A directory that is missing has no processes and is no error.
pub fn kill(_dir: &Path) -> Result<(), Errno> {
    todo!()
}

/// Removes a cgroup directory with all below it. The kernel refuses with `EBUSY` for a moment after the last process
/// has died, so a few tries are made, for 20 ms at most.
///
/// # Errors
/// `EBUSY` when processes are still there: try again later. A missing directory is no error.
pub fn remove(_dir: &Path) -> Result<(), Errno> {
    todo!()
}

/// Reads how many processes the kernel's OOM killer has killed in a cgroup, from `memory.events` (v2; its `.local`
/// sibling is preferred, which leaves out what happened in cgroups below) or `memory.oom_control` (v1).
///
/// # Errors
/// The kernel's, `ENOENT` among them once the cgroup is gone.
pub fn oom_kills(_file: &Path) -> Result<u64, Errno> {
    todo!()
}
