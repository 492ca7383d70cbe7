//! Device rules of cgroup v2: an eBPF program loaded and attached to a cgroup.

use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use rustix::io::Errno;

use crate::answer;

/// Bytes of one `struct bpf_insn`.
const INSTRUCTION: usize = 8;
const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_PROG_ATTACH: libc::c_int = 8;
const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const BPF_CGROUP_DEVICE: u32 = 6;
/// Programs of the cgroups above stay in force: an access needs the consent of all.
const BPF_F_ALLOW_MULTI: u32 = 2;

/// The head of `union bpf_attr` for `BPF_PROG_LOAD`.
#[repr(C)]
#[derive(Default)]
struct Load {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
}

/// The head of `union bpf_attr` for `BPF_PROG_ATTACH`.
#[repr(C)]
struct Attach {
    target_fd: u32,
    attach_bpf_fd: u32,
    attach_type: u32,
    attach_flags: u32,
}

/// Loads a `BPF_PROG_TYPE_CGROUP_DEVICE` program (an array of `struct bpf_insn`) and attaches it to a cgroup v2 directory,
/// where it stays until the directory is removed.
///
/// # Errors
/// The kernel's: `EINVAL` or `EACCES` from the verifier, `EPERM` without `CAP_BPF` and `CAP_NET_ADMIN`.
pub fn attach_device_program(cgroup: impl AsFd, program: &[u8]) -> Result<(), Errno> {
    if !program.len().is_multiple_of(INSTRUCTION) {
        return Err(Errno::INVAL);
    }
    // Alignment: the bytes come out of a message at any address.
    let instructions: Vec<u64> =
        program.as_chunks::<INSTRUCTION>().0.iter().map(|bytes| u64::from_ne_bytes(*bytes)).collect();
    let load = Load {
        prog_type: BPF_PROG_TYPE_CGROUP_DEVICE,
        insn_cnt: u32::try_from(instructions.len()).map_err(|_| Errno::INVAL)?,
        insns: instructions.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        ..Load::default()
    };
    // SAFETY: `load` is the head of the union, the kernel takes what is missing as zero; the instructions and the licence
    // that it points at live across the call.
    let program = answer(unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, &raw const load, size_of::<Load>()) })?;
    let program = libc::c_int::try_from(program).expect("a descriptor is an int");
    // SAFETY: a successful load returns a new descriptor that nothing else owns.
    let program = unsafe { OwnedFd::from_raw_fd(program) };
    let attach = Attach {
        target_fd: cgroup.as_fd().as_raw_fd().cast_unsigned(),
        attach_bpf_fd: program.as_raw_fd().cast_unsigned(),
        attach_type: BPF_CGROUP_DEVICE,
        attach_flags: BPF_F_ALLOW_MULTI,
    };
    // SAFETY: `attach` is the head of the union and lives across the call.
    answer(unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_ATTACH, &raw const attach, size_of::<Attach>()) })?;
    Ok(())
}
