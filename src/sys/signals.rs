//! Signal state that survives an exec: what is ignored and what is blocked.

use nix::sys::signal::SigSet;
use rustix::io::Errno;

use crate::answer;

/// The kernel's number of signals.
const LAST: libc::c_int = 64;
/// Bytes of the kernel's signal set.
const SET: usize = 8;

/// The kernel's `struct sigaction` with the default action: zero in every field, in whatever order an architecture has
/// handler, flags, restorer and mask.
static DEFAULT: [u64; 4] = [0; 4];

/// Gives every signal its default action and unblocks all: what a program expects to start with.
///
/// # Errors
/// The kernel's; none is expected.
pub fn reset() -> Result<(), Errno> {
    for signal in (1..=LAST).filter(|signal| ![libc::SIGKILL, libc::SIGSTOP].contains(signal)) {
        let no_old_action = std::ptr::null_mut::<libc::c_void>();
        // SAFETY: the kernel reads one action from a static of its size; the default action runs no code of ours, so no
        // handler's requirement can be broken. The raw call, because the C library refuses the two signals that it keeps
        // for itself: the parent may have been started with them ignored.
        answer(unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, DEFAULT.as_ptr(), no_old_action, SET) })?;
    }
    SigSet::empty().thread_set_mask().map_err(|errno| Errno::from_raw_os_error(errno as i32))
}
