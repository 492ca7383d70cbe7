//! The one who is asked by a seccomp filter, for tests: takes calls off a listener and says what becomes of them.

use std::os::fd::{AsFd, AsRawFd};

use rustix::io::Errno;

use crate::answer;

/// `SECCOMP_IOCTL_NOTIF_RECV`
const RECEIVE: libc::c_ulong = 0xc050_2100;
/// `SECCOMP_IOCTL_NOTIF_SEND`
const SEND: libc::c_ulong = 0xc018_2101;
/// `SECCOMP_USER_NOTIF_FLAG_CONTINUE`
const CONTINUE: u32 = 1;

/// `struct seccomp_notif`: a call that waits for an answer.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct Call {
    id: u64,
    /// Of the calling process as the supervisor's pid namespace numbers it.
    pub pid: u32,
    flags: u32,
    /// The call's number.
    pub number: i32,
    arch: u32,
    instruction_pointer: u64,
    args: [u64; 6],
}

/// What becomes of a call.
#[derive(Debug, Clone, Copy)]
pub enum Verdict {
    /// The kernel does it.
    Continue,
    /// It fails.
    Fail(Errno),
}

/// `struct seccomp_notif_resp`
#[repr(C)]
struct Response {
    id: u64,
    value: i64,
    error: i32,
    flags: u32,
}

/// Takes the next call; waits for one.
///
/// # Errors
/// `ENOENT` when the caller was killed meanwhile.
pub fn receive(listener: impl AsFd) -> Result<Call, Errno> {
    let mut call = Call::default();
    // SAFETY: the kernel writes a `struct seccomp_notif`, whose layout `Call` has, into one that lives across the call.
    answer(unsafe { libc::ioctl(listener.as_fd().as_raw_fd(), RECEIVE as _, &raw mut call) }.into())?;
    Ok(call)
}

/// Answers a call.
///
/// # Errors
/// `ENOENT` when the caller is gone.
pub fn respond(listener: impl AsFd, call: Call, verdict: Verdict) -> Result<(), Errno> {
    let (error, flags) = match verdict {
        Verdict::Continue => (0, CONTINUE),
        Verdict::Fail(errno) => (-errno.raw_os_error(), 0),
    };
    let response = Response { id: call.id, value: 0, error, flags };
    // SAFETY: the kernel reads a `struct seccomp_notif_resp`, whose layout `Response` has, and which lives across the call.
    answer(unsafe { libc::ioctl(listener.as_fd().as_raw_fd(), SEND as _, &raw const response) }.into())?;
    Ok(())
}
