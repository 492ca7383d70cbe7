//! Descriptors by range: what a forked process must not hold.

use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::Errno;

use crate::answer;

/// The first descriptor that is not a standard stream.
const FIRST: u32 = 3;

/// Sets close-on-exec on every descriptor above 2, but not on the first `keep` of them.
///
/// # Errors
/// The kernel's; none is expected from 5.11 on.
pub fn close_on_exec_above_stdio(keep: u32) -> Result<(), Errno> {
    range(FIRST.saturating_add(keep), u32::MAX, libc::CLOSE_RANGE_CLOEXEC)
}

/// Closes every descriptor above 2 that is not in `keep` nor one of the first `keep_first`. Only for a forked child: there, the owners of what it closes are
/// copies that must never be used or dropped.
///
/// # Errors
/// The kernel's; none is expected.
pub fn close_all_but(keep: &[BorrowedFd<'_>], keep_first: u32) -> Result<(), Errno> {
    let mut from = FIRST.saturating_add(keep_first);
    let mut kept: Vec<u32> = keep.iter().map(|fd| fd.as_raw_fd().cast_unsigned()).filter(|fd| *fd >= from).collect();
    kept.sort_unstable();
    for fd in kept {
        if fd > from {
            range(from, fd - 1, 0)?;
        }
        from = fd + 1;
    }
    range(from, u32::MAX, 0)
}

fn range(first: u32, last: u32, flags: libc::c_uint) -> Result<(), Errno> {
    // SAFETY: the call touches no memory. With CLOEXEC it closes nothing now; without, it is reached only through
    // `close_all_but`, whose contract is that no living owner uses what it closes.
    answer(unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) })?;
    Ok(())
}
