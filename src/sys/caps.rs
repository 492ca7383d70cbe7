//! Capabilities as bitmasks, bit n for capability n of `linux/capability.h`.

use rustix::io::Errno;

use crate::answer;

/// The sets that `capset(2)` changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sets {
    /// In force.
    pub effective: u64,
    /// What may be made effective.
    pub permitted: u64,
    /// What a program with matching file capabilities keeps.
    pub inheritable: u64,
}

#[repr(C)]
struct Header {
    version: u32,
    pid: i32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Data {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// `_LINUX_CAPABILITY_VERSION_3`: two words per set.
const VERSION: u32 = 0x2008_0522;

/// Sets the calling thread's effective, permitted and inheritable sets.
///
/// # Errors
/// `EPERM` for a capability that is not permitted now.
pub fn set(sets: Sets) -> Result<(), Errno> {
    let mut header = Header { version: VERSION, pid: 0 };
    let word = |shift: u32| Data {
        effective: (sets.effective >> shift) as u32,
        permitted: (sets.permitted >> shift) as u32,
        inheritable: (sets.inheritable >> shift) as u32,
    };
    let data = [word(0), word(32)];
    // SAFETY: version 3 reads the header and exactly two data elements, which both live across the call.
    answer(unsafe { libc::syscall(libc::SYS_capset, &raw mut header, data.as_ptr()) })?;
    Ok(())
}

/// Drops every capability that is not in `keep` from the bounding set, for good.
///
/// # Errors
/// The number of the capability that could not be dropped, with the kernel's error.
pub fn limit_bounding(keep: u64) -> Result<(), (u32, Errno)> {
    for capability in 0..u64::BITS {
        if keep & (1 << capability) != 0 {
            continue;
        }
        match prctl(libc::PR_CAPBSET_DROP, capability.into(), 0) {
            Ok(()) => {}
            // The first number that this kernel has no capability for.
            Err(Errno::INVAL) => break,
            Err(errno) => return Err((capability, errno)),
        }
    }
    Ok(())
}

/// Makes the ambient set exactly `mask`.
///
/// # Errors
/// The number of the capability that could not be raised, with the kernel's error: `EPERM` when it is not both permitted
/// and inheritable.
pub fn set_ambient(mask: u64) -> Result<(), (u32, Errno)> {
    prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL as libc::c_ulong, 0).map_err(|errno| (0, errno))?;
    for capability in (0..u64::BITS).filter(|n| mask & (1 << n) != 0) {
        prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_RAISE as libc::c_ulong, capability.into())
            .map_err(|errno| (capability, errno))?;
    }
    Ok(())
}

fn prctl(option: libc::c_int, first: libc::c_ulong, second: libc::c_ulong) -> Result<(), Errno> {
    let unused: libc::c_ulong = 0;
    // SAFETY: the options passed here take numbers, no pointers.
    answer(unsafe { libc::prctl(option, first, second, unused, unused) }.into())?;
    Ok(())
}
