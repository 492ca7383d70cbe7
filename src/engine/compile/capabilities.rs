//! Linux capabilities: names to bits, and the rules between a process's five sets.

use std::collections::BTreeSet;

use oci_spec::runtime::{Capabilities, Capability, LinuxCapabilities};
use podwright_plan::wire;

use crate::HostFacts;
use crate::error::{CompileError, invalid};

pub(crate) const DAC_READ_SEARCH: u8 = 2;
pub(crate) const SYS_MODULE: u8 = 16;
pub(crate) const SYS_RAWIO: u8 = 17;
pub(crate) const SYS_CHROOT: u8 = 18;
pub(crate) const SYS_PTRACE: u8 = 19;
pub(crate) const SYS_PACCT: u8 = 20;
pub(crate) const SYS_ADMIN: u8 = 21;
pub(crate) const SYS_BOOT: u8 = 22;
pub(crate) const SYS_NICE: u8 = 23;
pub(crate) const SYS_TIME: u8 = 25;
pub(crate) const SYS_TTY_CONFIG: u8 = 26;
pub(crate) const SYSLOG: u8 = 34;
pub(crate) const PERFMON: u8 = 38;
pub(crate) const BPF: u8 = 39;

/// Returns a capability's number in linux/capability.h.
pub fn number(capability: Capability) -> u8 {
    match capability {
        Capability::Chown => 0,
        Capability::DacOverride => 1,
        Capability::DacReadSearch => DAC_READ_SEARCH,
        Capability::Fowner => 3,
        Capability::Fsetid => 4,
        Capability::Kill => 5,
        Capability::Setgid => 6,
        Capability::Setuid => 7,
        Capability::Setpcap => 8,
        Capability::LinuxImmutable => 9,
        Capability::NetBindService => 10,
        Capability::NetBroadcast => 11,
        Capability::NetAdmin => 12,
        Capability::NetRaw => 13,
        Capability::IpcLock => 14,
        Capability::IpcOwner => 15,
        Capability::SysModule => SYS_MODULE,
        Capability::SysRawio => SYS_RAWIO,
        Capability::SysChroot => SYS_CHROOT,
        Capability::SysPtrace => SYS_PTRACE,
        Capability::SysPacct => SYS_PACCT,
        Capability::SysAdmin => SYS_ADMIN,
        Capability::SysBoot => SYS_BOOT,
        Capability::SysNice => SYS_NICE,
        Capability::SysResource => 24,
        Capability::SysTime => SYS_TIME,
        Capability::SysTtyConfig => SYS_TTY_CONFIG,
        Capability::Mknod => 27,
        Capability::Lease => 28,
        Capability::AuditWrite => 29,
        Capability::AuditControl => 30,
        Capability::Setfcap => 31,
        Capability::MacOverride => 32,
        Capability::MacAdmin => 33,
        Capability::Syslog => SYSLOG,
        Capability::WakeAlarm => 35,
        Capability::BlockSuspend => 36,
        Capability::AuditRead => 37,
        Capability::Perfmon => PERFMON,
        Capability::Bpf => BPF,
        Capability::CheckpointRestore => 40,
    }
}

/// Returns a set's bitmask, bit n = capability n.
pub fn mask<'a>(capabilities: impl IntoIterator<Item = &'a Capability>) -> u64 {
    capabilities.into_iter().fold(0, |bits, capability| bits | 1 << number(*capability))
}

/// Compiles `process.capabilities`; absent means none at all.
pub(crate) fn sets(
    capabilities: Option<&LinuxCapabilities>,
    facts: &HostFacts,
) -> Result<wire::Capabilities, CompileError> {
    let Some(asked) = capabilities else {
        return Ok(wire::Capabilities::default());
    };
    let known = known(facts);
    let bits = |set: &Option<Capabilities>| mask(set.iter().flatten()) & known;
    let mut sets = wire::Capabilities {
        bounding: bits(asked.bounding()),
        effective: bits(asked.effective()),
        permitted: bits(asked.permitted()),
        inheritable: bits(asked.inheritable()),
        ambient: bits(asked.ambient()),
    };
    // What capset(2) refuses, told now and by name instead of EPERM at start.
    within("effective", asked.effective().as_ref(), sets.permitted | !known, "must be in the permitted set too")?;
    // Other runtimes have always gone on without those that PR_CAP_AMBIENT_RAISE refuses: `passed_over` tells of them.
    sets.ambient &= sets.permitted & sets.inheritable;
    Ok(sets)
}

/// Names what of `process.capabilities` a container goes without, each with the reason.
pub fn passed_over(asked: &LinuxCapabilities, facts: &HostFacts) -> Vec<String> {
    let known = known(facts);
    let all =
        [asked.bounding(), asked.effective(), asked.permitted(), asked.inheritable(), asked.ambient()].into_iter();
    let unknown: BTreeSet<_> =
        all.flatten().flatten().filter(|it| known & (1 << number(**it)) == 0).map(|it| format!("CAP_{it}")).collect();
    let raisable = mask(asked.permitted().iter().flatten()) & mask(asked.inheritable().iter().flatten());
    let ambient: BTreeSet<_> = asked
        .ambient()
        .iter()
        .flatten()
        .filter(|it| known & !raisable & (1 << number(**it)) != 0)
        .map(|it| format!("CAP_{it}"))
        .collect();
    let unknown = unknown.into_iter().map(|name| format!("{name} is not known to this host's kernel"));
    let reason = "is not made ambient: it must be permitted and inheritable too";
    unknown.chain(ambient.into_iter().map(|name| format!("{name} {reason}"))).collect()
}

/// The capabilities that the kernel has.
fn known(facts: &HostFacts) -> u64 {
    u64::MAX >> (63 - facts.last_cap.min(63))
}

/// Refuses the lowest capability of a set that is not in `allowed`.
fn within(name: &str, set: Option<&Capabilities>, allowed: u64, problem: &'static str) -> Result<(), CompileError> {
    let outside = set.into_iter().flatten().filter(|capability| allowed & (1 << number(**capability)) == 0);
    match outside.min_by_key(|capability| number(**capability)) {
        None => Ok(()),
        Some(capability) => Err(invalid(format!("process.capabilities.{name}"), format!("CAP_{capability}"), problem)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::tests::unified;

    fn caps(permitted: &[Capability], inheritable: &[Capability], ambient: &[Capability]) -> LinuxCapabilities {
        let set = |set: &[Capability]| Some(set.iter().copied().collect::<Capabilities>());
        let mut caps = LinuxCapabilities::default();
        caps.set_bounding(set(permitted))
            .set_effective(set(permitted))
            .set_permitted(set(permitted))
            .set_inheritable(set(inheritable))
            .set_ambient(set(ambient));
        caps
    }

    #[test]
    fn sets_become_bits() {
        let caps = caps(&[Capability::Chown, Capability::NetRaw, Capability::CheckpointRestore], &[], &[]);
        let sets = sets(Some(&caps), &unified()).unwrap();
        assert_eq!(sets.permitted, 1 | 1 << 13 | 1 << 40);
        assert_eq!((sets.inheritable, sets.ambient), (0, 0));
    }

    #[test]
    fn absent_capabilities_are_none() {
        assert_eq!(sets(None, &unified()).unwrap(), wire::Capabilities::default());
    }

    #[test]
    fn ambient_capabilities_must_be_permitted_and_inheritable() {
        let cap = [Capability::NetBindService];
        let good = caps(&cap, &cap, &cap);
        assert_eq!(sets(Some(&good), &unified()).unwrap().ambient, 1 << 10);
        assert!(passed_over(&good, &unified()).is_empty());
        let bad = caps(&cap, &[], &cap);
        assert_eq!(sets(Some(&bad), &unified()).unwrap().ambient, 0);
        let reason = "CAP_NET_BIND_SERVICE is not made ambient: it must be permitted and inheritable too";
        assert_eq!(passed_over(&bad, &unified()), [reason]);
    }

    #[test]
    fn a_capability_of_a_newer_kernel_is_named_and_passed_over() {
        let facts = HostFacts { last_cap: 39, ..unified() };
        let asked = caps(&[Capability::Bpf, Capability::CheckpointRestore], &[], &[]);
        assert_eq!(sets(Some(&asked), &facts).unwrap().permitted, 1 << 39);
        assert_eq!(passed_over(&asked, &facts), ["CAP_CHECKPOINT_RESTORE is not known to this host's kernel"]);
    }

    #[test]
    fn what_is_effective_is_permitted() {
        let mut asked = caps(&[Capability::Chown], &[], &[]);
        asked.set_permitted(None);
        let error = sets(Some(&asked), &unified()).unwrap_err().to_string();
        assert_eq!(error, "process.capabilities.effective: \"CAP_CHOWN\" must be in the permitted set too");
    }
}
