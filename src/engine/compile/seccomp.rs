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

/// `SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV`
const FLAG_WAIT_KILLABLE_RECV: u32 = 1 << 5;

/// What is installed by `seccomp(2)`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// `struct sock_filter[]`; empty: no filter.
    pub program: Vec<u8>,
    /// `SECCOMP_FILTER_FLAG_*`, without the one that makes a listener.
    pub flags: u32,
    /// Whether the filter asks a listening process.
    pub asks: bool,
}

/// Why a profile cannot be compiled; fields are named below `linux.seccomp`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SeccompError {
    /// Actions that ask a listening process, and no word of who that is.
    #[error("linux.seccomp.listenerPath is missing: SCMP_ACT_NOTIFY has nobody to ask")]
    NoListener,
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
    let sections = rules::sections(profile, native)?;
    let asks = sections.iter().any(rules::Section::asks);
    if asks && profile.listener_path().as_ref().is_none_or(|path| path.as_os_str().is_empty()) {
        return Err(SeccompError::NoListener);
    }
    Ok(Filter { program: program::assemble(&sections)?, flags: flags(profile, asks), asks })
}

fn flags(profile: &LinuxSeccomp, asks: bool) -> u32 {
    // Without a list runc and crun turn the filter's implied speculation mitigations off, as the kernel does for
    // everybody since 5.16; an empty list keeps them on.
    let Some(flags) = profile.flags() else {
        return FLAG_SPEC_ALLOW;
    };
    flags.iter().fold(0, |bits, flag| match flag {
        // The one thread that becomes the program is the one that installs the filter: to hold its others too says nothing,
        // and the one that hands a listener over must not be held.
        LinuxSeccompFilterFlag::SeccompFilterFlagTsync if asks => bits,
        LinuxSeccompFilterFlag::SeccompFilterFlagTsync => bits | FLAG_TSYNC,
        LinuxSeccompFilterFlag::SeccompFilterFlagLog => bits | FLAG_LOG,
        LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow => bits | FLAG_SPEC_ALLOW,
        // The kernel knows it with a listener only.
        LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv if asks => bits | FLAG_WAIT_KILLABLE_RECV,
        LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv => bits,
    })
}
