//! Properties for processors, memory, processes and devices.

use oci_spec::runtime::{LinuxCpu, LinuxMemory};
use podwright_plan::wire::unit_property::Value;
use podwright_plan::wire::{UnitDevice, UnitDevices, UnitProperty};

use super::super::device_rules::{DeviceAccess, Match, letters};
use super::super::{cpu, memory};
use crate::error::{CompileError, invalid};

/// systemd's word for no limit.
pub(super) const INFINITY: u64 = u64::MAX;
/// The first version with `CPUQuotaPeriodUSec`, with `AllowedCPUs` and its sister, with a weight for idle.
const QUOTA_PERIOD: u32 = 242;
const CPUSET: u32 = 244;
const IDLE: u32 = 252;
const SECOND: u64 = 1_000_000;
/// One percent of a second, in microseconds.
const PERCENT: u64 = SECOND / 100;

fn property(name: &str, value: Value) -> UnitProperty {
    UnitProperty { name: name.to_owned(), since: 0, value: Some(value) }
}

pub(super) fn flag(name: &str, value: bool) -> UnitProperty {
    property(name, Value::Flag(value))
}

pub(super) fn text(name: &str, value: impl Into<String>) -> UnitProperty {
    property(name, Value::Text(value.into()))
}

pub(super) fn number(name: &str, value: u64) -> UnitProperty {
    property(name, Value::Number(value))
}

/// A limit in which the specification's -1 is none.
pub(super) fn limit(name: &str, value: i64) -> UnitProperty {
    number(name, u64::try_from(value).unwrap_or(INFINITY))
}

pub(super) fn cpu(cpu: &LinuxCpu, v2: bool) -> Result<Vec<UnitProperty>, CompileError> {
    let mut properties = Vec::new();
    properties.extend(weight(cpu, v2));
    let set = |value: Option<i64>| value.filter(|it| *it != 0);
    let period = cpu.period().filter(|it| *it != 0);
    if set(cpu.quota()).is_some() || period.is_some() {
        properties.extend(quota(set(cpu.quota()).and_then(|it| u64::try_from(it).ok()), period));
    }
    // On v1 systemd has no hands on the cpuset.
    for (name, field, list) in [("AllowedCPUs", "cpus", cpu.cpus()), ("AllowedMemoryNodes", "mems", cpu.mems())] {
        if let Some(list) = list.as_deref().filter(|list| v2 && !list.is_empty()) {
            let refuse = || invalid(format!("linux.resources.cpu.{field}"), list, "is no list such as 0-3,7");
            properties.push(set_of(name, list).ok_or_else(refuse)?);
        }
    }
    Ok(properties)
}

fn weight(given: &LinuxCpu, v2: bool) -> Option<UnitProperty> {
    if v2 && given.idle() == Some(1) {
        return Some(idle());
    }
    let shares = given.shares().filter(|shares| *shares != 0)?;
    Some(if v2 { number("CPUWeight", cpu::weight(shares)) } else { number("CPUShares", shares) })
}

/// The weight by which systemd makes a cgroup idle.
pub(super) fn idle() -> UnitProperty {
    UnitProperty { since: IDLE, ..number("CPUWeight", 0) }
}

/// A quota of microseconds a period, as microseconds a second. systemd keeps whole percents of a processor across a reload,
/// so it is rounded up to one: the container never has less than was asked for.
pub(super) fn quota(quota: Option<u64>, period: Option<u64>) -> Vec<UnitProperty> {
    let mut properties = Vec::new();
    properties.extend(period.map(|it| UnitProperty { since: QUOTA_PERIOD, ..number("CPUQuotaPeriodUSec", it) }));
    let a_second = quota.map_or(INFINITY, |quota| {
        let exact = u128::from(quota) * u128::from(SECOND) / u128::from(period.unwrap_or(cpu::DEFAULT_PERIOD));
        u64::try_from(exact).map_or(INFINITY, |exact| exact.div_ceil(PERCENT).saturating_mul(PERCENT))
    });
    properties.push(number("CPUQuotaPerSecUSec", a_second));
    properties
}

/// A list such as `0-3,7` as bits. `None`: it is none.
pub(super) fn set_of(name: &str, list: &str) -> Option<UnitProperty> {
    /// More processors than any kernel has, and few enough to have a bit each.
    const MOST: usize = 65_536;
    let mut bits: Vec<u8> = Vec::new();
    for range in list.split(',').map(str::trim).filter(|range| !range.is_empty()) {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        if first > last || last >= MOST {
            return None;
        }
        bits.resize(bits.len().max(last / 8 + 1), 0);
        (first..=last).for_each(|it| bits[it / 8] |= 1 << (it % 8));
    }
    (!bits.is_empty()).then(|| UnitProperty { since: CPUSET, ..property(name, Value::Bits(bits)) })
}

pub(super) fn memory(given: &LinuxMemory, v2: bool) -> Result<Vec<UnitProperty>, CompileError> {
    let set = |value: Option<i64>| value.filter(|it| *it != 0);
    let mut properties = Vec::new();
    if !v2 {
        properties.extend(set(given.limit()).map(|it| limit("MemoryLimit", it)));
        return Ok(properties);
    }
    properties.extend(set(given.limit()).map(|it| limit("MemoryMax", it)));
    properties.extend(set(given.reservation()).map(|it| limit("MemoryLow", it)));
    properties.extend(memory::swap_max(set(given.limit()), set(given.swap()))?.map(|it| limit("MemorySwapMax", it)));
    Ok(properties)
}

/// Zero is unset, as in the cgroup's files.
pub(super) fn tasks(given: i64) -> Option<UnitProperty> {
    (given != 0).then(|| limit("TasksMax", given))
}

/// The empty list, which takes every entry away.
pub(super) fn no_devices() -> UnitProperty {
    property("DeviceAllow", Value::Devices(UnitDevices::default()))
}

/// What is allowed, where nothing else is.
pub(super) fn devices(access: &DeviceAccess) -> Result<UnitProperty, CompileError> {
    let refuse = |value: String| {
        let problem = "cannot be said to systemd, which has a list of allowed devices by major number on cgroup v1; \
                       use the cgroupfs driver";
        invalid("linux.resources.devices", value, problem)
    };
    if access.allowed {
        return Err(refuse("all devices but some".to_owned()));
    }
    let device = |(which, bits): (&Match, &u8)| {
        let (class, dir) = if which.block { ("block", "/dev/block") } else { ("char", "/dev/char") };
        let node = match (which.major, which.minor) {
            (Some(major), Some(minor)) => format!("{dir}/{major}:{minor}"),
            (Some(major), None) => format!("{class}-{major}"),
            (None, None) => format!("{class}-*"),
            (None, Some(minor)) => return Err(refuse(format!("*:{minor}"))),
        };
        Ok(UnitDevice { node, access: letters(*bits) })
    };
    let list = access.exceptions.iter().map(device).collect::<Result<_, _>>()?;
    Ok(property("DeviceAllow", Value::Devices(UnitDevices { list })))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_become_bits() {
        let bits = |list| set_of("x", list).and_then(|property| property.value);
        assert_eq!(bits("1,3-5, 17,"), Some(Value::Bits(vec![0b0011_1010, 0, 0b10])));
        for bad in ["", ",", "x", "5-3", "0-", "99999999", "-1"] {
            assert_eq!(bits(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_quota_is_never_less_than_asked() {
        let per_second = |given, period| match quota(given, period).pop().and_then(|it| it.value) {
            Some(Value::Number(number)) => number,
            other => panic!("{other:?}"),
        };
        assert_eq!(per_second(Some(50_000), None), 500_000);
        assert_eq!(per_second(Some(1_001), Some(100_000)), 20_000);
        assert_eq!(per_second(None, Some(20_000)), INFINITY);
        assert_eq!(per_second(Some(u64::MAX), Some(1)), INFINITY);
    }
}
