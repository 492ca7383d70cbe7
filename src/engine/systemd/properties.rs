//! A plan's properties as D-Bus values.

use podwright_plan::wire::unit_property::Value as Planned;
use podwright_plan::wire::{SystemdUnit, UnitProperty};
use zbus::Variant;

use crate::bus::Bus;
use crate::error::Error;
use crate::version;

pub(crate) type Property<'a> = (&'a str, Variant<'a>);

/// Says where a new unit is, and what is in it.
pub(crate) fn placed(unit: &SystemdUnit, pid: Option<u32>) -> Vec<Property<'_>> {
    // A slice's place follows from its name; it only has to be there.
    let slice = if unit.name.ends_with(".slice") {
        ("Wants", Variant::from(vec![unit.slice.as_str()]))
    } else {
        ("Slice", Variant::from(unit.slice.as_str()))
    };
    let pids = pid.map(|pid| ("PIDs", Variant::from(vec![pid])));
    [slice].into_iter().chain(pids).collect()
}

/// Turns a plan's properties into values, without those that this systemd does not know yet.
pub(crate) async fn known<'a>(bus: &Bus, planned: &'a [UnitProperty]) -> Result<Vec<Property<'a>>, Error> {
    // Most units have none that is newer than what a supported kernel comes with: then nobody has to be asked.
    let asks = planned.iter().any(|property| property.since > OLDEST);
    let running = if asks { version::parse(&bus.manager_property("Version").await?)? } else { OLDEST };
    planned.iter().filter(|property| property.since <= running).map(value).collect()
}

/// The version of the oldest distribution with a 5.15 kernel.
const OLDEST: u32 = 245;

fn value(property: &UnitProperty) -> Result<Property<'_>, Error> {
    let value = match &property.value {
        Some(Planned::Flag(flag)) => Variant::from(*flag),
        Some(Planned::Number(number)) => Variant::from(*number),
        Some(Planned::Text(text)) => Variant::from(text.as_str()),
        Some(Planned::Bits(bits)) => Variant::from(bits.as_slice()),
        Some(Planned::Devices(devices)) => {
            let devices = devices.list.iter().map(|device| (device.node.as_str(), device.access.as_str()));
            Variant::from(devices.collect::<Vec<_>>())
        }
        Some(Planned::Rates(rates)) => {
            Variant::from(rates.list.iter().map(|rate| (rate.node.as_str(), rate.value)).collect::<Vec<_>>())
        }
        None => return Err(Error::NoValue(property.name.clone())),
    };
    Ok((&property.name, value))
}

#[cfg(test)]
mod tests {
    use podwright_plan::wire::{UnitDevice, UnitDevices, UnitRate, UnitRates};

    use super::*;

    #[test]
    fn every_kind_has_systemds_signature() {
        let devices = UnitDevices { list: vec![UnitDevice { node: "char-*".into(), access: "m".into() }] };
        let rates = UnitRates { list: vec![UnitRate { node: "/dev/block/8:0".into(), value: 1 }] };
        for (planned, signature) in [
            (Planned::Flag(true), "b"),
            (Planned::Number(1), "t"),
            (Planned::Text("a".into()), "s"),
            (Planned::Bits(vec![1]), "ay"),
            (Planned::Devices(devices), "a(ss)"),
            (Planned::Devices(UnitDevices::default()), "a(ss)"),
            (Planned::Rates(rates), "a(st)"),
        ] {
            let property = UnitProperty { name: "X".into(), since: 0, value: Some(planned) };
            assert_eq!(value(&property).unwrap().1.value_signature().to_string(), signature);
        }
        assert!(matches!(value(&UnitProperty::default()), Err(Error::NoValue(_))));
    }

    #[test]
    fn a_scope_is_in_its_slice_and_has_its_process() {
        let unit = SystemdUnit { name: "a.scope".into(), slice: "b.slice".into(), ..SystemdUnit::default() };
        let placed = placed(&unit, Some(7));
        assert_eq!(placed.iter().map(|(name, _)| *name).collect::<Vec<_>>(), ["Slice", "PIDs"]);
        assert_eq!(placed[1].1.value_signature().to_string(), "au");
    }
}
