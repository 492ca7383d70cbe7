//! Kernel settings below `/proc/sys/net`, of the network namespace of the calling thread.

use std::fs;
use std::io;
use std::path::Path;

const BASE: &str = "/proc/sys/net";

/// Why a kernel setting was not read or written.
#[derive(Debug, thiserror::Error)]
pub enum SysctlError {
    /// It cannot be read.
    #[error("read the kernel setting {BASE}/{name}")]
    Read {
        /// Its path below `/proc/sys/net`.
        name: String,
        /// Why.
        source: io::Error,
    },
    /// It cannot be written.
    #[error("write {value} to the kernel setting {BASE}/{name}")]
    Write {
        /// Its path below `/proc/sys/net`.
        name: String,
        /// The value it should have.
        value: &'static str,
        /// Why.
        source: io::Error,
    },
}

/// Reads a setting; `None` when this kernel or namespace does not have it.
pub(crate) fn read(name: &str) -> Result<Option<String>, SysctlError> {
    match fs::read_to_string(Path::new(BASE).join(name)) {
        Ok(text) => Ok(Some(text.trim_end().to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(SysctlError::Read { name: name.to_owned(), source }),
    }
}

/// Gives a setting a value; one that has it is not written, since `/proc/sys` may be read-only.
pub(crate) fn set(name: &str, value: &'static str) -> Result<(), SysctlError> {
    if read(name)?.as_deref() == Some(value) {
        return Ok(());
    }
    fs::write(Path::new(BASE).join(name), value).map_err(|source| SysctlError::Write {
        name: name.to_owned(),
        value,
        source,
    })
}

/// Whether IPv6 is there and not disabled for devices that are made from now on.
pub(crate) fn has_ipv6() -> Result<bool, SysctlError> {
    for of in ["all", "default"] {
        if read(&format!("ipv6/conf/{of}/disable_ipv6"))?.as_deref() != Some("0") {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Turns IPv4 forwarding on.
pub(crate) fn forward_ipv4() -> Result<(), SysctlError> {
    set("ipv4/ip_forward", "1")
}

/// Turns IPv6 forwarding on, which the kernel has for all devices or none.
///
/// A host that forwards ignores router advertisements unless told otherwise, and would lose a default route that it
/// has from them: devices that take them are told to go on, before forwarding is on.
pub(crate) fn forward_ipv6() -> Result<(), SysctlError> {
    if read("ipv6/conf/all/forwarding")?.as_deref() == Some("1") {
        return Ok(());
    }
    let devices = Path::new(BASE).join("ipv6/conf");
    let failed = |source| SysctlError::Read { name: "ipv6/conf".to_owned(), source };
    for entry in fs::read_dir(devices).map_err(failed)? {
        let device = entry.map_err(failed)?.file_name();
        // Devices that are not there yet are for whoever brings them.
        if device == "all" || device == "default" {
            continue;
        }
        let name = format!("ipv6/conf/{}/accept_ra", device.to_string_lossy());
        if read(&name)?.as_deref() == Some("1") {
            set(&name, "2")?;
        }
    }
    set("ipv6/conf/all/forwarding", "1")
}
