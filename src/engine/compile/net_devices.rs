//! `linux.netDevices`: devices of the host's that are moved into the container's network namespace.

use std::collections::BTreeMap;

use oci_spec::runtime::Linux;
use podwright_plan::wire;

use crate::error::{CompileError, invalid};

/// What the kernel takes as a device's name, in bytes (`IFNAMSIZ` with its end).
const LONGEST: usize = 15;

/// Compiles the devices, sorted by name.
pub(crate) fn net_devices(linux: &Linux, own_network: bool) -> Result<Vec<wire::NetDevice>, CompileError> {
    let sorted: BTreeMap<_, _> = linux.net_devices().iter().flatten().collect();
    let mut devices: Vec<wire::NetDevice> = Vec::new();
    for (name, device) in sorted {
        let field = format!("linux.netDevices[{name}]");
        if !own_network {
            return Err(invalid(field, "", "needs a network namespace in linux.namespaces"));
        }
        let inside = device.name().as_deref().filter(|inside| !inside.is_empty()).unwrap_or(name);
        for name in [name, inside] {
            if !is_name(name) {
                return Err(invalid(field, name, "is no name of a network device"));
            }
        }
        if devices.iter().any(|earlier| earlier.inside == inside) {
            return Err(invalid(field, inside, "is the name of two devices"));
        }
        devices.push(wire::NetDevice { name: name.clone(), inside: inside.to_owned() });
    }
    Ok(devices)
}

/// The kernel's `dev_valid_name`, and no pattern such as `eth%d`.
fn is_name(name: &str) -> bool {
    let bad = |byte: u8| matches!(byte, b'/' | b':' | b'%' | 0) || byte.is_ascii_whitespace();
    !name.is_empty() && name.len() <= LONGEST && name != "." && name != ".." && !name.bytes().any(bad)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compile(json: &str, own_network: bool) -> Result<Vec<wire::NetDevice>, String> {
        let linux: Linux = serde_json::from_str(json).unwrap();
        net_devices(&linux, own_network).map_err(|error| error.to_string())
    }

    #[test]
    fn devices_keep_their_names_or_get_new_ones() {
        let devices = compile(r#"{"netDevices": {"eth7": {"name": "net0"}, "eth1": {}}}"#, true).unwrap();
        let seen: Vec<_> = devices.iter().map(|it| (&*it.name, &*it.inside)).collect();
        assert_eq!(seen, [("eth1", "eth1"), ("eth7", "net0")]);
    }

    #[test]
    fn what_cannot_be_done_is_named() {
        for (json, own, words) in [
            (r#"{"netDevices": {"eth1": {}}}"#, false, "needs a network namespace"),
            (r#"{"netDevices": {"a/b": {}}}"#, true, "is no name"),
            (r#"{"netDevices": {"eth1": {"name": "longer-than-15-bytes"}}}"#, true, "is no name"),
            (r#"{"netDevices": {"eth1": {"name": "eth%d"}}}"#, true, "is no name"),
            (r#"{"netDevices": {"a": {"name": "x"}, "b": {"name": "x"}}}"#, true, "is the name of two"),
        ] {
            let error = compile(json, own).unwrap_err();
            assert!(error.contains("linux.netDevices") && error.contains(words), "{error}");
        }
    }
}
