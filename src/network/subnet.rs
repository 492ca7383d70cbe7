//! Subnets of the built-in network: which are free, which addresses they have. Pure.

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

use crate::link::Mac;

/// Where free subnets are looked for.
const SEARCHED: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(10, 88, 0, 0), 13);
/// The prefix length of a subnet that nobody configured: 4093 pods.
const PREFIX: u8 = 20;
/// The longest prefix with room for a gateway, a pod, and the network's and the broadcast address.
pub(crate) const LONGEST_IPV4: u8 = 30;
/// The longest prefix with room for a gateway and a pod.
pub(crate) const LONGEST_IPV6: u8 = 126;
/// The first address is the gateway's, this is the first pod's.
pub(crate) const FIRST_POD: u32 = 2;

/// The subnets of pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Subnets {
    pub(crate) ipv4: Ipv4Net,
    pub(crate) ipv6: Option<Ipv6Net>,
}

impl Subnets {
    /// The bridge's address.
    pub(crate) fn gateway_ipv4(&self) -> Ipv4Addr {
        self.address(1).0
    }

    /// The bridge's IPv6 address.
    pub(crate) fn gateway_ipv6(&self) -> Option<Ipv6Addr> {
        self.address(1).1
    }

    /// The addresses with a number in their subnets.
    pub(crate) fn address(&self, number: u32) -> (Ipv4Addr, Option<Ipv6Addr>) {
        let ipv4 = Ipv4Addr::from_bits(self.ipv4.network().to_bits().wrapping_add(number));
        let ipv6 = self.ipv6.map(|net| Ipv6Addr::from_bits(net.network().to_bits().wrapping_add(u128::from(number))));
        (ipv4, ipv6)
    }

    /// The greatest number that a pod can have.
    pub(crate) fn last_pod(&self) -> u32 {
        // The last IPv4 address is the broadcast's; IPv6 has none.
        let ipv4 = (u32::MAX.checked_shr(u32::from(self.ipv4.prefix_len())).unwrap_or(0)).saturating_sub(1);
        let ipv6 = self.ipv6.map_or(u32::MAX, |net| {
            let hosts = u128::MAX.checked_shr(u32::from(net.prefix_len())).unwrap_or(0);
            u32::try_from(hosts).unwrap_or(u32::MAX)
        });
        ipv4.min(ipv6)
    }
}

/// Finds the first subnet that overlaps none of the host's routes and addresses.
pub(crate) fn first_free(taken: &[Ipv4Net]) -> Option<Ipv4Net> {
    let mut candidates = SEARCHED.subnets(PREFIX).ok()?;
    candidates.find(|candidate| !taken.iter().any(|other| overlap(candidate, other)))
}

/// Finds what a configured subnet cannot share the host with: a network inside it. A wider one is no conflict; the
/// host's way to all pods of a cluster may well cover those of this node.
pub(crate) fn conflict(subnet: &Ipv4Net, taken: &[Ipv4Net]) -> Option<Ipv4Net> {
    taken.iter().find(|other| subnet.contains(*other)).copied()
}

/// Whether two networks have an address in common.
pub(crate) fn overlap(a: &Ipv4Net, b: &Ipv4Net) -> bool {
    a.contains(b) || b.contains(a)
}

/// Derives a unique local /64 (RFC 4193) from the bridge's name: the same after every restart, another for each
/// daemon of the host.
pub(crate) fn unique_local(bridge: &str) -> Ipv6Net {
    // FNV-1a, as for the instance's name: stable over releases.
    let hash = bridge
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    let prefix = (0xfd << 56) | (hash >> 8);
    let network = Ipv6Addr::from_bits(u128::from(prefix) << 64);
    Ipv6Net::new_assert(network, 64)
}

/// Makes a hardware address from an IPv4 address: whoever gets the address next is where the neighbours' caches say.
pub(crate) fn mac(address: Ipv4Addr) -> Mac {
    let [a, b, c, d] = address.octets();
    // 0x0a: administered locally, one station.
    [0x0a, 0x70, a, b, c, d]
}

/// Writes a hardware address as `ip link` shows it.
pub(crate) fn mac_text(mac: Mac) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nets(text: &[&str]) -> Vec<Ipv4Net> {
        text.iter().map(|net| net.parse().unwrap()).collect()
    }

    #[test]
    fn the_first_free_subnet_overlaps_nothing() {
        assert_eq!(first_free(&[]).unwrap().to_string(), "10.88.0.0/20");
        assert_eq!(first_free(&nets(&["10.88.3.0/24", "10.88.16.1/32"])).unwrap().to_string(), "10.88.32.0/20");
        assert_eq!(first_free(&nets(&["10.88.0.0/14"])).unwrap().to_string(), "10.92.0.0/20");
        assert_eq!(first_free(&nets(&["10.0.0.0/8"])), None);
    }

    #[test]
    fn only_a_network_inside_a_configured_one_is_a_conflict() {
        let subnet = "10.244.1.0/24".parse().unwrap();
        assert_eq!(conflict(&subnet, &nets(&["10.244.0.0/16", "10.244.2.0/24"])), None);
        assert_eq!(conflict(&subnet, &nets(&["10.244.1.0/24"])), Some(subnet));
        assert_eq!(conflict(&subnet, &nets(&["10.244.1.77/32"])).unwrap().to_string(), "10.244.1.77/32");
    }

    #[test]
    fn numbers_stay_inside_both_subnets() {
        let of = |ipv4: &str, ipv6: Option<&str>| Subnets {
            ipv4: ipv4.parse().unwrap(),
            ipv6: ipv6.map(|net| net.parse().unwrap()),
        };
        assert_eq!(of("10.88.0.0/20", None).last_pod(), 4094);
        assert_eq!(of("10.88.0.0/30", None).last_pod(), FIRST_POD);
        assert_eq!(of("10.88.0.0/20", Some("fd00::/64")).last_pod(), 4094);
        assert_eq!(of("10.88.0.0/20", Some("fd00::/126")).last_pod(), 3);
        let subnets = of("10.88.0.0/20", Some("fd00::/64"));
        assert_eq!(subnets.gateway_ipv4().to_string(), "10.88.0.1");
        let (ipv4, ipv6) = subnets.address(subnets.last_pod());
        assert_eq!((ipv4.to_string(), ipv6.unwrap().to_string()), ("10.88.15.254".into(), "fd00::ffe".into()));
    }

    #[test]
    fn each_bridge_has_a_local_prefix_of_its_own() {
        let (a, b) = (unique_local("podwright0"), unique_local("pw01234567"));
        assert_ne!(a, b);
        for net in [a, b] {
            assert_eq!((net.addr().octets()[0], net.prefix_len(), net.trunc()), (0xfd, 64, net));
        }
    }

    #[test]
    fn hardware_addresses_are_local_ones() {
        assert_eq!(mac_text(mac(Ipv4Addr::new(10, 88, 0, 2))), "0a:70:0a:58:00:02");
    }
}
