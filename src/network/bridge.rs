//! The bridge that pods are attached to: its subnets, addresses and kernel settings. Made with the first pod.

use std::sync::{Mutex, PoisonError};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use podwright_sys::netns::PinError;

use crate::leases::{LeaseError, Leases};
use crate::link::{self, Link};
use crate::netlink::{Netlink, NetlinkError};
use crate::pin::Pins;
use crate::progress::Progress;
use crate::subnet::{self, Subnets};
use crate::sysctl::{self, SysctlError};

/// Bytes in a packet when the host has no default route to take them from.
const DEFAULT_MTU: u32 = 1500;

/// Why there is no bridge.
#[derive(Debug, thiserror::Error)]
pub enum BridgeError {
    /// The host's links cannot be looked at.
    #[error("look for the device {name}")]
    Look {
        /// The bridge.
        name: String,
        /// Why.
        source: NetlinkError,
    },
    /// A device of another kind has the bridge's name.
    #[error("the device {name} is no bridge but {kind:?}: remove it, or give network.bridge another name")]
    NotABridge {
        /// Its name.
        name: String,
        /// What it is.
        kind: String,
    },
    /// The lock against other daemons that look for a subnet cannot be had.
    #[error("keep other daemons from the choice of a subnet")]
    Lock(#[source] PinError),
    /// The host's routes and addresses cannot be listed.
    #[error("list the host's networks")]
    Networks(#[source] NetlinkError),
    /// The configured subnet overlaps a network of the host.
    #[error("network.ipv4 {subnet} overlaps {other} of the host's device {device}: configure another")]
    Overlap {
        /// The configured subnet.
        subnet: Ipv4Net,
        /// The host's network.
        other: Ipv4Net,
        /// Where that is.
        device: String,
    },
    /// Every subnet that could be chosen is in use on the host.
    #[error("no /20 of 10.88.0.0/13 is free on this host: configure network.ipv4")]
    NoFreeSubnet,
    /// The choice cannot be kept.
    #[error("keep the choice of the subnet")]
    Keep(#[source] LeaseError),
    /// The bridge cannot be made.
    #[error("make the bridge {name}")]
    Make {
        /// The bridge.
        name: String,
        /// Why.
        source: NetlinkError,
    },
    /// A setting of the kernel is not as the bridge needs it.
    #[error("prepare the kernel for the bridge {name}")]
    Setting {
        /// The bridge.
        name: String,
        /// Which.
        source: SysctlError,
    },
    /// The bridge cannot be given its addresses.
    #[error("give the bridge {name} its addresses")]
    Addresses {
        /// The bridge.
        name: String,
        /// Why.
        source: NetlinkError,
    },
}

/// What is configured of the bridge.
#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) name: String,
    pub(crate) ipv4: Option<Ipv4Net>,
    /// As configured; unset: derived.
    pub(crate) ipv6: Option<Ipv6Net>,
    pub(crate) enable_ipv6: bool,
    pub(crate) mtu: Option<u32>,
}

/// A bridge that pods can be attached to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ready {
    pub(crate) index: u32,
    pub(crate) mtu: u32,
    pub(crate) subnets: Subnets,
}

/// The bridge of one daemon.
#[derive(Debug)]
pub(crate) struct Bridge {
    settings: Settings,
    ready: Mutex<Option<Ready>>,
}

impl Bridge {
    /// Takes the settings; nothing is made.
    pub(crate) fn new(settings: Settings) -> Self {
        Self { settings, ready: Mutex::new(None) }
    }

    /// The bridge's device.
    pub(crate) fn name(&self) -> &str {
        &self.settings.name
    }

    /// Makes sure that there is a bridge: makes it for the first pod, and again when somebody has removed it; otherwise a
    /// short look.
    pub(crate) fn ensure(
        &self,
        netlink: &mut Netlink,
        leases: &Leases,
        pins: &Pins,
        progress: &Progress,
    ) -> Result<Ready, BridgeError> {
        progress.enter("wait for another pod's look at the bridge");
        // One after the other: pods that start together need one bridge. What is in the lock is replaced as a whole.
        let mut known = self.ready.lock().unwrap_or_else(PoisonError::into_inner);
        progress.enter("look for the bridge");
        let link = self.look(netlink)?;
        let ready = match (known.as_ref(), &link) {
            (Some(ready), Some(link)) if link.index == ready.index && link.up && !self.is_outdated(ready, leases) => {
                *ready
            }
            _ => self.make(netlink, link.as_ref(), leases, pins, progress)?,
        };
        *known = Some(ready);
        Ok(ready)
    }

    fn look(&self, netlink: &mut Netlink) -> Result<Option<Link>, BridgeError> {
        let name = self.settings.name.clone();
        match link::by_name(netlink, &name) {
            Ok(Some(link)) if link.kind != "bridge" => Err(BridgeError::NotABridge { name, kind: link.kind }),
            Ok(link) => Ok(link),
            Err(source) => Err(BridgeError::Look { name, source }),
        }
    }

    fn make(
        &self,
        netlink: &mut Netlink,
        link: Option<&Link>,
        leases: &Leases,
        pins: &Pins,
        progress: &Progress,
    ) -> Result<Ready, BridgeError> {
        progress.enter("choose the pods' subnet");
        // Until the bridge has its address, no other daemon can see that the subnet is taken.
        let _lock = pins.lock().map_err(BridgeError::Lock)?;
        let host = Host::look(netlink, link.map(|link| link.index)).map_err(BridgeError::Networks)?;
        let subnets = self.choose(netlink, &host, leases)?;
        let mut link = link;
        if link.is_some() && !leases.has_own() && leases.subnets().is_some_and(|last| last != subnets) {
            // Nobody uses it, and it has the addresses of the last subnets.
            progress.enter("remove the bridge of the last subnet");
            let name = self.settings.name.clone();
            link::delete(netlink, &name).map_err(|source| BridgeError::Make { name, source })?;
            link = None;
        }
        leases.choose(subnets).map_err(BridgeError::Keep)?;
        let mtu = match self.settings.mtu {
            Some(mtu) => mtu,
            None => host.mtu(netlink).map_err(BridgeError::Networks)?,
        };

        progress.enter("make the bridge");
        let name = &self.settings.name;
        let index = match link {
            Some(link) => link.index,
            None => {
                let mac = subnet::mac(subnets.gateway_ipv4());
                netlink
                    .request(vec![link::new_bridge(name, mac, mtu)])
                    .map_err(|source| BridgeError::Make { name: name.clone(), source })?;
                let made = self.look(netlink)?;
                let gone = || BridgeError::NotABridge { name: name.clone(), kind: String::new() };
                made.ok_or_else(gone)?.index
            }
        };
        self.set_kernel(&subnets).map_err(|source| BridgeError::Setting { name: name.clone(), source })?;
        let mut messages = vec![link::new_address(index, gateway_ipv4(&subnets))];
        messages.extend(gateway_ipv6(&subnets).map(|address| link::new_address(index, address)));
        messages.push(link::up(index));
        netlink.request(messages).map_err(|source| BridgeError::Addresses { name: name.clone(), source })?;
        tracing::info!(bridge = name, ipv4 = %subnets.ipv4, ipv6 = ?subnets.ipv6, mtu, "the pod network is up");
        Ok(Ready { index, mtu, subnets })
    }

    /// Whether the node's ranges have changed, and nobody has an address of the last.
    fn is_outdated(&self, ready: &Ready, leases: &Leases) -> bool {
        let (ipv4, ipv6) = self.node_subnets(leases);
        let other = ipv4.is_some_and(|ipv4| ipv4 != ready.subnets.ipv4)
            || ready.subnets.ipv6.is_some_and(|last| ipv6.is_some_and(|ipv6| ipv6 != last));
        other && !leases.has_own()
    }

    /// The node's ranges, as far as no others are configured and they have room for a pod.
    fn node_subnets(&self, leases: &Leases) -> (Option<Ipv4Net>, Option<Ipv6Net>) {
        let (mut ipv4, mut ipv6) = (None, None);
        for range in leases.ranges() {
            match range {
                IpNet::V4(range) if range.prefix_len() <= subnet::LONGEST_IPV4 => ipv4 = ipv4.or(Some(range)),
                IpNet::V6(range) if range.prefix_len() <= subnet::LONGEST_IPV6 => ipv6 = ipv6.or(Some(range)),
                _ => {}
            }
        }
        (ipv4.filter(|_| self.settings.ipv4.is_none()), ipv6.filter(|_| self.settings.ipv6.is_none()))
    }

    /// Takes the configured subnets, else those of pods that run, else the node's ranges, else those of the last time if
    /// they are still free, else free ones.
    fn choose(&self, netlink: &mut Netlink, host: &Host, leases: &Leases) -> Result<Subnets, BridgeError> {
        let taken: Vec<Ipv4Net> = host.networks.iter().map(|(network, _)| *network).collect();
        let last = leases.subnets();
        // Pods that run with an address of the subnet decide, whatever has been set up beside them since.
        let held = last.filter(|last| leases.in_use(&last.ipv4));
        let (node_ipv4, node_ipv6) = self.node_subnets(leases);
        let ipv4 = if let Some(subnet) = self.settings.ipv4 {
            if let Some(other) = subnet::conflict(&subnet, &taken) {
                let device = host.device_of(netlink, &other).map_err(BridgeError::Networks)?;
                return Err(BridgeError::Overlap { subnet, other, device });
            }
            subnet
        } else {
            let free = |last: &Ipv4Net| !taken.iter().any(|other| subnet::overlap(last, other));
            let node = node_ipv4.filter(|range| match subnet::conflict(range, &taken) {
                Some(other) => {
                    tracing::warn!(%range, %other, "the node's pod addresses are not used: the host has a network there");
                    false
                }
                None => true,
            });
            if let (Some(held), Some(range)) = (held, node.filter(|range| held.is_some_and(|held| held.ipv4 != *range)))
            {
                let subnet = held.ipv4;
                tracing::info!(%range, %subnet, "the node's pod addresses are used once no pod has one of the subnet");
            }
            held.map(|held| held.ipv4)
                .or(node)
                .or_else(|| last.map(|last| last.ipv4).filter(free))
                .or_else(|| subnet::first_free(&taken))
                .ok_or(BridgeError::NoFreeSubnet)?
        };
        let name = &self.settings.name;
        let has_ipv6 = self.settings.enable_ipv6
            && sysctl::has_ipv6().map_err(|source| BridgeError::Setting { name: name.clone(), source })?;
        let derived = match held {
            Some(held) => held.ipv6,
            None => node_ipv6,
        };
        let ipv6 = has_ipv6.then(|| self.settings.ipv6.or(derived).unwrap_or_else(|| subnet::unique_local(name)));
        Ok(Subnets { ipv4, ipv6 })
    }

    fn set_kernel(&self, subnets: &Subnets) -> Result<(), SysctlError> {
        let name = &self.settings.name;
        sysctl::forward_ipv4()?;
        // Host ports at 127.0.0.1; the ruleset's guard keeps pods from what else listens there.
        sysctl::set(&format!("ipv4/conf/{name}/route_localnet"), "1")?;
        if subnets.ipv6.is_some() {
            sysctl::forward_ipv6()?;
            sysctl::set(&format!("ipv6/conf/{name}/accept_dad"), "0")?;
            sysctl::set(&format!("ipv6/conf/{name}/accept_ra"), "0")?;
        }
        Ok(())
    }
}

/// The bridge's IPv4 address with its subnet's length.
pub(crate) fn gateway_ipv4(subnets: &Subnets) -> IpNet {
    IpNet::new_assert(subnets.gateway_ipv4().into(), subnets.ipv4.prefix_len())
}

/// The bridge's IPv6 address with its subnet's length.
pub(crate) fn gateway_ipv6(subnets: &Subnets) -> Option<IpNet> {
    let (net, address) = (subnets.ipv6?, subnets.gateway_ipv6()?);
    Some(IpNet::new_assert(address.into(), net.prefix_len()))
}

/// The host's own networks.
struct Host {
    /// What is routed or has an address, with its device; default routes and the bridge's own are left out.
    networks: Vec<(Ipv4Net, Option<u32>)>,
    /// The device of the best default route.
    default: Option<u32>,
}

impl Host {
    fn look(netlink: &mut Netlink, bridge: Option<u32>) -> Result<Self, NetlinkError> {
        let routes = link::routes(netlink)?;
        let default = routes.iter().filter(|route| route.is_default()).min_by_key(|route| route.metric);
        let default = default.and_then(|route| route.device);
        let addresses = link::networks(netlink)?.into_iter().map(|(network, device)| (network, Some(device)));
        let networks = routes
            .into_iter()
            .filter(|route| route.destination.prefix_len() > 0)
            .map(|route| (route.destination, route.device))
            .chain(addresses)
            .filter(|(_, device)| device.is_none() || *device != bridge)
            .collect();
        Ok(Self { networks, default })
    }

    fn mtu(&self, netlink: &mut Netlink) -> Result<u32, NetlinkError> {
        let device = match self.default {
            Some(index) => link::by_index(netlink, index)?,
            None => None,
        };
        Ok(device.map_or(DEFAULT_MTU, |device| device.mtu))
    }

    fn device_of(&self, netlink: &mut Netlink, network: &Ipv4Net) -> Result<String, NetlinkError> {
        let index = self.networks.iter().find(|(other, _)| other == network).and_then(|(_, device)| *device);
        let device = match index {
            Some(index) => link::by_index(netlink, index)?,
            None => None,
        };
        Ok(device.map_or_else(|| "(none)".to_owned(), |device| device.name))
    }
}
