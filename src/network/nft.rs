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

const NFTA_TABLE_NAME: u16 = 1;
const NFTA_TABLE_FLAGS: u16 = 2;
const NFTA_CHAIN_TABLE: u16 = 1;
const NFTA_CHAIN_NAME: u16 = 3;
const NFTA_CHAIN_HOOK: u16 = 4;
const NFTA_CHAIN_POLICY: u16 = 5;
const NFTA_CHAIN_TYPE: u16 = 7;
const NFTA_HOOK_NUMBER: u16 = 1;
const NFTA_HOOK_PRIORITY: u16 = 2;
const NFTA_RULE_TABLE: u16 = 1;
const NFTA_RULE_CHAIN: u16 = 2;
const NFTA_RULE_EXPRESSIONS: u16 = 4;
const NFTA_LIST_ELEMENT: u16 = 1;
const NFTA_EXPRESSION_NAME: u16 = 1;
const NFTA_EXPRESSION_DATA: u16 = 2;
const NFTA_DATA_VALUE: u16 = 1;
const NFTA_DATA_VERDICT: u16 = 2;
const NFTA_VERDICT_CODE: u16 = 1;
const NFTA_VERDICT_CHAIN: u16 = 2;

const NFTA_SET_TABLE: u16 = 1;
const NFTA_SET_NAME: u16 = 2;
const NFTA_SET_FLAGS: u16 = 3;
const NFTA_SET_KEY_TYPE: u16 = 4;
const NFTA_SET_KEY_LENGTH: u16 = 5;
const NFTA_SET_DATA_TYPE: u16 = 6;
const NFTA_SET_DATA_LENGTH: u16 = 7;
const NFTA_SET_ID: u16 = 10;
const NFTA_SET_USERDATA: u16 = 13;
const NFTA_ELEMENTS_TABLE: u16 = 1;
const NFTA_ELEMENTS_SET: u16 = 2;
const NFTA_ELEMENTS_LIST: u16 = 3;
const NFTA_ELEMENT_KEY: u16 = 1;
const NFTA_ELEMENT_DATA: u16 = 2;
const NFTA_ELEMENT_USERDATA: u16 = 6;

const NFTA_META_DESTINATION: u16 = 1;
const NFTA_META_KEY: u16 = 2;
const META_INPUT_NAME: u32 = 6;
const META_FAMILY: u32 = 15;
const META_PROTOCOL: u32 = 16;
const NFTA_COMPARE_SOURCE: u16 = 1;
const NFTA_COMPARE_OPERATION: u16 = 2;
const NFTA_COMPARE_DATA: u16 = 3;
const COMPARE_EQUAL: u32 = 0;
const COMPARE_NOT_EQUAL: u32 = 1;
const NFTA_BITWISE_SOURCE: u16 = 1;
const NFTA_BITWISE_DESTINATION: u16 = 2;
const NFTA_BITWISE_LENGTH: u16 = 3;
const NFTA_BITWISE_MASK: u16 = 4;
const NFTA_BITWISE_XOR: u16 = 5;
const NFTA_PAYLOAD_DESTINATION: u16 = 1;
const NFTA_PAYLOAD_BASE: u16 = 2;
const NFTA_PAYLOAD_OFFSET: u16 = 3;
const NFTA_PAYLOAD_LENGTH: u16 = 4;
const NFTA_PAYLOAD_SOURCE: u16 = 5;
const NFTA_PAYLOAD_CHECKSUM_TYPE: u16 = 6;
const NFTA_PAYLOAD_CHECKSUM_OFFSET: u16 = 7;
const NFTA_PAYLOAD_CHECKSUM_FLAGS: u16 = 8;
const PAYLOAD_NETWORK: u32 = 1;
const PAYLOAD_TRANSPORT: u32 = 2;
/// Of the network header: IPv6 has none.
const CHECKSUM_NONE: u32 = 0;
/// The transport header's checksum covers addresses.
const CHECKSUM_OF_TRANSPORT: u32 = 1;
const NFTA_FIB_DESTINATION: u16 = 1;
const NFTA_FIB_RESULT: u16 = 2;
const NFTA_FIB_FLAGS: u16 = 3;
const FIB_ADDRESS_TYPE: u32 = 3;
const FIB_OF_DESTINATION: u32 = 1 << 1;
/// `RTN_LOCAL`, in the host's byte order as registers have it.
const LOCAL: u32 = 2;
const NFTA_CT_DESTINATION: u16 = 1;
const NFTA_CT_KEY: u16 = 2;
const NFTA_CT_DIRECTION: u16 = 3;
const CT_DIRECTION: u32 = 1;
const CT_STATUS: u32 = 2;
const CT_DESTINATION_IPV6: u32 = 22;
const DIRECTION_ORIGINAL: u8 = 0;
const DIRECTION_REPLY: u8 = 1;
/// `IPS_DST_NAT`
const STATUS_REDIRECTED: u32 = 1 << 5;
const NFTA_LOOKUP_SET: u16 = 1;
const NFTA_LOOKUP_SOURCE: u16 = 2;
const NFTA_LOOKUP_DESTINATION: u16 = 3;
const NFTA_NAT_TYPE: u16 = 1;
const NFTA_NAT_FAMILY: u16 = 2;
const NFTA_NAT_ADDRESS: u16 = 3;
const NFTA_NAT_PORT: u16 = 5;
const NAT_OF_DESTINATION: u32 = 1;
const NFTA_IMMEDIATE_DESTINATION: u16 = 1;
const NFTA_IMMEDIATE_DATA: u16 = 2;
const REGISTER_VERDICT: u32 = 0;
const VERDICT_DROP: i32 = 0;
const VERDICT_ACCEPT: u32 = 1;
const VERDICT_JUMP: i32 = -3;

/// Where packets that come in are routed from.
pub(crate) const PREROUTING: u32 = 0;
/// Packets to the host's own processes.
pub(crate) const INPUT: u32 = 1;
/// Packets of the host's own processes.
pub(crate) const OUTPUT: u32 = 3;
/// Packets about to leave.
pub(crate) const POSTROUTING: u32 = 4;

/// Registers are 4 bytes each from here on; longer values fill those behind.
pub(crate) const REGISTER: u32 = 8;

const NFT_SET_MAP: u32 = 8;
const UDATA_COMMENT: u8 = 0;
/// In a set's user data: that keys are in the host's byte order, 4 bytes.
const UDATA_KEY_ORDER_HOST: [u8; 6] = {
    let [a, b, c, d] = 1_u32.to_ne_bytes();
    [0, 4, a, b, c, d]
};

/// A type of a set's keys or a map's data, for those who list the table; the kernel knows lengths only.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Type {
    Ipv4Address,
    Ipv6Address,
    Protocol,
    Port,
    Device,
}

impl Type {
    fn number(self) -> u32 {
        match self {
            Self::Ipv4Address => 7,
            Self::Ipv6Address => 8,
            Self::Protocol => 12,
            Self::Port => 13,
            Self::Device => 41,
        }
    }

    fn length(self) -> u32 {
        match self {
            Self::Ipv6Address | Self::Device => 16,
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
    message(NEWTABLE, ACK | CREATE, &Attributes::new().text(NFTA_TABLE_NAME, table).be32(NFTA_TABLE_FLAGS, 0))
}

/// Asks for a table.
pub(crate) fn get_table(table: &str) -> Message {
    message(GETTABLE, 0, &Attributes::new().text(NFTA_TABLE_NAME, table))
}

/// Deletes a table with all that is in it.
pub(crate) fn delete_table(table: &str) -> Message {
    message(DELTABLE, ACK, &Attributes::new().text(NFTA_TABLE_NAME, table))
}

/// Makes a chain that other chains jump to.
pub(crate) fn new_chain(table: &str, name: &str) -> Message {
    message(NEWCHAIN, ACK | CREATE, &Attributes::new().text(NFTA_CHAIN_TABLE, table).text(NFTA_CHAIN_NAME, name))
}

/// Makes a chain that packets come to at a hook; what no rule decides passes.
pub(crate) fn new_base_chain(table: &str, name: &str, kind: &str, hook: u32, priority: i32) -> Message {
    let hook = Attributes::new().be32(NFTA_HOOK_NUMBER, hook).be32(NFTA_HOOK_PRIORITY, priority.cast_unsigned());
    let attributes = Attributes::new()
        .text(NFTA_CHAIN_TABLE, table)
        .text(NFTA_CHAIN_NAME, name)
        .nest(NFTA_CHAIN_HOOK, hook)
        .be32(NFTA_CHAIN_POLICY, VERDICT_ACCEPT)
        .text(NFTA_CHAIN_TYPE, kind);
    message(NEWCHAIN, ACK | CREATE, &attributes)
}

/// Makes a set, or with data a map. Sets of a transaction need ids of their own.
pub(crate) fn new_set(table: &str, name: &str, id: u32, key: &[Type], data: Option<&[Type]>) -> Message {
    let (key_type, key_length) = concatenation(key);
    let mut attributes = Attributes::new()
        .text(NFTA_SET_TABLE, table)
        .text(NFTA_SET_NAME, name)
        .be32(NFTA_SET_FLAGS, if data.is_some() { NFT_SET_MAP } else { 0 })
        .be32(NFTA_SET_KEY_TYPE, key_type)
        .be32(NFTA_SET_KEY_LENGTH, key_length);
    if let Some((data_type, data_length)) = data.map(concatenation) {
        attributes = attributes.be32(NFTA_SET_DATA_TYPE, data_type).be32(NFTA_SET_DATA_LENGTH, data_length);
    }
    if matches!(key, [Type::Device]) {
        // The kernel does not care; nft would list names backwards.
        attributes = attributes.bytes(NFTA_SET_USERDATA, &UDATA_KEY_ORDER_HOST);
    }
    message(NEWSET, ACK | CREATE, &attributes.be32(NFTA_SET_ID, id))
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
    let mut item = Attributes::new().nest(NFTA_ELEMENT_KEY, value(&element.key));
    if let Some(comment) = comment {
        if let Some(data) = &element.data {
            item = item.nest(NFTA_ELEMENT_DATA, value(data));
        }
        // Userdata as nft reads it: type, length, text with its end.
        let length = u8::try_from(comment.len() + 1).expect("a comment is a pod id");
        item = item.bytes(NFTA_ELEMENT_USERDATA, &[&[UDATA_COMMENT, length], comment.as_bytes(), &[0]].concat());
    }
    Attributes::new()
        .text(NFTA_ELEMENTS_TABLE, table)
        .text(NFTA_ELEMENTS_SET, element.set)
        .nest(NFTA_ELEMENTS_LIST, Attributes::new().nest(NFTA_LIST_ELEMENT, item))
}

fn value(bytes: &[u8]) -> Attributes {
    Attributes::new().bytes(NFTA_DATA_VALUE, bytes)
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
        message(
            NEWRULE,
            ACK | CREATE | APPEND,
            &Attributes::new()
                .text(NFTA_RULE_TABLE, table)
                .text(NFTA_RULE_CHAIN, chain)
                .nest(NFTA_RULE_EXPRESSIONS, self.0),
        )
    }

    fn expression(self, name: &str, data: Attributes) -> Self {
        let expression = Attributes::new().text(NFTA_EXPRESSION_NAME, name).nest(NFTA_EXPRESSION_DATA, data);
        Self(self.0.nest(NFTA_LIST_ELEMENT, expression))
    }

    fn meta(self, key: u32, register: u32) -> Self {
        self.expression("meta", Attributes::new().be32(NFTA_META_DESTINATION, register).be32(NFTA_META_KEY, key))
    }

    /// Compares the first register.
    fn compare(self, equal: bool, bytes: &[u8]) -> Self {
        let operation = if equal { COMPARE_EQUAL } else { COMPARE_NOT_EQUAL };
        self.expression(
            "cmp",
            Attributes::new()
                .be32(NFTA_COMPARE_SOURCE, REGISTER)
                .be32(NFTA_COMPARE_OPERATION, operation)
                .nest(NFTA_COMPARE_DATA, value(bytes)),
        )
    }

    /// Only packets of a family.
    pub(crate) fn family(self, family: u8) -> Self {
        self.meta(META_FAMILY, REGISTER).compare(true, &[family])
    }

    /// Only packets that come in by a device, or by any other.
    pub(crate) fn input_device(self, equal: bool, name: &str) -> Self {
        self.meta(META_INPUT_NAME, REGISTER).compare(equal, &device(name))
    }

    /// Only packets that come in by one of a set's devices.
    pub(crate) fn input_device_in(self, set: &str) -> Self {
        self.meta(META_INPUT_NAME, REGISTER).in_set(set)
    }

    /// Only packets whose header at an offset has, or has not, a prefix.
    pub(crate) fn prefix(self, offset: u32, equal: bool, address: &[u8], mask: &[u8]) -> Self {
        let length = u32::try_from(address.len()).expect("an address is at most 16 bytes");
        let masked: Vec<u8> = address.iter().zip(mask).map(|(byte, mask)| byte & mask).collect();
        self.network_header(offset, length, REGISTER).mask(mask).compare(equal, &masked)
    }

    /// Loads a part of the IP header.
    pub(crate) fn network_header(self, offset: u32, length: u32, register: u32) -> Self {
        self.payload(PAYLOAD_NETWORK, offset, length, register)
    }

    /// Loads the transport protocol's number, and its destination port behind it.
    pub(crate) fn protocol_and_port(self, register: u32) -> Self {
        let (port_offset, port_length) = (2, 2);
        self.meta(META_PROTOCOL, register).payload(PAYLOAD_TRANSPORT, port_offset, port_length, register + 1)
    }

    fn payload(self, base: u32, offset: u32, length: u32, register: u32) -> Self {
        let data = Attributes::new()
            .be32(NFTA_PAYLOAD_DESTINATION, register)
            .be32(NFTA_PAYLOAD_BASE, base)
            .be32(NFTA_PAYLOAD_OFFSET, offset)
            .be32(NFTA_PAYLOAD_LENGTH, length);
        self.expression("payload", data)
    }

    /// Only packets to an address of the host.
    pub(crate) fn destination_is_local(self) -> Self {
        let fib = Attributes::new()
            .be32(NFTA_FIB_DESTINATION, REGISTER)
            .be32(NFTA_FIB_RESULT, FIB_ADDRESS_TYPE)
            .be32(NFTA_FIB_FLAGS, FIB_OF_DESTINATION);
        self.expression("fib", fib).compare(true, &LOCAL.to_ne_bytes())
    }

    /// Only packets of connections whose destination was changed.
    pub(crate) fn destination_was_changed(self) -> Self {
        self.connection(CT_STATUS, Attributes::new()).mask(&STATUS_REDIRECTED.to_ne_bytes()).compare(false, &[0; 4])
    }

    /// Only answers to packets that were sent to an IPv6 address, whatever that was changed to.
    pub(crate) fn answers_from(self, address: &[u8]) -> Self {
        let original = Attributes::new().u8(NFTA_CT_DIRECTION, DIRECTION_ORIGINAL);
        self.connection(CT_DIRECTION, Attributes::new())
            .compare(true, &[DIRECTION_REPLY])
            .connection(CT_DESTINATION_IPV6, original)
            .compare(true, address)
    }

    /// Loads the IPv6 address that the connection's answers are sent to.
    pub(crate) fn answered_address(self) -> Self {
        self.connection(CT_DESTINATION_IPV6, Attributes::new().u8(NFTA_CT_DIRECTION, DIRECTION_REPLY))
    }

    /// Loads what connection tracking knows.
    fn connection(self, key: u32, of: Attributes) -> Self {
        self.expression("ct", of.be32(NFTA_CT_DESTINATION, REGISTER).be32(NFTA_CT_KEY, key))
    }

    /// Loads a value.
    pub(crate) fn load(self, bytes: &[u8]) -> Self {
        let immediate =
            Attributes::new().be32(NFTA_IMMEDIATE_DESTINATION, REGISTER).nest(NFTA_IMMEDIATE_DATA, value(bytes));
        self.expression("immediate", immediate)
    }

    /// Writes the first registers into an address of the IPv6 header, of this packet alone: its connection stays as it is.
    pub(crate) fn write_address(self, offset: u32, length: u32) -> Self {
        let data = Attributes::new()
            .be32(NFTA_PAYLOAD_SOURCE, REGISTER)
            .be32(NFTA_PAYLOAD_BASE, PAYLOAD_NETWORK)
            .be32(NFTA_PAYLOAD_OFFSET, offset)
            .be32(NFTA_PAYLOAD_LENGTH, length)
            .be32(NFTA_PAYLOAD_CHECKSUM_TYPE, CHECKSUM_NONE)
            .be32(NFTA_PAYLOAD_CHECKSUM_OFFSET, 0)
            .be32(NFTA_PAYLOAD_CHECKSUM_FLAGS, CHECKSUM_OF_TRANSPORT);
        self.expression("payload", data)
    }

    /// Clears the bits of the first registers that a mask does not have.
    fn mask(self, mask: &[u8]) -> Self {
        let length = u32::try_from(mask.len()).expect("a mask is at most 16 bytes");
        let bitwise = Attributes::new()
            .be32(NFTA_BITWISE_SOURCE, REGISTER)
            .be32(NFTA_BITWISE_DESTINATION, REGISTER)
            .be32(NFTA_BITWISE_LENGTH, length)
            .nest(NFTA_BITWISE_MASK, value(mask))
            .nest(NFTA_BITWISE_XOR, value(&vec![0; mask.len()]));
        self.expression("bitwise", bitwise)
    }

    /// Only packets whose registers are a key of a set.
    pub(crate) fn in_set(self, set: &str) -> Self {
        self.expression("lookup", Attributes::new().text(NFTA_LOOKUP_SET, set).be32(NFTA_LOOKUP_SOURCE, REGISTER))
    }

    /// Replaces the registers by what a map has for them; a packet without an entry leaves the rule.
    pub(crate) fn map(self, map: &str) -> Self {
        let lookup = Attributes::new()
            .text(NFTA_LOOKUP_SET, map)
            .be32(NFTA_LOOKUP_SOURCE, REGISTER)
            .be32(NFTA_LOOKUP_DESTINATION, REGISTER);
        self.expression("lookup", lookup)
    }

    /// Sends the connection to the address and port in the registers.
    pub(crate) fn redirect(self, family: u8, address_length: u32) -> Self {
        let data = Attributes::new()
            .be32(NFTA_NAT_TYPE, NAT_OF_DESTINATION)
            .be32(NFTA_NAT_FAMILY, u32::from(family))
            .be32(NFTA_NAT_ADDRESS, REGISTER)
            .be32(NFTA_NAT_PORT, REGISTER + address_length / 4);
        self.expression("nat", data)
    }

    /// Lets the connection leave with the address of the device it leaves by.
    pub(crate) fn masquerade(self) -> Self {
        self.expression("masq", Attributes::new())
    }

    /// Ends the packet.
    pub(crate) fn drop(self) -> Self {
        self.verdict(VERDICT_DROP, None)
    }

    /// Goes through another chain.
    pub(crate) fn jump(self, chain: &str) -> Self {
        self.verdict(VERDICT_JUMP, Some(chain))
    }

    fn verdict(self, code: i32, chain: Option<&str>) -> Self {
        let mut verdict = Attributes::new().be32(NFTA_VERDICT_CODE, code.cast_unsigned());
        if let Some(chain) = chain {
            verdict = verdict.text(NFTA_VERDICT_CHAIN, chain);
        }
        let immediate = Attributes::new()
            .be32(NFTA_IMMEDIATE_DESTINATION, REGISTER_VERDICT)
            .nest(NFTA_IMMEDIATE_DATA, Attributes::new().nest(NFTA_DATA_VERDICT, verdict));
        self.expression("immediate", immediate)
    }
}

/// A device's name as its register has it: 16 bytes.
pub(crate) fn device(name: &str) -> [u8; 16] {
    let mut bytes = [0; 16];
    for (to, from) in bytes.iter_mut().zip(name.bytes()) {
        *to = from;
    }
    bytes
}
