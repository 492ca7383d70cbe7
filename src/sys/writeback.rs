//! Writing a file's pages to disk early, so that a later sync finds less to do.

use std::os::fd::{AsFd, AsRawFd};

use rustix::io::Errno;

use crate::answer;

/// Starts to write a file's pages to disk and does not wait for it. Nothing is durable by this: that takes a sync.
///
/// # Errors
/// The kernel's: a failed write, or a file without pages of its own (a pipe, a device).
pub fn start(file: impl AsFd) -> Result<(), Errno> {
    let file = file.as_fd().as_raw_fd();
    // SAFETY: the call touches no memory of ours, and the descriptor is borrowed until it returns. Offset and length 0
    // mean the whole file.
    answer(unsafe { libc::sync_file_range(file, 0, 0, libc::SYNC_FILE_RANGE_WRITE) }.into())?;
    Ok(())
}
