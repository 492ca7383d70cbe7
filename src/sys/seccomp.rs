//! Installs an assembled seccomp filter.

use std::os::fd::{FromRawFd, OwnedFd};

use rustix::io::Errno;

use crate::answer;

/// Bytes of one `struct sock_filter`.
const INSTRUCTION: usize = 8;
/// `SECCOMP_FILTER_FLAG_NEW_LISTENER`
const NEW_LISTENER: u32 = 1 << 3;

/// Puts the calling thread under a filter, for good. `program` is an array of `struct sock_filter` in this machine's byte
/// order, `flags` are `SECCOMP_FILTER_FLAG_*` that yield no descriptor.
///
/// # Errors
/// `EINVAL` for a malformed program, `EACCES` when the caller has neither `CAP_SYS_ADMIN` nor no_new_privs.
pub fn install(program: &[u8], flags: u32) -> Result<(), Errno> {
    set_filter(program, flags)?;
    Ok(())
}

/// As [`install`], and gives the descriptor on which the filter asks what to do. It is close-on-exec.
///
/// # Errors
/// As [`install`]'s; `EBUSY` when the thread is under a filter that asks already.
pub fn install_with_listener(program: &[u8], flags: u32) -> Result<OwnedFd, Errno> {
    let listener = set_filter(program, flags | NEW_LISTENER)?;
    let listener = libc::c_int::try_from(listener).expect("a descriptor is an int");
    // SAFETY: with this flag a successful call returns a new descriptor that nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(listener) })
}

fn set_filter(program: &[u8], flags: u32) -> Result<libc::c_long, Errno> {
    if !program.len().is_multiple_of(INSTRUCTION) {
        return Err(Errno::INVAL);
    }
    // The bytes come out of a message at any address; the kernel wants the structure's alignment.
    let mut filter: Vec<libc::sock_filter> = program
        .chunks_exact(INSTRUCTION)
        .map(|chunk| libc::sock_filter {
            code: u16::from_ne_bytes([chunk[0], chunk[1]]),
            jt: chunk[2],
            jf: chunk[3],
            k: u32::from_ne_bytes([chunk[4], chunk[5], chunk[6], chunk[7]]),
        })
        .collect();
    let len = u16::try_from(filter.len()).map_err(|_| Errno::INVAL)?;
    let program = libc::sock_fprog { len, filter: filter.as_mut_ptr() };
    // SAFETY: `program` points at `len` instructions that live across the call; the kernel copies and checks them. What a
    // filter does to later calls is an error or a signal, never memory unsafety.
    answer(unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const program) })
}
