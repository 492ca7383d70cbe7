//! `linux.resources.blockIO`: weights and throttles of block devices.
//!
//! Since 5.0 the kernel has weights with the BFQ scheduler and, on v2, with the io.cost controller, each in a file of its
//! own that is absent without it: a weight goes to whichever are there, and one of them must be.

use oci_spec::runtime::{LinuxBlockIo, LinuxThrottleDevice};
use podwright_plan::wire::CgroupWrite;

use super::limits::{Limits, write};
use crate::error::{CompileError, invalid, unsupported};
use crate::facts::Home;

pub(super) fn limits(limits: &mut Limits<'_>, io: &LinuxBlockIo) -> Result<(), CompileError> {
    let leaf = |device: &oci_spec::runtime::LinuxWeightDevice| device.leaf_weight().is_some_and(|it| it != 0);
    if io.leaf_weight().is_some_and(|it| it != 0) || io.weight_device().iter().flatten().any(leaf) {
        // It left the kernel with CFQ.
        return Err(unsupported("linux.resources.blockIO.leafWeight"));
    }
    let weights = weights(io)?;
    let throttles = throttles(io);
    if weights.is_empty() && throttles.is_empty() {
        return Ok(());
    }
    let home = limits.home("io", "blockIO")?;
    let mut writes: Vec<CgroupWrite> = Vec::new();
    for (device, weight) in weights {
        match home {
            Home::V1(_) if device.is_empty() => writes.push(write("blkio.bfq.weight", weight)),
            Home::V1(_) => writes.push(write("blkio.bfq.weight_device", format!("{device}{weight}"))),
            Home::V2(_) => {
                writes.push(either("io.bfq.weight", "io.weight", format!("{device}{weight}")));
                writes.push(either("io.weight", "io.bfq.weight", format!("{device}{}", io_weight(weight))));
            }
        }
    }
    for (v1_file, v2_key, device) in throttles {
        let number = format!("{}:{}", device.major(), device.minor());
        writes.push(match home {
            Home::V1(_) => write(v1_file, format!("{number} {}", device.rate())),
            // A rate of zero lifts the limit, which v2 spells out.
            Home::V2(_) if device.rate() == 0 => write("io.max", format!("{number} {v2_key}=max")),
            Home::V2(_) => write("io.max", format!("{number} {v2_key}={}", device.rate())),
        });
    }
    limits.add(home, writes);
    Ok(())
}

/// Writes a value where the kernel has the file, which it must if it has not the other.
fn either(file: &str, other: &str, value: String) -> CgroupWrite {
    CgroupWrite { optional_with: other.to_owned(), ..write(file, value) }
}

/// Collects the cgroup's weight (no device) and those of devices (`major:minor ` in front).
pub(super) fn weights(io: &LinuxBlockIo) -> Result<Vec<(String, u16)>, CompileError> {
    let whole = io.weight().map(|weight| (String::new(), weight));
    let devices = io.weight_device().iter().flatten();
    let devices =
        devices.filter_map(|device| Some((format!("{}:{} ", device.major(), device.minor()), device.weight()?)));
    let weights: Vec<(String, u16)> = whole.into_iter().chain(devices).filter(|(_, weight)| *weight != 0).collect();
    match weights.iter().find(|(_, weight)| !(10..=1000).contains(weight)) {
        Some((_, weight)) => {
            Err(invalid("linux.resources.blockIO.weight", weight.to_string(), "is not between 10 and 1000"))
        }
        None => Ok(weights),
    }
}

/// Pairs every throttle with its v1 file and its key in v2's `io.max`.
fn throttles(io: &LinuxBlockIo) -> Vec<(&'static str, &'static str, &LinuxThrottleDevice)> {
    [
        ("blkio.throttle.read_bps_device", "rbps", io.throttle_read_bps_device()),
        ("blkio.throttle.write_bps_device", "wbps", io.throttle_write_bps_device()),
        ("blkio.throttle.read_iops_device", "riops", io.throttle_read_iops_device()),
        ("blkio.throttle.write_iops_device", "wiops", io.throttle_write_iops_device()),
    ]
    .into_iter()
    .flat_map(|(file, key, devices)| devices.iter().flatten().map(move |device| (file, key, device)))
    .collect()
}

/// Stretches a v1 weight (10 to 1000) over v2's range (1 to 10000), as runc and crun do.
pub(super) fn io_weight(weight: u16) -> u32 {
    1 + (u32::from(weight) - 10) * 9999 / 990
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::tests::{legacy, unified};

    fn compiled(io: &LinuxBlockIo, facts: &crate::HostFacts) -> Vec<(String, String)> {
        let path = "/a".parse().unwrap();
        let mut collected = Limits::new(&facts.cgroup, &path);
        limits(&mut collected, io).unwrap();
        let writes = collected.into_dirs().into_iter().flat_map(|dir| dir.writes);
        writes.map(|it| (it.file, it.value)).collect()
    }

    fn pair(file: &str, value: &str) -> (String, String) {
        (file.to_owned(), value.to_owned())
    }

    #[test]
    fn weights_keep_their_ends() {
        assert_eq!((io_weight(10), io_weight(1000), io_weight(500)), (1, 10_000, 4950));
    }

    #[test]
    fn throttles_and_weights_in_both_versions() {
        let io: LinuxBlockIo = serde_json::from_str(
            r#"{"weight": 500, "throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 1048576}],
                "throttleWriteIOPSDevice": [{"major": 8, "minor": 16, "rate": 0}]}"#,
        )
        .unwrap();
        assert_eq!(
            compiled(&io, &unified()),
            [
                pair("io.bfq.weight", "500"),
                pair("io.weight", "4950"),
                pair("io.max", "8:0 rbps=1048576"),
                pair("io.max", "8:16 wiops=max")
            ]
        );
        assert_eq!(
            compiled(&io, &legacy()),
            [
                pair("blkio.bfq.weight", "500"),
                pair("blkio.throttle.read_bps_device", "8:0 1048576"),
                pair("blkio.throttle.write_iops_device", "8:16 0")
            ]
        );
    }

    #[test]
    fn a_weight_outside_its_range_is_refused() {
        let mut io = LinuxBlockIo::default();
        io.set_weight(Some(1001));
        assert!(weights(&io).is_err());
    }
}
