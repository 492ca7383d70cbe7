//! `linux.namespaces`: which namespaces are the container's own, the pod's or the host's.
//!
//! Network, IPC and UTS belong to the pod: its shim lives in them and a container is forked into them, so that the
//! specification either has their paths (for other tools to read) or, where the pod has the host's, does not list them.

use oci_spec::runtime::{LinuxNamespace, LinuxNamespaceType};
use podwright_plan::wire::NamespaceMode;

use crate::error::{CompileError, invalid, missing, unsupported};
use crate::sysctl::Own;

/// What the list says.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Namespaces {
    pub(crate) pid: NamespaceMode,
    pub(crate) cgroup: bool,
    pub(crate) uts: bool,
    pub(crate) own: Own,
}

/// Reads the list.
pub(crate) fn namespaces(list: &[LinuxNamespace]) -> Result<Namespaces, CompileError> {
    let field = |kind: LinuxNamespaceType| format!("linux.namespaces[{}]", name(kind));
    for (index, entry) in list.iter().enumerate() {
        if list[..index].iter().any(|earlier| earlier.typ() == entry.typ()) {
            return Err(invalid("linux.namespaces", name(entry.typ()), "is listed twice"));
        }
        match (entry.typ(), has_path(entry)) {
            (kind @ (LinuxNamespaceType::User | LinuxNamespaceType::Time), _) => return Err(unsupported(field(kind))),
            (kind @ (LinuxNamespaceType::Mount | LinuxNamespaceType::Cgroup), true) => {
                return Err(unsupported(format!("{}.path", field(kind))));
            }
            (kind @ (LinuxNamespaceType::Network | LinuxNamespaceType::Ipc | LinuxNamespaceType::Uts), false) => {
                return Err(unsupported(format!("{} without the pod's path", field(kind))));
            }
            _ => {}
        }
    }
    let find = |kind: LinuxNamespaceType| list.iter().find(|entry| entry.typ() == kind);
    if find(LinuxNamespaceType::Mount).is_none() {
        return Err(missing(field(LinuxNamespaceType::Mount)));
    }
    Ok(Namespaces {
        pid: match find(LinuxNamespaceType::Pid) {
            None => NamespaceMode::NamespaceHost,
            Some(entry) if has_path(entry) => NamespaceMode::NamespacePod,
            Some(_) => NamespaceMode::NamespacePrivate,
        },
        cgroup: find(LinuxNamespaceType::Cgroup).is_some(),
        uts: find(LinuxNamespaceType::Uts).is_some(),
        own: Own { network: find(LinuxNamespaceType::Network).is_some(), ipc: find(LinuxNamespaceType::Ipc).is_some() },
    })
}

/// An empty path is what some writers leave for none.
fn has_path(entry: &LinuxNamespace) -> bool {
    entry.path().as_ref().is_some_and(|path| !path.as_os_str().is_empty())
}

/// The type's name in `config.json`.
fn name(kind: LinuxNamespaceType) -> &'static str {
    match kind {
        LinuxNamespaceType::Mount => "mount",
        LinuxNamespaceType::Cgroup => "cgroup",
        LinuxNamespaceType::Uts => "uts",
        LinuxNamespaceType::Ipc => "ipc",
        LinuxNamespaceType::User => "user",
        LinuxNamespaceType::Pid => "pid",
        LinuxNamespaceType::Network => "network",
        LinuxNamespaceType::Time => "time",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<Namespaces, String> {
        let list: Vec<LinuxNamespace> = serde_json::from_str(json).unwrap();
        namespaces(&list).map_err(|error| error.to_string())
    }

    #[test]
    fn pid_has_three_modes() {
        for (pid, expected) in [
            ("", NamespaceMode::NamespaceHost),
            (r#", {"type": "pid"}"#, NamespaceMode::NamespacePrivate),
            (r#", {"type": "pid", "path": "/proc/7/ns/pid"}"#, NamespaceMode::NamespacePod),
        ] {
            assert_eq!(read(&format!(r#"[{{"type": "mount"}}{pid}]"#)).unwrap().pid, expected, "{pid}");
        }
    }

    #[test]
    fn what_is_the_pods_has_a_path() {
        let of_pod = read(r#"[{"type": "mount"}, {"type": "network", "path": "/run/netns/x"}]"#).unwrap();
        assert!(of_pod.own.network && !of_pod.own.ipc && !of_pod.uts && !of_pod.cgroup);
        let error = read(r#"[{"type": "mount"}, {"type": "ipc"}]"#).unwrap_err();
        assert_eq!(error, "linux.namespaces[ipc] without the pod's path is not supported by this version");
    }

    #[test]
    fn other_lists_are_refused_by_name() {
        for (list, words) in [
            (r"[]", "linux.namespaces[mount] is missing"),
            (r#"[{"type": "mount"}, {"type": "user"}]"#, "linux.namespaces[user] is not supported"),
            (r#"[{"type": "mount", "path": "/proc/1/ns/mnt"}]"#, "linux.namespaces[mount].path is not supported"),
            (r#"[{"type": "mount"}, {"type": "mount"}]"#, "is listed twice"),
        ] {
            let error = read(list).unwrap_err();
            assert!(error.contains(words), "{error}");
        }
    }
}
