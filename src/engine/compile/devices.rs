//! The nodes and links in a container's /dev: those that the specification puts into every Linux container, and its own.

use oci_spec::runtime::{LinuxDevice, LinuxDeviceType};
use podwright_plan::wire::{Device, DeviceKind, Symlink};

use crate::error::{CompileError, invalid};
use crate::mounts::absolute;

/// What a node may be used for when nothing is said.
const DEFAULT_MODE: u32 = 0o666;
/// "Default Devices" of the runtime specification; /dev/console and /dev/ptmx are made by other means.
const DEFAULTS: [(&str, u32, u32); 6] = [
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
    ("/dev/tty", 5, 0),
];
/// "Default symbolic links" of the runtime specification, with /dev/ptmx of the container's own devpts and the customary
/// /dev/core.
const LINKS: [(&str, &str); 6] = [
    ("/proc/self/fd", "/dev/fd"),
    ("/proc/self/fd/0", "/dev/stdin"),
    ("/proc/self/fd/1", "/dev/stdout"),
    ("/proc/self/fd/2", "/dev/stderr"),
    ("pts/ptmx", "/dev/ptmx"),
    ("/proc/kcore", "/dev/core"),
];

/// Compiles `linux.devices`. A /dev of the host (`host_dev`) has its nodes already, and making some there would change the
/// host's: the container's own are then those elsewhere.
pub(crate) fn devices(list: &[LinuxDevice], host_dev: bool) -> Result<Vec<Device>, CompileError> {
    let mut devices: Vec<Device> = Vec::new();
    for (index, it) in list.iter().enumerate() {
        let field = format!("linux.devices[{index}]");
        let device = device(it, &field)?;
        if devices.iter().any(|earlier| earlier.path == device.path) {
            return Err(invalid(format!("{field}.path"), device.path, "is listed twice"));
        }
        devices.push(device);
    }
    for (path, major, minor) in DEFAULTS {
        if !devices.iter().any(|device| device.path == path) {
            let kind = DeviceKind::DeviceChar.into();
            devices.push(Device { path: path.to_owned(), kind, major, minor, mode: DEFAULT_MODE, uid: 0, gid: 0 });
        }
    }
    devices.retain(|device| !host_dev || !device.path.starts_with("/dev/"));
    Ok(devices)
}

/// Lists the links of a container's own /dev.
pub(crate) fn symlinks(host_dev: bool) -> Vec<Symlink> {
    let links: &[(&str, &str)] = if host_dev { &[] } else { &LINKS };
    links.iter().map(|(target, path)| Symlink { target: (*target).to_owned(), path: (*path).to_owned() }).collect()
}

fn device(device: &LinuxDevice, field: &str) -> Result<Device, CompileError> {
    let kind = match device.typ() {
        LinuxDeviceType::C | LinuxDeviceType::U => DeviceKind::DeviceChar,
        LinuxDeviceType::B => DeviceKind::DeviceBlock,
        LinuxDeviceType::P => DeviceKind::DeviceFifo,
        LinuxDeviceType::A => return Err(invalid(format!("{field}.type"), "a", "is no type of a node")),
    };
    let number = |name: &str, value: i64| {
        u32::try_from(value).map_err(|_| invalid(format!("{field}.{name}"), value.to_string(), "is no device number"))
    };
    Ok(Device {
        path: absolute(device.path(), &format!("{field}.path"))?,
        kind: kind.into(),
        major: number("major", device.major())?,
        minor: number("minor", device.minor())?,
        // Some writers put the type's bits of st_mode in.
        mode: device.file_mode().map_or(DEFAULT_MODE, |mode| mode & 0o7777),
        uid: device.uid().unwrap_or(0),
        gid: device.gid().unwrap_or(0),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(json: &str) -> Vec<LinuxDevice> {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn given_nodes_come_first_and_replace_the_default_of_their_path() {
        let list = list(
            r#"[{"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229, "fileMode": 8630, "gid": 4},
                {"path": "/dev/null", "type": "c", "major": 1, "minor": 3, "fileMode": 384}]"#,
        );
        let devices = devices(&list, false).unwrap();
        assert_eq!(devices.len(), 7);
        assert_eq!((devices[0].mode, devices[0].gid), (0o666, 4));
        let null: Vec<_> = devices.iter().filter(|device| device.path == "/dev/null").collect();
        assert_eq!((null.len(), null[0].mode), (1, 0o600));
    }

    #[test]
    fn the_hosts_dev_is_left_alone() {
        let list = list(r#"[{"path": "/dev/fuse", "type": "c"}, {"path": "/opt/pipe", "type": "p"}]"#);
        let devices = devices(&list, true).unwrap();
        assert_eq!(devices.iter().map(|device| device.path.as_str()).collect::<Vec<_>>(), ["/opt/pipe"]);
        assert!(symlinks(true).is_empty());
    }

    #[test]
    fn bad_nodes_are_named() {
        for (json, words) in [
            (r#"[{"path": "fuse", "type": "c"}]"#, "linux.devices[0].path"),
            (r#"[{"path": "/dev/x", "type": "a"}]"#, "linux.devices[0].type"),
            (r#"[{"path": "/dev/x", "type": "c", "major": -1}]"#, "linux.devices[0].major"),
            (r#"[{"path": "/dev/x", "type": "c"}, {"path": "/dev/x", "type": "b"}]"#, "is listed twice"),
        ] {
            let error = devices(&list(json), false).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }
}
