//! Programs of the host that listen on a port which a pod wants: what comes in would go to the pod, past them.
//!
//! The kernel is asked which socket would receive what is sent to the port (`sock_diag`), so a listener at all addresses
//! counts for each of them; one at a single address does not keep a pod from having the port at all the others. SCTP is
//! left out: of that the kernel tells associations only.

use std::net::{IpAddr, SocketAddr};

use rustix::io::Errno;

use crate::link::octets;
use crate::netlink::{Attributes, Message, Netlink, NetlinkError};
use crate::port::{HostPort, Protocol};

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const ALL_STATES: u32 = u32::MAX;
const NO_COOKIE: [u8; 8] = [0xff; 8];

/// Why a host port is not opened.
#[derive(Debug, thiserror::Error)]
pub enum ListenerError {
    /// A program has it.
    #[error(
        "host port {port} is used by a program of the host, which listens at {address}: end it (ss -lnp{} shows it), or \
         choose another port",
        if port.protocol == Protocol::Udp { "u" } else { "t" }
    )]
    Taken {
        /// The port that was asked for.
        port: HostPort,
        /// Where the program listens.
        address: SocketAddr,
    },
    /// It cannot be looked up.
    #[error("look for programs of the host that listen on host port {port}")]
    Look {
        /// The port.
        port: HostPort,
        /// Why.
        source: NetlinkError,
    },
}

/// Refuses host ports on which a program of the host listens.
pub(crate) fn check(ports: &[HostPort]) -> Result<(), ListenerError> {
    let mut netlink = None;
    for port in ports.iter().filter(|port| port.protocol != Protocol::Sctp) {
        let failed = |source| ListenerError::Look { port: *port, source };
        for (protocol, address, number) in port.claims() {
            let netlink = match &mut netlink {
                Some(netlink) => netlink,
                none => none.insert(Netlink::sockets().map_err(failed)?),
            };
            if let Some(address) = find(netlink, protocol, address, number).map_err(failed)? {
                return Err(ListenerError::Taken { port: *port, address });
            }
        }
    }
    Ok(())
}

/// Where the socket listens that would receive what is sent to an address and port.
fn find(
    netlink: &mut Netlink,
    protocol: Protocol,
    address: IpAddr,
    port: u16,
) -> Result<Option<SocketAddr>, NetlinkError> {
    match netlink.get(Message::new(SOCK_DIAG_BY_FAMILY, 0, &request(protocol, address, port), &Attributes::new())) {
        Ok(payload) => answer(&payload).ok_or(NetlinkError::Malformed).map(Some),
        // No such socket, or the kernel cannot tell: it is built without this.
        Err(error) if error.refusal() == Some(Errno::NOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// `struct inet_diag_req_v2`
fn request(protocol: Protocol, address: IpAddr, port: u16) -> Vec<u8> {
    let family = if address.is_ipv4() { AF_INET } else { AF_INET6 };
    let mut bytes = vec![family, protocol.number(), 0, 0];
    bytes.extend(ALL_STATES.to_ne_bytes());
    // TCP looks for a socket at the source, UDP for one at the destination: both are the same here.
    bytes.extend([port.to_be_bytes(), port.to_be_bytes()].concat());
    let mut address = octets(address);
    address.resize(16, 0);
    bytes.extend([&address[..], &address[..], &[0; 4], &NO_COOKIE].concat());
    bytes
}

/// Reads the local address of `struct inet_diag_msg`.
fn answer(payload: &[u8]) -> Option<SocketAddr> {
    let port = u16::from_be_bytes(payload.get(4..6)?.try_into().ok()?);
    let address = match *payload.first()? {
        AF_INET => IpAddr::from(<[u8; 4]>::try_from(payload.get(8..12)?).ok()?),
        _ => IpAddr::from(<[u8; 16]>::try_from(payload.get(8..24)?).ok()?),
    };
    Some(SocketAddr::new(address, port))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream, UdpSocket};

    fn port(protocol: Protocol, host_ip: Option<&str>, host_port: u16) -> HostPort {
        HostPort { protocol, host_ip: host_ip.map(|ip| ip.parse().unwrap()), host_port, container_port: 80 }
    }

    /// Does work where nothing listens but what the work lets listen.
    fn alone(work: impl FnOnce() + Send + 'static) {
        let thread = std::thread::spawn(move || {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            let up = std::process::Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap();
            assert!(up.success());
            work();
        });
        if let Err(panic) = thread.join() {
            std::panic::resume_unwind(panic);
        }
    }

    #[track_caller]
    fn assert_taken(ports: &[HostPort], by: &str) {
        let error = check(ports).unwrap_err();
        assert!(matches!(error, ListenerError::Taken { address, .. } if address.to_string() == by), "{error}");
    }

    #[test]
    fn listeners_are_found_by_what_would_reach_them() {
        alone(|| {
            let all = TcpListener::bind("0.0.0.0:8000").unwrap();
            let one = TcpListener::bind("127.0.0.1:8001").unwrap();
            let both = TcpListener::bind("[::]:8002").unwrap();
            let udp = UdpSocket::bind("0.0.0.0:8003").unwrap();
            let udp6 = UdpSocket::bind("[::1]:8004").unwrap();
            let (tcp, udp_of) = (|ip, number| [port(Protocol::Tcp, ip, number)], |ip, n| [port(Protocol::Udp, ip, n)]);
            assert_taken(&tcp(None, 8000), "0.0.0.0:8000");
            assert_taken(&tcp(Some("127.0.0.1"), 8000), "0.0.0.0:8000");
            assert_taken(&tcp(Some("127.0.0.1"), 8001), "127.0.0.1:8001");
            assert_taken(&tcp(None, 8002), "[::]:8002");
            assert_taken(&tcp(Some("::"), 8002), "[::]:8002");
            assert_taken(&udp_of(None, 8003), "0.0.0.0:8003");
            assert_taken(&udp_of(Some("::1"), 8004), "[::1]:8004");
            for free in [tcp(Some("::"), 8000), tcp(None, 8001), udp_of(None, 8000), udp_of(None, 8004)] {
                check(&free).unwrap();
            }
            drop((all, one, both, udp, udp6));
            check(&[tcp(None, 8000), tcp(None, 8001), tcp(None, 8002), udp_of(None, 8003)].concat()).unwrap();
        });
    }

    #[test]
    fn a_connection_does_not_take_its_port() {
        alone(|| {
            let server = TcpListener::bind("127.0.0.1:0").unwrap();
            let client = TcpStream::connect(server.local_addr().unwrap()).unwrap();
            let local = client.local_addr().unwrap().port();
            check(&[port(Protocol::Tcp, None, local), port(Protocol::Tcp, Some("127.0.0.1"), local)]).unwrap();
        });
    }
}
