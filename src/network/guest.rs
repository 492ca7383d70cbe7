//! Pods of CNI networks: attached by plugins, with host ports of the built-in ruleset where no plugin opens them.
//!
//! ```text
//! host ports claimed on disk → plugins (ADD) → addresses on disk → host ports opened
//! ```

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::sync::Arc;

use ipnet::IpNet;
use podwright_base::PodId;
use podwright_cni::{DelError, NetworkConfig, PORT_MAPPINGS, PortMapping, Wishes};
use tokio::sync::OwnedMutexGuard;

use crate::attach::{AttachError, INTERFACE, detach};
use crate::leases::{Guest, Lease};
use crate::link::{self, Route};
use crate::netlink::Netlink;
use crate::port::HostPort;
use crate::progress::Progress;
use crate::sysctl::{self, SysctlError};
use crate::{Attachment, Inner, OPERATION_LIMIT, PodRequest, bounded, conntrack, listeners};

/// The kernel's main routing table.
const TABLE_MAIN: u8 = 254;

/// A pod on its way to a CNI network.
pub(crate) struct Join<'a> {
    pub(crate) inner: &'a Arc<Inner>,
    pub(crate) network: &'a NetworkConfig,
    pub(crate) pod: &'a PodId,
    pub(crate) netns: &'a Path,
    pub(crate) request: &'a PodRequest<'a>,
    /// The node's ranges of pod addresses.
    pub(crate) ranges: &'a [IpNet],
}

impl Join<'_> {
    /// Attaches the pod, or undoes what it began.
    pub(crate) async fn run(&self, turn: OwnedMutexGuard<()>) -> Result<Attachment, AttachError> {
        let (inner, pod) = (self.inner, self.pod);
        let capabilities = self.wishes().arguments().map_err(AttachError::Annotation)?;
        if inner.leases.get(pod).is_some() {
            // An earlier attempt's, maybe of another network.
            self.undo().await;
        }
        let plugin_opens_ports = self.network.has_capability(PORT_MAPPINGS);
        let guest = Some(Guest { plugin_opens_ports, device: None });
        let lease = Lease { ipv4: None, ipv6: None, ports: self.request.ports.to_vec(), shaped: false, guest };
        let needs_lease = !(plugin_opens_ports && lease.ports.is_empty());
        if needs_lease {
            listeners::check(&lease.ports).map_err(AttachError::Listener)?;
            inner.leases.admit(pod, &lease).map_err(AttachError::Lease)?;
        }
        let result = self.join(capabilities, lease, needs_lease).await;
        if result.is_err() {
            self.undo().await;
        }
        drop(turn);
        result
    }

    async fn join(
        &self,
        capabilities: serde_json::Map<String, serde_json::Value>,
        lease: Lease,
        needs_lease: bool,
    ) -> Result<Attachment, AttachError> {
        let PodRequest { namespace, name, uid, .. } = self.request;
        let args = [
            ("IgnoreUnknown", "1"),
            ("K8S_POD_NAMESPACE", namespace),
            ("K8S_POD_NAME", name),
            ("K8S_POD_INFRA_CONTAINER_ID", self.pod.as_str()),
            ("K8S_POD_UID", uid),
        ];
        let request = podwright_cni::Request {
            container: self.pod.as_str(),
            interface: INTERFACE,
            netns: self.netns,
            args: &args,
            capabilities,
        };
        let result =
            self.inner.cni.add(self.network, &request).await.map_err(|error| AttachError::Cni(Box::new(error)))?;
        let ips = result.addresses(INTERFACE);
        if ips.is_empty() {
            return Err(AttachError::NoAddress { network: self.network.name.clone() });
        }
        if needs_lease {
            let family = |is_ipv4: bool| ips.iter().find(|ip| ip.is_ipv4() == is_ipv4);
            let ipv4 = family(true).and_then(|ip| if let IpAddr::V4(ip) = ip { Some(*ip) } else { None });
            let ipv6 = family(false).and_then(|ip| if let IpAddr::V6(ip) = ip { Some(*ip) } else { None });
            self.open_ports(Lease { ipv4, ipv6, ..lease }).await?;
        }
        Ok(Attachment { mac: result.mac(INTERFACE).to_owned(), interface: INTERFACE.to_owned(), ips })
    }

    fn wishes(&self) -> Wishes<'_> {
        Wishes {
            ports: self.request.ports.iter().map(mapping).collect(),
            annotations: Some(self.request.annotations),
            dns: self.request.dns,
            cgroup: self.request.cgroup,
            ranges: self.ranges,
        }
    }

    async fn open_ports(&self, lease: Lease) -> Result<(), AttachError> {
        let (inner, pod, progress) = (Arc::clone(self.inner), self.pod.clone(), Progress::new());
        let seen = progress.clone();
        let outcome = bounded(OPERATION_LIMIT, &seen, move || open_ports(&inner, &pod, lease, &progress)).await;
        outcome.map_err(|source| AttachError::Unfinished { pod: self.pod.clone(), source })?
    }

    /// Undoes all that was begun; what fails is tried again when the pod is detached.
    async fn undo(&self) {
        if let Err(failures) = self.inner.cni.del(self.pod.as_str()).await {
            tracing::warn!(pod.id = %self.pod, %failures, "a failed attachment is not wholly undone");
        }
        let (inner, pod, progress) = (Arc::clone(self.inner), self.pod.clone(), Progress::new());
        let seen = progress.clone();
        match bounded(OPERATION_LIMIT, &seen, move || detach(&inner, &pod, &progress)).await {
            Ok(failures) => failures.iter().for_each(|error| {
                tracing::warn!(pod.id = %self.pod, %error, "a failed attachment is not wholly undone");
            }),
            Err(error) => tracing::warn!(pod.id = %self.pod, %error, "a failed attachment is not wholly undone"),
        }
    }
}

fn mapping(port: &HostPort) -> PortMapping {
    PortMapping {
        protocol: port.protocol.to_string(),
        host_port: port.host_port,
        container_port: port.container_port,
        host_ip: port.host_ip,
    }
}

/// Records the attachments of pods that are not live and have left their pins but no record, so that plugins undo them:
/// with the record the pod's addresses would be lost. Pods of the bridge are told by their leases.
pub(crate) async fn recall(inner: &Inner, network: &NetworkConfig, live: &HashSet<PodId>) -> Vec<DelError> {
    let mut failures = Vec::new();
    // That pins cannot be listed is told by the sweep, which is to remove them.
    for pod in inner.pins.strays(live).unwrap_or_default() {
        let lease = inner.leases.get(&pod);
        if lease.as_ref().is_some_and(|lease| lease.guest.is_none()) {
            continue;
        }
        // Portmap closes no port that it is not told of.
        let ports = lease.iter().flat_map(|lease| &lease.ports).map(mapping).collect();
        let capabilities = Wishes { ports, ..Wishes::default() }.arguments().expect("only annotations can be wrong");
        let recalled = inner.cni.recall(network, pod.as_str(), INTERFACE, &inner.pins.path(&pod), capabilities).await;
        failures.extend(recalled.map_err(DelError::Record).err());
    }
    failures
}

/// Opens the host ports that no plugin opens, and makes the pod known to the rules of other pods' ports.
fn open_ports(inner: &Inner, pod: &PodId, mut lease: Lease, progress: &Progress) -> Result<(), AttachError> {
    let opens = lease.guest.as_ref().is_some_and(|guest| !guest.plugin_opens_ports);
    if let Some(port) = lease.ports.iter().find(|port| {
        port.host_ip.is_some_and(|ip| if ip.is_ipv4() { lease.ipv4.is_none() } else { lease.ipv6.is_none() })
    }) {
        return Err(AttachError::HostIpFamily { port: *port });
    }
    progress.enter("look for the device towards the pod");
    let by_loopback =
        |port: &HostPort| port.claims().any(|(_, ip, _)| ip.is_ipv4() && (ip.is_unspecified() || ip.is_loopback()));
    if let (Some(ipv4), Some(guest)) = (lease.ipv4, &mut lease.guest)
        && opens
        && lease.ports.iter().any(by_loopback)
    {
        guest.device = guest_device(inner, pod, ipv4)?;
    }
    progress.enter("open the host ports");
    // Before the ports are: rules that are made anew have them then, and an undo finds them.
    inner.leases.admit(pod, &lease).map_err(AttachError::Lease)?;
    if !opens {
        return Ok(());
    }
    let mut netfilter = Netlink::netfilter().map_err(AttachError::HostPorts)?;
    // Without ports nobody reaches another pod by one.
    if lease.ports.is_empty() && !inner.ruleset.exists(&mut netfilter).map_err(AttachError::Rules)? {
        return Ok(());
    }
    inner.ruleset.hold().ensure(&mut netfilter, &inner.leases).map_err(AttachError::Rules)?;
    inner.ruleset.add(&mut netfilter, pod, &lease).map_err(AttachError::HostPorts)?;
    if let Some(device) = lease.guest.as_ref().and_then(|guest| guest.device.as_ref()) {
        // After the guard against what it would let in.
        sysctl::set(&localnet(device), "1").map_err(AttachError::Setting)?;
    }
    if !lease.ports.is_empty() {
        // What comes to a host port is forwarded to the pod.
        sysctl::forward_ipv4().map_err(AttachError::Setting)?;
        if lease.ipv6.is_some() {
            sysctl::forward_ipv6().map_err(AttachError::Setting)?;
        }
    }
    conntrack::forget(&mut netfilter, &lease.ports).map_err(AttachError::HostPorts)
}

/// The host's device towards a pod, unless packets from 127.0.0.1 may leave by it anyway, which is somebody else's
/// decision then.
fn guest_device(inner: &Inner, pod: &PodId, ipv4: Ipv4Addr) -> Result<Option<String>, AttachError> {
    let mut host = Netlink::route().map_err(AttachError::Host)?;
    let routes = link::routes(&mut host).map_err(AttachError::Host)?;
    let Some(index) = towards(&routes, ipv4) else { return Ok(None) };
    let Some(link) = link::by_index(&mut host, index).map_err(AttachError::Host)? else { return Ok(None) };
    let is_set = sysctl::read(&localnet(&link.name)).map_err(AttachError::Setting)?.as_deref() == Some("1");
    Ok((!is_set || inner.leases.shares_device(pod, &link.name)).then_some(link.name))
}

/// The device that a route of the main table leads to an address by.
fn towards(routes: &[Route], ipv4: Ipv4Addr) -> Option<u32> {
    let fits = |route: &&Route| route.table == TABLE_MAIN && route.destination.contains(&ipv4) && !route.is_default();
    routes.iter().filter(fits).max_by_key(|route| route.destination.prefix_len())?.device
}

/// Makes a guest's device as it was, when no other pod needs it.
pub(crate) fn reset_device(inner: &Inner, pod: &PodId, lease: &Lease) -> Result<(), SysctlError> {
    let Some(device) = lease.guest.as_ref().and_then(|guest| guest.device.as_ref()) else { return Ok(()) };
    let name = localnet(device);
    // Devices go with their pods, or with their plugin's last one.
    if inner.leases.shares_device(pod, device) || sysctl::read(&name)?.is_none() {
        return Ok(());
    }
    sysctl::set(&name, "0")
}

/// The setting that lets packets from 127.0.0.1 leave by a device.
fn localnet(device: &str) -> String {
    format!("ipv4/conf/{device}/route_localnet")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_route_leads_to_a_pod() {
        let route = |destination: &str, device, table| Route {
            destination: destination.parse().unwrap(),
            device: Some(device),
            metric: 0,
            table,
        };
        let routes = [
            route("0.0.0.0/0", 1, TABLE_MAIN),
            route("10.1.0.0/16", 2, TABLE_MAIN),
            route("10.1.0.0/24", 3, TABLE_MAIN),
            route("10.1.0.5/32", 4, 255),
        ];
        assert_eq!(towards(&routes, Ipv4Addr::new(10, 1, 0, 5)), Some(3));
        assert_eq!(towards(&routes, Ipv4Addr::new(10, 1, 9, 5)), Some(2));
        assert_eq!(towards(&routes, Ipv4Addr::new(10, 9, 0, 5)), None, "the way out is none to a pod of this node");
    }
}
