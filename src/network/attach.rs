//! The steps that attach a pod to the bridge, and those that undo them. They block; `lib.rs` bounds the wait.
//!
//! ```text
//! lease on disk → veth pair, one end made inside the pod → limits of bandwidth → addresses and routes inside → host ports
//! ```
//!
//! Names and keys follow from the pod's id and its lease, so an undo needs nothing that a killed daemon took along.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use podwright_base::{PodId, chain};
use podwright_cni::{AddError, AnnotationError, Bandwidth, ConfigError, DelError, Failures};
use podwright_sys::netns::{self, EnterError};
use rustix::io::Errno;

use crate::bridge::{BridgeError, Ready};
use crate::ipam::Addresses;
use crate::leases::{Lease, LeaseError};
use crate::link::{self, Veth};
use crate::listeners::{self, ListenerError};
use crate::netlink::{Netlink, NetlinkError};
use crate::port::HostPort;
use crate::progress::{Progress, Unfinished};
use crate::shape::{self, Shape, ShapeError};
use crate::sysctl::{self, SysctlError};
use crate::{Attachment, Inner, conntrack, guest, subnet};

/// The pod's end of the veth pair.
pub(crate) const INTERFACE: &str = "eth0";

/// Why a pod was not attached.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// There are CNI configurations, but none that can be used.
    #[error(transparent)]
    CniConfig(ConfigError),
    /// An annotation of the pod asks for what cannot be.
    #[error(transparent)]
    Annotation(AnnotationError),
    /// CNI plugins did not attach the pod.
    #[error(transparent)]
    Cni(Box<AddError>),
    /// CNI plugins say that they did, but the pod has no address.
    #[error("the plugins of CNI network {network} succeeded, but gave the pod's {INTERFACE} no address")]
    NoAddress {
        /// The network.
        network: String,
    },
    /// What an earlier attempt left of a CNI network cannot be undone.
    #[error("undo an earlier attachment of the pod: {0}")]
    Earlier(Failures),
    /// A host port names an address of a family that the pod does not have.
    #[error("host port {port}: the pod has no address of that family")]
    HostIpFamily {
        /// The port.
        port: HostPort,
    },
    /// The pod's namespace cannot be opened.
    #[error("open the pod's network namespace {}", path.display())]
    Netns {
        /// The pin.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// No socket in the host's namespace.
    #[error("talk to the host's network")]
    Host(#[source] NetlinkError),
    /// There is no bridge.
    #[error("set up the pod network")]
    Bridge(#[source] BridgeError),
    /// The rules cannot be made.
    #[error("make the nf_tables rules of the pod network")]
    Rules(#[source] NetlinkError),
    /// There are no addresses or host ports for the pod.
    #[error("take addresses and host ports for the pod")]
    Lease(#[source] LeaseError),
    /// A host port is not the pod's to have, as far as the host's programs go.
    #[error(transparent)]
    Listener(ListenerError),
    /// The pod's namespace cannot be entered.
    #[error("enter the pod's network namespace {}", path.display())]
    Enter {
        /// The pin.
        path: PathBuf,
        /// Why.
        source: EnterError,
    },
    /// A setting inside the pod's namespace is not as the pod needs it.
    #[error("prepare the kernel for the pod's network")]
    Setting(#[source] SysctlError),
    /// No socket in the pod's namespace.
    #[error("talk to the pod's network")]
    Inside(#[source] NetlinkError),
    /// The pair cannot be made.
    #[error("make the veth pair {name} with {INTERFACE} inside the pod")]
    Veth {
        /// The host's end.
        name: String,
        /// Why.
        source: NetlinkError,
    },
    /// The pod's bandwidth is not limited as its annotations ask.
    #[error(transparent)]
    Bandwidth(ShapeError),
    /// Another device has the name of the host's end.
    #[error("the device {name} of kind {kind:?} is not this daemon's, and has the pod's name: remove or rename it")]
    NameTaken {
        /// The name.
        name: String,
        /// What it is.
        kind: String,
    },
    /// The pod's end is not there although it was made.
    #[error("{INTERFACE} is missing inside the pod right after it was made")]
    NoInterface,
    /// The pod cannot be given its addresses and routes.
    #[error("give {INTERFACE} the pod's addresses and routes")]
    Addresses(#[source] NetlinkError),
    /// The host ports cannot be opened.
    #[error("open the pod's host ports")]
    HostPorts(#[source] NetlinkError),
    /// It is not known whether the pod was attached.
    #[error("attach pod {pod} to the network")]
    Unfinished {
        /// The pod.
        pod: PodId,
        /// Why.
        source: Unfinished,
    },
}

/// A part of a pod's network that was not removed.
#[derive(Debug, thiserror::Error)]
pub enum UndoError {
    /// No socket.
    #[error("talk to the host's network")]
    Socket(#[source] NetlinkError),
    /// CNI plugins did not detach the pod, or not wholly.
    #[error(transparent)]
    Cni(DelError),
    /// A setting of the host is still as the pod's host ports needed it.
    #[error("take back what host ports needed of the kernel")]
    Setting(#[source] SysctlError),
    /// The host ports are still open.
    #[error("close the pod's host ports")]
    HostPorts(#[source] NetlinkError),
    /// Connections to closed host ports are still known.
    #[error("forget UDP connections to the pod's host ports")]
    Connections(#[source] NetlinkError),
    /// The veth pair is still there.
    #[error("delete the veth pair {name}")]
    Veth {
        /// The host's end.
        name: String,
        /// Why.
        source: NetlinkError,
    },
    /// The device that the pod's bandwidth was limited by is still there.
    #[error("delete the device {name} of the pod's bandwidth")]
    Bandwidth {
        /// Its name.
        name: String,
        /// Why.
        source: NetlinkError,
    },
    /// The lease is still there.
    #[error("give the pod's addresses back")]
    Lease(#[source] LeaseError),
    /// The rules are still there although no pod needs them.
    #[error("delete the nf_tables rules after the last pod")]
    Rules(#[source] NetlinkError),
    /// It is not known what is still there.
    #[error("undo the pod's network")]
    Unfinished(#[source] Unfinished),
}

/// Why a pod was not, or not wholly, detached: everything was tried.
#[derive(Debug)]
pub struct DetachError {
    /// The pod.
    pub pod: PodId,
    /// All that failed.
    pub failures: Vec<UndoError>,
}

impl fmt::Display for DetachError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "detach pod {} from the network", self.pod)?;
        // Several causes: `source` has room for one, so they are told here, each with its own chain.
        for (separator, failure) in std::iter::once(": ").chain(std::iter::repeat("; ")).zip(&self.failures) {
            write!(f, "{separator}{}", chain(failure))?;
        }
        Ok(())
    }
}

impl std::error::Error for DetachError {}

/// The host's end of a pod's veth pair.
pub(crate) fn veth_name(pod: &PodId) -> String {
    format!("pv{}", pod.short())
}

/// The device that what a pod sends waits at when that is limited.
fn ifb_name(pod: &PodId) -> String {
    format!("pi{}", pod.short())
}

/// A pod on its way to the bridge.
pub(crate) struct Attach<'a> {
    pub(crate) inner: &'a Inner,
    pub(crate) pod: &'a PodId,
    pub(crate) netns: &'a Path,
    pub(crate) ports: &'a [HostPort],
    pub(crate) bandwidth: &'a Bandwidth,
    pub(crate) progress: &'a Progress,
}

impl Attach<'_> {
    /// Attaches the pod, or undoes what it began.
    pub(crate) fn run(&self) -> Result<Attachment, AttachError> {
        let result = self.steps();
        if result.is_err() || self.progress.is_abandoned() {
            for error in detach(self.inner, self.pod, self.progress) {
                let error = DetachError { pod: self.pod.clone(), failures: vec![error] };
                tracing::warn!(pod.id = %self.pod, %error, "a failed attachment is not wholly undone");
            }
        }
        result
    }

    fn steps(&self) -> Result<Attachment, AttachError> {
        let inner = self.inner;
        self.progress.enter("open the pod's network namespace");
        let netns =
            netns::open(self.netns).map_err(|source| AttachError::Netns { path: self.netns.to_owned(), source })?;
        let mut host = Netlink::route().map_err(AttachError::Host)?;
        let ready =
            inner.bridge.ensure(&mut host, &inner.leases, &inner.pins, self.progress).map_err(AttachError::Bridge)?;

        let lease = self.take_lease(&mut host)?;
        let Some(ipv4) = lease.ipv4 else { return Err(AttachError::NoInterface) };
        let (mut inside, pod_has_ipv6) = self.enter(&netns)?;
        let ipv6 = ready.subnets.ipv6.and(lease.ipv6).filter(|_| pod_has_ipv6);
        let lease = Lease { ipv6, ..lease };
        if let Some(port) = self.ports.iter().find(|port| ipv6.is_none() && port.host_ip.is_some_and(|ip| ip.is_ipv6()))
        {
            return Err(AttachError::HostIpFamily { port: *port });
        }

        self.make_veth(&mut host, &mut inside, &netns, &ready, ipv4)?;
        self.shape(&mut host, &ready)?;
        self.progress.enter("give the pod its addresses");
        configure(&mut inside, &ready, (ipv4, ipv6))?;
        self.open_ports(&lease)?;
        Ok(Attachment {
            ips: std::iter::once(ipv4.into()).chain(ipv6.map(IpAddr::V6)).collect(),
            mac: subnet::mac_text(subnet::mac(ipv4)),
            interface: INTERFACE.to_owned(),
        })
    }

    /// Takes addresses and ports, after undoing what an earlier attempt has beside them that is not asked for any more.
    fn take_lease(&self, host: &mut Netlink) -> Result<Lease, AttachError> {
        let inner = self.inner;
        self.progress.enter("make the nf_tables rules");
        let mut netfilter = Netlink::netfilter().map_err(AttachError::Rules)?;
        // Rules that are made anew meanwhile must not have the ports that go; and nobody may delete those of this pod
        // before its lease says that they are needed.
        let mut rules = inner.ruleset.hold();
        rules.ensure(&mut netfilter, &inner.leases).map_err(AttachError::Rules)?;
        let earlier = inner.leases.get(self.pod);
        // What a pod has had since an earlier attempt is its own, whoever listens there since.
        if earlier.as_ref().is_none_or(|lease| lease.ports != self.ports) {
            self.progress.enter("look for programs that listen on the host ports");
            listeners::check(self.ports).map_err(AttachError::Listener)?;
        }
        self.progress.enter("take addresses");
        let shaped = !self.bandwidth.is_unlimited();
        if let Some(lease) = earlier.as_ref().filter(|lease| lease.ports != self.ports) {
            inner.ruleset.remove(&mut netfilter, lease, false).map_err(AttachError::HostPorts)?;
        }
        if earlier.is_some_and(|lease| lease.shaped && !shaped) {
            shape::clear(host, &veth_name(self.pod), &ifb_name(self.pod))
                .map_err(|error| AttachError::Bandwidth(ShapeError::Clear(error)))?;
        }
        inner.leases.take(self.pod, self.ports, shaped).map_err(AttachError::Lease)
    }

    /// Opens a socket inside the pod; tells whether the pod has IPv6.
    fn enter(&self, netns: &OwnedFd) -> Result<(Netlink, bool), AttachError> {
        self.progress.enter("enter the pod's network namespace");
        netns::within(netns.as_fd(), || {
            let has_ipv6 = sysctl::has_ipv6().map_err(AttachError::Setting)?;
            if has_ipv6 {
                // The bridge sends the pod's own packets back to it, so detection would find every address taken.
                sysctl::set("ipv6/conf/default/accept_dad", "0").map_err(AttachError::Setting)?;
                // The pod's routes come from here; another pod must not announce itself as its router.
                sysctl::set("ipv6/conf/default/accept_ra", "0").map_err(AttachError::Setting)?;
            }
            Ok((Netlink::route().map_err(AttachError::Inside)?, has_ipv6))
        })
        .map_err(|source| AttachError::Enter { path: self.netns.to_owned(), source })?
    }

    fn make_veth(
        &self,
        host: &mut Netlink,
        inside: &mut Netlink,
        netns: &OwnedFd,
        ready: &Ready,
        ipv4: Ipv4Addr,
    ) -> Result<(), AttachError> {
        self.progress.enter("make the veth pair");
        let name = veth_name(self.pod);
        let alias = self.inner.alias(self.pod);
        let messages = || {
            link::new_veth(&Veth {
                name: &name,
                alias: &alias,
                bridge: ready.index,
                mtu: ready.mtu,
                peer_name: INTERFACE,
                peer_mac: subnet::mac(ipv4),
                peer_netns: netns.as_raw_fd().cast_unsigned(),
                ipv6: ready.subnets.ipv6.is_some(),
            })
        };
        let failed = |source| AttachError::Veth { name: name.clone(), source };
        match host.request(messages()) {
            Err(error) if error.refusal() == Some(Errno::EXIST) => {
                // An earlier attempt's. Kept if it leads into this namespace: the pod may be using it.
                let outside = link::by_name(host, &name).map_err(failed)?;
                let end = link::by_name(inside, INTERFACE).map_err(failed)?;
                match (outside, end) {
                    (Some(outside), _) if !self.inner.is_end(self.pod, &outside) => {
                        Err(AttachError::NameTaken { name: name.clone(), kind: outside.kind })
                    }
                    (Some(outside), Some(end)) if end.kind == "veth" && end.peer == Some(outside.index) => Ok(()),
                    // Something else made an eth0 inside.
                    (None, _) => Err(failed(error)),
                    (Some(_), _) => {
                        link::delete(host, &name).map_err(failed)?;
                        host.request(messages()).map_err(failed)
                    }
                }
            }
            result => result.map_err(failed),
        }
    }

    /// Limits the pod's bandwidth before it can send anything: its end is still down.
    fn shape(&self, host: &mut Netlink, ready: &Ready) -> Result<(), AttachError> {
        if self.bandwidth.is_unlimited() {
            return Ok(());
        }
        self.progress.enter("limit the pod's bandwidth");
        let shape = Shape {
            veth: &veth_name(self.pod),
            ifb: &ifb_name(self.pod),
            bandwidth: self.bandwidth,
            alias: &self.inner.alias(self.pod),
            mtu: ready.mtu,
            ipv6: ready.subnets.ipv6.is_some(),
        };
        shape.apply(host).map_err(AttachError::Bandwidth)
    }

    fn open_ports(&self, lease: &Lease) -> Result<(), AttachError> {
        if self.ports.is_empty() {
            return Ok(());
        }
        self.progress.enter("open the host ports");
        let mut netfilter = Netlink::netfilter().map_err(AttachError::HostPorts)?;
        self.inner.ruleset.add(&mut netfilter, self.pod, lease).map_err(AttachError::HostPorts)?;
        conntrack::forget(&mut netfilter, self.ports).map_err(AttachError::HostPorts)
    }
}

/// Sets the pod's end up and gives it its addresses and default routes.
fn configure(inside: &mut Netlink, ready: &Ready, (ipv4, ipv6): Addresses) -> Result<(), AttachError> {
    let end = link::by_name(inside, INTERFACE).map_err(AttachError::Addresses)?.ok_or(AttachError::NoInterface)?;
    let subnets = &ready.subnets;
    let mut pairs =
        vec![(IpNet::new_assert(ipv4.into(), subnets.ipv4.prefix_len()), IpAddr::V4(subnets.gateway_ipv4()))];
    if let (Some(address), Some(net), Some(gateway)) = (ipv6, subnets.ipv6, subnets.gateway_ipv6()) {
        pairs.push((IpNet::new_assert(address.into(), net.prefix_len()), gateway.into()));
    }
    let addresses = pairs.iter().map(|(address, _)| link::new_address(end.index, *address));
    // Last: a gateway must be on a network of a device that is up.
    let routes = pairs.iter().map(|(_, gateway)| link::new_default_route(end.index, *gateway));
    let messages = std::iter::once(link::up(end.index)).chain(addresses).chain(routes).collect();
    inside.request(messages).map_err(AttachError::Addresses)
}

/// Undoes all of a pod's network; returns what failed.
pub(crate) fn detach(inner: &Inner, pod: &PodId, progress: &Progress) -> Vec<UndoError> {
    let mut failures = Vec::new();
    progress.enter("delete the veth pair");
    failures.extend(delete_veth(inner, pod).err());
    progress.enter("close the host ports");
    // Rules that are made anew meanwhile must not have the ports of a lease that is on its way out.
    let mut rules = inner.ruleset.hold();
    let lease = inner.leases.get(pod);
    if let Some(lease) = lease.as_ref().filter(|lease| !lease.ports.is_empty() || lease.guest.is_some()) {
        failures.extend(close_ports(inner, pod, lease).err());
    }
    if lease.as_ref().is_some_and(|lease| lease.shaped) {
        progress.enter("delete the device of the pod's bandwidth");
        let name = ifb_name(pod);
        failures.extend(delete_ifb(&name).map_err(|source| UndoError::Bandwidth { name, source }).err());
    }
    if failures.is_empty() {
        // Not before: the next pod with these addresses or ports would meet what is left of this one.
        progress.enter("give the addresses back");
        failures.extend(inner.leases.give_back(pod).map_err(UndoError::Lease).err());
        if inner.leases.is_empty() && (lease.is_some() || rules.is_made()) {
            progress.enter("delete the nf_tables rules");
            let deleted = Netlink::netfilter().and_then(|mut netfilter| rules.delete(&mut netfilter));
            failures.extend(deleted.map_err(UndoError::Rules).err());
        }
    }
    failures
}

fn close_ports(inner: &Inner, pod: &PodId, lease: &Lease) -> Result<(), UndoError> {
    // Before the guard goes that it needs.
    guest::reset_device(inner, pod, lease).map_err(UndoError::Setting)?;
    let device = lease.guest.as_ref().and_then(|guest| guest.device.as_deref());
    let keep_device = device.is_some_and(|device| inner.leases.shares_device(pod, device));
    let mut netfilter = Netlink::netfilter().map_err(UndoError::Socket)?;
    inner.ruleset.remove(&mut netfilter, lease, keep_device).map_err(UndoError::HostPorts)?;
    conntrack::forget(&mut netfilter, &lease.ports).map_err(UndoError::Connections)
}

fn delete_ifb(name: &str) -> Result<(), NetlinkError> {
    link::delete(&mut Netlink::route()?, name).map(drop)
}

fn delete_veth(inner: &Inner, pod: &PodId) -> Result<(), UndoError> {
    let name = veth_name(pod);
    let mut host = Netlink::route().map_err(UndoError::Socket)?;
    let deleted = link::by_name(&mut host, &name).and_then(|link| match link {
        Some(link) if inner.is_end(pod, &link) => link::delete(&mut host, &name),
        _ => Ok(false),
    });
    deleted.map(drop).map_err(|source| UndoError::Veth { name, source })
}
