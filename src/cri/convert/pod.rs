//! Pod sandboxes.

use std::net::IpAddr;

use podwright_core::view::PodView;
use podwright_proto::runtime::v1;
use podwright_spec::pod::{LinuxPod, NamespaceMode, PodMetadata};
use serde_json::{Value, json};

use super::container;

/// Makes a sandbox as lists hold it.
pub(crate) fn item(pod: &PodView) -> v1::PodSandbox {
    v1::PodSandbox {
        id: pod.id.to_string(),
        metadata: Some(metadata(&pod.config.metadata)),
        state: state(pod).into(),
        created_at: pod.created_at,
        labels: pod.config.labels.clone(),
        annotations: pod.config.annotations.clone(),
        runtime_handler: pod.config.runtime_handler.clone(),
    }
}

/// Makes a sandbox's status.
pub(crate) fn status(pod: &PodView) -> v1::PodSandboxStatus {
    let options = namespace_options(&pod.config.linux);
    v1::PodSandboxStatus {
        id: pod.id.to_string(),
        metadata: Some(metadata(&pod.config.metadata)),
        state: state(pod).into(),
        created_at: pod.created_at,
        network: Some(network(&pod.ips)),
        linux: Some(v1::LinuxPodSandboxStatus { namespaces: Some(v1::Namespace { options: Some(options) }) }),
        labels: pod.config.labels.clone(),
        annotations: pod.config.annotations.clone(),
        runtime_handler: pod.config.runtime_handler.clone(),
    }
}

/// Makes the statuses of all containers in a pod.
pub(crate) fn containers(pod: &PodView) -> Vec<v1::ContainerStatus> {
    pod.containers.iter().map(|view| container::status(view)).collect()
}

/// Makes the details of a verbose status. Network tools look for the namespace's path where an OCI specification of
/// the sandbox would have it; `image` is empty, for there is no pause image.
pub(crate) fn details(pod: &PodView, network: Option<Value>) -> Value {
    let namespaces: Vec<Value> = pod.netns.iter().map(|path| json!({ "type": "network", "path": path })).collect();
    json!({
        "pid": pod.shim_pid.unwrap_or(0),
        "image": "",
        "reason": pod.reason,
        "cgroup": pod.cgroup,
        "network": network,
        "runtimeSpec": { "linux": { "namespaces": namespaces } },
    })
}

/// Tells a sandbox's state.
pub(crate) fn state(pod: &PodView) -> v1::PodSandboxState {
    if pod.ready { v1::PodSandboxState::SandboxReady } else { v1::PodSandboxState::SandboxNotready }
}

fn metadata(metadata: &PodMetadata) -> v1::PodSandboxMetadata {
    v1::PodSandboxMetadata {
        name: metadata.name.clone(),
        uid: metadata.uid.clone(),
        namespace: metadata.namespace.clone(),
        attempt: metadata.attempt,
    }
}

fn network(ips: &[IpAddr]) -> v1::PodSandboxNetworkStatus {
    let mut ips = ips.iter().map(IpAddr::to_string);
    v1::PodSandboxNetworkStatus {
        ip: ips.next().unwrap_or_default(),
        additional_ips: ips.map(|ip| v1::PodIp { ip }).collect(),
    }
}

fn namespace_options(linux: &LinuxPod) -> v1::NamespaceOption {
    v1::NamespaceOption {
        network: namespace_mode(&linux.network).into(),
        pid: namespace_mode(&linux.pid).into(),
        ipc: namespace_mode(&linux.ipc).into(),
        ..Default::default()
    }
}

fn namespace_mode(mode: &NamespaceMode) -> v1::NamespaceMode {
    match mode {
        NamespaceMode::Pod => v1::NamespaceMode::Pod,
        NamespaceMode::Container => v1::NamespaceMode::Container,
        NamespaceMode::Node => v1::NamespaceMode::Node,
        NamespaceMode::Target(_) => v1::NamespaceMode::Target,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures;

    #[test]
    fn a_status_echoes_what_was_asked_for() {
        let status = status(&fixtures::pod());
        let asked = fixtures::run_pod().config.unwrap();
        assert_eq!(status.metadata, asked.metadata);
        assert_eq!((status.labels, status.annotations), (asked.labels, asked.annotations));
        let options = status.linux.unwrap().namespaces.unwrap().options.unwrap();
        assert_eq!(options.pid(), v1::NamespaceMode::Container);
        assert_eq!(options.network(), v1::NamespaceMode::Pod);
    }

    #[test]
    fn the_first_address_is_the_main_one() {
        let network = status(&fixtures::pod()).network.unwrap();
        assert_eq!(network.ip, "10.88.0.2");
        assert_eq!(network.additional_ips, [v1::PodIp { ip: "fd00::2".to_owned() }]);
        let host = PodView { ips: Vec::new(), ..fixtures::pod() };
        assert_eq!(status(&host).network, Some(v1::PodSandboxNetworkStatus::default()));
    }

    #[test]
    fn network_tools_find_the_namespace() {
        let details = details(&fixtures::pod(), None);
        assert_eq!(details["pid"], 4242);
        assert_eq!(details["runtimeSpec"]["linux"]["namespaces"][0]["path"], "/run/netns/podwright-x");
    }
}
