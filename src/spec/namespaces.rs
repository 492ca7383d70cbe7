//! Which namespaces a container has of its own, joins, or shares with the host.

use std::path::PathBuf;

use oci_spec::runtime::{LinuxNamespace, LinuxNamespaceType as Kind};

use crate::error::SpecError;
use crate::input::ContainerInput;
use crate::pod::NamespaceMode;

/// Lists the namespaces: with a path it is joined, without one it is new, an absent kind is the host's.
pub(crate) fn namespaces(input: &ContainerInput<'_>) -> Result<Vec<LinuxNamespace>, SpecError> {
    let (pod, held) = (&input.pod.linux, input.namespaces);
    let mut list = vec![namespace(Kind::Mount, None)];
    if pod.network != NamespaceMode::Node {
        list.push(shared(Kind::Network, "network", held.network.as_ref())?);
    }
    if pod.ipc != NamespaceMode::Node {
        list.push(shared(Kind::Ipc, "ipc", held.ipc.as_ref())?);
    }
    // The CRI has no option of its own for the host name: a pod on the host's network bears the host's name, so it
    // needs no namespace for it, but may hold one.
    if pod.network != NamespaceMode::Node || held.uts.is_some() {
        list.push(shared(Kind::Uts, "network", held.uts.as_ref())?);
    }
    match &input.container.security.pid {
        NamespaceMode::Container => list.push(namespace(Kind::Pid, None)),
        NamespaceMode::Pod => list.push(shared(Kind::Pid, "pid", held.pid.as_ref())?),
        NamespaceMode::Node => {}
        NamespaceMode::Target(id) => match &held.target_pid {
            Some(path) => list.push(namespace(Kind::Pid, Some(path.clone()))),
            None => return Err(SpecError::NoTargetNamespace { id: id.clone() }),
        },
    }
    // A privileged container manages the host, whose whole cgroup tree it must see.
    if !input.container.security.privileged {
        list.push(namespace(Kind::Cgroup, None));
    }
    Ok(list)
}

fn shared(kind: Kind, option: &'static str, path: Option<&PathBuf>) -> Result<LinuxNamespace, SpecError> {
    match path {
        Some(path) => Ok(namespace(kind, Some(path.clone()))),
        // Left out, it would silently be the host's.
        None => Err(SpecError::NoPodNamespace { kind: option }),
    }
}

fn namespace(kind: Kind, path: Option<PathBuf>) -> LinuxNamespace {
    let mut namespace = LinuxNamespace::default();
    namespace.set_typ(kind);
    namespace.set_path(path);
    namespace
}
