//! Signal state that survives an exec: what is ignored and what is blocked.

use nix::sys::signal::SigSet;
use rustix::io::Errno;

/// The kernel's number of signals.
const LAST: libc::c_int = 64;

/// Gives every signal its default action and unblocks all: what a program expects to start with.
///
/// # Errors
/// The kernel's; none is expected.
pub fn reset() -> Result<(), Errno> {
    for signal in 1..=LAST {
        if signal == libc::SIGKILL || signal == libc::SIGSTOP {
            continue;
        }
        // SAFETY: the default action runs no code of ours, so no handler's requirement can be broken. The C library refuses
        // the signals that it keeps for itself; those are never ignored, so an exec resets them.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    SigSet::empty().thread_set_mask().map_err(|errno| Errno::from_raw_os_error(errno as i32))
}
