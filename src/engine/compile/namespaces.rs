//! `linux.namespaces`: which namespaces are the container's own, the pod's or the host's.
//!
//! In a pod, network, IPC and UTS belong to the pod: its shim lives in them and a container is forked into them, so that the
//! specification either has their paths (for other tools to read) or, where the pod has the host's, does not list them.
//! Outside of one each kind is new, joined by its path or inherited, as the list says.

use oci_spec::runtime::{LinuxNamespace, LinuxNamespaceType};
use podwright_plan::wire::{self, NamespaceKind, NamespaceMode};

use crate::error::{CompileError, invalid, missing, unsupported};
use crate::mounts::absolute;
use crate::sysctl::Own;

/// What the list says.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Namespaces {
    pub(crate) pid: NamespaceMode,
    pub(crate) cgroup: bool,
    pub(crate) uts: bool,
    pub(crate) own: Own,
}

/// Reads the list of a container outside of a pod.
pub(crate) fn listed(list: &[LinuxNamespace]) -> Result<(Vec<wire::Namespace>, Own), CompileError> {
    refuse_twice(list)?;
    if !list.iter().any(|entry| entry.typ() == LinuxNamespaceType::Mount) {
        return Err(missing(field(LinuxNamespaceType::Mount)));
    }
    let compile = |entry: &LinuxNamespace| {
        let kind = entry.typ();
        let path = match entry.path() {
            Some(path) if has_path(entry) => absolute(path, &format!("{}.path", field(kind)))?,
            _ => String::new(),
        };
        Ok(wire::Namespace { kind: kind_of(kind).into(), path })
    };
    let namespaces = list.iter().map(compile).collect::<Result<Vec<_>, CompileError>>()?;
    let has = |kind: LinuxNamespaceType| list.iter().any(|entry| entry.typ() == kind);
    let own = Own {
        network: has(LinuxNamespaceType::Network),
        ipc: has(LinuxNamespaceType::Ipc),
        uts: has(LinuxNamespaceType::Uts),
    };
    Ok((namespaces, own))
}

fn kind_of(kind: LinuxNamespaceType) -> NamespaceKind {
    match kind {
        LinuxNamespaceType::Mount => NamespaceKind::Mount,
        LinuxNamespaceType::Cgroup => NamespaceKind::Cgroup,
        LinuxNamespaceType::Uts => NamespaceKind::Uts,
        LinuxNamespaceType::Ipc => NamespaceKind::Ipc,
        LinuxNamespaceType::User => NamespaceKind::User,
        LinuxNamespaceType::Pid => NamespaceKind::Pid,
        LinuxNamespaceType::Network => NamespaceKind::Network,
        LinuxNamespaceType::Time => NamespaceKind::Time,
    }
}

fn refuse_twice(list: &[LinuxNamespace]) -> Result<(), CompileError> {
    let twice = list.iter().enumerate().find(|(index, entry)| {
        let earlier = &list[..*index];
        earlier.iter().any(|earlier| earlier.typ() == entry.typ())
    });
    match twice {
        Some((_, entry)) => Err(invalid("linux.namespaces", name(entry.typ()), "is listed twice")),
        None => Ok(()),
    }
}

fn field(kind: LinuxNamespaceType) -> String {
    format!("linux.namespaces[{}]", name(kind))
}

/// Reads the list of a container in a pod.
pub(crate) fn in_pod(list: &[LinuxNamespace]) -> Result<Namespaces, CompileError> {
    refuse_twice(list)?;
    for entry in list {
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
        own: Own {
            network: find(LinuxNamespaceType::Network).is_some(),
            ipc: find(LinuxNamespaceType::Ipc).is_some(),
            // Its names are the pod's, which the shim has set.
            uts: false,
        },
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
        in_pod(&list).map_err(|error| error.to_string())
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
    fn outside_of_a_pod_each_kind_is_new_joined_or_inherited() {
        let list: Vec<LinuxNamespace> = serde_json::from_str(
            r#"[{"type": "mount"}, {"type": "network", "path": "/proc/7/ns/net"}, {"type": "uts", "path": ""}]"#,
        )
        .unwrap();
        let (namespaces, own) = listed(&list).unwrap();
        let seen: Vec<_> = namespaces.iter().map(|it| (it.kind(), it.path.as_str())).collect();
        let expected =
            [(NamespaceKind::Mount, ""), (NamespaceKind::Network, "/proc/7/ns/net"), (NamespaceKind::Uts, "")];
        assert_eq!(seen, expected);
        assert!(own.network && own.uts && !own.ipc);
        for (list, words) in [
            (r#"[{"type": "mount"}, {"type": "ipc", "path": "ns/ipc"}]"#, "linux.namespaces[ipc].path"),
            (r#"[{"type": "mount"}, {"type": "mount"}]"#, "is listed twice"),
            (r#"[{"type": "pid"}]"#, "linux.namespaces[mount] is missing"),
            (r#"[{"type": "mount"}, {"type": "user", "path": "x"}]"#, "linux.namespaces[user].path"),
        ] {
            let list: Vec<LinuxNamespace> = serde_json::from_str(list).unwrap();
            let error = listed(&list).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
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
