//! The nf_tables table of one daemon: masquerade for pods, and host ports.
//!
//! ```text
//! table inet podwright {
//!   map  host_ports_v4     protocol . port           : pod address . port     any address of the host
//!   map  host_ip_ports_v4  address . protocol . port : pod address . port     one address of the host
//!   set  pod_ports_v4      pod address . protocol . port                      where host ports lead
//!   set  guests_v4         pod address                                        pods of CNI networks
//!   set  loopback_ports    address . protocol . port                          those of 127.0.0.0/8, IPv4 only
//!   set  guest_devices     device                                             by which such a port leads to a guest
//!   chain guard            raw prerouting: nobody but the host itself reaches 127.0.0.0/8 and ::1
//!   chain prerouting, output: to an address of the host → host_ports
//!   chain host_ports       destination by map
//!   chain postrouting      pods to other networks; the host's loopback address to a pod; a pod to a pod by a host port
//!   chain answers, input   answers to the host's ::1, which must not come in by that address
//! }                        (and all of it once more for IPv6)
//! ```
//!
//! The rules are written once; a pod adds and removes elements, so its cost does not grow with the number of pods. The
//! table comes with the first pod and goes with the last. No rule accepts anything: what another table drops stays
//! dropped.

use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use podwright_base::PodId;
use rustix::io::Errno;

use crate::leases::{Lease, Leases};
use crate::link::octets;
use crate::netlink::{Message, Netlink, NetlinkError};
use crate::nft::{
    self, Element, INPUT, NFPROTO_IPV4, NFPROTO_IPV6, OUTPUT, POSTROUTING, PREROUTING, REGISTER, Rule, Type,
    transaction,
};
use crate::port::Protocol;
use crate::subnet::Subnets;

/// Host ports of the host's loopback addresses.
const LOOPBACK_PORTS: &str = "loopback_ports";
/// Devices that may not bring packets to the host's loopback addresses although they route them.
const GUEST_DEVICES: &str = "guest_devices";
/// How many elements go in one transaction: each is confirmed, and a socket's buffer holds about 270 confirmations.
const ELEMENTS_AT_ONCE: usize = 100;
/// Before connection tracking looks at a packet.
const PRIORITY_RAW: i32 = -300;
/// Where destinations are changed.
const PRIORITY_DESTINATION: i32 = -100;
/// Where sources are changed.
const PRIORITY_SOURCE: i32 = 100;

/// What differs between the two families.
struct Family {
    number: u8,
    address: Type,
    length: u32,
    /// Offsets in the IP header.
    source: u32,
    destination: u32,
    loopback: (&'static [u8], &'static [u8]),
    /// Destinations that are not masqueraded: multicast.
    multicast: (&'static [u8], &'static [u8]),
    host_ports: &'static str,
    host_ip_ports: &'static str,
    pod_ports: &'static str,
    guests: &'static str,
}

static IPV4: Family = Family {
    number: NFPROTO_IPV4,
    address: Type::Ipv4Address,
    length: 4,
    source: 12,
    destination: 16,
    loopback: (&[127, 0, 0, 0], &[255, 0, 0, 0]),
    multicast: (&[224, 0, 0, 0], &[240, 0, 0, 0]),
    host_ports: "host_ports_v4",
    host_ip_ports: "host_ip_ports_v4",
    pod_ports: "pod_ports_v4",
    guests: "guests_v4",
};

static IPV6: Family = Family {
    number: NFPROTO_IPV6,
    address: Type::Ipv6Address,
    length: 16,
    source: 8,
    destination: 24,
    loopback: (&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1], &[255; 16]),
    multicast: (
        &[255, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        &[255, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    ),
    host_ports: "host_ports_v6",
    host_ip_ports: "host_ip_ports_v6",
    pod_ports: "pod_ports_v6",
    guests: "guests_v6",
};

/// The table of one daemon.
#[derive(Debug)]
pub(crate) struct Ruleset {
    table: String,
    bridge: String,
    masquerade: bool,
    made: Mutex<Option<Made>>,
}

/// What the rules of a table were made for.
#[derive(Debug, PartialEq, Eq)]
struct Made {
    subnets: Option<Subnets>,
}

/// The table while nobody else makes or deletes it.
pub(crate) struct Held<'a> {
    ruleset: &'a Ruleset,
    /// `None`: this daemon has made none.
    made: MutexGuard<'a, Option<Made>>,
}

impl Held<'_> {
    /// Makes sure that there is a table with rules for the leases' subnets. One that this daemon has not made is made
    /// anew: another version's rules may differ.
    pub(crate) fn ensure(&mut self, netlink: &mut Netlink, leases: &Leases) -> Result<(), NetlinkError> {
        let fits = self.made.as_ref().is_some_and(|made| made.subnets == leases.subnets());
        if fits && self.ruleset.exists(netlink)? { Ok(()) } else { self.install(netlink, leases) }
    }

    /// Makes the table anew from the leases, replacing one that is there without a moment in between.
    pub(crate) fn install(&mut self, netlink: &mut Netlink, leases: &Leases) -> Result<(), NetlinkError> {
        let subnets = leases.subnets();
        self.ruleset.write(netlink, leases, subnets)?;
        *self.made = Some(Made { subnets });
        Ok(())
    }

    /// Whether this daemon has made a table that it has not deleted.
    pub(crate) fn is_made(&self) -> bool {
        self.made.is_some()
    }

    /// Deletes the table; one that is not there is fine.
    pub(crate) fn delete(&mut self, netlink: &mut Netlink) -> Result<(), NetlinkError> {
        match netlink.request(transaction([nft::delete_table(&self.ruleset.table)])) {
            Err(error) if error.refusal() != Some(Errno::NOENT) => Err(error),
            _ => {
                *self.made = None;
                Ok(())
            }
        }
    }
}

impl Ruleset {
    /// Names the table of a daemon; nothing is made.
    pub(crate) fn new(instance: Option<&str>, bridge: &str, masquerade: bool) -> Self {
        let table = instance.map_or_else(|| "podwright".to_owned(), |instance| format!("podwright_{instance}"));
        Self { table, bridge: bridge.to_owned(), masquerade, made: Mutex::new(None) }
    }

    /// Whether the table is there: an administrator's `flush ruleset` takes it away.
    pub(crate) fn exists(&self, netlink: &mut Netlink) -> Result<bool, NetlinkError> {
        match netlink.get(nft::get_table(&self.table)) {
            Ok(_) => Ok(true),
            Err(error) if error.refusal() == Some(Errno::NOENT) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Keeps others from making or deleting the table until the guard is dropped.
    pub(crate) fn hold(&self) -> Held<'_> {
        // What is in the lock is replaced as a whole.
        Held { ruleset: self, made: self.made.lock().unwrap_or_else(PoisonError::into_inner) }
    }

    fn write(&self, netlink: &mut Netlink, leases: &Leases, subnets: Option<Subnets>) -> Result<(), NetlinkError> {
        let table = self.table.as_str();
        // Made first, so that there is one to delete.
        let mut messages = vec![nft::new_table(table), nft::delete_table(table), nft::new_table(table)];
        messages.extend(self.sets());
        messages.extend(self.chains());
        messages.extend(self.guard_rules());
        messages.extend(self.host_port_rules());
        messages.extend(self.source_rules(subnets));
        messages.extend(self.answer_rules());
        netlink.request(transaction(messages))?;
        let elements: Vec<Message> = leases.all().iter().flat_map(|(pod, lease)| self.additions(pod, lease)).collect();
        elements.chunks(ELEMENTS_AT_ONCE).try_for_each(|chunk| netlink.request(transaction(chunk.to_vec())))
    }

    /// Adds a pod's host ports.
    pub(crate) fn add(&self, netlink: &mut Netlink, pod: &PodId, lease: &Lease) -> Result<(), NetlinkError> {
        let additions = self.additions(pod, lease);
        if additions.is_empty() { Ok(()) } else { netlink.request(transaction(additions)) }
    }

    /// Removes a pod's host ports; those that are not there are fine. A device that another pod needs stays.
    pub(crate) fn remove(&self, netlink: &mut Netlink, lease: &Lease, keep_device: bool) -> Result<(), NetlinkError> {
        let mut elements = elements(lease);
        elements.retain(|element| !(keep_device && element.set == GUEST_DEVICES));
        while !elements.is_empty() {
            let deletions = elements.iter().map(|element| nft::delete_element(&self.table, element));
            match netlink.request(transaction(deletions)) {
                Ok(()) => return Ok(()),
                // One that is missing undoes the transaction: leave it out. The transaction's begin is message 0.
                Err(NetlinkError::Refused { index, source, .. })
                    if Errno::from_io_error(&source) == Some(Errno::NOENT) && (1..=elements.len()).contains(&index) =>
                {
                    elements.remove(index - 1);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn additions(&self, pod: &PodId, lease: &Lease) -> Vec<Message> {
        elements(lease).iter().map(|element| nft::new_element(&self.table, element, pod.as_str())).collect()
    }

    fn sets(&self) -> Vec<Message> {
        let addressed_ipv4 = vec![Type::Ipv4Address, Type::Protocol, Type::Port];
        let mut sets = vec![(LOOPBACK_PORTS, addressed_ipv4, None), (GUEST_DEVICES, vec![Type::Device], None)];
        for family in [&IPV4, &IPV6] {
            let target = [family.address, Type::Port];
            let addressed = [family.address, Type::Protocol, Type::Port];
            sets.push((family.host_ports, vec![Type::Protocol, Type::Port], Some(target)));
            sets.push((family.host_ip_ports, addressed.to_vec(), Some(target)));
            sets.push((family.pod_ports, addressed.to_vec(), None));
            sets.push((family.guests, vec![family.address], None));
        }
        (1..)
            .zip(sets)
            .map(|(id, (name, key, data))| nft::new_set(&self.table, name, id, &key, data.as_ref().map(|d| &d[..])))
            .collect()
    }

    fn chains(&self) -> Vec<Message> {
        let base = |name, kind, hook, priority| nft::new_base_chain(&self.table, name, kind, hook, priority);
        vec![
            base("guard", "filter", PREROUTING, PRIORITY_RAW),
            nft::new_chain(&self.table, "host_ports"),
            base("prerouting", "nat", PREROUTING, PRIORITY_DESTINATION),
            base("output", "nat", OUTPUT, PRIORITY_DESTINATION),
            base("postrouting", "nat", POSTROUTING, PRIORITY_SOURCE),
            base("answers", "filter", PREROUTING, PRIORITY_DESTINATION + 1),
            base("input", "filter", INPUT, PRIORITY_SOURCE + 1),
        ]
    }

    /// `route_localnet` on the bridge, or on a guest's device, which host ports at 127.0.0.1 need, must not let pods
    /// reach what listens there on the host; and a host port of 127.0.0.1 must not be open to neighbours who send that address over the wire.
    /// Both are decided before connection tracking, which turns answers back to 127.0.0.1 only afterwards.
    ///
    /// The kernel itself lets nothing in for ::1, but with `br_netfilter` what comes by a bridge is led to host ports
    /// before that.
    fn guard_rules(&self) -> [Message; 4] {
        let to_loopback_of = |family: &Family| {
            let (address, mask) = family.loopback;
            Rule::new().family(family.number).prefix(family.destination, true, address, mask).input_device(false, "lo")
        };
        let to_loopback = || to_loopback_of(&IPV4);
        let from_pods = to_loopback().input_device(true, &self.bridge).drop();
        let from_guests = to_loopback().input_device_in(GUEST_DEVICES).drop();
        let to_host_port = IPV4.addressed_key(to_loopback()).in_set(LOOPBACK_PORTS).drop();
        let to_ipv6_loopback = to_loopback_of(&IPV6).drop();
        [from_pods, from_guests, to_host_port, to_ipv6_loopback].map(|rule| rule.append(&self.table, "guard"))
    }

    fn host_port_rules(&self) -> Vec<Message> {
        let enter = || Rule::new().destination_is_local().jump("host_ports");
        let mut rules = vec![enter().append(&self.table, "prerouting"), enter().append(&self.table, "output")];
        for family in [&IPV4, &IPV6] {
            let one = family
                .addressed_key(Rule::new().family(family.number))
                .map(family.host_ip_ports)
                .redirect(family.number, family.length);
            let any = Rule::new()
                .family(family.number)
                .protocol_and_port(REGISTER)
                .map(family.host_ports)
                .redirect(family.number, family.length);
            rules.extend([one, any].map(|rule| rule.append(&self.table, "host_ports")));
        }
        rules
    }

    /// IPv6 has no counterpart of `route_localnet`: by a device of the wire nothing is let in for ::1, whose answers
    /// connection tracking has given that address back before the kernel looks (with `br_netfilter` even before it
    /// looks at the header). So they go by the address that they were sent to until they are past.
    fn answer_rules(&self) -> [Message; 2] {
        let (loopback, _) = IPV6.loopback;
        let answers = || Rule::new().family(IPV6.number).answers_from(loopback);
        let write = |rule: Rule| rule.write_address(IPV6.destination, IPV6.length);
        [
            write(answers().answered_address()).append(&self.table, "answers"),
            write(answers().load(loopback)).append(&self.table, "input"),
        ]
    }

    /// A node whose pods are all of CNI networks has no subnets.
    fn source_rules(&self, subnets: Option<Subnets>) -> Vec<Message> {
        let ipv4 = subnets.map(|Subnets { ipv4, .. }| (octets(ipv4.network().into()), octets(ipv4.netmask().into())));
        let ipv6 = subnets.and_then(|subnets| subnets.ipv6);
        let ipv6 = ipv6.map(|net| (octets(net.network().into()), octets(net.netmask().into())));
        let mut rules = Vec::new();
        for (family, subnet) in [(&IPV4, ipv4), (&IPV6, ipv6)] {
            // As for the built-in network's pods below; whether two guests are neighbours only their plugins know.
            let from_guests = Rule::new().family(family.number).destination_was_changed();
            let from_guests = from_guests.network_header(family.source, family.length, REGISTER).in_set(family.guests);
            rules.push(family.addressed_key(from_guests).in_set(family.pod_ports).masquerade());
            let Some((address, mask)) = subnet else { continue };
            let from_pods = || Rule::new().family(family.number).prefix(family.source, true, &address, &mask);
            let (multicast, multicast_mask) = family.multicast;
            if self.masquerade {
                rules.push(
                    from_pods()
                        .prefix(family.destination, false, &address, &mask)
                        .prefix(family.destination, false, multicast, multicast_mask)
                        .masquerade(),
                );
            }
            // The other pod's answer would go there directly, past the host, and not be recognised.
            rules.push(
                family.addressed_key(from_pods().destination_was_changed()).in_set(family.pod_ports).masquerade(),
            );
        }
        for family in [&IPV4, &IPV6] {
            // The pod's answer would go to its own loopback device.
            let (loopback, mask) = family.loopback;
            let from_loopback = Rule::new().family(family.number).prefix(family.source, true, loopback, mask);
            rules.push(family.addressed_key(from_loopback).in_set(family.pod_ports).masquerade());
        }
        rules.into_iter().map(|rule| rule.append(&self.table, "postrouting")).collect()
    }
}

impl Family {
    /// Loads destination address, protocol and destination port.
    fn addressed_key(&self, rule: Rule) -> Rule {
        rule.network_header(self.destination, self.length, REGISTER).protocol_and_port(REGISTER + self.length / 4)
    }

    fn of(address: IpAddr) -> &'static Self {
        if address.is_ipv4() { &IPV4 } else { &IPV6 }
    }
}

/// The elements of a pod: its host ports, and what makes it a guest.
fn elements(lease: &Lease) -> Vec<Element> {
    let mut elements: Vec<Element> = Vec::new();
    if let Some(guest) = &lease.guest {
        if guest.plugin_opens_ports {
            return elements;
        }
        let addresses = lease.ipv4.map(IpAddr::V4).into_iter().chain(lease.ipv6.map(IpAddr::V6));
        elements.extend(addresses.map(|ip| Element { set: Family::of(ip).guests, key: octets(ip), data: None }));
        let key = |device: &String| nft::device(device).to_vec();
        elements.extend(guest.device.iter().map(|device| Element { set: GUEST_DEVICES, key: key(device), data: None }));
    }
    for port in &lease.ports {
        let claims = port.claims().filter_map(|claim| {
            let pod = if claim.1.is_ipv4() { lease.ipv4.map(IpAddr::V4) } else { lease.ipv6.map(IpAddr::V6) };
            pod.map(|pod| (claim, pod))
        });
        for ((protocol, address, host_port), pod) in claims {
            let family = Family::of(address);
            let target = [octets(pod), port_bytes(port.container_port)].concat();
            let transport = transport_key(protocol, host_port);
            let (set, key) = match address.is_unspecified() {
                true => (family.host_ports, transport),
                false => (family.host_ip_ports, [octets(address), transport].concat()),
            };
            let guarded = (address.is_ipv4() && address.is_loopback()).then(|| key.clone());
            let end = [octets(pod), transport_key(protocol, port.container_port)].concat();
            let mut of_claim =
                vec![Element { set, key, data: Some(target) }, Element { set: family.pod_ports, key: end, data: None }];
            of_claim.extend(guarded.map(|key| Element { set: LOOPBACK_PORTS, key, data: None }));
            for element in of_claim {
                // Two host ports may lead to one port of the pod.
                if !elements.contains(&element) {
                    elements.push(element);
                }
            }
        }
    }
    elements
}

/// Protocol and port, a register each.
fn transport_key(protocol: Protocol, port: u16) -> Vec<u8> {
    [vec![protocol.number(), 0, 0, 0], port_bytes(port)].concat()
}

fn port_bytes(port: u16) -> Vec<u8> {
    let [high, low] = port.to_be_bytes();
    vec![high, low, 0, 0]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::port::HostPort;

    fn lease(ports: Vec<HostPort>) -> Lease {
        Lease { ipv4: "10.88.0.2".parse().ok(), ipv6: "fd00::2".parse().ok(), ports, shaped: false, guest: None }
    }

    #[test]
    fn a_port_of_all_addresses_has_elements_of_both_families() {
        let port = HostPort { protocol: Protocol::Udp, host_ip: None, host_port: 0x1234, container_port: 53 };
        let elements = elements(&lease(vec![port, port]));
        let sets: Vec<_> = elements.iter().map(|element| element.set).collect();
        assert_eq!(sets, ["host_ports_v4", "pod_ports_v4", "host_ports_v6", "pod_ports_v6"]);
        assert_eq!(elements[0].key, [17, 0, 0, 0, 0x12, 0x34, 0, 0]);
        assert_eq!(elements[0].data.as_deref(), Some(&[10, 88, 0, 2, 0, 53, 0, 0][..]));
    }

    #[test]
    fn a_port_of_one_address_has_elements_of_its_family() {
        let host_ip = Some("127.0.0.1".parse().unwrap());
        let port = HostPort { protocol: Protocol::Tcp, host_ip, host_port: 80, container_port: 8080 };
        let elements = elements(&lease(vec![port, HostPort { host_port: 81, ..port }]));
        let sets: Vec<_> = elements.iter().map(|element| element.set).collect();
        assert_eq!(sets, ["host_ip_ports_v4", "pod_ports_v4", "loopback_ports", "host_ip_ports_v4", "loopback_ports"]);
        assert_eq!(elements[0].key, [127, 0, 0, 1, 6, 0, 0, 0, 0, 80, 0, 0]);
    }
}
