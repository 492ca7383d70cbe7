//! WebSocket (RFC 6455), the server's part, with the channels that Kubernetes puts into it.
//!
//! The framing is its own because a message may be of any size and is passed on as it arrives: a library would hold all
//! of it, and a client that sends a file as one message is not to be refused.

mod decode;
mod encode;
pub(crate) mod frame;
pub(crate) mod handshake;

use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

pub(crate) use decode::Decoder;
pub(crate) use encode::Encoder;

/// How channels are put into messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Codec {
    /// The channel's number in a byte, then the data. With `half_close` the message 255, channel ends a channel.
    Binary { half_close: bool },
    /// The channel's number as a digit, then the data in base64, in text messages.
    Base64,
    /// One channel, 0, whose bytes are the messages' bytes.
    Tunnel,
}

const TEXT: u8 = 1;
const BINARY: u8 = 2;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;

/// In place of a channel's number: the next byte names a channel that ends.
const HALF_CLOSE: u8 = 255;

/// Padding is what clients disagree about.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);
