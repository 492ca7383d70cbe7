//! The server's messages.

use base64::Engine;
use bytes::{BufMut, BytesMut};

use crate::mux::{Control, Encode, Goodbye};
use crate::websocket::frame::put_head;
use crate::websocket::{BASE64, BINARY, CLOSE, Codec, PONG, TEXT};

/// 7.4.1: all was said.
const NORMAL: u16 = 1000;
/// 7.4.1: the other side broke the protocol.
const PROTOCOL_ERROR: u16 = 1002;

/// See the file's head.
pub(crate) struct Encoder {
    codec: Codec,
}

impl Encoder {
    pub(crate) fn new(codec: Codec) -> Self {
        Self { codec }
    }
}

impl Encode for Encoder {
    /// An empty piece that is not the last makes an empty message, by which clients learn that the session is there. The
    /// last makes none: clients know the signal that ends a channel only in the other direction.
    fn data(&mut self, id: u32, bytes: &[u8], last: bool, out: &mut BytesMut) {
        if bytes.is_empty() && last {
            return;
        }
        // Channels are counted in one byte: a port-forward with more is refused.
        let channel = u8::try_from(id).unwrap_or(u8::MAX);
        match self.codec {
            Codec::Binary { .. } => {
                put_head(BINARY, 1 + bytes.len(), out);
                out.put_u8(channel);
                out.put_slice(bytes);
            }
            Codec::Base64 => {
                let text = BASE64.encode(bytes);
                put_head(TEXT, 1 + text.len(), out);
                out.put_u8(channel.wrapping_add(b'0'));
                out.put_slice(text.as_bytes());
            }
            Codec::Tunnel => {
                put_head(BINARY, bytes.len(), out);
                out.put_slice(bytes);
            }
        }
    }

    fn control(&mut self, control: Control, out: &mut BytesMut) {
        // Streams are neither opened nor credited here.
        if let Control::Pong(payload) = control {
            put_head(PONG, payload.len(), out);
            out.put_slice(&payload);
        }
    }

    fn goodbye(&mut self, goodbye: Goodbye, out: &mut BytesMut) {
        let code = match goodbye {
            Goodbye::Done | Goodbye::Answer => NORMAL,
            Goodbye::ProtocolError => PROTOCOL_ERROR,
        };
        put_head(CLOSE, 2, out);
        out.put_u16(code);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data(codec: Codec, id: u32, bytes: &[u8], last: bool) -> Vec<u8> {
        let mut out = BytesMut::new();
        Encoder::new(codec).data(id, bytes, last, &mut out);
        out.to_vec()
    }

    #[test]
    fn messages_have_the_form_of_their_codec() {
        let binary = Codec::Binary { half_close: true };
        assert_eq!(data(binary, 1, b"hi", false), b"\x82\x03\x01hi");
        assert_eq!(data(binary, 1, b"", false), b"\x82\x01\x01");
        assert_eq!(data(binary, 1, b"", true), b"");
        assert_eq!(data(Codec::Base64, 2, b"\n", false), b"\x81\x052Cg==");
        assert_eq!(data(Codec::Tunnel, 0, b"raw", false), b"\x82\x03raw");
        let long = data(binary, 1, &[0; 16 << 10], false);
        assert_eq!(long[..5], [0x82, 126, 0x40, 1, 1]);
    }
}
