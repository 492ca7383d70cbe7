//! Links, addresses and routes: rtnetlink's messages and answers, as far as a bridge with veth ports needs them.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::{IpNet, Ipv4Net};
use rustix::io::Errno;

use crate::netlink::{
    ACK, Attributes, CREATE, DUMP, EXCLUSIVE, Message, Netlink, NetlinkError, REPLACE, attributes, text_of, u32_at,
};

/// A device's hardware address.
pub(crate) type Mac = [u8; 6];

/// The longest name of a device.
pub(crate) const MAX_NAME: usize = 15;

const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
const RTM_NEWADDR: u16 = 20;
const RTM_GETADDR: u16 = 22;
const RTM_NEWROUTE: u16 = 24;
const RTM_GETROUTE: u16 = 26;

const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_LINK: u16 = 5;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_IFALIAS: u16 = 20;
const IFLA_AF_SPEC: u16 = 26;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_EXT_MASK: u16 = 29;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const IFLA_INFO_SLAVE_KIND: u16 = 4;
const IFLA_INFO_SLAVE_DATA: u16 = 5;
const IFLA_BR_FORWARD_DELAY: u16 = 1;
const IFLA_BR_STP_STATE: u16 = 5;
const IFLA_BR_MCAST_SNOOPING: u16 = 23;
const IFLA_BRPORT_MODE: u16 = 4;
const IFLA_INET6_ADDR_GEN_MODE: u16 = 8;
const IN6_ADDR_GEN_MODE_NONE: u8 = 1;
const VETH_INFO_PEER: u16 = 1;
const RTEXT_FILTER_SKIP_STATS: u32 = 1 << 3;
const IFF_UP: u32 = 1;

const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_FLAGS: u16 = 8;
const IFA_F_NODAD: u32 = 0x02;

const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PRIORITY: u16 = 6;
const RT_TABLE_MAIN: u8 = 254;
const RTPROT_STATIC: u8 = 4;
const RTN_UNICAST: u8 = 1;

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// A network device, as far as Podwright looks at it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) name: String,
    pub(crate) up: bool,
    pub(crate) mtu: u32,
    /// The bridge it is a port of.
    pub(crate) master: Option<u32>,
    /// The other end of a veth, in its namespace's numbers.
    pub(crate) peer: Option<u32>,
    /// The driver: `bridge`, `veth`, …
    pub(crate) kind: String,
    pub(crate) alias: String,
}

impl Link {
    fn parse(payload: &[u8]) -> Option<Self> {
        let mut link = Self { index: u32_at(payload, 4)?, up: u32_at(payload, 8)? & IFF_UP != 0, ..Self::default() };
        for (kind, value) in attributes(payload.get(16..)?) {
            match kind {
                IFLA_IFNAME => link.name = text_of(value),
                IFLA_MTU => link.mtu = u32_at(value, 0)?,
                IFLA_LINK => link.peer = u32_at(value, 0),
                IFLA_MASTER => link.master = u32_at(value, 0),
                IFLA_IFALIAS => link.alias = text_of(value),
                IFLA_LINKINFO => {
                    link.kind = attributes(value)
                        .find(|(kind, _)| *kind == IFLA_INFO_KIND)
                        .map(|(_, value)| text_of(value))
                        .unwrap_or_default();
                }
                _ => {}
            }
        }
        Some(link)
    }
}

/// An IPv4 route: what it covers and where it leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Route {
    pub(crate) destination: Ipv4Net,
    pub(crate) device: Option<u32>,
    pub(crate) metric: u32,
    pub(crate) table: u8,
}

impl Route {
    fn parse(payload: &[u8]) -> Option<Self> {
        let (length, table) = (*payload.get(1)?, *payload.get(4)?);
        let mut route =
            Self { destination: Ipv4Net::new(Ipv4Addr::UNSPECIFIED, length).ok()?, device: None, metric: 0, table };
        for (kind, value) in attributes(payload.get(12..)?) {
            match kind {
                RTA_DST => route.destination = Ipv4Net::new(ipv4(value)?, length).ok()?,
                RTA_OIF => route.device = u32_at(value, 0),
                RTA_PRIORITY => route.metric = u32_at(value, 0)?,
                _ => {}
            }
        }
        Some(route)
    }

    /// Whether the route is a default one of the main table.
    pub(crate) fn is_default(&self) -> bool {
        self.destination.prefix_len() == 0 && self.table == RT_TABLE_MAIN
    }
}

/// What a veth pair is made of.
pub(crate) struct Veth<'a> {
    /// The host's end.
    pub(crate) name: &'a str,
    /// What the host's end says about itself.
    pub(crate) alias: &'a str,
    /// The bridge's index.
    pub(crate) bridge: u32,
    pub(crate) mtu: u32,
    /// The pod's end.
    pub(crate) peer_name: &'a str,
    pub(crate) peer_mac: Mac,
    /// The pod's network namespace; stays the caller's.
    pub(crate) peer_netns: u32,
    /// Whether the host has IPv6, and so per-device settings of it.
    pub(crate) ipv6: bool,
}

/// Finds a link by its name.
pub(crate) fn by_name(netlink: &mut Netlink, name: &str) -> Result<Option<Link>, NetlinkError> {
    find(netlink, 0, Attributes::new().text(IFLA_IFNAME, name))
}

/// Finds a link by its index.
pub(crate) fn by_index(netlink: &mut Netlink, index: u32) -> Result<Option<Link>, NetlinkError> {
    find(netlink, index, Attributes::new())
}

fn find(netlink: &mut Netlink, index: u32, attributes: Attributes) -> Result<Option<Link>, NetlinkError> {
    let attributes = attributes.u32(IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS);
    match netlink.get(Message::new(RTM_GETLINK, 0, &link_header(index, 0), &attributes)) {
        Ok(payload) => Link::parse(&payload).ok_or(NetlinkError::Malformed).map(Some),
        Err(error) if error.refusal() == Some(Errno::NODEV) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Lists all links of the namespace.
pub(crate) fn all(netlink: &mut Netlink) -> Result<Vec<Link>, NetlinkError> {
    let attributes = Attributes::new().u32(IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS);
    let answer = netlink.dump(&Message::new(RTM_GETLINK, DUMP, &link_header(0, 0), &attributes))?;
    answer.iter().map(|payload| Link::parse(payload).ok_or(NetlinkError::Malformed)).collect()
}

/// Lists the IPv4 routes of all tables, those to the host's own addresses included.
pub(crate) fn routes(netlink: &mut Netlink) -> Result<Vec<Route>, NetlinkError> {
    let header = [AF_INET, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let answer = netlink.dump(&Message::new(RTM_GETROUTE, DUMP, &header, &Attributes::new()))?;
    answer.iter().map(|payload| Route::parse(payload).ok_or(NetlinkError::Malformed)).collect()
}

/// Lists the IPv4 networks of the host's addresses with their devices, also of devices that are down.
pub(crate) fn networks(netlink: &mut Netlink) -> Result<Vec<(Ipv4Net, u32)>, NetlinkError> {
    let header = [AF_INET, 0, 0, 0, 0, 0, 0, 0];
    let answer = netlink.dump(&Message::new(RTM_GETADDR, DUMP, &header, &Attributes::new()))?;
    let parse = |payload: &Vec<u8>| {
        let length = *payload.get(1)?;
        let (_, address) = attributes(payload.get(8..)?).find(|(kind, _)| *kind == IFA_ADDRESS)?;
        Some((Ipv4Net::new(ipv4(address)?, length).ok()?.trunc(), u32_at(payload, 4)?))
    };
    answer.iter().map(|payload| parse(payload).ok_or(NetlinkError::Malformed)).collect()
}

/// Deletes a link; tells whether there was one.
pub(crate) fn delete(netlink: &mut Netlink, name: &str) -> Result<bool, NetlinkError> {
    let attributes = Attributes::new().text(IFLA_IFNAME, name);
    match netlink.request(vec![Message::new(RTM_DELLINK, ACK, &link_header(0, 0), &attributes)]) {
        Ok(()) => Ok(true),
        Err(error) if error.refusal() == Some(Errno::NODEV) => Ok(false),
        Err(error) => Err(error),
    }
}

/// The message that makes a bridge: no spanning tree, no forward delay, and multicast (IPv6 neighbour discovery) flooded.
pub(crate) fn new_bridge(name: &str, mac: Mac, mtu: u32) -> Message {
    let bridge =
        Attributes::new().u32(IFLA_BR_STP_STATE, 0).u32(IFLA_BR_FORWARD_DELAY, 0).u8(IFLA_BR_MCAST_SNOOPING, 0);
    // An address of its own keeps the bridge from taking the lowest of its ports': pods cache their gateway's.
    let attributes = Attributes::new()
        .text(IFLA_IFNAME, name)
        .bytes(IFLA_ADDRESS, &mac)
        .u32(IFLA_MTU, mtu)
        .nest(IFLA_LINKINFO, Attributes::new().text(IFLA_INFO_KIND, "bridge").nest(IFLA_INFO_DATA, bridge));
    Message::new(RTM_NEWLINK, ACK | CREATE | EXCLUSIVE, &link_header(0, 0), &attributes)
}

/// The message that sets a link up.
pub(crate) fn up(index: u32) -> Message {
    Message::new(RTM_NEWLINK, ACK, &link_header(index, IFF_UP), &Attributes::new())
}

/// The messages that make a veth pair: the first makes it, with the pod's end in the pod's namespace; the second sets
/// the host's end up as a port that sends a pod's own packets back to it (host ports of the pod itself). The pod's end
/// is still down: the kernel sets none up before the pair is complete.
pub(crate) fn new_veth(veth: &Veth<'_>) -> Vec<Message> {
    let peer = Attributes::new()
        .text(IFLA_IFNAME, veth.peer_name)
        .bytes(IFLA_ADDRESS, &veth.peer_mac)
        .u32(IFLA_MTU, veth.mtu)
        .u32(IFLA_NET_NS_FD, veth.peer_netns);
    let data = Attributes::new().headed(VETH_INFO_PEER, &link_header(0, 0), &peer);
    let make = Attributes::new()
        .text(IFLA_IFNAME, veth.name)
        .u32(IFLA_MTU, veth.mtu)
        .u32(IFLA_MASTER, veth.bridge)
        .nest(IFLA_LINKINFO, Attributes::new().text(IFLA_INFO_KIND, "veth").nest(IFLA_INFO_DATA, data));
    let port = Attributes::new()
        .text(IFLA_INFO_SLAVE_KIND, "bridge")
        .nest(IFLA_INFO_SLAVE_DATA, Attributes::new().u8(IFLA_BRPORT_MODE, 1));
    let configure = own(veth.name, veth.alias, veth.ipv6).nest(IFLA_LINKINFO, port);
    vec![
        Message::new(RTM_NEWLINK, ACK | CREATE | EXCLUSIVE, &link_header(0, 0), &make),
        Message::new(RTM_NEWLINK, ACK, &link_header(0, IFF_UP), &configure),
    ]
}

/// The messages that make a device that gives back what is redirected to it, and set it up.
pub(crate) fn new_ifb(name: &str, alias: &str, mtu: u32, ipv6: bool) -> [Message; 2] {
    let make = Attributes::new()
        .text(IFLA_IFNAME, name)
        .u32(IFLA_MTU, mtu)
        .nest(IFLA_LINKINFO, Attributes::new().text(IFLA_INFO_KIND, "ifb"));
    [
        Message::new(RTM_NEWLINK, ACK | CREATE | EXCLUSIVE, &link_header(0, 0), &make),
        Message::new(RTM_NEWLINK, ACK, &link_header(0, IFF_UP), &own(name, alias, ipv6)),
    ]
}

/// What all devices have in common that are made for a pod and stay on the host.
fn own(name: &str, alias: &str, ipv6: bool) -> Attributes {
    let attributes = Attributes::new().text(IFLA_IFNAME, name).text(IFLA_IFALIAS, alias);
    if !ipv6 {
        return attributes;
    }
    // They talk for others only: without a link-local address they send nothing of their own.
    let inet6 = Attributes::new().u8(IFLA_INET6_ADDR_GEN_MODE, IN6_ADDR_GEN_MODE_NONE);
    attributes.nest(IFLA_AF_SPEC, Attributes::new().nest(u16::from(AF_INET6), inet6))
}

/// The message that gives a link an address, usable at once (no duplicate address detection).
pub(crate) fn new_address(index: u32, address: IpNet) -> Message {
    let mut header = [family(address.addr()), address.prefix_len(), 0, 0, 0, 0, 0, 0];
    header[4..].copy_from_slice(&index.to_ne_bytes());
    let bytes = octets(address.addr());
    let attributes = Attributes::new().bytes(IFA_LOCAL, &bytes).bytes(IFA_ADDRESS, &bytes).u32(IFA_FLAGS, IFA_F_NODAD);
    Message::new(RTM_NEWADDR, ACK | CREATE | REPLACE, &header, &attributes)
}

/// The message that adds a default route.
pub(crate) fn new_default_route(index: u32, gateway: IpAddr) -> Message {
    let header = [family(gateway), 0, 0, 0, RT_TABLE_MAIN, RTPROT_STATIC, 0, RTN_UNICAST, 0, 0, 0, 0];
    let attributes = Attributes::new().bytes(RTA_GATEWAY, &octets(gateway)).u32(RTA_OIF, index);
    Message::new(RTM_NEWROUTE, ACK | CREATE | REPLACE, &header, &attributes)
}

/// `struct ifinfomsg` with flags that are to be set.
fn link_header(index: u32, flags: u32) -> [u8; 16] {
    let mut header = [0; 16];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header[8..12].copy_from_slice(&flags.to_ne_bytes());
    header[12..].copy_from_slice(&flags.to_ne_bytes());
    header
}

fn family(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => AF_INET,
        IpAddr::V6(_) => AF_INET6,
    }
}

/// An address's bytes, as attributes and registers have them.
pub(crate) fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

fn ipv4(value: &[u8]) -> Option<Ipv4Addr> {
    <[u8; 4]>::try_from(value).ok().map(Ipv4Addr::from)
}
