//! Which pods have which ports of the host. Pure.
//!
//! A port at all addresses of a family is a port at each of them, as for `bind` and for the scheduler: the pod that asks
//! for it second is refused, whichever was first. Within a pod the one address goes before all.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::IpAddr;

use podwright_base::PodId;

use crate::port::{Claim, HostPort, Protocol};

/// Why a pod does not get a host port.
#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    /// Another pod has it.
    #[error("host port {port} is used by pod {pod}, at {address}: remove that pod, or choose another port")]
    Taken {
        /// The port that was asked for.
        port: HostPort,
        /// Who has it.
        pod: PodId,
        /// Where that pod has it; unspecified: at all addresses.
        address: IpAddr,
    },
    /// It would lead to two ports of the pod.
    #[error("host port {port} cannot lead to both port {} and port {other} of the pod", port.container_port)]
    Twice {
        /// The port.
        port: HostPort,
        /// The pod's other port.
        other: u16,
    },
}

/// The host ports of all pods.
#[derive(Debug, Default)]
pub(crate) struct Claims(HashMap<(Protocol, u16), Vec<(IpAddr, PodId)>>);

impl Claims {
    /// Notes a pod's ports.
    pub(crate) fn add(&mut self, pod: &PodId, ports: &[HostPort]) {
        for (protocol, address, port) in ports.iter().flat_map(HostPort::claims) {
            let owner = (address, pod.clone());
            let owners = self.0.entry((protocol, port)).or_default();
            if !owners.contains(&owner) {
                owners.push(owner);
            }
        }
    }

    /// Forgets a pod's ports.
    pub(crate) fn remove(&mut self, pod: &PodId, ports: &[HostPort]) {
        for (protocol, _, port) in ports.iter().flat_map(HostPort::claims) {
            if let Entry::Occupied(mut owners) = self.0.entry((protocol, port)) {
                owners.get_mut().retain(|(_, owner)| owner != pod);
                if owners.get().is_empty() {
                    owners.remove();
                }
            }
        }
    }

    /// Refuses ports that another pod has, or that are asked for twice with different ends.
    pub(crate) fn check(&self, pod: &PodId, ports: &[HostPort]) -> Result<(), ClaimError> {
        let mut own: HashMap<Claim, u16> = HashMap::new();
        for port in ports {
            for claim in port.claims() {
                if let Some((address, pod)) = self.other(pod, claim) {
                    return Err(ClaimError::Taken { port: *port, pod: pod.clone(), address: *address });
                }
                let other = own.insert(claim, port.container_port).filter(|end| *end != port.container_port);
                if let Some(other) = other {
                    return Err(ClaimError::Twice { port: *port, other });
                }
            }
        }
        Ok(())
    }

    fn other(&self, pod: &PodId, (protocol, address, port): Claim) -> Option<&(IpAddr, PodId)> {
        let overlaps = |other: &IpAddr| {
            let all = other.is_unspecified() || address.is_unspecified();
            *other == address || (all && other.is_ipv4() == address.is_ipv4())
        };
        self.0.get(&(protocol, port))?.iter().find(|(other, owner)| owner != pod && overlaps(other))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(protocol: Protocol, host_ip: &str, container_port: u16) -> HostPort {
        HostPort { protocol, host_ip: host_ip.parse().ok(), host_port: 80, container_port }
    }

    #[test]
    fn ports_of_two_pods_do_not_overlap() {
        use Protocol::{Tcp, Udp};
        let (a, b) = (PodId::random(), PodId::random());
        for (first, second, free) in [
            ((Tcp, ""), (Tcp, ""), false),
            ((Tcp, ""), (Udp, ""), true),
            ((Tcp, ""), (Tcp, "192.0.2.1"), false),
            ((Tcp, "192.0.2.1"), (Tcp, ""), false),
            ((Tcp, "192.0.2.1"), (Tcp, "192.0.2.1"), false),
            ((Tcp, "192.0.2.1"), (Tcp, "192.0.2.2"), true),
            ((Tcp, "0.0.0.0"), (Tcp, "192.0.2.1"), false),
            ((Tcp, "0.0.0.0"), (Tcp, "::"), true),
            ((Tcp, "0.0.0.0"), (Tcp, "fd00::1"), true),
            ((Tcp, "fd00::1"), (Tcp, "::"), false),
        ] {
            let [first, second] = [first, second].map(|(protocol, ip)| [port(protocol, ip, 8080)]);
            let mut claims = Claims::default();
            claims.add(&a, &first);
            claims.check(&a, &second).unwrap();
            assert_eq!(claims.check(&b, &second).is_ok(), free, "{first:?} {second:?}");
            claims.remove(&a, &first);
            claims.check(&b, &second).unwrap();
            assert!(claims.0.is_empty());
        }
    }

    #[test]
    fn a_port_has_one_end_in_its_pod() {
        let (claims, pod) = (Claims::default(), PodId::random());
        let all = port(Protocol::Tcp, "", 8080);
        claims.check(&pod, &[all, all, port(Protocol::Tcp, "127.0.0.1", 9090)]).unwrap();
        let twice = claims.check(&pod, &[all, port(Protocol::Tcp, "0.0.0.0", 9090)]).unwrap_err();
        assert_eq!(
            twice.to_string(),
            "host port 0.0.0.0:80/tcp cannot lead to both port 9090 and port 8080 of the pod"
        );
    }

    #[test]
    fn who_has_a_port_is_named() {
        let (mut claims, pod) = (Claims::default(), PodId::random());
        claims.add(&pod, &[port(Protocol::Tcp, "", 8080)]);
        let taken = claims.check(&PodId::random(), &[port(Protocol::Tcp, "192.0.2.1", 1)]).unwrap_err();
        let text = format!(
            "host port 192.0.2.1:80/tcp is used by pod {pod}, at 0.0.0.0: remove that pod, or choose another port"
        );
        assert_eq!(taken.to_string(), text);
    }
}
