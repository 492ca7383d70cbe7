//! A power cut for one file system, for tests.

use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::Errno;

use crate::answer;

/// `EXT4_IOC_SHUTDOWN`, which XFS and F2FS know too: `_IOR('X', 125, __u32)`.
const SHUTDOWN: u32 = 0x8004_587D;
/// Nothing more is written, not even what the journal has in memory.
static NO_LOG_FLUSH: u32 = 2;

/// Takes the power from the file system that `inside` is on: what is not synced is lost, every further write fails, and
/// unmounting is all that is left to do.
///
/// # Errors
/// The kernel's: `EPERM` without `CAP_SYS_ADMIN`, `ENOTTY` where the file system cannot do it.
pub fn cut(inside: BorrowedFd<'_>) -> Result<(), Errno> {
    // SAFETY: the kernel reads one 32-bit number, which outlives the call.
    answer(unsafe { libc::ioctl(inside.as_raw_fd(), SHUTDOWN as _, &raw const NO_LOG_FLUSH) }.into())?;
    Ok(())
}
