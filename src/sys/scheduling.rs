//! How the kernel schedules the calling thread: policy, processors, and the priority of its I/O.

use rustix::io::Errno;

use crate::answer;

/// More processors than any kernel is built for (`NR_CPUS` is 8192 at most), in bytes of a mask.
const MASK: usize = 8192 / 8;
/// `IOPRIO_WHO_PROCESS`
const WHO_PROCESS: libc::c_int = 1;

/// A policy and what belongs to it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Policy {
    /// `SCHED_*`
    pub number: u32,
    /// `SCHED_FLAG_*`
    pub flags: u64,
    /// Of `SCHED_OTHER` and `SCHED_BATCH`, -20 to 19.
    pub nice: i32,
    /// Of `SCHED_FIFO` and `SCHED_RR`, 1 to 99.
    pub priority: u32,
    /// Of `SCHED_DEADLINE`, in nanoseconds, as the next two.
    pub runtime: u64,
    /// When a period's runtime must be over.
    pub deadline: u64,
    /// The time between two activations; 0: the deadline.
    pub period: u64,
}

/// `struct sched_attr` as of Linux 5.3 (`SCHED_ATTR_SIZE_VER1`).
#[repr(C)]
struct Attributes {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    runtime: u64,
    deadline: u64,
    period: u64,
    util_min: u32,
    util_max: u32,
}

/// Sets the calling thread's policy.
///
/// # Errors
/// `EPERM` without `CAP_SYS_NICE` where the policy takes it, `EINVAL` for values that do not go together, `EBUSY` when a
/// deadline cannot be kept beside those that were promised already.
pub fn set_policy(policy: Policy) -> Result<(), Errno> {
    let attributes = Attributes {
        size: size_of::<Attributes>() as u32,
        policy: policy.number,
        flags: policy.flags,
        nice: policy.nice,
        priority: policy.priority,
        runtime: policy.runtime,
        deadline: policy.deadline,
        period: policy.period,
        util_min: 0,
        util_max: 0,
    };
    let (this_thread, no_flags): (libc::pid_t, libc::c_uint) = (0, 0);
    // SAFETY: the structure has the size that it states and lives across the call, which only reads it.
    answer(unsafe { libc::syscall(libc::SYS_sched_setattr, this_thread, &raw const attributes, no_flags) })?;
    Ok(())
}

/// Binds the calling thread to processors, bit n of byte n / 8 for processor n. What the cgroup does not give is left out
/// by the kernel.
///
/// # Errors
/// `EINVAL` when nothing is left.
pub fn set_affinity(mask: &[u8]) -> Result<(), Errno> {
    // The kernel takes whole words.
    let mut words = vec![0_u8; mask.len().next_multiple_of(size_of::<libc::c_ulong>())];
    words[..mask.len()].copy_from_slice(mask);
    let this_thread: libc::pid_t = 0;
    // SAFETY: the bytes live across the call, which reads no more of them than their number.
    answer(unsafe { libc::syscall(libc::SYS_sched_setaffinity, this_thread, words.len(), words.as_ptr()) })?;
    Ok(())
}

/// Lets the calling thread run on every processor that its cgroup gives.
///
/// # Errors
/// The kernel's; none is expected.
pub fn reset_affinity() -> Result<(), Errno> {
    set_affinity(&[0xff; MASK])
}

/// Sets the calling thread's I/O priority: class in the bits from 13 up, level in those below.
///
/// # Errors
/// `EPERM` for the real-time class without `CAP_SYS_NICE`, `EINVAL` for an unknown class or level.
pub fn set_io_priority(value: u32) -> Result<(), Errno> {
    let this_thread: libc::c_int = 0;
    // SAFETY: the call takes numbers, no pointers.
    answer(unsafe { libc::syscall(libc::SYS_ioprio_set, WHO_PROCESS, this_thread, value) })?;
    Ok(())
}
