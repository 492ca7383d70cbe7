//! The calling conventions whose system call numbers are known, and how the kernel tells a filter which one is used.

use oci_spec::runtime::Arch;

/// A calling convention of system calls (an `SCMP_ARCH_*` of a profile).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SeccompArch {
    /// 64-bit x86.
    X86_64,
    /// 32-bit x86.
    X86,
    /// 64-bit x86 with 32-bit pointers.
    X32,
    /// 64-bit ARM.
    Aarch64,
    /// 32-bit ARM.
    Arm,
}

/// What is set in the number of every x32 call (`__X32_SYSCALL_BIT`).
pub(super) const X32_BIT: u32 = 0x4000_0000;
/// Where ARM's private calls begin (`__ARM_NR_BASE`).
pub(super) const ARM_PRIVATE: u32 = 0x000f_0000;

impl SeccompArch {
    /// Every known convention, in the order of the columns of the table of numbers.
    pub const ALL: [Self; 5] = [Self::X86_64, Self::X86, Self::X32, Self::Aarch64, Self::Arm];

    /// The convention that this build's own processes use.
    #[cfg(target_arch = "x86_64")]
    pub const NATIVE: Self = Self::X86_64;
    /// The convention that this build's own processes use.
    #[cfg(target_arch = "aarch64")]
    pub const NATIVE: Self = Self::Aarch64;

    /// Returns the convention a profile names, `None` for those of machines that Podwright is not built for.
    pub(super) fn from_oci(arch: Arch, native: Self) -> Option<Self> {
        match arch {
            Arch::ScmpArchNative => Some(native),
            Arch::ScmpArchX86_64 => Some(Self::X86_64),
            Arch::ScmpArchX86 => Some(Self::X86),
            Arch::ScmpArchX32 => Some(Self::X32),
            Arch::ScmpArchAarch64 => Some(Self::Aarch64),
            Arch::ScmpArchArm => Some(Self::Arm),
            _ => None,
        }
    }

    /// Returns the profile's name of this convention.
    pub(super) fn to_oci(self) -> Arch {
        match self {
            Self::X86_64 => Arch::ScmpArchX86_64,
            Self::X86 => Arch::ScmpArchX86,
            Self::X32 => Arch::ScmpArchX32,
            Self::Aarch64 => Arch::ScmpArchAarch64,
            Self::Arm => Arch::ScmpArchArm,
        }
    }

    /// Returns the column of the table of numbers.
    pub(super) fn column(self) -> usize {
        match self {
            Self::X86_64 => 0,
            Self::X86 => 1,
            Self::X32 => 2,
            Self::Aarch64 => 3,
            Self::Arm => 4,
        }
    }

    /// Returns `AUDIT_ARCH_*`: what `seccomp_data.arch` holds. x32 shares x86-64's.
    pub fn audit(self) -> u32 {
        match self {
            Self::X86_64 | Self::X32 => 0xc000_003e,
            Self::X86 => 0x4000_0003,
            Self::Aarch64 => 0xc000_00b7,
            Self::Arm => 0x4000_0028,
        }
    }

    /// Returns what is added to a number of the table to make the one the kernel reports.
    pub(super) fn bias(self) -> u32 {
        if self == Self::X32 { X32_BIT } else { 0 }
    }

    /// Tells whether arguments are compared in all 64 bits. Profiles are written for libseccomp, which compares the low
    /// word alone on conventions with 32-bit pointers: `-1` then means what a 32-bit program passes as -1.
    pub(super) fn wide(self) -> bool {
        matches!(self, Self::X86_64 | Self::Aarch64)
    }
}
