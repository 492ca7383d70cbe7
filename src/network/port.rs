//! Host ports: what of the host's leads to which port of a pod.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

/// A transport protocol with ports (CRI `Protocol`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP
    Tcp,
    /// UDP
    Udp,
    /// SCTP
    Sctp,
}

impl Protocol {
    /// The protocol's number in IP headers.
    pub(crate) fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        })
    }
}

/// A port of the host that leads into a pod (CRI `PortMapping` with a host port).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct HostPort {
    /// Of both ports.
    pub protocol: Protocol,
    /// The address of the host; none: all, of both families; `0.0.0.0` or `::`: all of one family.
    pub host_ip: Option<IpAddr>,
    /// The host's port.
    pub host_port: u16,
    /// The pod's port.
    pub container_port: u16,
}

/// What a host port takes of the host: one transport port at one address, or at all of a family (unspecified).
pub(crate) type Claim = (Protocol, IpAddr, u16);

impl HostPort {
    /// What the port takes of the host.
    pub(crate) fn claims(&self) -> impl Iterator<Item = Claim> + use<> {
        let (protocol, host_port) = (self.protocol, self.host_port);
        let all = [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()];
        let addresses = match self.host_ip {
            None => all.to_vec(),
            Some(address) => vec![address],
        };
        addresses.into_iter().map(move |address| (protocol, address, host_port))
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host_ip {
            Some(IpAddr::V6(address)) => write!(f, "[{address}]:")?,
            Some(address) => write!(f, "{address}:")?,
            None => {}
        }
        write!(f, "{}/{}", self.host_port, self.protocol)
    }
}
