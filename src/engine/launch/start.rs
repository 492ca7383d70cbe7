//! Starts a container: everything the shim does before and at the fork of its init.

use podwright_plan::wire::ContainerPlan;

use crate::failure::Failure;
use crate::pending::Pending;
use crate::pod::Pod;

/// Makes the container's cgroups, forks its init into them and returns at once.
///
/// # Errors
/// When the plan cannot be followed, a cgroup cannot be made, or the kernel refuses the fork. Cgroup directories made by
/// this call are removed again then.
pub fn start(_pod: &Pod, _plan: &ContainerPlan) -> Result<Pending, Failure> {
    todo!()
}
