//! `linux.netDevices`: network devices of the host's that a container gets to itself.
//!
//! The kernel takes a device down as it moves, and with it go its addresses: they are read before and given back after. When
//! the container's namespace goes, a physical device returns to the host's first namespace, a virtual one goes with it.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};

use podwright_netlink::{ACK, Attributes, CREATE, DUMP, Message, Netlink, NetlinkError, attributes, u32_at};
use podwright_plan::wire::NetDevice;
use podwright_sys::netns;

use crate::error::Error;

const RTM_NEWLINK: u16 = 16;
const RTM_GETLINK: u16 = 18;
const RTM_NEWADDR: u16 = 20;
const RTM_GETADDR: u16 = 22;
const IFLA_IFNAME: u16 = 3;
const IFLA_NET_NS_FD: u16 = 28;
const IFF_UP: u32 = 1;
const IFA_FLAGS: u16 = 8;
const IFA_F_PERMANENT: u32 = 0x80;
/// IPv6 does not ask around whether somebody has it: it was in use before.
const IFA_F_NODAD: u32 = 0x02;
/// `RT_SCOPE_UNIVERSE`: not an address that the kernel makes anew for every device.
const GLOBAL: u8 = 0;
/// `struct ifaddrmsg`: family, prefix, flags, scope, index.
const ADDRESS_HEADER: usize = 8;
/// What `IFA_CACHEINFO` says belongs to the address as it was.
const IFA_CACHEINFO: u16 = 6;

/// Moves devices into the network namespace of a process.
pub(crate) fn give(devices: &[NetDevice], pid: u32) -> Result<(), Error> {
    if devices.is_empty() {
        return Ok(());
    }
    let path = format!("/proc/{pid}/ns/net");
    let namespace = File::open(&path).map_err(Error::file("open", &path))?;
    let mut host = Netlink::route().map_err(named("the host's network"))?;
    let inside = netns::within(namespace.as_fd(), Netlink::route).map_err(Error::Enter)?;
    let mut inside = inside.map_err(named("the container's network"))?;
    for device in devices {
        move_one(&mut host, &mut inside, device, &namespace).map_err(named(&device.name))?;
    }
    Ok(())
}

fn named(device: &str) -> impl FnOnce(NetlinkError) -> Error {
    let device = device.to_owned();
    move |source| Error::NetDevice { device, source }
}

fn move_one(
    host: &mut Netlink,
    inside: &mut Netlink,
    device: &NetDevice,
    namespace: &File,
) -> Result<(), NetlinkError> {
    let index = index_of(host, &device.name)?;
    let addresses = addresses(host, index)?;
    let to =
        Attributes::new().u32(IFLA_NET_NS_FD, namespace.as_raw_fd().cast_unsigned()).text(IFLA_IFNAME, &device.inside);
    host.request(vec![Message::new(RTM_NEWLINK, ACK, &link(index, 0, 0), &to)])?;
    // It may have another number there.
    let index = index_of(inside, &device.inside)?;
    let mut messages = vec![Message::new(RTM_NEWLINK, ACK, &link(index, IFF_UP, IFF_UP), &Attributes::new())];
    messages.extend(addresses.into_iter().map(|address| address.message(index)));
    inside.request(messages)
}

/// `struct ifinfomsg` of a device, with the flags to set and which of them are meant.
fn link(index: u32, flags: u32, change: u32) -> [u8; 16] {
    let mut header = [0; 16];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header[8..12].copy_from_slice(&flags.to_ne_bytes());
    header[12..].copy_from_slice(&change.to_ne_bytes());
    header
}

fn index_of(netlink: &mut Netlink, name: &str) -> Result<u32, NetlinkError> {
    let answer =
        netlink.get(Message::new(RTM_GETLINK, 0, &link(0, 0, 0), &Attributes::new().text(IFLA_IFNAME, name)))?;
    u32_at(&answer, 4).ok_or(NetlinkError::Malformed)
}

/// An address as the kernel told it.
#[derive(Debug, PartialEq, Eq)]
struct Address {
    header: [u8; ADDRESS_HEADER],
    attributes: Vec<(u16, Vec<u8>)>,
}

impl Address {
    /// Takes a permanent address of global scope that a device has.
    fn parse(payload: &[u8], index: u32) -> Option<Self> {
        let header: [u8; ADDRESS_HEADER] = payload.get(..ADDRESS_HEADER)?.try_into().ok()?;
        let list: Vec<_> = attributes(&payload[ADDRESS_HEADER..]).collect();
        let flags = list.iter().find(|(kind, _)| *kind == IFA_FLAGS).and_then(|(_, value)| u32_at(value, 0));
        let permanent = flags.unwrap_or(header[2].into()) & IFA_F_PERMANENT != 0;
        if u32_at(&header, 4)? != index || header[3] != GLOBAL || !permanent {
            return None;
        }
        let kept = list.into_iter().filter(|(kind, _)| ![IFA_FLAGS, IFA_CACHEINFO].contains(kind));
        Some(Self { header, attributes: kept.map(|(kind, value)| (kind, value.to_vec())).collect() })
    }

    /// Gives it to a device.
    fn message(self, index: u32) -> Message {
        let mut header = self.header;
        header[2] = 0;
        header[4..].copy_from_slice(&index.to_ne_bytes());
        let all = self.attributes.iter().fold(Attributes::new(), |all, (kind, value)| all.bytes(*kind, value));
        Message::new(RTM_NEWADDR, ACK | CREATE, &header, &all.u32(IFA_FLAGS, IFA_F_NODAD))
    }
}

fn addresses(netlink: &mut Netlink, index: u32) -> Result<Vec<Address>, NetlinkError> {
    let all = netlink.dump(&Message::new(RTM_GETADDR, DUMP, &[0; ADDRESS_HEADER], &Attributes::new()))?;
    Ok(all.iter().filter_map(|payload| Address::parse(payload, index)).collect())
}
