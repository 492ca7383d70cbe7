//! Frames on the daemon's and the shim's stream: a 4-byte little-endian length, then one [`Frame`].

use prost::Message;

use crate::wire::Frame;

/// The largest frame either side accepts, in bytes. A plan holds a container's environment and arguments, which the
/// kernel bounds at a few MiB.
pub const MAX_FRAME: usize = 16 << 20;
/// Bytes of the length before each frame.
pub const HEADER: usize = 4;
/// The most file descriptors that one frame carries.
pub const MAX_FDS: usize = 3;

/// What is wrong with received bytes; the connection that sent them is of no further use.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The length in front of a frame is over [`MAX_FRAME`].
    #[error("a frame of {length} bytes is over the limit of {MAX_FRAME}")]
    TooLong {
        /// What the header said.
        length: usize,
    },
    /// The bytes of a frame are no `Frame` message.
    #[error("a frame that is no protobuf message")]
    Malformed(#[from] prost::DecodeError),
}

/// Encodes a message with its length in front.
pub fn encode(frame: &Frame) -> Vec<u8> {
    let length = frame.encoded_len();
    let mut bytes = Vec::with_capacity(HEADER + length);
    let header = u32::try_from(length).expect("a frame is far below 4 GiB");
    bytes.extend_from_slice(&header.to_le_bytes());
    frame.encode_raw(&mut bytes);
    bytes
}

/// Takes bytes as they arrive and gives back whole frames.
#[derive(Debug, Default)]
pub struct Decoder {
    pending: Vec<u8>,
}

impl Decoder {
    /// Appends received bytes.
    pub fn push(&mut self, bytes: &[u8]) {
        self.pending.extend_from_slice(bytes);
    }

    /// Whether nothing of a frame is waiting for the rest of it.
    pub fn is_empty(&self) -> bool {
        self.pending.is_empty()
    }

    /// Takes the next whole frame out, `None` when more bytes are needed.
    ///
    /// # Errors
    /// When the peer sent what cannot be a frame: the stream has lost its place and must be closed.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, FrameError> {
        let Some(header) = self.pending.first_chunk::<HEADER>() else {
            return Ok(None);
        };
        let length = u32::from_le_bytes(*header) as usize;
        if length > MAX_FRAME {
            return Err(FrameError::TooLong { length });
        }
        let Some(body) = self.pending.get(HEADER..HEADER + length) else {
            return Ok(None);
        };
        let frame = Frame::decode(body)?;
        self.pending.drain(..HEADER + length);
        if self.pending.is_empty() {
            // A plan may have grown this to megabytes; a shim must not keep them.
            self.pending = Vec::new();
        }
        Ok(Some(frame))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Request, frame::Kind, request::Op};

    fn request(id: u64) -> Frame {
        Frame { kind: Some(Kind::Request(Request { id, op: Some(Op::Inspect(Default::default())) })) }
    }

    #[test]
    fn frames_survive_any_split() {
        let stream: Vec<u8> = (1..=3).flat_map(|id| encode(&request(id))).collect();
        for cut in 1..stream.len() {
            let mut decoder = Decoder::default();
            let mut seen = Vec::new();
            for part in [&stream[..cut], &stream[cut..]] {
                decoder.push(part);
                while let Some(frame) = decoder.next_frame().unwrap() {
                    seen.push(frame);
                }
            }
            assert_eq!(seen, [request(1), request(2), request(3)], "cut at {cut}");
        }
    }

    #[test]
    fn an_oversized_length_is_refused_before_its_bytes_arrive() {
        let mut decoder = Decoder::default();
        decoder.push(&(MAX_FRAME as u32 + 1).to_le_bytes());
        assert!(matches!(decoder.next_frame(), Err(FrameError::TooLong { .. })));
    }

    #[test]
    fn garbage_is_an_error_not_a_frame() {
        let mut decoder = Decoder::default();
        decoder.push(&[3, 0, 0, 0, 0xff, 0xff, 0xff]);
        assert!(matches!(decoder.next_frame(), Err(FrameError::Malformed(_))));
    }
}
