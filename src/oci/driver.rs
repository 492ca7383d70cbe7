//! Who makes a container's cgroup: this program, or systemd by `--systemd-cgroup`.

use podwright_compile::{CgroupDriver, CgroupPath};

use crate::error::Error;

/// Asks, without root, the user's manager of systemd where its units are; `None` of the system's, or without systemd.
pub(crate) fn manager(systemd: bool) -> Result<Option<CgroupPath>, Error> {
    if !systemd || rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    let path = podwright_systemd::user_manager_cgroup()?;
    let malformed = |_| Error::argument("cgroup of the user's manager", &path, "is no path of a cgroup");
    path.parse().map(Some).map_err(malformed)
}

/// Names the driver.
pub(crate) fn driver(systemd: bool, manager: Option<&CgroupPath>) -> CgroupDriver<'_> {
    if systemd { CgroupDriver::Systemd(manager) } else { CgroupDriver::Cgroupfs(None) }
}
