//! The execution domain, and the memory that a thread is given.

use rustix::io::Errno;

use crate::answer;

/// Sets the calling process's execution domain and its flags, `PER_*` and the bits beside it of `linux/personality.h`.
///
/// # Errors
/// The kernel's; `EINVAL` from those that know no other domain.
pub fn set_personality(persona: u32) -> Result<(), Errno> {
    // SAFETY: the call takes a number. What it may change of the address space counts from the next execve on.
    answer(unsafe { libc::syscall(libc::SYS_personality, persona) })?;
    Ok(())
}

/// Sets the NUMA policy of the calling thread: `MPOL_*` with its flags, and bit n of byte n / 8 for node n.
///
/// # Errors
/// `EINVAL` for a mode and nodes that do not go together, or nodes that are not there or not given by the cgroup.
pub fn set_memory_policy(mode: u32, nodes: &[u8]) -> Result<(), Errno> {
    // The kernel reads whole words.
    let mut words = vec![0_u8; nodes.len().next_multiple_of(size_of::<libc::c_ulong>())];
    words[..nodes.len()].copy_from_slice(nodes);
    // The kernel takes one bit less than it is told of.
    let (mask, bits) = if nodes.is_empty() { (std::ptr::null(), 0) } else { (words.as_ptr(), words.len() * 8 + 1) };
    // SAFETY: the bytes live across the call, which reads `bits` - 1 bits of them; a null pointer with 0 is no mask.
    answer(unsafe { libc::syscall(libc::SYS_set_mempolicy, mode, mask, bits) })?;
    Ok(())
}
