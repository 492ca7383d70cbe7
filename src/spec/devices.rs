//! Device nodes and what the device cgroup lets a container do with them.

use oci_spec::runtime::{LinuxDevice, LinuxDeviceCgroup, LinuxDeviceType as Type};

use crate::error::SpecError;
use crate::input::{ContainerInput, DeviceKind, ResolvedDevice};

/// Numbers (`Documentation/admin-guide/devices.txt`) of what every container may use: null, zero, full, random,
/// urandom, tty, console, ptmx, and all slaves of devpts.
const ALWAYS: [(i64, Option<i64>); 9] = [
    (1, Some(3)),
    (1, Some(5)),
    (1, Some(7)),
    (1, Some(8)),
    (1, Some(9)),
    (5, Some(0)),
    (5, Some(1)),
    (5, Some(2)),
    (136, None),
];

/// Lists the nodes to make beside those that the OCI specification has every runtime make.
pub(crate) fn nodes(input: &ContainerInput<'_>) -> Vec<LinuxDevice> {
    let mut nodes: Vec<LinuxDevice> = input.devices.iter().map(node).collect();
    if input.container.security.privileged {
        // What the request names keeps its own place and permissions.
        let more = input.host.devices.iter().filter(|host| input.devices.iter().all(|own| own.path != host.path));
        nodes.extend(more.map(node));
    }
    nodes
}

/// Lists the device cgroup's rules, later ones over earlier ones.
pub(crate) fn rules(input: &ContainerInput<'_>) -> Result<Vec<LinuxDeviceCgroup>, SpecError> {
    for (index, device) in input.container.devices.iter().enumerate() {
        let letters = &device.permissions;
        if letters.is_empty() || !letters.chars().all(|letter| "rwm".contains(letter)) {
            return Err(SpecError::DevicePermissions { index, permissions: letters.clone() });
        }
    }
    if input.container.security.privileged {
        return Ok(vec![rule(true, Type::A, None, None, "rwm")]);
    }
    let mut rules = vec![
        rule(false, Type::A, None, None, "rwm"),
        // Making a node is harmless where opening it is refused; package managers and tar do it.
        rule(true, Type::C, None, None, "m"),
        rule(true, Type::B, None, None, "m"),
    ];
    rules.extend(ALWAYS.iter().map(|(major, minor)| rule(true, Type::C, Some(*major), *minor, "rwm")));
    rules.extend(
        input.devices.iter().map(|device| {
            rule(true, kind(device), Some(device.major.into()), Some(device.minor.into()), &device.access)
        }),
    );
    Ok(rules)
}

fn node(device: &ResolvedDevice) -> LinuxDevice {
    let mut node = LinuxDevice::default();
    node.set_path(device.path.clone());
    node.set_typ(kind(device));
    node.set_major(device.major.into());
    node.set_minor(device.minor.into());
    node.set_file_mode(Some(device.mode));
    node.set_uid(Some(device.uid));
    node.set_gid(Some(device.gid));
    node
}

fn kind(device: &ResolvedDevice) -> Type {
    match device.kind {
        DeviceKind::Char => Type::C,
        DeviceKind::Block => Type::B,
    }
}

fn rule(allow: bool, kind: Type, major: Option<i64>, minor: Option<i64>, access: &str) -> LinuxDeviceCgroup {
    let mut rule = LinuxDeviceCgroup::default();
    rule.set_allow(allow);
    rule.set_typ(Some(kind));
    rule.set_major(major);
    rule.set_minor(minor);
    rule.set_access(Some(access.to_owned()));
    rule
}
