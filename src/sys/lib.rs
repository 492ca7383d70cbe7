//! System calls: the only home of unsafe code.
//!
//! What rustix and nix already offer as safe calls is used from there directly; a module here exists for a call that
//! neither has, or has only as unsafe. Every function is safe to call, takes and gives owned or borrowed descriptors,
//! and fails with the kernel's [`rustix::io::Errno`].

pub mod bpf;
pub mod caps;
pub mod cgroup;
pub mod clone;
pub mod fds;
pub mod idle_memory;
pub mod keyring;
pub mod loopback;
pub mod mount;
pub mod netns;
pub mod personality;
#[cfg(feature = "testing")]
pub mod power_cut;
pub mod rlimit;
pub mod scheduling;
pub mod seccomp;
#[cfg(feature = "testing")]
pub mod seccomp_supervisor;
pub mod signalling;
pub mod signals;
pub mod stamp;
pub mod writeback;

use rustix::io::Errno;

/// The kernel's answer to a raw system call: the value, or the error it left in `errno`.
fn answer(value: libc::c_long) -> Result<libc::c_long, Errno> {
    if value < 0 { Err(last_error()) } else { Ok(value) }
}

fn last_error() -> Errno {
    let raw = std::io::Error::last_os_error().raw_os_error().expect("last_os_error is made of an OS error");
    Errno::from_raw_os_error(raw)
}
