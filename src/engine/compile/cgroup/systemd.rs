//! The systemd driver: a container's limits as properties of its unit (systemd.resource-control(5)).
//!
//! systemd writes a unit's limits into its cgroup whenever it sees fit, at `systemctl daemon-reload` for one. What it is
//! not told it then takes back to its own default. So everything that it has a property for is told to it, and everything
//! is written into the cgroup's files as well: those have what systemd, or this version of it, has no property for.
//!
//! Device rules are the exception. On v2 a program of our own has them; systemd leaves alone what it has not attached, so it
//! is told that devices are none of its business (`DevicePolicy=auto`), and no reload can lose one. On v1 there is one list
//! for both of us, and systemd must have all of it.

mod properties;
mod rates;
mod unified;

use oci_spec::runtime::LinuxResources;
use podwright_plan::wire::{SystemdUnit, UnitProperty};

use super::device_rules::DeviceAccess;
use super::place::{CgroupPlace, Unit};
use crate::error::CompileError;
use properties::{flag, text};

/// The first version that takes a scope's OOM policy.
const OOM_POLICY: u32 = 253;
/// `memory.oom.group` is decided as a unit is made; systemd does not let it be changed.
const OOM_GROUP: &str = "memory.oom.group";

/// Makes the unit of a container that is to start.
pub(super) fn unit(
    place: &CgroupPlace,
    unit: &Unit,
    resources: Option<&LinuxResources>,
    access: &DeviceAccess,
    v2: bool,
) -> Result<SystemdUnit, CompileError> {
    let mut fixed = vec![
        text("Description", format!("container {}", place.path)),
        flag("DefaultDependencies", false),
        flag("CPUAccounting", true),
        flag("MemoryAccounting", true),
        flag("TasksAccounting", true),
        flag(if v2 { "IOAccounting" } else { "BlockIOAccounting" }, true),
    ];
    if unit.name.ends_with(".scope") {
        // The container may make cgroups below its own, and systemd leaves alone what is in there.
        fixed.push(flag("Delegate", true));
        // A scope whose processes were killed goes away like any other.
        fixed.push(UnitProperty { since: 236, ..text("CollectMode", "inactive-or-failed") });
    }
    let group = resources.and_then(|resources| resources.unified().as_ref()).and_then(|files| files.get(OOM_GROUP));
    if let Some(group) = group {
        let policy = if group.trim() == "1" { "kill" } else { "continue" };
        fixed.push(UnitProperty { since: OOM_POLICY, ..text("OOMPolicy", policy) });
    }
    let mut limits = match resources {
        Some(resources) => limits(resources, v2)?,
        None => Vec::new(),
    };
    limits.extend(devices(access, v2)?);
    Ok(SystemdUnit { fixed, limits, ..named(place, unit) })
}

/// Makes the new properties of a container's unit that runs.
pub(super) fn update(
    place: &CgroupPlace,
    unit: &Unit,
    resources: &LinuxResources,
    access: Option<&DeviceAccess>,
    v2: bool,
) -> Result<SystemdUnit, CompileError> {
    let mut limits = limits(resources, v2)?;
    if let Some(access) = access.filter(|_| !v2) {
        limits.extend(devices(access, v2)?);
    }
    Ok(SystemdUnit { limits, ..named(place, unit) })
}

fn named(place: &CgroupPlace, unit: &Unit) -> SystemdUnit {
    SystemdUnit {
        name: unit.name.clone(),
        slice: unit.slice.clone(),
        user: unit.user,
        cgroup: place.path.to_string(),
        fixed: Vec::new(),
        limits: Vec::new(),
    }
}

fn limits(resources: &LinuxResources, v2: bool) -> Result<Vec<UnitProperty>, CompileError> {
    let mut limits = Vec::new();
    if let Some(cpu) = resources.cpu() {
        limits.extend(properties::cpu(cpu, v2)?);
    }
    if let Some(memory) = resources.memory() {
        limits.extend(properties::memory(memory, v2)?);
    }
    if let Some(pids) = resources.pids() {
        limits.extend(properties::tasks(pids.limit()));
    }
    if let Some(io) = resources.block_io() {
        limits.extend(rates::block_io(io, v2)?);
    }
    if let Some(files) = resources.unified() {
        for property in unified::properties(files)? {
            // As in the cgroup's files: what is named there has the last word.
            limits.retain(|given: &UnitProperty| given.name != property.name);
            limits.push(property);
        }
    }
    Ok(limits)
}

fn devices(access: &DeviceAccess, v2: bool) -> Result<Vec<UnitProperty>, CompileError> {
    if v2 || access.is_everything() {
        return Ok(vec![text("DevicePolicy", "auto"), properties::no_devices()]);
    }
    // Setting an empty list first takes away what an update's predecessor had put on it.
    Ok(vec![properties::no_devices(), text("DevicePolicy", "strict"), properties::devices(access)?])
}

#[cfg(test)]
mod tests {
    use podwright_plan::wire::unit_property::Value;

    use super::super::device_rules::tests::rules;
    use super::*;

    fn container(resources: &str, lines: &[&str], v2: bool) -> Result<SystemdUnit, String> {
        let resources: LinuxResources = serde_json::from_str(resources).unwrap();
        let name = "x-c.scope".to_owned();
        let place = CgroupPlace {
            path: "/a.slice/x-c.scope".parse().unwrap(),
            unit: Some(Unit { name, slice: "a.slice".to_owned(), user: false }),
        };
        let access = DeviceAccess::from_rules(&rules(lines)).unwrap();
        let unit_of = place.unit.as_ref().unwrap();
        unit(&place, unit_of, Some(&resources), &access, v2).map_err(|error| error.to_string())
    }

    fn value(unit: &SystemdUnit, name: &str) -> Option<Value> {
        let mut all = unit.fixed.iter().chain(&unit.limits).filter(|property| property.name == name);
        all.next_back().and_then(|property| property.value.clone())
    }

    #[test]
    fn a_scope_is_delegated_and_has_its_limits() {
        let json = r#"{"memory": {"limit": 100, "reservation": -1, "swap": 150}, "pids": {"limit": -1},
            "cpu": {"shares": 1024, "quota": 12345, "period": 50000, "cpus": "0,9-10", "mems": "0"},
            "blockIO": {"weight": 1000, "throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 5}]}}"#;
        let unit = container(json, &["deny a"], true).unwrap();
        for (name, expected) in [
            ("Delegate", Value::Flag(true)),
            ("DefaultDependencies", Value::Flag(false)),
            ("MemoryMax", Value::Number(100)),
            ("MemorySwapMax", Value::Number(50)),
            ("MemoryLow", Value::Number(u64::MAX)),
            ("TasksMax", Value::Number(u64::MAX)),
            ("CPUWeight", Value::Number(100)),
            // 24.69 % of a processor, and systemd keeps whole percents.
            ("CPUQuotaPerSecUSec", Value::Number(250_000)),
            ("CPUQuotaPeriodUSec", Value::Number(50_000)),
            ("AllowedCPUs", Value::Bits(vec![0b1, 0b110])),
            ("AllowedMemoryNodes", Value::Bits(vec![1])),
            ("IOWeight", Value::Number(10_000)),
            ("DevicePolicy", Value::Text("auto".to_owned())),
        ] {
            assert_eq!(value(&unit, name), Some(expected), "{name}");
        }
        let Some(Value::Rates(rates)) = value(&unit, "IOReadBandwidthMax") else { panic!("no rates") };
        assert_eq!((rates.list[0].node.as_str(), rates.list[0].value), ("/dev/block/8:0", 5));
        assert_eq!(value(&unit, "OOMPolicy"), None);
    }

    #[test]
    fn v1_has_the_whole_list_of_devices() {
        let unit = container("{}", &["deny a", "allow b 8:* r", "allow c 10:200 rw"], false).unwrap();
        assert_eq!(value(&unit, "DevicePolicy"), Some(Value::Text("strict".to_owned())));
        let Some(Value::Devices(devices)) = value(&unit, "DeviceAllow") else { panic!("no devices") };
        let has = |node: &str, access: &str| devices.list.iter().any(|it| it.node == node && it.access == access);
        assert!(has("block-8", "r") && has("/dev/char/10:200", "rw") && has("char-*", "m") && has("char-136", "rwm"));
    }

    #[test]
    fn v1_refuses_what_its_list_cannot_say() {
        let unit = container("{}", &["allow a"], false).unwrap();
        assert_eq!(value(&unit, "DevicePolicy"), Some(Value::Text("auto".to_owned())));
        for bad in [&["allow a", "deny c 10:200 w"][..], &["deny a", "allow c *:200 r"]] {
            assert!(container("{}", bad, false).unwrap_err().starts_with("linux.resources.devices"), "{bad:?}");
            assert!(container("{}", bad, true).is_ok(), "{bad:?}");
        }
    }

    #[test]
    fn files_named_have_the_last_word() {
        let json = r#"{"memory": {"limit": 100}, "unified": {"memory.max": "max", "memory.oom.group": "1"}}"#;
        let unit = container(json, &[], true).unwrap();
        assert_eq!(value(&unit, "MemoryMax"), Some(Value::Number(u64::MAX)));
        assert_eq!(unit.limits.iter().filter(|property| property.name == "MemoryMax").count(), 1);
        assert_eq!(value(&unit, "OOMPolicy"), Some(Value::Text("kill".to_owned())));
    }
}
