//! Finds the device nodes that a container's configuration names: each is one, or a directory of them.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use podwright_spec::container::Device;
use podwright_spec::{DeviceKind, ResolvedDevice};
use rustix::fs::{major, minor};

use crate::error::Error;

/// How deep a directory of devices is searched.
const DEPTH: u32 = 8;

/// Finds all nodes (CRI `devices`).
///
/// # Errors
/// Names the entry whose path is missing, or is no device.
pub(crate) fn resolve(devices: &[Device]) -> Result<Vec<ResolvedDevice>, Error> {
    let mut found = Vec::new();
    for (index, device) in devices.iter().enumerate() {
        let before = found.len();
        search(&device.host_path, Path::new(&device.container_path), &device.permissions, DEPTH, &mut found)
            .map_err(|error| invalid(index, format!("{}: {error}", device.host_path.display())))?;
        if found.len() == before {
            return Err(invalid(index, format!("{} is no device and holds none", device.host_path.display())));
        }
    }
    Ok(found)
}

/// Finds what a privileged container gets: every node of the host's /dev, but terminals and what the runtime makes.
pub(crate) fn of_host() -> io::Result<Vec<ResolvedDevice>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/dev")? {
        let path = entry?.path();
        let own = ["pts", "shm", "fd", "mqueue", "console", "ptmx", "tty", "null", "zero", "full", "random", "urandom"];
        if path.file_name().is_some_and(|name| own.iter().any(|own| name == *own)) {
            continue;
        }
        search(&path, &path, "rwm", DEPTH, &mut found)?;
    }
    Ok(found)
}

fn invalid(index: usize, problem: String) -> Error {
    Error::invalid(format!("config.devices[{index}].host_path"), problem)
}

fn search(host: &Path, container: &Path, access: &str, depth: u32, found: &mut Vec<ResolvedDevice>) -> io::Result<()> {
    let metadata = fs::metadata(host)?;
    if metadata.is_dir() && depth > 0 {
        let mut entries: Vec<PathBuf> =
            fs::read_dir(host)?.map(|entry| entry.map(|entry| entry.path())).collect::<io::Result<_>>()?;
        entries.sort();
        for entry in entries {
            let Some(name) = entry.file_name() else { continue };
            match search(&entry, &container.join(name), access, depth - 1, found) {
                // A dangling link among the host's devices is nobody's concern.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                other => other?,
            }
        }
        return Ok(());
    }
    let kind = match metadata.file_type() {
        kind if kind.is_char_device() => DeviceKind::Char,
        kind if kind.is_block_device() => DeviceKind::Block,
        _ => return Ok(()),
    };
    found.push(ResolvedDevice {
        path: container.to_owned(),
        kind,
        major: major(metadata.rdev()),
        minor: minor(metadata.rdev()),
        mode: metadata.mode() & 0o7777,
        uid: metadata.uid(),
        gid: metadata.gid(),
        access: access.to_owned(),
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(host: &str) -> Device {
        Device { container_path: "/dev/x".to_owned(), host_path: host.into(), permissions: "rw".to_owned() }
    }

    #[test]
    fn a_node_is_found_with_its_numbers() {
        let found = resolve(&[device("/dev/null")]).unwrap();
        assert_eq!((found.len(), found[0].major, found[0].minor), (1, 1, 3));
        assert_eq!(found[0].path, Path::new("/dev/x"));
    }

    #[test]
    fn what_is_no_device_is_named_with_its_field() {
        for path in ["/etc/passwd", "/no/such/device"] {
            let error = resolve(&[device("/dev/null"), device(path)]).unwrap_err().to_string();
            assert!(error.starts_with("config.devices[1].host_path: ") && error.contains(path), "{error}");
        }
    }
}
