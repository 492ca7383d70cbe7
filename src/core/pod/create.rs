//! Making a pod sandbox ready: its files, its shim with the namespaces, its network. Nothing is undone here: what a
//! failed creation has acquired is what [`super::teardown`] gives back, after a crash as well.

use std::fs::{self, DirBuilder};
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use podwright_compile::{CgroupPath, PodRequest};
use podwright_network::{
    AttachError, Attachment, BridgeError, ClaimError, HostPort, LeaseError, ListenerError, resolver,
};
use podwright_plan::wire;
use podwright_spec::PodConfig;
use podwright_spec::pod::{NamespaceMode, PortMapping, Protocol};

use super::driver::blocking;
use crate::cgroups;
use crate::container::create::{make_log_directory, uncompiled};
use crate::error::{Error, chain};
use crate::node::Node;
use crate::record::PodRecord;
use crate::shim::{self, Subscription};

/// Where the host keeps its own resolver configuration.
const HOST_RESOLV_CONF: &str = "/etc/resolv.conf";
/// Bytes of a pod's /dev/shm, as the field has it.
const SHM_SIZE: u64 = 64 << 20;
/// The shim goes last when memory runs out, as the kubelet wants it of sandboxes.
const SHIM_OOM_SCORE_ADJ: i32 = -998;

/// A sandbox that is ready.
pub(crate) struct SetUp {
    /// The connection to its shim.
    pub(crate) subscription: Subscription,
    /// Init of the shared pid namespace, 0 when there is none.
    pub(crate) reaper_pid: u32,
    /// Its addresses, IPv4 first.
    pub(crate) ips: Vec<IpAddr>,
}

/// Acquires everything a sandbox needs; `enter` is told each stage.
///
/// # Errors
/// The step that failed. What was acquired before it is still there.
pub(crate) async fn set_up(node: &Node, record: &PodRecord, enter: impl Fn(&'static str)) -> Result<SetUp, Error> {
    enter("directories");
    make_directories(node, record)?;
    enter("shim");
    let layout = &node.layout;
    let socket = layout.shim_socket(&record.id);
    shim::spawn(&node.shim, &record.id, &socket, &layout.shim_log(&record.id))
        .map_err(|source| Error::step("start the pod's shim", source))?;
    let subscription = shim::ShimClient::connect(&socket, &record.id)
        .await
        .map_err(|source| Error::step("connect to the pod's shim", source))?;
    enter("namespaces");
    let cgroup = cgroups::parse(&record.cgroup)?;
    let plan = podwright_compile::pod(&request(record, &cgroup), &node.facts).map_err(|error| uncompiled(&error))?;
    let (ready, netns) = subscription
        .client
        .set_up_pod(plan)
        .await
        .map_err(|source| Error::step("make the pod's namespaces", source))?;
    enter("network");
    let attachment = match (has_own_network(&record.config), netns) {
        (false, _) => None,
        (true, Some(netns)) => {
            let (network, id) = (node.network.clone(), record.id.clone());
            // The directory of pins is locked against other tools for a moment.
            let pin = blocking(move || network.pin(&id, netns.as_fd()))
                .await
                .map_err(|source| Error::step("pin the network namespace", source))?;
            let ports = host_ports(&record.config.port_mappings)?;
            let attached = node.network.attach(&record.id, &pin, &network_request(&record.config, &ports)).await;
            Some(attached.map_err(unattached)?)
        }
        (true, None) => {
            let missing = std::io::Error::from(std::io::ErrorKind::NotFound);
            return Err(Error::step("receive the network namespace from the shim", missing));
        }
    };
    enter("files");
    let ips = attachment.map(|Attachment { ips, .. }| ips).unwrap_or_default();
    write_files(node, record, &ips)?;
    Ok(SetUp { subscription, reaper_pid: ready.reaper_pid, ips })
}

/// Whether the pod has a network namespace of its own.
pub(crate) fn has_own_network(config: &PodConfig) -> bool {
    config.linux.network != NamespaceMode::Node
}

fn make_directories(node: &Node, record: &PodRecord) -> Result<(), Error> {
    let layout = &node.layout;
    for dir in [layout.containers(&record.id), layout.pod_state(&record.id)] {
        DirBuilder::new().recursive(true).mode(0o711).create(&dir).map_err(|source| making(&dir, source))?;
    }
    let logs = &record.config.log_directory;
    if !logs.as_os_str().is_empty() {
        make_log_directory("config.log_directory", logs)?;
    }
    podwright_store::write(&layout.pod_record(&record.id), record)
        .map_err(|source| Error::step(format!("record pod sandbox {}", record.id), source))
}

fn making(path: &Path, source: std::io::Error) -> Error {
    Error::step(format!("make {}", path.display()), source)
}

fn request<'a>(record: &'a PodRecord, cgroup: &'a CgroupPath) -> PodRequest<'a> {
    let linux = &record.config.linux;
    let mode = |mode: &NamespaceMode| match mode {
        NamespaceMode::Node => wire::NamespaceMode::NamespaceHost,
        _ => wire::NamespaceMode::NamespacePrivate,
    };
    let own_network = has_own_network(&record.config);
    PodRequest {
        pod_id: record.id.as_str(),
        network: mode(&linux.network),
        ipc: mode(&linux.ipc),
        // A pod on the host's network goes by the host's name.
        uts: mode(&linux.network),
        shared_pid: linux.pid == NamespaceMode::Pod,
        hostname: if own_network { &record.config.hostname } else { "" },
        sysctls: &linux.sysctls,
        shm_size: SHM_SIZE,
        cgroup,
        oom_score_adj: SHIM_OOM_SCORE_ADJ,
    }
}

fn network_request<'a>(config: &'a PodConfig, ports: &'a [HostPort]) -> podwright_network::PodRequest<'a> {
    let dns = config.dns.as_ref();
    podwright_network::PodRequest {
        ports,
        namespace: &config.metadata.namespace,
        name: &config.metadata.name,
        uid: &config.metadata.uid,
        annotations: &config.annotations,
        dns: dns.map(|dns| (&dns.servers[..], &dns.searches[..], &dns.options[..])),
        cgroup: &config.linux.cgroup_parent,
    }
}

/// What makes no sense is the request's matter; what somebody else has may be free at the next attempt.
fn unattached(error: AttachError) -> Error {
    let (ports, step) = ("config.port_mappings", "attach the pod to the network".to_owned());
    match error {
        AttachError::Annotation(_) => Error::invalid("config.annotations", chain(&error)),
        AttachError::HostIpFamily { .. } | AttachError::Lease(LeaseError::Port(ClaimError::Twice { .. })) => {
            Error::invalid(ports, chain(&error))
        }
        AttachError::Lease(LeaseError::Port(ClaimError::Taken { .. }))
        | AttachError::Listener(ListenerError::Taken { .. }) => {
            Error::Blocked { step: ports.to_owned(), source: error.into() }
        }
        AttachError::Lease(LeaseError::Exhausted { .. }) => Error::UsedUp { step, source: error.into() },
        AttachError::NameTaken { .. }
        | AttachError::Bridge(
            BridgeError::NotABridge { .. } | BridgeError::Overlap { .. } | BridgeError::NoFreeSubnet,
        ) => Error::Blocked { step, source: error.into() },
        other => Error::step(step, other),
    }
}

fn host_ports(mappings: &[PortMapping]) -> Result<Vec<HostPort>, Error> {
    let used = mappings.iter().enumerate().filter(|(_, mapping)| mapping.host_port != 0);
    used.map(|(index, mapping)| {
        let host_ip = match mapping.host_ip.as_str() {
            "" => None,
            text => Some(text.parse().map_err(|_| {
                Error::invalid(format!("config.port_mappings[{index}].host_ip"), format!("{text:?} is no IP address"))
            })?),
        };
        let protocol = match mapping.protocol {
            Protocol::Tcp => podwright_network::Protocol::Tcp,
            Protocol::Udp => podwright_network::Protocol::Udp,
            Protocol::Sctp => podwright_network::Protocol::Sctp,
        };
        Ok(HostPort { protocol, host_ip, host_port: mapping.host_port, container_port: mapping.container_port })
    })
    .collect()
}

/// Writes what containers find as /etc/resolv.conf, /etc/hosts and /etc/hostname.
fn write_files(node: &Node, record: &PodRecord, ips: &[IpAddr]) -> Result<(), Error> {
    let own_network = has_own_network(&record.config);
    let dns = record.config.dns.clone().unwrap_or_default();
    let host_resolv = fs::read_to_string(HOST_RESOLV_CONF).unwrap_or_default();
    let host_hosts = if own_network { None } else { fs::read_to_string("/etc/hosts").ok() };
    let hostname = match record.config.hostname.as_str() {
        "" => node.host.hostname.as_str(),
        name => name,
    };
    let resolv = resolver::resolv_conf((&dns.servers, &dns.searches, &dns.options), &host_resolv);
    let layout = &node.layout;
    for (path, text) in [
        (layout.resolv_conf(&record.id), resolv),
        (layout.hosts(&record.id), resolver::hosts(hostname, ips, host_hosts.as_deref())),
        (layout.hostname(&record.id), format!("{hostname}\n")),
    ] {
        fs::write(&path, text).map_err(|source| Error::step(format!("write {}", path.display()), source))?;
    }
    Ok(())
}
