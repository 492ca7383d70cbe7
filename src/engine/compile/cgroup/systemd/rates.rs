//! Properties for block devices.

use oci_spec::runtime::{LinuxBlockIo, LinuxThrottleDevice};
use podwright_plan::wire::unit_property::Value;
use podwright_plan::wire::{UnitProperty, UnitRate, UnitRates};

use super::super::io;
use super::properties::{INFINITY, number};
use crate::error::CompileError;

pub(super) fn block_io(given: &LinuxBlockIo, v2: bool) -> Result<Vec<UnitProperty>, CompileError> {
    io::weights(given)?;
    let mut properties = Vec::new();
    let weight = given.weight().filter(|it| *it != 0);
    if !v2 {
        properties.extend(weight.map(|it| number("BlockIOWeight", it.into())));
        return Ok(properties);
    }
    properties.extend(weight.map(|it| number("IOWeight", io::io_weight(it).into())));
    let devices = given.weight_device().iter().flatten();
    let weights = devices.filter_map(|device| {
        let weight = device.weight().filter(|it| *it != 0)?;
        Some(rate(device.major(), device.minor(), io::io_weight(weight).into()))
    });
    properties.extend(rates("IODeviceWeight", weights));
    for (name, devices) in [
        ("IOReadBandwidthMax", given.throttle_read_bps_device()),
        ("IOWriteBandwidthMax", given.throttle_write_bps_device()),
        ("IOReadIOPSMax", given.throttle_read_iops_device()),
        ("IOWriteIOPSMax", given.throttle_write_iops_device()),
    ] {
        // A rate of zero lifts the limit.
        let lifted = |device: &LinuxThrottleDevice| if device.rate() == 0 { INFINITY } else { device.rate() };
        let devices = devices.iter().flatten();
        properties.extend(rates(name, devices.map(|it| rate(it.major(), it.minor(), lifted(it)))));
    }
    Ok(properties)
}

fn rates(name: &str, rates: impl Iterator<Item = UnitRate>) -> Option<UnitProperty> {
    let list: Vec<UnitRate> = rates.collect();
    let value = Value::Rates(UnitRates { list });
    let empty = matches!(&value, Value::Rates(rates) if rates.list.is_empty());
    (!empty).then(|| UnitProperty { name: name.to_owned(), since: 0, value: Some(value) })
}

fn rate(major: i64, minor: i64, value: u64) -> UnitRate {
    UnitRate { node: format!("/dev/block/{major}:{minor}"), value }
}
