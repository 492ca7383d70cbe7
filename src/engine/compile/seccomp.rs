//! Seccomp: an OCI profile to the classic BPF program the kernel runs, and the default profile.
//!
//! The program is a tree: after the architecture, a binary search over stretches of equal outcome, so that a call costs
//! about eight comparisons instead of hundreds and the kernel verifies fewer instructions.

mod arch;
mod default;
mod program;
mod rules;
mod syscalls;
#[cfg(test)]
mod tests;

use oci_spec::runtime::{LinuxSeccomp, LinuxSeccompFilterFlag};

pub use arch::SeccompArch;
pub use default::default_profile;

/// `SECCOMP_FILTER_FLAG_TSYNC`
const FLAG_TSYNC: u32 = 1 << 0;
/// `SECCOMP_FILTER_FLAG_LOG`
const FLAG_LOG: u32 = 1 << 1;
/// `SECCOMP_FILTER_FLAG_SPEC_ALLOW`
const FLAG_SPEC_ALLOW: u32 = 1 << 2;

/// What is installed by `seccomp(2)`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// `struct sock_filter[]`; empty: no filter.
    pub program: Vec<u8>,
    /// `SECCOMP_FILTER_FLAG_*`.
    pub flags: u32,
}

/// Why a profile cannot be compiled; fields are named below `linux.seccomp`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SeccompError {
    /// An action that needs a listening process.
    #[error("linux.seccomp.{field}: SCMP_ACT_NOTIFY is not supported by this version")]
    Notify {
        /// The action's field.
        field: String,
    },
    /// A field that only makes sense with a listening process.
    #[error("linux.seccomp.{field} is not supported by this version")]
    Listener {
        /// The field.
        field: &'static str,
    },
    /// An errno the kernel would cut off.
    #[error("linux.seccomp.{field}: errno {errno} is above 4095")]
    Errno {
        /// The action's field.
        field: String,
        /// What was asked for.
        errno: u32,
    },
    /// An errno for an action that returns none.
    #[error("linux.seccomp.{field}: an errno goes with SCMP_ACT_ERRNO and SCMP_ACT_TRACE only")]
    ErrnoUnused {
        /// The action's field.
        field: String,
    },
    /// A system call has six arguments.
    #[error("linux.seccomp.syscalls[{rule}].args: index {index} is above 5")]
    ArgumentIndex {
        /// The rule's place in the profile.
        rule: usize,
        /// What was asked for.
        index: usize,
    },
    /// The kernel takes no program of that length.
    #[error("linux.seccomp makes a filter of {instructions} instructions, the kernel takes 4096")]
    TooLong {
        /// Its length.
        instructions: usize,
    },
}

/// Compiles a profile for a machine whose native calling convention is `native`.
///
/// # Errors
/// When the profile asks for what a plain filter cannot do, or contradicts the specification.
pub fn assemble(profile: &LinuxSeccomp, native: SeccompArch) -> Result<Filter, SeccompError> {
    if profile.listener_path().is_some() {
        return Err(SeccompError::Listener { field: "listenerPath" });
    }
    if profile.listener_metadata().is_some() {
        return Err(SeccompError::Listener { field: "listenerMetadata" });
    }
    Ok(Filter { program: program::assemble(&rules::sections(profile, native)?)?, flags: flags(profile)? })
}

fn flags(profile: &LinuxSeccomp) -> Result<u32, SeccompError> {
    // Without a list runc and crun turn the filter's implied speculation mitigations off, as the kernel does for
    // everybody since 5.16; an empty list keeps them on.
    let Some(flags) = profile.flags() else {
        return Ok(FLAG_SPEC_ALLOW);
    };
    flags.iter().try_fold(0, |bits, flag| match flag {
        LinuxSeccompFilterFlag::SeccompFilterFlagTsync => Ok(bits | FLAG_TSYNC),
        LinuxSeccompFilterFlag::SeccompFilterFlagLog => Ok(bits | FLAG_LOG),
        LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow => Ok(bits | FLAG_SPEC_ALLOW),
        LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv => {
            Err(SeccompError::Listener { field: "flags[SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV]" })
        }
    })
}
