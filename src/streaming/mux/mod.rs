//! Many byte streams on one connection, the same for SPDY and for WebSocket channels: two codecs share what is here.
//!
//! ```text
//!  socket ─ Decode ─► reader ──► Input   one bounded buffer per stream; a full one stops the reader,
//!                        │                so that the client's own sending stops
//!                     outbox             replies, resets, window updates: few, ahead of data
//!                        ▼
//!  socket ◄─ Encode ─ writer ◄── Output  one short queue for all streams; a client that does not read
//!                                         stops its own session's reading of the process, nothing else
//! ```

pub(crate) mod connection;
pub(crate) mod outbox;
mod reader;
pub(crate) mod stream;
mod writer;

use std::collections::BTreeMap;

use bytes::{Bytes, BytesMut};

/// What one stream and direction holds at most, in bytes: SPDY's initial window too.
pub(crate) const WINDOW: usize = 64 << 10;
/// The largest piece of data that is sent at once, in bytes.
pub(crate) const CHUNK: usize = 16 << 10;

/// What a stream was opened with, names in lower case.
pub(crate) type Headers = BTreeMap<String, String>;

/// What a client said.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// It opens a stream; `last` when it will send nothing on it, `one_way` when it wants nothing back.
    Open { id: u32, headers: Headers, last: bool, one_way: bool },
    /// A piece of a stream, of the size it happened to arrive in.
    Data { id: u32, bytes: BytesMut, last: bool },
    /// It gives a stream up, both ways.
    Reset { id: u32 },
    /// It wants this back.
    Ping(Bytes),
    /// It opens no more streams.
    Leaving,
    /// It has closed the connection and waits for the same.
    Closed,
}

/// Why a connection is cut off.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProtocolError {
    /// A frame breaks the protocol's rules.
    #[error("{what} is malformed: {reason}")]
    Malformed { what: &'static str, reason: &'static str },
    /// A frame is larger than any that is needed.
    #[error("{what} has {size} bytes, more than {limit}")]
    TooLarge { what: &'static str, size: usize, limit: usize },
    /// Compressed headers do not inflate.
    #[error("inflate the headers")]
    Inflate(#[source] flate2::DecompressError),
    /// A base64 message is none.
    #[error("decode a base64 message")]
    Base64(#[source] base64::DecodeError),
    /// More answers are owed than a client that reads them would let pile up.
    #[error("{count} answers wait to be read by the client")]
    Flood { count: usize },
}

/// Takes what has arrived apart. It keeps nothing of a stream's data.
pub(crate) trait Decode: Send {
    /// Takes the next event from the buffer's front; none when more bytes are needed.
    fn decode(&mut self, buffer: &mut BytesMut) -> Result<Option<Event>, ProtocolError>;
}

/// What the connection itself has to say.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Control {
    /// Takes a stream that was opened.
    Accept { id: u32 },
    /// Refuses a stream that was opened.
    Refuse { id: u32 },
    /// Gives a stream up.
    Cancel { id: u32 },
    /// More may be sent: on a stream, or on all together with id 0.
    Credit { id: u32, bytes: u32 },
    /// Answers a ping.
    Pong(Bytes),
}

/// How a connection ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Goodbye {
    /// All was said.
    Done,
    /// The client closed first.
    Answer,
    /// The client broke the protocol.
    ProtocolError,
}

/// Puts what is to be sent into the wire's form.
pub(crate) trait Encode: Send {
    /// What is said before anything else.
    fn greeting(&mut self, _out: &mut BytesMut) {}
    /// A piece of a stream; the `last` one may be empty.
    fn data(&mut self, id: u32, bytes: &[u8], last: bool, out: &mut BytesMut);
    /// Something of the connection itself; what the wire has no form for is left out.
    fn control(&mut self, control: Control, out: &mut BytesMut);
    /// The last that is sent.
    fn goodbye(&mut self, goodbye: Goodbye, out: &mut BytesMut);
}
