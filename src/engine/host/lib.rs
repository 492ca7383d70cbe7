//! Reads the facts of this host that plans are compiled with, for the daemon and for the OCI command line.

use std::fs;
use std::io;
use std::num::ParseIntError;
use std::path::{Path, PathBuf};

use podwright_compile::{CgroupLayout, FactsError, HostFacts, SeccompArch};
use rustix::system::uname;

/// Why the facts could not be read.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// A file of /proc or of the cgroup file system.
    #[error("read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// There are no control groups, or not as expected.
    #[error("find the host's control groups")]
    Cgroups(#[from] FactsError),
    /// `/proc/sys/kernel/cap_last_cap` has no number.
    #[error("read the kernel's last capability")]
    LastCapability(#[from] ParseIntError),
}

/// Reads the facts that plans are compiled with.
///
/// # Errors
/// When this host has no control groups, or /proc cannot be read.
pub fn facts() -> Result<HostFacts, HostError> {
    let mountinfo = read(Path::new("/proc/self/mountinfo"))?;
    let known = read(Path::new("/proc/cgroups")).unwrap_or_default();
    // Where v2 is mounted is told by a first look, which of its controllers are free by a second.
    let first = CgroupLayout::parse(&mountinfo, &known, "")?;
    let controllers = match first.v2_mount() {
        Some(mount) => read(&mount.join("cgroup.controllers"))?,
        None => String::new(),
    };
    Ok(HostFacts {
        cgroup: CgroupLayout::parse(&mountinfo, &known, &controllers)?,
        last_cap: read(Path::new("/proc/sys/kernel/cap_last_cap"))?.trim().parse()?,
        seccomp_arch: SeccompArch::NATIVE,
        kernel: kernel(),
        apparmor: apparmor(),
        selinux: Path::new("/sys/fs/selinux/enforce").exists(),
    })
}

fn read(path: &Path) -> Result<String, HostError> {
    fs::read_to_string(path).map_err(|source| HostError::Read { path: path.to_owned(), source })
}

fn kernel() -> (u32, u32) {
    let release = uname().release().to_string_lossy().into_owned();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse().unwrap_or_default());
    (numbers.next().unwrap_or_default(), numbers.next().unwrap_or_default())
}

fn apparmor() -> bool {
    fs::read_to_string("/sys/module/apparmor/parameters/enabled").is_ok_and(|text| text.starts_with('Y'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_host_has_what_containers_need() {
        assert!(facts().unwrap().kernel >= (5, 15));
    }
}
