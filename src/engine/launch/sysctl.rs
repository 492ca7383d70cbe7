//! Kernel parameters of a pod's and a container's own namespaces.

use std::path::{Component, Path};

use podwright_plan::wire::{Cause, Sysctl};

use crate::failure::Failure;
use crate::procfs::Procfs;

/// Which namespaces the process about to write has to itself.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Own {
    pub(crate) network: bool,
    pub(crate) ipc: bool,
    pub(crate) uts: bool,
}

/// The System V and POSIX IPC parameters, beside all of `fs/mqueue/`.
const IPC: [&str; 8] = [
    "kernel/msgmax",
    "kernel/msgmnb",
    "kernel/msgmni",
    "kernel/sem",
    "kernel/shmall",
    "kernel/shmmax",
    "kernel/shmmni",
    "kernel/shm_rmid_forced",
];

/// Writes parameters by the host's /proc, where the kernel shows each writer those of its own namespaces.
///
/// A parameter that is not of an own namespace would change the host (the writer is root there), so it is refused.
pub(crate) fn write_all(sysctls: &[Sysctl], own: Own, cause: Cause) -> Result<(), Failure> {
    if sysctls.is_empty() {
        return Ok(());
    }
    let procfs = Procfs::open().map_err(|errno| Failure::new(cause, "open the host's", "/proc", errno))?;
    for Sysctl { path, value } in sysctls {
        if !is_own(path, own) {
            return Err(Failure::plan("set sysctl", path, "it is not of a namespace that the pod has to itself"));
        }
        procfs
            .write(Path::new("sys").join(path), value.as_bytes())
            .map_err(|errno| Failure::new(cause, "set sysctl", path, errno).with_detail(&**value))?;
    }
    Ok(())
}

fn is_own(path: &str, own: Own) -> bool {
    if !Path::new(path).components().all(|part| matches!(part, Component::Normal(_))) {
        return false;
    }
    if path.starts_with("net/") {
        return own.network;
    }
    if path.starts_with("fs/mqueue/") || IPC.contains(&path) {
        return own.ipc;
    }
    own.uts && path == "kernel/domainname"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_parameters_of_own_namespaces_are_written() {
        let all = Own { network: true, ipc: true, uts: true };
        for path in ["net/ipv4/ip_forward", "kernel/shmmax", "fs/mqueue/msg_max", "kernel/domainname"] {
            assert!(is_own(path, all), "{path}");
            assert!(!is_own(path, Own::default()), "{path} of the host");
        }
        for path in ["vm/swappiness", "kernel/panic", "net/../vm/swappiness", "/net/ipv4/ip_forward", "", "fs/file-max"]
        {
            assert!(!is_own(path, all), "{path}");
        }
    }
}
