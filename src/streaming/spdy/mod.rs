//! SPDY/3.1, the server's part: what client-go speaks after an HTTP upgrade.
//!
//! Flow control is one-sided. What the client sends is credited by WINDOW_UPDATE as the session takes it. What it is
//! sent is not held back by windows: Go's implementation never sends an update, so that keeping to its window would
//! stop every stream at 64 KiB. TCP holds back instead, and that is why a client which leaves one of its streams unread
//! stops all its others.

mod decode;
mod dictionary;
mod encode;
pub(crate) mod headers;

pub(crate) use decode::Decoder;
pub(crate) use encode::Encoder;

/// The name in `Upgrade`.
pub(crate) const NAME: &str = "SPDY/3.1";

const VERSION: u16 = 3;
const FLAG_FIN: u8 = 1;
const FLAG_UNIDIRECTIONAL: u8 = 2;

const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const SETTINGS: u16 = 4;
const PING: u16 = 6;
const GOAWAY: u16 = 7;
const HEADERS: u16 = 8;
const WINDOW_UPDATE: u16 = 9;

/// What a client of the tests needs too.
#[cfg(test)]
pub(crate) fn dictionary() -> &'static [u8] {
    &dictionary::DICTIONARY
}
