//! Signals that a process with one loop ignores, waits for and sends.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::io::Errno;

use crate::answer;

fn errno(error: nix::Error) -> Errno {
    Errno::from_raw_os_error(error as i32)
}

/// Ignores a signal. A program that this process executes inherits that, unless its launcher sets the default again.
///
/// # Errors
/// `EINVAL` for SIGKILL and SIGSTOP.
pub fn ignore(signal: Signal) -> Result<(), Errno> {
    let action = SigAction::new(SigHandler::SigIgn, SaFlags::empty(), SigSet::empty());
    // SAFETY: SIG_IGN runs no code of ours at a time that was not chosen, which is all that a handler could break.
    unsafe { sigaction(signal, &action) }.map_err(errno)?;
    Ok(())
}

/// Sends a signal by number, real-time signals among them, to the process that a pidfd refers to.
///
/// # Errors
/// `EINVAL` for a number that is no signal, `ESRCH` when the process has been reaped.
pub fn send(pidfd: BorrowedFd<'_>, signal: i32) -> Result<(), Errno> {
    let info = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: the kernel reads no memory when the information is a null pointer, and the descriptor is borrowed for the
    // call, so it cannot have been closed and given to something else.
    answer(unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, info, 0) })?;
    Ok(())
}

/// Becomes readable when a child of this process has ended.
#[derive(Debug)]
pub struct ChildExits(SignalFd);

impl ChildExits {
    /// Blocks SIGCHLD in the calling thread, which must be the process's only one, and opens a descriptor for it.
    ///
    /// # Errors
    /// The kernel's, when it has no descriptor left.
    pub fn open() -> Result<Self, Errno> {
        let mut set = SigSet::empty();
        set.add(Signal::SIGCHLD);
        set.thread_block().map_err(errno)?;
        let fd = SignalFd::with_flags(&set, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC).map_err(errno)?;
        Ok(Self(fd))
    }

    /// Takes the notice back. Wait for children afterwards, in a loop: one notice may stand for several of them.
    ///
    /// # Errors
    /// The kernel's; none are known for an open descriptor.
    pub fn acknowledge(&self) -> Result<(), Errno> {
        while self.0.read_signal().map_err(errno)?.is_some() {}
        Ok(())
    }
}

impl AsFd for ChildExits {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
