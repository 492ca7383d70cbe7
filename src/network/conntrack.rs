//! Connection tracking: UDP has no end, so what was sent to a host port before its pod came, or went, would go on
//! being sent where it went then.

use crate::netlink::{ACK, Attributes, Message, Netlink, NetlinkError};
use crate::port::{HostPort, Protocol};

const SUBSYSTEM: u16 = 1;
const DELETE: u16 = 2;
const TUPLE_ORIGINAL: u16 = 1;
const TUPLE_PROTOCOL: u16 = 2;
const PROTOCOL_NUMBER: u16 = 1;
const PROTOCOL_DESTINATION_PORT: u16 = 3;
const FILTER: u16 = 25;
const FILTER_ORIGINAL: u16 = 1;
const FILTER_REPLY: u16 = 2;
/// Compare the protocol's number (bit 3) and the destination port (bit 5), nothing else.
const FILTER_FLAGS: u32 = (1 << 3) | (1 << 5);

/// Makes the kernel forget UDP connections to host ports, of both families.
pub(crate) fn forget(netlink: &mut Netlink, ports: &[HostPort]) -> Result<(), NetlinkError> {
    let udp = ports.iter().filter(|port| port.protocol == Protocol::Udp);
    let messages = udp.flat_map(|port| [2_u8, 10].map(|family| forget_message(family, port))).collect::<Vec<_>>();
    if messages.is_empty() { Ok(()) } else { netlink.request(messages) }
}

fn forget_message(family: u8, port: &HostPort) -> Message {
    let protocol = Attributes::new()
        .u8(PROTOCOL_NUMBER, port.protocol.number())
        .bytes(PROTOCOL_DESTINATION_PORT, &port.host_port.to_be_bytes());
    let filter = Attributes::new().u32(FILTER_ORIGINAL, FILTER_FLAGS).u32(FILTER_REPLY, 0);
    let attributes =
        Attributes::new().nest(TUPLE_ORIGINAL, Attributes::new().nest(TUPLE_PROTOCOL, protocol)).nest(FILTER, filter);
    // Version 1 has the kernel look at the family; with 0 it would take all.
    Message::new((SUBSYSTEM << 8) | DELETE, ACK, &[family, 1, 0, 0], &attributes)
}
