//! Reads, once at start, what this host has: plans and specifications are made from it without looking again.

use std::fs;
use std::path::{Path, PathBuf};

use podwright_compile::{CgroupLayout, HostFacts};
use podwright_spec::HostTraits;
use rustix::process::{Resource, getrlimit};
use rustix::system::uname;

use crate::container::devices;
use crate::error::Error;

/// Open files that a container may have, where the daemon itself may have as many.
const NOFILE: u64 = 1_048_576;
const SHIM: &str = "podwright-shim";

/// Reads the facts that plans are compiled with.
///
/// # Errors
/// When this host has no control groups, or runs on a processor whose system calls are not known here.
pub(crate) fn facts() -> Result<HostFacts, Error> {
    podwright_host::facts().map_err(|source| Error::step("look at this host", source))
}

/// Reads what specifications are made with.
///
/// # Errors
/// When /proc or /dev cannot be read.
pub(crate) fn traits(facts: &HostFacts) -> Result<HostTraits, Error> {
    let hostname = uname().nodename().to_string_lossy().into_owned();
    let capabilities = capabilities(&read(Path::new("/proc/self/status"))?);
    let limit = getrlimit(Resource::Nofile).maximum.unwrap_or(NOFILE).min(NOFILE);
    let devices = devices::of_host().map_err(|source| Error::step("list the host's devices", source))?;
    Ok(HostTraits {
        hostname,
        capabilities,
        apparmor: facts.apparmor,
        apparmor_default: None,
        selinux: facts.selinux,
        swap_accounting: swap_accounting(&facts.cgroup),
        hugetlb: facts.cgroup.controller("hugetlb").is_some(),
        nofile: Some((limit, limit)),
        devices,
    })
}

/// Finds the shim's binary: the configured one, else that beside the daemon's own.
///
/// # Errors
/// When there is none.
pub(crate) fn shim_binary(configured: Option<&Path>) -> Result<PathBuf, Error> {
    let own = std::env::current_exe().map_err(|source| Error::step("find the daemon's own binary", source))?;
    let path = configured.map_or_else(|| own.with_file_name(SHIM), Path::to_owned);
    match fs::metadata(&path) {
        Ok(_) => Ok(path),
        Err(source) => {
            Err(Error::step(format!("find the shim {}: install it there, or set shim.path", path.display()), source))
        }
    }
}

fn read(path: &Path) -> Result<String, Error> {
    fs::read_to_string(path).map_err(|source| Error::step(format!("read {}", path.display()), source))
}

/// Takes the effective set out of `/proc/self/status`.
fn capabilities(status: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    line.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or_default()
}

/// Swap is limited apart from memory on every v2, on v1 where the kernel was started so.
fn swap_accounting(cgroup: &CgroupLayout) -> bool {
    match cgroup.controller("memory") {
        Some((mount, false)) => mount.join("memory.memsw.limit_in_bytes").exists(),
        Some((_, v2)) => v2,
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_effective_set_is_read() {
        assert_eq!(capabilities("Name:\tx\nCapEff:\t000001ffffffffff\n"), 0x1ff_ffff_ffff);
        assert_eq!(capabilities("nothing"), 0);
    }

    #[test]
    fn this_host_has_what_pods_need() {
        let facts = facts().unwrap();
        assert!(traits(&facts).unwrap().capabilities != 0);
    }
}
