//! nf_tables: the messages and expressions that the built-in network's rules need, encoded for netlink.
//!
//! Numbers are those of `linux/netfilter/nf_tables.h`, in network byte order. A rule is a list of expressions that
//! load registers, compare them and end in a verdict; a comparison that fails ends the rule.

use crate::netlink::{ACK, APPEND, Attributes, CREATE, Message};

const SUBSYSTEM: u16 = 10;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const NEWTABLE: u16 = 0;
const GETTABLE: u16 = 1;
const DELTABLE: u16 = 2;
const NEWCHAIN: u16 = 3;
const NEWRULE: u16 = 6;
const NEWSET: u16 = 9;
const NEWSETELEM: u16 = 12;
const DELSETELEM: u16 = 14;

const NFPROTO_UNSPEC: u8 = 0;
/// One table for both families.
const NFPROTO_INET: u8 = 1;
pub(crate) const NFPROTO_IPV4: u8 = 2;
pub(crate) const NFPROTO_IPV6: u8 = 10;

/// Where packets that come in are routed from.
pub(crate) const PREROUTING: u32 = 0;
/// Packets of the host's own processes.
pub(crate) const OUTPUT: u32 = 3;
/// Packets about to leave.
pub(crate) const POSTROUTING: u32 = 4;

/// Registers are 4 bytes each from here on; longer values fill those behind.
pub(crate) const REGISTER: u32 = 8;

const NFT_SET_MAP: u32 = 8;
const UDATA_COMMENT: u8 = 0;

/// A type of a set's keys or a map's data, for those who list the table; the kernel knows lengths only.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Type {
    Ipv4Address,
    Ipv6Address,
    Protocol,
    Port,
}

impl Type {
    fn number(self) -> u32 {
        match self {
            Self::Ipv4Address => 7,
            Self::Ipv6Address => 8,
            Self::Protocol => 12,
            Self::Port => 13,
        }
    }

    fn length(self) -> u32 {
        match self {
            Self::Ipv6Address => 16,
            // Every part of a key fills whole registers.
            _ => 4,
        }
    }
}

/// The type of several values behind one another: six bits for each.
fn concatenation(types: &[Type]) -> (u32, u32) {
    types.iter().fold((0, 0), |(kind, length), part| ((kind << 6) | part.number(), length + part.length()))
}

/// `struct nfgenmsg`
fn header(family: u8, resource: u16) -> [u8; 4] {
    let [high, low] = resource.to_be_bytes();
    [family, 0, high, low]
}

fn message(kind: u16, flags: u16, attributes: &Attributes) -> Message {
    Message::new((SUBSYSTEM << 8) | kind, flags, &header(NFPROTO_INET, 0), attributes)
}

/// Puts messages into a transaction: all or none of them take effect.
pub(crate) fn transaction(messages: impl IntoIterator<Item = Message>) -> Vec<Message> {
    let edge = |kind| Message::new(kind, 0, &header(NFPROTO_UNSPEC, SUBSYSTEM), &Attributes::new());
    let mut batch = vec![edge(BATCH_BEGIN)];
    batch.extend(messages);
    batch.push(edge(BATCH_END));
    batch
}

/// Makes a table; one that exists is fine.
pub(crate) fn new_table(table: &str) -> Message {
    message(NEWTABLE, ACK | CREATE, &Attributes::new().text(1, table).be32(2, 0))
}

/// Asks for a table.
pub(crate) fn get_table(table: &str) -> Message {
    message(GETTABLE, 0, &Attributes::new().text(1, table))
}

/// Deletes a table with all that is in it.
pub(crate) fn delete_table(table: &str) -> Message {
    message(DELTABLE, ACK, &Attributes::new().text(1, table))
}

/// Makes a chain that other chains jump to.
pub(crate) fn new_chain(table: &str, name: &str) -> Message {
    message(NEWCHAIN, ACK | CREATE, &Attributes::new().text(1, table).text(3, name))
}

/// Makes a chain that packets come to at a hook; what no rule decides passes.
pub(crate) fn new_base_chain(table: &str, name: &str, kind: &str, hook: u32, priority: i32) -> Message {
    let accept = 1;
    let hook = Attributes::new().be32(1, hook).be32(2, priority.cast_unsigned());
    let attributes = Attributes::new().text(1, table).text(3, name).nest(4, hook).be32(5, accept).text(7, kind);
    message(NEWCHAIN, ACK | CREATE, &attributes)
}

/// Makes a set, or with data a map. Sets of a transaction need ids of their own.
pub(crate) fn new_set(table: &str, name: &str, id: u32, key: &[Type], data: Option<&[Type]>) -> Message {
    let (key_type, key_length) = concatenation(key);
    let mut attributes = Attributes::new()
        .text(1, table)
        .text(2, name)
        .be32(3, if data.is_some() { NFT_SET_MAP } else { 0 })
        .be32(4, key_type)
        .be32(5, key_length);
    if let Some((data_type, data_length)) = data.map(concatenation) {
        attributes = attributes.be32(6, data_type).be32(7, data_length);
    }
    message(NEWSET, ACK | CREATE, &attributes.be32(10, id))
}

/// An element of a set or map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Element {
    pub(crate) set: &'static str,
    pub(crate) key: Vec<u8>,
    pub(crate) data: Option<Vec<u8>>,
}

/// Adds an element with a comment for those who list the table.
pub(crate) fn new_element(table: &str, element: &Element, comment: &str) -> Message {
    message(NEWSETELEM, ACK | CREATE, &element_list(table, element, Some(comment)))
}

/// Deletes an element by its key.
pub(crate) fn delete_element(table: &str, element: &Element) -> Message {
    message(DELSETELEM, ACK, &element_list(table, element, None))
}

fn element_list(table: &str, element: &Element, comment: Option<&str>) -> Attributes {
    let mut item = Attributes::new().nest(1, value(&element.key));
    if let Some(comment) = comment {
        if let Some(data) = &element.data {
            item = item.nest(2, value(data));
        }
        // Userdata as nft reads it: type, length, text with its end.
        let length = u8::try_from(comment.len() + 1).expect("a comment is a pod id");
        item = item.bytes(6, &[&[UDATA_COMMENT, length], comment.as_bytes(), &[0]].concat());
    }
    Attributes::new().text(1, table).text(2, element.set).nest(3, Attributes::new().nest(1, item))
}

fn value(bytes: &[u8]) -> Attributes {
    Attributes::new().bytes(1, bytes)
}

/// The expressions of a rule.
#[derive(Debug, Clone, Default)]
pub(crate) struct Rule(Attributes);

impl Rule {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// Makes the message that puts the rule last in a chain.
    pub(crate) fn append(self, table: &str, chain: &str) -> Message {
        message(NEWRULE, ACK | CREATE | APPEND, &Attributes::new().text(1, table).text(2, chain).nest(4, self.0))
    }

    fn expression(self, name: &str, data: Attributes) -> Self {
        Self(self.0.nest(1, Attributes::new().text(1, name).nest(2, data)))
    }

    fn meta(self, key: u32, register: u32) -> Self {
        self.expression("meta", Attributes::new().be32(1, register).be32(2, key))
    }

    /// Compares the first register.
    fn compare(self, equal: bool, bytes: &[u8]) -> Self {
        let operation = u32::from(!equal);
        self.expression("cmp", Attributes::new().be32(1, REGISTER).be32(2, operation).nest(3, value(bytes)))
    }

    /// Only packets of a family.
    pub(crate) fn family(self, family: u8) -> Self {
        self.meta(15, REGISTER).compare(true, &[family])
    }

    /// Only packets that come in by a device, or by any other.
    pub(crate) fn input_device(self, equal: bool, name: &str) -> Self {
        self.meta(6, REGISTER).compare(equal, &device(name))
    }

    /// Only packets that leave by a device.
    pub(crate) fn output_device(self, name: &str) -> Self {
        self.meta(7, REGISTER).compare(true, &device(name))
    }

    /// Only packets whose header at an offset has, or has not, a prefix.
    pub(crate) fn prefix(self, offset: u32, equal: bool, address: &[u8], mask: &[u8]) -> Self {
        let length = u32::try_from(address.len()).expect("an address is at most 16 bytes");
        let masked: Vec<u8> = address.iter().zip(mask).map(|(byte, mask)| byte & mask).collect();
        let bitwise = Attributes::new()
            .be32(1, REGISTER)
            .be32(2, REGISTER)
            .be32(3, length)
            .nest(4, value(mask))
            .nest(5, value(&vec![0; address.len()]));
        self.network_header(offset, length, REGISTER).expression("bitwise", bitwise).compare(equal, &masked)
    }

    /// Loads a part of the IP header.
    pub(crate) fn network_header(self, offset: u32, length: u32, register: u32) -> Self {
        self.payload(1, offset, length, register)
    }

    /// Loads the transport protocol's number, and its destination port behind it.
    pub(crate) fn protocol_and_port(self, register: u32) -> Self {
        self.meta(16, register).payload(2, 2, 2, register + 1)
    }

    fn payload(self, base: u32, offset: u32, length: u32, register: u32) -> Self {
        let data = Attributes::new().be32(1, register).be32(2, base).be32(3, offset).be32(4, length);
        self.expression("payload", data)
    }

    /// Only packets to an address of the host.
    pub(crate) fn destination_is_local(self) -> Self {
        let (address_type, destination, local) = (3, 1 << 1, 2_u32);
        self.expression("fib", Attributes::new().be32(1, REGISTER).be32(2, address_type).be32(3, destination))
            .compare(true, &local.to_ne_bytes())
    }

    /// Only packets of connections whose destination was changed.
    pub(crate) fn destination_was_changed(self) -> Self {
        let (status, changed) = (2, 1_u32 << 5);
        let bitwise = Attributes::new()
            .be32(1, REGISTER)
            .be32(2, REGISTER)
            .be32(3, 4)
            .nest(4, value(&changed.to_ne_bytes()))
            .nest(5, value(&[0; 4]));
        self.expression("ct", Attributes::new().be32(1, REGISTER).be32(2, status))
            .expression("bitwise", bitwise)
            .compare(false, &[0; 4])
    }

    /// Only packets whose registers are a key of a set.
    pub(crate) fn in_set(self, set: &str) -> Self {
        self.expression("lookup", Attributes::new().text(1, set).be32(2, REGISTER))
    }

    /// Replaces the registers by what a map has for them; a packet without an entry leaves the rule.
    pub(crate) fn map(self, map: &str) -> Self {
        self.expression("lookup", Attributes::new().text(1, map).be32(2, REGISTER).be32(3, REGISTER))
    }

    /// Sends the connection to the address and port in the registers.
    pub(crate) fn redirect(self, family: u8, address_length: u32) -> Self {
        let destination = 1;
        let data = Attributes::new()
            .be32(1, destination)
            .be32(2, u32::from(family))
            .be32(3, REGISTER)
            .be32(5, REGISTER + address_length / 4);
        self.expression("nat", data)
    }

    /// Lets the connection leave with the address of the device it leaves by.
    pub(crate) fn masquerade(self) -> Self {
        self.expression("masq", Attributes::new())
    }

    /// Ends the packet.
    pub(crate) fn drop(self) -> Self {
        self.verdict(Attributes::new().be32(1, 0))
    }

    /// Goes through another chain.
    pub(crate) fn jump(self, chain: &str) -> Self {
        self.verdict(Attributes::new().be32(1, (-3_i32).cast_unsigned()).text(2, chain))
    }

    /// Goes back to the chain that jumped here.
    pub(crate) fn leave(self) -> Self {
        self.verdict(Attributes::new().be32(1, (-5_i32).cast_unsigned()))
    }

    fn verdict(self, verdict: Attributes) -> Self {
        let (verdict_register, verdict_data) = (0, Attributes::new().nest(2, verdict));
        self.expression("immediate", Attributes::new().be32(1, verdict_register).nest(2, verdict_data))
    }
}

/// A device's name as its register has it: 16 bytes.
fn device(name: &str) -> [u8; 16] {
    let mut bytes = [0; 16];
    for (to, from) in bytes.iter_mut().zip(name.bytes()) {
        *to = from;
    }
    bytes
}
