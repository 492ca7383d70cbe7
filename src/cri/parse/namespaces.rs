//! Namespace options, of sandboxes and of containers.

use podwright_core::Error;
use podwright_proto::runtime::v1;
use podwright_spec::pod::NamespaceMode;

use super::field::{Field, known, not_empty};

/// The namespaces a pod sandbox asks for.
#[derive(Debug, Default)]
pub(crate) struct PodNamespaces {
    /// The pod's own network or the host's.
    pub(crate) network: NamespaceMode,
    /// One process namespace for the pod, one for each container, or the host's.
    pub(crate) pid: NamespaceMode,
    /// The pod's own or the host's.
    pub(crate) ipc: NamespaceMode,
}

/// Reads a sandbox's options.
pub(crate) fn of_pod(options: Option<v1::NamespaceOption>, at: Field<'_>) -> Result<PodNamespaces, Error> {
    let Some(options) = options else { return Ok(PodNamespaces::default()) };
    refuse_user_namespace(options.userns_options.as_ref(), at.child("userns_options"))?;
    let pid = match known(options.pid, at.child("pid"))? {
        v1::NamespaceMode::Pod => NamespaceMode::Pod,
        v1::NamespaceMode::Container => NamespaceMode::Container,
        v1::NamespaceMode::Node => NamespaceMode::Node,
        v1::NamespaceMode::Target => {
            return Err(at.child("pid").invalid("TARGET is for containers, not for sandboxes"));
        }
    };
    Ok(PodNamespaces {
        network: pod_or_node(options.network, at.child("network"))?,
        pid,
        ipc: pod_or_node(options.ipc, at.child("ipc"))?,
    })
}

/// Reads a container's options: its process namespace. Network and ipc are always its pod's.
pub(crate) fn of_container(options: Option<v1::NamespaceOption>, at: Field<'_>) -> Result<NamespaceMode, Error> {
    let Some(options) = options else { return Ok(NamespaceMode::Pod) };
    refuse_user_namespace(options.userns_options.as_ref(), at.child("userns_options"))?;
    pod_or_node(options.network, at.child("network"))?;
    pod_or_node(options.ipc, at.child("ipc"))?;
    Ok(match known(options.pid, at.child("pid"))? {
        v1::NamespaceMode::Pod => NamespaceMode::Pod,
        v1::NamespaceMode::Container => NamespaceMode::Container,
        v1::NamespaceMode::Node => NamespaceMode::Node,
        v1::NamespaceMode::Target => NamespaceMode::Target(not_empty(options.target_id, at.child("target_id"))?),
    })
}

fn pod_or_node(mode: i32, field: Field<'_>) -> Result<NamespaceMode, Error> {
    match known(mode, field)? {
        v1::NamespaceMode::Pod => Ok(NamespaceMode::Pod),
        v1::NamespaceMode::Node => Ok(NamespaceMode::Node),
        mode => Err(field.invalid(format!("{} is neither POD nor NODE", mode.as_str_name()))),
    }
}

/// Lets through what means "the host's user namespace", which is the only one so far.
fn refuse_user_namespace(options: Option<&v1::UserNamespace>, at: Field<'_>) -> Result<(), Error> {
    let Some(options) = options else { return Ok(()) };
    match known(options.mode, at.child("mode"))? {
        v1::NamespaceMode::Node if options.uids.is_empty() && options.gids.is_empty() => Ok(()),
        v1::NamespaceMode::Node => Err(at.invalid("NODE takes no mappings")),
        v1::NamespaceMode::Pod => Err(at.child("mode").unsupported("user namespaces of pods")),
        mode => Err(at.child("mode").invalid(format!("{} is neither POD nor NODE", mode.as_str_name()))),
    }
}
