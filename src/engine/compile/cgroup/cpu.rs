//! `linux.resources.cpu`: shares, bandwidth, idle, real time, and the cpuset.
//!
//! Bandwidth has rules between its files (a burst within the quota, a ratio within the parent's), so whether a value is
//! taken depends on what another file still holds. What may be refused for that is written twice: leniently before the
//! value it depends on, and for good after it.

use oci_spec::runtime::LinuxCpu;
use podwright_plan::wire::CgroupWrite;

use super::limits::{Limits, lenient, not_on, write};
use crate::error::{CompileError, invalid};
use crate::facts::Home;

/// The kernel's default period, microseconds.
pub(super) const DEFAULT_PERIOD: u64 = 100_000;

pub(super) fn limits(limits: &mut Limits<'_>, cpu: &LinuxCpu) -> Result<(), CompileError> {
    if let Some(quota) = cpu.quota().filter(|quota| *quota < -1) {
        return Err(invalid("linux.resources.cpu.quota", quota.to_string(), "is below -1, which means unlimited"));
    }
    let asked =
        [cpu.shares(), cpu.period(), cpu.burst(), cpu.realtime_period()].into_iter().flatten().any(|it| it != 0)
            || [cpu.quota(), cpu.realtime_runtime()].into_iter().flatten().any(|it| it != 0)
            || cpu.idle().is_some();
    if asked {
        let home = limits.home("cpu", "cpu")?;
        let writes = match home {
            Home::V1(_) => v1(cpu),
            Home::V2(_) => v2(cpu)?,
        };
        limits.add(home, writes);
    }
    for (file, value) in [("cpuset.cpus", cpu.cpus()), ("cpuset.mems", cpu.mems())] {
        if let Some(value) = value.as_deref().filter(|value| !value.is_empty()) {
            let home = limits.home("cpuset", &file.replace("cpuset", "cpu"))?;
            limits.add(home, [write(file, value)]);
        }
    }
    Ok(())
}

fn v2(cpu: &LinuxCpu) -> Result<Vec<CgroupWrite>, CompileError> {
    if cpu.realtime_runtime().is_some_and(|it| it != 0) {
        return Err(not_on("v2", "cpu.realtimeRuntime"));
    }
    if cpu.realtime_period().is_some_and(|it| it != 0) {
        return Err(not_on("v2", "cpu.realtimePeriod"));
    }
    let mut writes = Vec::new();
    writes.extend(cpu.idle().map(|idle| write("cpu.idle", idle)));
    writes.extend(shares(cpu).map(|shares| write("cpu.weight", weight(shares))));
    let quota = cpu.quota().filter(|it| *it != 0);
    let period = cpu.period().filter(|it| *it != 0);
    let max = (quota.is_some() || period.is_some()).then(|| {
        let quota = quota.filter(|it| *it > 0).map_or_else(|| "max".to_owned(), |it| it.to_string());
        // Without a second number the kernel keeps the period.
        write("cpu.max", period.map_or_else(|| quota.clone(), |period| format!("{quota} {period}")))
    });
    around("cpu.max.burst", cpu.burst(), max, &mut writes);
    Ok(writes)
}

fn v1(cpu: &LinuxCpu) -> Vec<CgroupWrite> {
    let mut writes = Vec::new();
    writes.extend(cpu.idle().map(|idle| write("cpu.idle", idle)));
    writes.extend(shares(cpu).map(|shares| write("cpu.shares", shares)));
    let quota = cpu.quota().filter(|it| *it != 0).map(|quota| write("cpu.cfs_quota_us", quota));
    let period = cpu.period().filter(|it| *it != 0);
    let mut bandwidth = Vec::new();
    around("cpu.cfs_period_us", period, quota, &mut bandwidth);
    match cpu.burst() {
        Some(burst) if !bandwidth.is_empty() => {
            writes.push(lenient("cpu.cfs_burst_us", burst));
            writes.append(&mut bandwidth);
            writes.push(write("cpu.cfs_burst_us", burst));
        }
        burst => {
            writes.append(&mut bandwidth);
            writes.extend(burst.map(|burst| write("cpu.cfs_burst_us", burst)));
        }
    }
    let runtime = cpu.realtime_runtime().filter(|it| *it != 0).map(|runtime| write("cpu.rt_runtime_us", runtime));
    around("cpu.rt_period_us", cpu.realtime_period().filter(|it| *it != 0), runtime, &mut writes);
    writes
}

/// The shares of a cgroup that is not idle: those of an idle one are the kernel's, which refuses any others.
fn shares(cpu: &LinuxCpu) -> Option<u64> {
    cpu.shares().filter(|shares| *shares != 0 && cpu.idle() != Some(1))
}

/// Writes a file whose value must fit another one before and after that other one.
fn around(file: &str, value: Option<u64>, other: Option<CgroupWrite>, writes: &mut Vec<CgroupWrite>) {
    if other.is_some() {
        writes.extend(value.map(|value| lenient(file, value)));
    }
    writes.extend(other);
    writes.extend(value.map(|value| write(file, value)));
}

/// Turns v1 shares (2 to 262144, 1024 the default) into a v2 weight (1 to 10000, 100 the default).
///
/// The curve through those three points that runc since 1.3.2 (opencontainers/cgroups, `ConvertCPUSharesToCgroupV2Value`)
/// and crun since 1.23 use; the straight line before it gave the default shares a weight of 39 and so starved pods
/// beside the host's own services.
pub(super) fn weight(shares: u64) -> u64 {
    match shares {
        0..=2 => 1,
        262_144.. => 10_000,
        // Exact: shares are below 2^18, and the result lies between 1 and 10000.
        #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        _ => {
            let log = (shares as f64).log2();
            10_f64.powf((log * log + 125.0 * log) / 612.0 - 7.0 / 34.0).ceil() as u64
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_become_weights() {
        // The ends, the default and what lies outside are those of runc; the rest is on the curve.
        for (shares, expected) in
            [(2, 1), (1, 1), (1024, 100), (262_144, 10_000), (u64::MAX, 10_000), (512, 59), (10, 4)]
        {
            assert_eq!(weight(shares), expected, "{shares}");
        }
        assert!((2..262_144).step_by(97).all(|shares| weight(shares) <= weight(shares + 97)));
    }

    #[test]
    fn a_burst_is_written_on_both_sides_of_the_quota() {
        let mut cpu = LinuxCpu::default();
        cpu.set_quota(Some(50_000)).set_burst(Some(20_000));
        let files: Vec<_> = v2(&cpu).unwrap().into_iter().map(|it| (it.file, it.value, it.lenient)).collect();
        let burst = |lenient| ("cpu.max.burst".to_owned(), "20000".to_owned(), lenient);
        assert_eq!(files, [burst(true), ("cpu.max".to_owned(), "50000".to_owned(), false), burst(false)]);
    }

    #[test]
    fn an_unlimited_quota_with_a_period() {
        let mut cpu = LinuxCpu::default();
        cpu.set_quota(Some(-1)).set_period(Some(20_000));
        assert_eq!(v2(&cpu).unwrap(), [write("cpu.max", "max 20000")]);
        let v1: Vec<_> = v1(&cpu).into_iter().map(|it| it.value).collect();
        assert_eq!(v1, ["20000", "-1", "20000"]);
    }

    #[test]
    fn an_idle_cgroup_has_no_shares() {
        let mut cpu = LinuxCpu::default();
        cpu.set_idle(Some(1)).set_shares(Some(512));
        assert_eq!(v2(&cpu).unwrap(), [write("cpu.idle", 1)]);
        assert_eq!(v1(&cpu), [write("cpu.idle", 1)]);
        cpu.set_idle(Some(0));
        assert_eq!(v2(&cpu).unwrap(), [write("cpu.idle", 0), write("cpu.weight", 59)]);
    }

    #[test]
    fn real_time_is_v1_only() {
        let mut cpu = LinuxCpu::default();
        cpu.set_realtime_runtime(Some(1000));
        assert!(v2(&cpu).unwrap_err().to_string().contains("cpu.realtimeRuntime does not exist on cgroup v2"));
        assert_eq!(v1(&cpu), [write("cpu.rt_runtime_us", 1000)]);
    }
}
