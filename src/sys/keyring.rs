//! Session keyrings: what a process finds its keys in.

use std::ffi::CStr;

use rustix::io::Errno;

use crate::answer;

const KEYCTL_JOIN_SESSION_KEYRING: libc::c_int = 1;
const KEYCTL_SETPERM: libc::c_int = 5;
/// What the kernel gives a new session keyring (all to who has it; view, read and link to its owner), and search for the
/// owner's other processes (`KEY_USR_SEARCH`): they find it by its name.
const RIGHTS: u32 = 0x3f1b_0000;

/// Gives the calling process the session keyring of that name, which is made if its user namespace has none that it may
/// search.
///
/// # Errors
/// `ENOSYS` on a kernel without keys, `EDQUOT` when the user has too many.
pub fn join(name: &CStr) -> Result<(), Errno> {
    // SAFETY: the name ends with its NUL and lives across the call.
    let key = answer(unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, name.as_ptr()) })?;
    // SAFETY: the call takes numbers, no pointers.
    match answer(unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_SETPERM, key, RIGHTS) }) {
        // It was there, and is another user's.
        Err(Errno::ACCESS) => Ok(()),
        result => result.map(|_| ()),
    }
}
