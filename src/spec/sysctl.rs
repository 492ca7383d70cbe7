//! Kernel parameters of a pod: only those that belong to a namespace which is the pod's own.

use crate::error::SpecError;
use crate::pod::{LinuxPod, NamespaceMode};

/// A parameter and its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sysctl {
    /// Path below `/proc/sys`.
    pub path: String,
    /// What is written to it.
    pub value: String,
}

/// Checks a pod's sysctls and finds their files. They are set once, in the pod's namespaces, so that a container's
/// specification does not repeat them.
///
/// # Errors
/// Names a key that is malformed, belongs to the whole host, or to a namespace that the pod shares with the host.
pub fn of_pod(pod: &LinuxPod) -> Result<Vec<Sysctl>, SpecError> {
    pod.sysctls
        .iter()
        .map(|(key, value)| {
            let refuse = |problem| SpecError::Sysctl { key: key.clone(), problem };
            let path = path(key).ok_or_else(|| refuse("is no kernel parameter: give a name such as net.core.somaxconn"))?;
            match scope(&path) {
                Some(Scope::Ipc) if pod.ipc == NamespaceMode::Node => {
                    Err(refuse("would change the host: the pod shares the host's IPC namespace"))
                }
                Some(Scope::Network) if pod.network == NamespaceMode::Node => {
                    Err(refuse("would change the host: the pod shares the host's network"))
                }
                Some(_) => Ok(Sysctl { path, value: value.clone() }),
                None => Err(refuse(
                    "belongs to the whole host: a pod may set kernel.shm*, kernel.msg*, kernel.sem, fs.mqueue.* and net.*",
                )),
            }
        })
        .collect()
}

/// Reads a key as sysctl(8) does: the first separator decides. After a dot, dots separate and a slash stands for a
/// dot inside a name (`net.ipv4.conf.eth0/7.rp_filter`); after a slash it is a path already.
fn path(key: &str) -> Option<String> {
    let separator = key.find(['.', '/']).map(|at| key.as_bytes()[at])?;
    let path: String = match separator {
        b'/' => key.to_owned(),
        _ => key
            .chars()
            .map(|c| {
                if c == '.' {
                    '/'
                } else if c == '/' {
                    '.'
                } else {
                    c
                }
            })
            .collect(),
    };
    // An empty name, `.` or `..` would lead to another file than the one that is judged below.
    let plain = |name: &str| !matches!(name, "" | "." | "..") && !name.contains(['\0', '\n']);
    path.split('/').all(plain).then_some(path)
}

enum Scope {
    Ipc,
    Network,
}

fn scope(path: &str) -> Option<Scope> {
    let ipc = path.starts_with("kernel/shm")
        || path.starts_with("kernel/msg")
        || path == "kernel/sem"
        || path.starts_with("fs/mqueue/");
    if ipc {
        Some(Scope::Ipc)
    } else if path.starts_with("net/") {
        Some(Scope::Network)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pod(key: &str) -> LinuxPod {
        LinuxPod { sysctls: [(key.to_owned(), "1".to_owned())].into(), ..LinuxPod::default() }
    }

    #[test]
    fn keys_become_paths() {
        for (key, want) in [
            ("kernel.shmmax", "kernel/shmmax"),
            ("kernel.shm_rmid_forced", "kernel/shm_rmid_forced"),
            ("kernel.sem", "kernel/sem"),
            ("fs.mqueue.msg_max", "fs/mqueue/msg_max"),
            ("net.ipv4.ip_forward", "net/ipv4/ip_forward"),
            ("net/ipv4/ip_forward", "net/ipv4/ip_forward"),
            ("net.ipv4.conf.eth0/7.rp_filter", "net/ipv4/conf/eth0.7/rp_filter"),
            ("net/ipv4/conf/eth0.7/rp_filter", "net/ipv4/conf/eth0.7/rp_filter"),
        ] {
            let list = of_pod(&pod(key)).unwrap();
            assert_eq!(list, [Sysctl { path: want.to_owned(), value: "1".to_owned() }]);
        }
    }

    #[test]
    fn what_is_the_hosts_is_refused() {
        for key in ["kernel.core_pattern", "vm.swappiness", "kernel.semantics", "fs.file-max", "net", "", "network.x"] {
            let error = of_pod(&pod(key)).unwrap_err();
            assert!(matches!(&error, SpecError::Sysctl { key: named, .. } if named == key), "{key}: {error}");
        }
        for key in ["net/../kernel/core_pattern", "net.//.kernel", "net..x", "/net/ipv4/x", "net/./x", "net.a\n"] {
            assert!(of_pod(&pod(key)).is_err(), "{key}");
        }
    }

    #[test]
    fn shared_namespaces_are_left_alone() {
        let ipc = LinuxPod { ipc: NamespaceMode::Node, ..pod("kernel.shmmax") };
        assert!(of_pod(&ipc).unwrap_err().to_string().contains("IPC namespace"));
        let network = LinuxPod { network: NamespaceMode::Node, ..pod("net.ipv4.ip_forward") };
        assert!(of_pod(&network).unwrap_err().to_string().contains("network"));
        assert!(of_pod(&LinuxPod { network: NamespaceMode::Node, ..pod("kernel.shmmax") }).is_ok());
    }

    proptest! {
        /// Whatever passes stays below its subtree of /proc/sys.
        #[test]
        fn no_key_escapes(key in "(net|kernel|fs)?[./]{0,2}[a-z./]{0,20}") {
            if let Ok(list) = of_pod(&pod(&key)) {
                let path = &list[0].path;
                prop_assert!(scope(path).is_some());
                prop_assert!(path.split('/').all(|name| !name.is_empty() && name != "." && name != ".."));
            }
        }
    }
}
