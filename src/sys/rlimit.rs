//! Resource limits by the kernel's number.

use rustix::io::Errno;

use crate::answer;

/// Sets the calling process's limit of `resource` (`RLIMIT_*`); `u64::MAX` is infinity.
///
/// # Errors
/// `EPERM` when the hard limit would rise without `CAP_SYS_RESOURCE`, `EINVAL` for a soft limit above the hard one or an
/// unknown resource.
pub fn set(resource: u32, soft: u64, hard: u64) -> Result<(), Errno> {
    let limit = libc::rlimit64 { rlim_cur: soft, rlim_max: hard };
    let this_process: libc::pid_t = 0;
    let no_old_value = std::ptr::null_mut::<libc::rlimit64>();
    // SAFETY: `limit` lives across the call; a null pointer asks for no old value.
    answer(unsafe { libc::syscall(libc::SYS_prlimit64, this_process, resource, &raw const limit, no_old_value) })?;
    Ok(())
}
