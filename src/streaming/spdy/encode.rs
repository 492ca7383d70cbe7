//! The server's frames.

use bytes::{BufMut, BytesMut};

use crate::mux::{Control, Encode, Goodbye, WINDOW};
use crate::spdy::headers::EmptyBlocks;
use crate::spdy::{FLAG_FIN, GOAWAY, PING, RST_STREAM, SYN_REPLY, VERSION, WINDOW_UPDATE};

/// 2.6.3: the stream was refused before anything was done about it.
const REFUSED_STREAM: u32 = 3;
/// 2.6.3: the stream is not wanted any more.
const CANCEL: u32 = 5;
/// 2.6.6: reasons of a GOAWAY.
const OK: u32 = 0;
const PROTOCOL_ERROR: u32 = 1;

/// What all streams together may send before we have credited anything, beyond the initial window: each stream has a
/// window of its own, and one that is not read must not use up what is left to the others.
const SESSION_WINDOW: u32 = 1 << 26;

/// See the file's head.
#[derive(Default)]
pub(crate) struct Encoder {
    blocks: EmptyBlocks,
    newest: u32,
}

fn frame(kind: u16, payload: &[u32], out: &mut BytesMut) {
    out.put_u16(0x8000 | VERSION);
    out.put_u16(kind);
    out.put_u32(u32::try_from(payload.len() * 4).unwrap_or_default());
    payload.iter().for_each(|&word| out.put_u32(word));
}

impl Encode for Encoder {
    fn greeting(&mut self, out: &mut BytesMut) {
        frame(WINDOW_UPDATE, &[0, SESSION_WINDOW - u32::try_from(WINDOW).unwrap_or_default()], out);
    }

    fn data(&mut self, id: u32, bytes: &[u8], last: bool, out: &mut BytesMut) {
        if bytes.is_empty() && !last {
            return;
        }
        // Pieces are far below the 16 MiB that a frame can have.
        let size = u32::try_from(bytes.len()).unwrap_or_default();
        out.put_u32(id);
        out.put_u32(size | if last { u32::from(FLAG_FIN) << 24 } else { 0 });
        out.put_slice(bytes);
    }

    fn control(&mut self, control: Control, out: &mut BytesMut) {
        match control {
            Control::Accept { id } => {
                self.newest = self.newest.max(id);
                let mut block = BytesMut::new();
                self.blocks.put(&mut block);
                out.put_u16(0x8000 | VERSION);
                out.put_u16(SYN_REPLY);
                out.put_u32(u32::try_from(4 + block.len()).unwrap_or_default());
                out.put_u32(id);
                out.put_slice(&block);
            }
            Control::Refuse { id } => frame(RST_STREAM, &[id, REFUSED_STREAM], out),
            Control::Cancel { id } => frame(RST_STREAM, &[id, CANCEL], out),
            Control::Credit { id, bytes } => frame(WINDOW_UPDATE, &[id, bytes], out),
            Control::Pong(payload) => {
                let number = payload.iter().fold(0, |number, &byte| (number << 8) | u32::from(byte));
                frame(PING, &[number], out);
            }
        }
    }

    fn goodbye(&mut self, goodbye: Goodbye, out: &mut BytesMut) {
        let reason = match goodbye {
            Goodbye::Done | Goodbye::Answer => OK,
            Goodbye::ProtocolError => PROTOCOL_ERROR,
        };
        frame(GOAWAY, &[self.newest, reason], out);
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn encoded(encode: impl FnOnce(&mut Encoder, &mut BytesMut)) -> Vec<u8> {
        let mut out = BytesMut::new();
        encode(&mut Encoder::default(), &mut out);
        out.to_vec()
    }

    #[test]
    fn frames_have_the_form_of_the_draft() {
        let control = |control| encoded(|encoder, out| encoder.control(control, out));
        assert_eq!(control(Control::Cancel { id: 3 }), [0x80, 3, 0, 3, 0, 0, 0, 8, 0, 0, 0, 3, 0, 0, 0, 5]);
        assert_eq!(control(Control::Credit { id: 1, bytes: 256 }), [0x80, 3, 0, 9, 0, 0, 0, 8, 0, 0, 0, 1, 0, 0, 1, 0]);
        let pong = control(Control::Pong(Bytes::from_static(&[1, 2, 3, 5])));
        assert_eq!(pong, [0x80, 3, 0, 6, 0, 0, 0, 4, 1, 2, 3, 5]);
        assert_eq!(control(Control::Accept { id: 1 })[..12], [0x80, 3, 0, 2, 0, 0, 0, 24, 0, 0, 0, 1]);
        let last = encoded(|encoder, out| encoder.data(5, b"ab", true, out));
        assert_eq!(last, [0, 0, 0, 5, 1, 0, 0, 2, b'a', b'b']);
        let left = encoded(|encoder, out| encoder.goodbye(Goodbye::ProtocolError, out));
        assert_eq!(left, [0x80, 3, 0, 7, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 1]);
    }
}
