//! Kernel parameters: which a pod may set, and their paths below /proc/sys.

use std::collections::BTreeMap;

use podwright_plan::wire::Sysctl;

use crate::error::{CompileError, invalid};

/// The parameters of an IPC namespace (the kernel's ipc/ipc_sysctl.c); those below fs.mqueue are its too.
const IPC: [&str; 11] = [
    "kernel/msgmax",
    "kernel/msgmnb",
    "kernel/msgmni",
    "kernel/msg_next_id",
    "kernel/sem",
    "kernel/sem_next_id",
    "kernel/shm_next_id",
    "kernel/shm_rmid_forced",
    "kernel/shmall",
    "kernel/shmmax",
    "kernel/shmmni",
];

/// The namespaces that are not the host's, and so may be changed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Own {
    pub(crate) network: bool,
    pub(crate) ipc: bool,
    pub(crate) uts: bool,
}

/// Compiles parameters, sorted by name. One that is not of a namespace of the pod's own would change the host and is
/// refused.
pub(crate) fn sysctls<'a>(
    values: impl IntoIterator<Item = (&'a String, &'a String)>,
    own: Own,
    field: &str,
) -> Result<Vec<Sysctl>, CompileError> {
    let sorted: BTreeMap<&String, &String> = values.into_iter().collect();
    sorted
        .into_iter()
        .map(|(name, value)| {
            let refuse = |problem| Err(invalid(field, name, problem));
            let path = path(name);
            if path.split('/').any(|part| matches!(part, "" | "." | "..")) || path.contains('\0') {
                return refuse("is no parameter's name");
            }
            let (belongs, namespace_problem) = if path.starts_with("net/") {
                (own.network, "would change the host, whose network it has")
            } else if IPC.contains(&path.as_str()) || path.starts_with("fs/mqueue/") {
                (own.ipc, "would change the host, whose IPC namespace it has")
            } else if path == "kernel/domainname" {
                (own.uts, "would change the host: it is in the UTS namespace")
            } else if path == "kernel/hostname" {
                (false, "is set by the field hostname")
            } else {
                (false, "is in no namespace of a container: it would change the host")
            };
            if belongs { Ok(Sysctl { path, value: value.clone() }) } else { refuse(namespace_problem) }
        })
        .collect()
}

/// Turns a name into a path as sysctl(8) does: whichever of dot and slash comes first separates, the other one is part of
/// a component (`net.ipv4.conf.eth0/1.forwarding` is about the interface `eth0.1`).
fn path(name: &str) -> String {
    match name.find(['.', '/']) {
        Some(first) if name[first..].starts_with('.') => name
            .chars()
            .map(|character| match character {
                '.' => '/',
                '/' => '.',
                other => other,
            })
            .collect(),
        _ => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compile(name: &str, network: bool, ipc: bool) -> Result<String, String> {
        let (name, value) = (name.to_owned(), "1".to_owned());
        let compiled = sysctls([(&name, &value)], Own { network, ipc, uts: false }, "sysctls")
            .map_err(|error| error.to_string())?;
        Ok(compiled[0].path.clone())
    }

    #[test]
    fn names_become_paths() {
        assert_eq!(compile("net.ipv4.ip_forward", true, true).unwrap(), "net/ipv4/ip_forward");
        assert_eq!(compile("net.ipv4.conf.eth0/1.forwarding", true, true).unwrap(), "net/ipv4/conf/eth0.1/forwarding");
        assert_eq!(compile("net/ipv4/conf/eth0.1/forwarding", true, true).unwrap(), "net/ipv4/conf/eth0.1/forwarding");
        assert_eq!(compile("fs.mqueue.msg_max", false, true).unwrap(), "fs/mqueue/msg_max");
    }

    #[test]
    fn the_host_is_not_changed() {
        assert!(compile("net.core.somaxconn", false, true).unwrap_err().contains("whose network"));
        assert!(compile("kernel.shmmax", true, false).unwrap_err().contains("whose IPC"));
        for name in
            ["kernel.panic", "vm.swappiness", "kernel.hostname", "kernel.domainname", "user.max_user_namespaces"]
        {
            assert!(compile(name, true, true).is_err(), "{name}");
        }
    }

    #[test]
    fn no_name_leaves_proc_sys() {
        for name in ["net/../../etc/passwd", "net./../x", "net..x", "", "net/ipv4/./x"] {
            assert!(compile(name, true, true).is_err(), "{name}");
        }
    }
}
