//! `linux.personality` and `linux.memoryPolicy`: what a container's processes take the machine for.

use oci_spec::runtime::{
    LinuxMemoryPolicy, LinuxPersonality, LinuxPersonalityDomain, MemoryPolicyFlagType, MemoryPolicyModeType,
};
use podwright_plan::wire;

use crate::error::{CompileError, invalid};
use crate::number_list::mask;

/// The highest number of a memory node (`MAX_NUMNODES` is 1024 at most).
const LAST_NODE: usize = 1023;

/// The flags of linux/personality.h. The specification leaves them open, so they go by the kernel's own names.
const FLAGS: [(&str, u32); 11] = [
    ("UNAME26", 0x002_0000),
    ("ADDR_NO_RANDOMIZE", 0x004_0000),
    ("FDPIC_FUNCPTRS", 0x008_0000),
    ("MMAP_PAGE_ZERO", 0x010_0000),
    ("ADDR_COMPAT_LAYOUT", 0x020_0000),
    ("READ_IMPLIES_EXEC", 0x040_0000),
    ("ADDR_LIMIT_32BIT", 0x080_0000),
    ("SHORT_INODE", 0x100_0000),
    ("WHOLE_SECONDS", 0x200_0000),
    ("STICKY_TIMEOUTS", 0x400_0000),
    ("ADDR_LIMIT_3GB", 0x800_0000),
];

/// Compiles to the number that `personality(2)` takes.
pub(crate) fn personality(personality: &LinuxPersonality) -> Result<u32, CompileError> {
    let domain = match personality.domain() {
        LinuxPersonalityDomain::PerLinux => 0,
        LinuxPersonalityDomain::PerLinux32 => 0x8,
    };
    personality.flags().iter().flatten().try_fold(domain, |bits, name| {
        match FLAGS.iter().find(|(flag, _)| flag == name) {
            Some((_, bit)) => Ok(bits | bit),
            None => Err(invalid("linux.personality.flags", name, "is no flag of personality(2)")),
        }
    })
}

/// Compiles to what `set_mempolicy(2)` takes.
pub(crate) fn memory_policy(policy: &LinuxMemoryPolicy) -> Result<wire::MemoryPolicy, CompileError> {
    use MemoryPolicyModeType as Mode;
    let nodes = mask(policy.nodes().as_deref().unwrap_or_default(), LAST_NODE, "linux.memoryPolicy.nodes")?;
    // The numbers of linux/mempolicy.h.
    let (mode, wants_nodes) = match policy.mode() {
        Mode::MpolDefault => (0, Some(false)),
        Mode::MpolPreferred => (1, None),
        Mode::MpolBind => (2, Some(true)),
        Mode::MpolInterleave => (3, Some(true)),
        Mode::MpolLocal => (4, Some(false)),
        Mode::MpolPreferredMany => (5, Some(true)),
        Mode::MpolWeightedInterleave => (6, Some(true)),
    };
    if wants_nodes.is_some_and(|wants| wants == nodes.is_empty()) {
        let problem = if nodes.is_empty() { "needs linux.memoryPolicy.nodes" } else { "takes no nodes" };
        return Err(invalid("linux.memoryPolicy.mode", policy.mode().to_string(), problem));
    }
    let flags = policy.flags().iter().flatten().fold(0, |bits, flag| bits | flag_bit(*flag));
    Ok(wire::MemoryPolicy { mode: mode | flags, nodes })
}

fn flag_bit(flag: MemoryPolicyFlagType) -> u32 {
    match flag {
        MemoryPolicyFlagType::MpolFNumaBalancing => 1 << 13,
        MemoryPolicyFlagType::MpolFRelativeNodes => 1 << 14,
        MemoryPolicyFlagType::MpolFStaticNodes => 1 << 15,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_personality_is_one_number() {
        let read = |json: &str| personality(&serde_json::from_str(json).unwrap()).map_err(|error| error.to_string());
        assert_eq!(read(r#"{"domain": "LINUX"}"#), Ok(0));
        assert_eq!(read(r#"{"domain": "LINUX32", "flags": ["ADDR_NO_RANDOMIZE"]}"#), Ok(0x4_0008));
        assert!(read(r#"{"domain": "LINUX", "flags": ["NO_SUCH"]}"#).unwrap_err().contains("\"NO_SUCH\""));
    }

    #[test]
    fn a_memory_policy_has_mode_flags_and_nodes() {
        let read = |json: &str| memory_policy(&serde_json::from_str(json).unwrap()).map_err(|error| error.to_string());
        let bind = read(r#"{"mode": "MPOL_BIND", "nodes": "0-1", "flags": ["MPOL_F_STATIC_NODES"]}"#).unwrap();
        assert_eq!((bind.mode, bind.nodes), (0x8002, vec![3]));
        assert_eq!(read(r#"{"mode": "MPOL_PREFERRED"}"#).unwrap().mode, 1);
        assert!(read(r#"{"mode": "MPOL_INTERLEAVE"}"#).unwrap_err().contains("needs linux.memoryPolicy.nodes"));
        assert!(read(r#"{"mode": "MPOL_LOCAL", "nodes": "0"}"#).unwrap_err().contains("takes no nodes"));
        assert!(read(r#"{"mode": "MPOL_BIND", "nodes": "1024"}"#).unwrap_err().contains("memoryPolicy.nodes"));
    }
}
