//! Device rules of cgroup v2: eBPF programs loaded and attached to a cgroup.
//!
//! A cgroup may have several programs, systemd's among them, and an access needs the consent of all. Ours is told by its
//! name, so that an update replaces it and no other.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::io::Errno;

use crate::answer;

/// Bytes of one `struct bpf_insn`.
const INSTRUCTION: usize = 8;
const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_PROG_ATTACH: libc::c_int = 8;
const BPF_PROG_DETACH: libc::c_int = 9;
const BPF_PROG_GET_FD_BY_ID: libc::c_int = 13;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const BPF_PROG_QUERY: libc::c_int = 16;
const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const BPF_CGROUP_DEVICE: u32 = 6;
/// Programs of the cgroups above stay in force, and others beside ours are possible.
const BPF_F_ALLOW_MULTI: u32 = 2;
/// The new program takes the place of another one in one step (since 5.6).
const BPF_F_REPLACE: u32 = 4;
/// As many as the kernel lets a cgroup have of one kind.
const MOST_PROGRAMS: usize = 64;

/// What our programs are called. The kernel takes letters, digits, `_` and `.`, 15 at most.
const NAME: [u8; 16] = *b"podwright_dev\0\0\0";

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
    prog_name: [u8; 16],
}

/// The head of `union bpf_attr` for `BPF_PROG_ATTACH` and `BPF_PROG_DETACH`.
#[repr(C)]
struct Attach {
    target_fd: u32,
    attach_bpf_fd: u32,
    attach_type: u32,
    attach_flags: u32,
    replace_bpf_fd: u32,
}

/// The head of `union bpf_attr` for `BPF_PROG_QUERY`.
#[repr(C)]
struct Query {
    target_fd: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    prog_cnt: u32,
}

/// The head of `union bpf_attr` for `BPF_PROG_GET_FD_BY_ID`.
#[repr(C)]
#[derive(Default)]
struct ById {
    prog_id: u32,
    next_id: u32,
    open_flags: u32,
}

/// The head of `union bpf_attr` for `BPF_OBJ_GET_INFO_BY_FD`.
#[repr(C)]
struct InfoByFd {
    bpf_fd: u32,
    info_len: u32,
    info: u64,
}

/// The head of `struct bpf_prog_info`, as far as the name.
#[repr(C)]
#[derive(Default)]
struct ProgramInfo {
    kind: u32,
    id: u32,
    tag: [u8; 8],
    jited_prog_len: u32,
    xlated_prog_len: u32,
    jited_prog_insns: u64,
    xlated_prog_insns: u64,
    load_time: u64,
    created_by_uid: u32,
    nr_map_ids: u32,
    map_ids: u64,
    name: [u8; 16],
}

/// Loads a `BPF_PROG_TYPE_CGROUP_DEVICE` program (an array of `struct bpf_insn`) and attaches it to a cgroup v2 directory,
/// where it stays until the directory is removed. One that this function attached before is replaced in one step: no access is
/// decided by neither or both.
///
/// # Errors
/// The kernel's: `EINVAL` or `EACCES` from the verifier, `EPERM` without `CAP_BPF` and `CAP_NET_ADMIN`.
pub fn attach_device_program(cgroup: impl AsFd, program: &[u8]) -> Result<(), Errno> {
    let cgroup = cgroup.as_fd();
    let program = load(program)?;
    let ours = our_programs(cgroup)?;
    let (replaced, rest) = ours.split_first().map_or((None, ours.as_slice()), |(first, rest)| (Some(first), rest));
    let attach = Attach {
        target_fd: raw(cgroup),
        attach_bpf_fd: raw(program.as_fd()),
        attach_type: BPF_CGROUP_DEVICE,
        attach_flags: BPF_F_ALLOW_MULTI | if replaced.is_some() { BPF_F_REPLACE } else { 0 },
        replace_bpf_fd: replaced.map_or(0, |program| raw(program.as_fd())),
    };
    bpf(BPF_PROG_ATTACH, attach)?;
    for program in rest {
        let detach = Attach {
            target_fd: raw(cgroup),
            attach_bpf_fd: raw(program.as_fd()),
            attach_type: BPF_CGROUP_DEVICE,
            attach_flags: 0,
            replace_bpf_fd: 0,
        };
        bpf(BPF_PROG_DETACH, detach)?;
    }
    Ok(())
}

/// Counts the device programs that are attached to a cgroup v2 directory itself.
///
/// # Errors
/// The kernel's.
pub fn device_programs(cgroup: impl AsFd) -> Result<usize, Errno> {
    Ok(attached(cgroup.as_fd())?.len())
}

fn load(program: &[u8]) -> Result<OwnedFd, Errno> {
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
        prog_name: NAME,
        ..Load::default()
    };
    descriptor(bpf(BPF_PROG_LOAD, load)?)
}

/// Opens those attached programs that have our name.
fn our_programs(cgroup: BorrowedFd<'_>) -> Result<Vec<OwnedFd>, Errno> {
    let mut ours = Vec::new();
    for prog_id in attached(cgroup)? {
        let program = match bpf(BPF_PROG_GET_FD_BY_ID, ById { prog_id, ..ById::default() }) {
            // Detached by its owner in the meantime.
            Err(Errno::NOENT) => continue,
            program => descriptor(program?)?,
        };
        let info = ProgramInfo::default();
        let by_fd = InfoByFd {
            bpf_fd: raw(program.as_fd()),
            info_len: u32::try_from(size_of::<ProgramInfo>()).expect("the head of the structure has less than 4 GiB"),
            info: &raw const info as u64,
        };
        bpf(BPF_OBJ_GET_INFO_BY_FD, by_fd)?;
        if info.name == NAME {
            ours.push(program);
        }
    }
    Ok(ours)
}

/// Lists the ids of a cgroup's own device programs.
fn attached(cgroup: BorrowedFd<'_>) -> Result<Vec<u32>, Errno> {
    let mut ids = [0_u32; MOST_PROGRAMS];
    let mut query = Query {
        target_fd: raw(cgroup),
        attach_type: BPF_CGROUP_DEVICE,
        query_flags: 0,
        attach_flags: 0,
        prog_ids: ids.as_mut_ptr() as u64,
        prog_cnt: u32::try_from(MOST_PROGRAMS).expect("the constant is small"),
    };
    bpf_mut(BPF_PROG_QUERY, &mut query)?;
    let count = usize::try_from(query.prog_cnt).map_err(|_| Errno::OVERFLOW)?;
    Ok(ids[..count.min(MOST_PROGRAMS)].to_vec())
}

fn raw(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

fn descriptor(value: libc::c_long) -> Result<OwnedFd, Errno> {
    let raw = libc::c_int::try_from(value).map_err(|_| Errno::BADF)?;
    // SAFETY: only called with the value of a `BPF_PROG_LOAD` or `BPF_PROG_GET_FD_BY_ID` that succeeded: a new descriptor
    // that nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

fn bpf<T>(command: libc::c_int, mut attributes: T) -> Result<libc::c_long, Errno> {
    bpf_mut(command, &mut attributes)
}

fn bpf_mut<T>(command: libc::c_int, attributes: &mut T) -> Result<libc::c_long, Errno> {
    // SAFETY: every `T` that this module passes is the head of the union for its command, and the kernel takes what is
    // missing as zero; it lives across the call, and so does what its addresses point at, which its maker still holds.
    answer(unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut *attributes, size_of::<T>()) })
}
