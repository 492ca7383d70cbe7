//! Frames: taken apart as they arrive, and put together.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::mux::ProtocolError;
use crate::websocket::{BINARY, CLOSE, PING, PONG, TEXT};

const CONTINUATION: u8 = 0;
/// 5.5: the most that a control frame carries.
const CONTROL_LIMIT: usize = 125;
const FIN: u8 = 0x80;

/// What a client sent.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Frame {
    /// A piece of a message, of the size it happened to arrive in.
    Piece { bytes: BytesMut, first: bool, last: bool },
    /// It wants this back.
    Ping(Bytes),
    /// It closes the connection.
    Close,
}

/// The data frame that is arriving.
#[derive(Debug, Clone, Copy)]
struct Data {
    left: u64,
    mask: [u8; 4],
    /// Bytes of the frame that have been unmasked, modulo the mask's length.
    phase: usize,
    first: bool,
    last: bool,
}

/// What a frame's head says.
struct Head {
    size: usize,
    fin: bool,
    opcode: u8,
    payload: u64,
    mask: [u8; 4],
}

/// Takes frames apart. Of data it keeps nothing, of control frames one at a time.
#[derive(Debug, Default)]
pub(super) struct Frames {
    data: Option<Data>,
    /// Between the frames of one message.
    fragmented: bool,
}

fn malformed<T>(reason: &'static str) -> Result<T, ProtocolError> {
    Err(ProtocolError::Malformed { what: "a WebSocket frame", reason })
}

impl Frames {
    /// Takes the next frame, or piece of one, from the buffer's front; none when more bytes are needed.
    ///
    /// # Errors
    /// The connection cannot go on after one.
    pub(super) fn next(&mut self, buffer: &mut BytesMut) -> Result<Option<Frame>, ProtocolError> {
        loop {
            if let Some(data) = self.data {
                return Ok(self.piece(data, buffer));
            }
            let Some(head) = head(buffer)? else { return Ok(None) };
            match head.opcode {
                CONTINUATION | TEXT | BINARY => {
                    let first = head.opcode != CONTINUATION;
                    if first == self.fragmented {
                        return malformed("a message begins within another, or goes on without having begun");
                    }
                    buffer.advance(head.size);
                    self.fragmented = !head.fin;
                    self.data = Some(Data { left: head.payload, mask: head.mask, phase: 0, first, last: head.fin });
                }
                CLOSE | PING | PONG => {
                    let Some(size) =
                        usize::try_from(head.payload).ok().filter(|&size| size <= CONTROL_LIMIT && head.fin)
                    else {
                        return malformed("a control frame is in pieces or longer than 125 bytes");
                    };
                    if buffer.len() < head.size + size {
                        return Ok(None);
                    }
                    buffer.advance(head.size);
                    let mut payload = buffer.split_to(size);
                    unmask(&mut payload, head.mask, 0);
                    match head.opcode {
                        CLOSE => return Ok(Some(Frame::Close)),
                        PING => return Ok(Some(Frame::Ping(payload.freeze()))),
                        _ => {}
                    }
                }
                _ => return malformed("its kind is unknown"),
            }
        }
    }

    fn piece(&mut self, data: Data, buffer: &mut BytesMut) -> Option<Frame> {
        let count = usize::try_from(data.left).unwrap_or(usize::MAX).min(buffer.len());
        let left = data.left - count as u64;
        if count == 0 && left > 0 {
            return None;
        }
        let mut bytes = buffer.split_to(count);
        unmask(&mut bytes, data.mask, data.phase);
        self.data = (left > 0).then_some(Data { left, phase: (data.phase + count) % 4, first: false, ..data });
        Some(Frame::Piece { bytes, first: data.first, last: data.last && left == 0 })
    }
}

/// Reads a frame's head where all of it has arrived.
fn head(buffer: &BytesMut) -> Result<Option<Head>, ProtocolError> {
    let mut rest = &buffer[..];
    let (Ok(flags), Ok(length)) = (rest.try_get_u8(), rest.try_get_u8()) else { return Ok(None) };
    if flags & 0x70 != 0 {
        return malformed("it uses an extension that was not agreed on");
    }
    if length & 0x80 == 0 {
        return malformed("it is not masked");
    }
    let payload = match length & 0x7f {
        126 => rest.try_get_u16().map(u64::from),
        127 => rest.try_get_u64(),
        length => Ok(u64::from(length)),
    };
    let (Ok(payload), Ok(mask)) = (payload, rest.try_get_u32()) else { return Ok(None) };
    if payload >> 63 != 0 {
        return malformed("its length is negative");
    }
    let size = buffer.len() - rest.len();
    Ok(Some(Head { size, fin: flags & FIN != 0, opcode: flags & 0x0f, payload, mask: mask.to_be_bytes() }))
}

fn unmask(bytes: &mut [u8], mut mask: [u8; 4], phase: usize) {
    mask.rotate_left(phase % 4);
    let word = u32::from_ne_bytes(mask);
    let mut words = bytes.chunks_exact_mut(4);
    for chunk in &mut words {
        if let Ok(bytes) = <[u8; 4]>::try_from(&*chunk) {
            chunk.copy_from_slice(&(u32::from_ne_bytes(bytes) ^ word).to_ne_bytes());
        }
    }
    words.into_remainder().iter_mut().zip(mask).for_each(|(byte, mask)| *byte ^= mask);
}

/// Appends the head of a whole, unmasked message or control frame of this size.
pub(super) fn put_head(opcode: u8, size: usize, out: &mut BytesMut) {
    out.put_u8(FIN | opcode);
    match (u8::try_from(size), u16::try_from(size)) {
        (Ok(size @ ..=125), _) => out.put_u8(size),
        (_, Ok(size)) => {
            out.put_u8(126);
            out.put_u16(size);
        }
        _ => {
            out.put_u8(127);
            out.put_u64(size as u64);
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A client's frame.
    pub(crate) fn masked(fin: bool, opcode: u8, payload: &[u8], mask: [u8; 4]) -> Vec<u8> {
        let mut out = BytesMut::new();
        put_head(opcode, payload.len(), &mut out);
        out[0] = opcode | if fin { FIN } else { 0 };
        out[1] |= 0x80;
        out.put_slice(&mask);
        out.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
        out.to_vec()
    }

    fn messages(conversation: &[u8], cuts: &[usize]) -> Result<(Vec<Vec<u8>>, Vec<Bytes>), ProtocolError> {
        let (mut frames, mut buffer) = (Frames::default(), BytesMut::new());
        let (mut messages, mut pings) = (Vec::<Vec<u8>>::new(), Vec::new());
        let (mut rest, mut cuts) = (conversation, cuts.iter().cycle());
        while !rest.is_empty() {
            let (now, later) = rest.split_at(cuts.next().map_or(rest.len(), |&cut| cut.clamp(1, rest.len())));
            buffer.extend_from_slice(now);
            rest = later;
            while let Some(frame) = frames.next(&mut buffer)? {
                match frame {
                    Frame::Piece { bytes, first, .. } => {
                        if first {
                            messages.push(Vec::new());
                        }
                        messages.last_mut().unwrap().extend_from_slice(&bytes);
                    }
                    Frame::Ping(payload) => pings.push(payload),
                    Frame::Close => {}
                }
            }
            assert!(buffer.len() <= CONTROL_LIMIT + 14, "{}", buffer.len());
        }
        Ok((messages, pings))
    }

    #[test]
    fn what_breaks_the_rules_is_refused() {
        let mask = [1, 2, 3, 4];
        let begun = masked(false, BINARY, b"x", mask);
        for (case, bytes) in [
            ("unmasked", vec![0x82, 1, b'x']),
            ("an extension", vec![0xc2, 0x81, 0, 0, 0, 0, b'x']),
            ("an unknown kind", masked(true, 3, b"x", mask)),
            ("a continuation of nothing", masked(true, CONTINUATION, b"x", mask)),
            ("a message within another", [begun.clone(), begun].concat()),
            ("a long ping", masked(true, PING, &[0; 126], mask)),
            ("a ping in pieces", masked(false, PING, b"x", mask)),
            ("a negative length", vec![0x82, 0xff, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
        ] {
            assert!(messages(&bytes, &[]).is_err(), "{case}");
        }
    }

    proptest! {
        #[test]
        fn splits_and_masks_make_no_difference(
            sizes in prop::collection::vec(prop_oneof![0_usize..300, 65_000_usize..66_000], 1..5),
            mask in any::<[u8; 4]>(),
            cuts in prop::collection::vec(1_usize..40_000, 1..8),
        ) {
            let contents: Vec<Vec<u8>> = sizes.iter().map(|&size| (0..size).map(|i| (i % 251) as u8).collect()).collect();
            let message = |content: &Vec<u8>| {
                let (a, b) = content.split_at(content.len() / 3);
                let ping = masked(true, PING, b"still there?", mask);
                [masked(false, BINARY, a, mask), ping, masked(true, CONTINUATION, b, mask)].concat()
            };
            let conversation: Vec<u8> = contents.iter().flat_map(message).collect();
            let (got, pings) = messages(&conversation, &cuts).unwrap();
            prop_assert_eq!(pings, vec![Bytes::from_static(b"still there?"); contents.len()]);
            prop_assert!(got == contents);
        }

        #[test]
        fn no_bytes_panic_or_pile_up(bytes in prop::collection::vec(any::<u8>(), 0..3000), cut in 1_usize..64) {
            drop(messages(&bytes, &[cut]));
        }
    }
}
