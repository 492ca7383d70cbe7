//! A pod sandbox's configuration, validated: what CRI `PodSandboxConfig` asks for, in types that cannot hold nonsense.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// A pod sandbox as the kubelet asked for it (CRI `PodSandboxConfig`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodConfig {
    /// CRI `metadata`: the name under which a retry finds its first attempt.
    pub metadata: PodMetadata,
    /// CRI `hostname`; empty: the pod shares the host's name (host network) or gets none.
    pub hostname: String,
    /// CRI `log_directory`; containers' log paths are relative to it. Empty: containers have no log file.
    pub log_directory: PathBuf,
    /// CRI `dns_config`; absent: the host's resolv.conf.
    pub dns: Option<DnsConfig>,
    /// CRI `port_mappings` with a host port.
    pub port_mappings: Vec<PortMapping>,
    /// CRI `labels`.
    pub labels: BTreeMap<String, String>,
    /// CRI `annotations`.
    pub annotations: BTreeMap<String, String>,
    /// CRI `runtime_handler` of the request.
    pub runtime_handler: String,
    /// CRI `linux`.
    pub linux: LinuxPod,
}

/// CRI `PodSandboxMetadata`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PodMetadata {
    /// The pod's name.
    pub name: String,
    /// The pod's uid.
    pub uid: String,
    /// The pod's Kubernetes namespace.
    pub namespace: String,
    /// How often the kubelet has made this sandbox.
    pub attempt: u32,
}

/// CRI `DNSConfig`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DnsConfig {
    /// Addresses for `nameserver` lines.
    pub servers: Vec<String>,
    /// Domains for the `search` line.
    pub searches: Vec<String>,
    /// Words for the `options` line.
    pub options: Vec<String>,
}

/// CRI `PortMapping`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortMapping {
    /// TCP, UDP or SCTP.
    pub protocol: Protocol,
    /// The port inside the pod.
    pub container_port: u16,
    /// The port on the host.
    pub host_port: u16,
    /// The host's address; empty: all.
    pub host_ip: String,
}

/// CRI `Protocol`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Protocol {
    /// TCP
    Tcp,
    /// UDP
    Udp,
    /// SCTP
    Sctp,
}

/// CRI `LinuxPodSandboxConfig` and its `LinuxSandboxSecurityContext`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinuxPod {
    /// CRI `cgroup_parent`; empty: the daemon's own.
    pub cgroup_parent: String,
    /// CRI `sysctls`, dotted names.
    pub sysctls: BTreeMap<String, String>,
    /// CRI `namespace_options.network`: whether the pod has a network of its own.
    pub network: NamespaceMode,
    /// CRI `namespace_options.pid`: `Pod` makes one process namespace for all containers.
    pub pid: NamespaceMode,
    /// CRI `namespace_options.ipc`.
    pub ipc: NamespaceMode,
    /// CRI `privileged`: whether privileged containers are allowed.
    pub privileged: bool,
}

/// CRI `NamespaceMode`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum NamespaceMode {
    /// Shared by the pod's containers.
    #[default]
    Pod,
    /// A container's own.
    Container,
    /// The host's.
    Node,
    /// That of another container of the pod.
    Target(String),
}
