//! Netlink: messages, attributes, and exchanges with the kernel whose waits are bounded.
//!
//! The calls block. The kernel does a request's work inside `send`, under its own locks, so an asynchronous socket
//! would hold up a worker of the runtime all the same; callers are on threads that may block. Several messages go
//! in one `send`, which is why this is not built on a library that awaits each.

use std::io;
use std::time::Duration;

use netlink_sys::{Socket, SocketAddr};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{RecvFlags, SendFlags};

/// The wait for each datagram of an answer.
const ANSWER: Duration = Duration::from_secs(10);
/// How often a dump is repeated that the kernel says was disturbed by a change.
const DUMP_ATTEMPTS: usize = 5;
/// Larger than any datagram that the kernel makes for a dump (32 KiB).
const BUFFER: usize = 64 * 1024;

const HEADER: usize = 16;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLMSGERR_ATTR_MSG: u16 = 1;
const NLA_F_NESTED: u16 = 0x8000;
const NLA_TYPE_MASK: u16 = 0x3fff;
const NLM_F_DUMP_INTR: u16 = 0x10;
const NLM_F_ACK_TLVS: u16 = 0x200;

/// `NLM_F_REQUEST`: every message to the kernel.
const REQUEST: u16 = 0x1;
/// `NLM_F_ACK`: the kernel confirms the message.
pub const ACK: u16 = 0x4;
/// `NLM_F_DUMP`: the kernel answers with all objects.
pub const DUMP: u16 = 0x300;
/// `NLM_F_REPLACE`: an object that exists is changed.
pub const REPLACE: u16 = 0x100;
/// `NLM_F_EXCL`: an object that exists is an error.
pub const EXCLUSIVE: u16 = 0x200;
/// `NLM_F_CREATE`: an object that does not exist is made.
pub const CREATE: u16 = 0x400;
/// `NLM_F_APPEND`: the object is put last.
pub const APPEND: u16 = 0x800;

/// Why an exchange with the kernel failed.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// No socket of that protocol.
    #[error("open a netlink socket")]
    Open(#[source] io::Error),
    /// The request was not sent.
    #[error("send a netlink request")]
    Send(#[source] io::Error),
    /// No answer, or not within 10 seconds.
    #[error("receive the answer to a netlink request")]
    Receive(#[source] io::Error),
    /// The kernel refused a message.
    #[error("the kernel refused netlink message {}{}{hint}", index + 1, if hint.is_empty() { "" } else { ": " })]
    Refused {
        /// Which message of the request.
        index: usize,
        /// The kernel's explanation, often empty.
        hint: String,
        /// Its error number.
        source: io::Error,
    },
    /// The answer is not netlink.
    #[error("the kernel's answer to a netlink request is cut short")]
    Malformed,
    /// The objects changed during each of several dumps.
    #[error("the kernel's objects changed during each of {DUMP_ATTEMPTS} attempts to list them")]
    Disturbed,
}

impl NetlinkError {
    /// The error number of a refusal.
    pub fn refusal(&self) -> Option<rustix::io::Errno> {
        match self {
            Self::Refused { source, .. } => rustix::io::Errno::from_io_error(source),
            _ => None,
        }
    }
}

/// Attributes of a message, or of an attribute that nests others.
#[derive(Debug, Clone, Default)]
pub struct Attributes(Vec<u8>);

impl Attributes {
    /// None yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an attribute of raw bytes.
    ///
    /// # Panics
    /// When it is longer than 64 KiB, which no caller's is.
    pub fn bytes(mut self, kind: u16, value: &[u8]) -> Self {
        let length = u16::try_from(value.len() + 4).expect("an attribute is built of a few bounded parts");
        self.0.extend_from_slice(&length.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    /// Adds a byte.
    pub fn u8(self, kind: u16, value: u8) -> Self {
        self.bytes(kind, &[value])
    }

    /// Adds a number in the host's byte order: rtnetlink.
    pub fn u32(self, kind: u16, value: u32) -> Self {
        self.bytes(kind, &value.to_ne_bytes())
    }

    /// Adds a number in network byte order: nfnetlink.
    pub fn be32(self, kind: u16, value: u32) -> Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    /// Adds a string with its end.
    pub fn text(self, kind: u16, value: &str) -> Self {
        self.bytes(kind, &[value.as_bytes(), &[0]].concat())
    }

    /// Adds attributes as one.
    pub fn nest(self, kind: u16, inner: Self) -> Self {
        self.bytes(kind | NLA_F_NESTED, &inner.0)
    }

    /// Adds a fixed header followed by attributes, as `VETH_INFO_PEER` wants it.
    pub fn headed(self, kind: u16, header: &[u8], inner: &Self) -> Self {
        self.bytes(kind, &[header, &inner.0].concat())
    }
}

/// A message to the kernel.
#[derive(Debug, Clone)]
pub struct Message {
    bytes: Vec<u8>,
    acknowledged: bool,
}

impl Message {
    /// Makes a message of its type, `NLM_F_*` flags, fixed header and attributes.
    ///
    /// # Panics
    /// When it is longer than 4 GiB, which no caller's is.
    pub fn new(kind: u16, flags: u16, header: &[u8], attributes: &Attributes) -> Self {
        let length = u32::try_from(HEADER + header.len() + attributes.0.len())
            .expect("attributes are shorter than 64 KiB each and few");
        let mut bytes = Vec::with_capacity(length as usize);
        bytes.extend_from_slice(&length.to_ne_bytes());
        bytes.extend_from_slice(&kind.to_ne_bytes());
        bytes.extend_from_slice(&(flags | REQUEST).to_ne_bytes());
        // Sequence number, set when it is sent, and port: the kernel's, 0.
        bytes.extend_from_slice(&[0; 8]);
        bytes.extend_from_slice(header);
        bytes.extend_from_slice(&attributes.0);
        Self { bytes, acknowledged: flags & ACK != 0 }
    }
}

/// A message from the kernel.
struct Incoming<'a> {
    kind: u16,
    flags: u16,
    sequence: u32,
    payload: &'a [u8],
}

/// A netlink socket in the network namespace of the thread that opened it.
#[derive(Debug)]
pub struct Netlink {
    socket: Socket,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Netlink {
    /// Opens a socket for links, addresses and routes.
    ///
    /// # Errors
    /// The kernel's.
    pub fn route() -> Result<Self, NetlinkError> {
        Self::open(netlink_sys::protocols::NETLINK_ROUTE)
    }

    /// Opens a socket for nf_tables and connection tracking.
    ///
    /// # Errors
    /// The kernel's.
    pub fn netfilter() -> Result<Self, NetlinkError> {
        Self::open(netlink_sys::protocols::NETLINK_NETFILTER)
    }

    /// Opens a socket for questions about other sockets.
    ///
    /// # Errors
    /// The kernel's.
    pub fn sockets() -> Result<Self, NetlinkError> {
        Self::open(netlink_sys::protocols::NETLINK_SOCK_DIAG)
    }

    fn open(protocol: isize) -> Result<Self, NetlinkError> {
        let open = || -> io::Result<Socket> {
            let mut socket = Socket::new(protocol)?;
            socket.bind_auto()?;
            socket.connect(&SocketAddr::new(0, 0))?;
            socket.set_ext_ack(true)?;
            socket.set_cap_ack(true)?;
            set_socket_timeout(&socket, Timeout::Recv, Some(ANSWER))?;
            set_socket_timeout(&socket, Timeout::Send, Some(ANSWER))?;
            Ok(socket)
        };
        Ok(Self { socket: open().map_err(NetlinkError::Open)?, sequence: 0, buffer: vec![0; BUFFER] })
    }

    /// Sends messages at once and waits until the kernel has confirmed each that has [`ACK`].
    ///
    /// Returns at the first refusal. rtnetlink works on the messages behind it all the same; nf_tables drops the
    /// whole batch.
    ///
    /// # Errors
    /// The first refusal, or no answer.
    pub fn request(&mut self, messages: Vec<Message>) -> Result<(), NetlinkError> {
        let mut open = messages.iter().filter(|message| message.acknowledged).count();
        let (first, count) = self.send(messages)?;
        while open > 0 {
            for message in self.receive()? {
                let index = message.sequence.wrapping_sub(first) as usize;
                if index >= count {
                    // The tail of an earlier request that was refused.
                    continue;
                }
                if message.kind == NLMSG_ERROR {
                    refusal(&message, index)?;
                    open = open.saturating_sub(1);
                }
            }
        }
        Ok(())
    }

    /// Sends one message that the kernel answers with one object, and returns that.
    ///
    /// # Errors
    /// A refusal, or no answer.
    pub fn get(&mut self, message: Message) -> Result<Vec<u8>, NetlinkError> {
        let (first, _) = self.send(vec![message])?;
        loop {
            for message in self.receive()? {
                if message.sequence != first {
                    continue;
                }
                if message.kind == NLMSG_ERROR {
                    refusal(&message, 0)?;
                } else {
                    return Ok(message.payload.to_vec());
                }
            }
        }
    }

    /// Sends one message with [`DUMP`] and returns all objects.
    ///
    /// # Errors
    /// A refusal, no answer, or objects that never stood still.
    pub fn dump(&mut self, message: &Message) -> Result<Vec<Vec<u8>>, NetlinkError> {
        for _ in 0..DUMP_ATTEMPTS {
            if let Some(objects) = self.dump_once(message.clone())? {
                return Ok(objects);
            }
        }
        Err(NetlinkError::Disturbed)
    }

    /// Returns `None` when the objects changed meanwhile.
    fn dump_once(&mut self, message: Message) -> Result<Option<Vec<Vec<u8>>>, NetlinkError> {
        let (first, _) = self.send(vec![message])?;
        let mut objects = Vec::new();
        let mut disturbed = false;
        loop {
            for message in self.receive()? {
                if message.sequence != first {
                    continue;
                }
                disturbed |= message.flags & NLM_F_DUMP_INTR != 0;
                match message.kind {
                    NLMSG_DONE => return Ok((!disturbed).then_some(objects)),
                    NLMSG_ERROR => refusal(&message, 0)?,
                    _ => objects.push(message.payload.to_vec()),
                }
            }
        }
    }

    /// Numbers the messages and sends them as one datagram; returns the first number and how many there are.
    fn send(&mut self, messages: Vec<Message>) -> Result<(u32, usize), NetlinkError> {
        let first = self.sequence.wrapping_add(1);
        let count = messages.len();
        let mut datagram = Vec::with_capacity(messages.iter().map(|message| message.bytes.len()).sum());
        for message in messages {
            self.sequence = self.sequence.wrapping_add(1);
            let start = datagram.len();
            datagram.extend_from_slice(&message.bytes);
            datagram[start + 8..start + 12].copy_from_slice(&self.sequence.to_ne_bytes());
        }
        rustix::io::retry_on_intr(|| rustix::net::send(&self.socket, &datagram, SendFlags::empty()))
            .map_err(|error| NetlinkError::Send(error.into()))?;
        Ok((first, count))
    }

    /// Receives one datagram.
    fn receive(&mut self) -> Result<Vec<Incoming<'_>>, NetlinkError> {
        let socket = &self.socket;
        let (_, length) =
            rustix::io::retry_on_intr(|| rustix::net::recv(socket, &mut self.buffer[..], RecvFlags::TRUNC))
                .map_err(|error| NetlinkError::Receive(error.into()))?;
        let mut rest = self.buffer.get(..length).ok_or(NetlinkError::Malformed)?;
        let mut messages = Vec::new();
        while !rest.is_empty() {
            let (message, length) = split_message(rest).ok_or(NetlinkError::Malformed)?;
            messages.push(message);
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
        Ok(messages)
    }
}

fn split_message(bytes: &[u8]) -> Option<(Incoming<'_>, usize)> {
    let length = u32_at(bytes, 0)? as usize;
    let message = Incoming {
        kind: u16_at(bytes, 4)?,
        flags: u16_at(bytes, 6)?,
        sequence: u32_at(bytes, 8)?,
        payload: bytes.get(HEADER..length)?,
    };
    Some((message, length))
}

/// Reads `NLMSG_ERROR`: an error number, 0 for a confirmation, then the head of our message, then attributes.
fn refusal(message: &Incoming<'_>, index: usize) -> Result<(), NetlinkError> {
    let number = u32_at(message.payload, 0).ok_or(NetlinkError::Malformed)?.cast_signed();
    if number == 0 {
        return Ok(());
    }
    let hint = match message.flags & NLM_F_ACK_TLVS {
        0 => None,
        _ => attributes(message.payload.get(4 + HEADER..).unwrap_or_default())
            .find(|(kind, _)| *kind == NLMSGERR_ATTR_MSG)
            .map(|(_, value)| text_of(value)),
    };
    let source = io::Error::from_raw_os_error(number.wrapping_neg());
    Err(NetlinkError::Refused { index, hint: hint.unwrap_or_default(), source })
}

/// Reads attributes; ends at the first that is cut short.
pub fn attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let length = usize::from(u16_at(rest, 0)?);
        let kind = u16_at(rest, 2)? & NLA_TYPE_MASK;
        let value = rest.get(4..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// Reads a string attribute, with or without its end.
pub fn text_of(value: &[u8]) -> String {
    let end = value.iter().position(|byte| *byte == 0).unwrap_or(value.len());
    String::from_utf8_lossy(&value[..end]).into_owned()
}

/// Reads a number in the host's byte order.
pub fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(offset..offset + 4)?.try_into().ok()?))
}

/// Reads a short number in the host's byte order.
pub fn u16_at(bytes: &[u8], offset: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(offset..offset + 2)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn attributes_are_padded_and_come_back() {
        let inner = Attributes::new().u8(1, 7);
        let built = Attributes::new().text(3, "eth0").nest(18, inner.clone()).u32(4, 1500);
        let read: Vec<_> = attributes(&built.0).collect();
        assert_eq!(built.0.len() % 4, 0);
        assert_eq!(read, [(3, &b"eth0\0"[..]), (18, &inner.0[..]), (4, &1500_u32.to_ne_bytes()[..])]);
        assert_eq!(text_of(read[0].1), "eth0");
    }

    #[test]
    fn a_refusal_says_which_message_and_why() {
        let mut netlink = Netlink::route().unwrap();
        // RTM_DELLINK of an index that no link has, behind a RTM_GETLINK of the loopback device that is confirmed.
        let loopback = [0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let mut nobody = loopback;
        nobody[4..8].copy_from_slice(&i32::MAX.to_ne_bytes());
        let messages = vec![
            Message::new(18, ACK, &loopback, &Attributes::new()),
            Message::new(17, ACK, &nobody, &Attributes::new()),
        ];
        let error = netlink.request(messages).unwrap_err();
        assert!(matches!(error, NetlinkError::Refused { index: 1, .. }), "{error:?}");
        assert_eq!(error.refusal(), Some(rustix::io::Errno::NODEV));
    }

    proptest! {
        #[test]
        fn hostile_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(attributes(&bytes).count() <= bytes.len() / 4);
            let _ = split_message(&bytes);
        }
    }
}
