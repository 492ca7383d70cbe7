//! Channels: what the messages' bytes belong to.

use base64::Engine;
use bytes::{Buf, BytesMut};

use crate::mux::{Decode, Event, ProtocolError};
use crate::websocket::frame::{Frame, Frames};
use crate::websocket::{BASE64, Codec, HALF_CLOSE};

/// Where the message that is arriving goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Target {
    /// Its first byte has not come.
    Unknown,
    Channel(u8),
    /// It ends a channel, which its second byte names.
    Ending(Option<u8>),
}

/// See the file's head.
pub(crate) struct Decoder {
    codec: Codec,
    frames: Frames,
    target: Target,
    /// Base64 digits that make no whole group yet: three at most.
    digits: Vec<u8>,
}

fn malformed<T>(reason: &'static str) -> Result<T, ProtocolError> {
    Err(ProtocolError::Malformed { what: "a channel message", reason })
}

impl Decoder {
    pub(crate) fn new(codec: Codec) -> Self {
        Self { codec, frames: Frames::default(), target: Target::Unknown, digits: Vec::new() }
    }

    /// Takes a piece of a message; none where it carries nothing.
    fn piece(&mut self, mut bytes: BytesMut, first: bool, last: bool) -> Result<Option<Event>, ProtocolError> {
        if first {
            self.target = Target::Unknown;
            self.digits.clear();
        }
        if self.target == Target::Unknown {
            if self.codec == Codec::Tunnel {
                self.target = Target::Channel(0);
            } else if bytes.is_empty() {
                // A message without a byte is for nobody: peers pass over it too.
                return Ok(None);
            } else {
                self.target = match (self.codec, bytes.get_u8()) {
                    (Codec::Binary { half_close: true }, HALF_CLOSE) => Target::Ending(None),
                    (Codec::Base64, digit) => Target::Channel(digit.wrapping_sub(b'0')),
                    (_, channel) => Target::Channel(channel),
                };
            }
        }
        match self.target {
            Target::Unknown => Ok(None),
            Target::Channel(channel) => self.data(channel, bytes, last),
            Target::Ending(channel) => self.ending(channel, &bytes, last),
        }
    }

    fn data(&mut self, channel: u8, mut bytes: BytesMut, last: bool) -> Result<Option<Event>, ProtocolError> {
        if self.codec == Codec::Base64 {
            self.digits.extend_from_slice(&bytes);
            let whole = if last { self.digits.len() } else { self.digits.len() / 4 * 4 };
            let decoded = BASE64.decode(&self.digits[..whole]).map_err(ProtocolError::Base64)?;
            self.digits.drain(..whole);
            bytes = BytesMut::from(&decoded[..]);
        }
        Ok((!bytes.is_empty()).then(|| Event::Data { id: channel.into(), bytes, last: false }))
    }

    fn ending(&mut self, channel: Option<u8>, bytes: &[u8], last: bool) -> Result<Option<Event>, ProtocolError> {
        let channel = match (channel, bytes) {
            (channel, []) => channel,
            (None, &[channel]) => Some(channel),
            _ => return malformed("one channel's number follows the signal that ends it"),
        };
        self.target = Target::Ending(channel);
        match channel {
            _ if !last => Ok(None),
            Some(channel) => Ok(Some(Event::Data { id: channel.into(), bytes: BytesMut::new(), last: true })),
            None => malformed("the signal that ends a channel names none"),
        }
    }
}

impl Decode for Decoder {
    fn decode(&mut self, buffer: &mut BytesMut) -> Result<Option<Event>, ProtocolError> {
        loop {
            let event = match self.frames.next(buffer)? {
                None => return Ok(None),
                Some(Frame::Piece { bytes, first, last }) => self.piece(bytes, first, last)?,
                Some(Frame::Ping(payload)) => Some(Event::Ping(payload)),
                Some(Frame::Close) => Some(Event::Closed),
            };
            if event.is_some() {
                return Ok(event);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::websocket::frame::tests::masked;
    use crate::websocket::{BINARY, TEXT};

    const V5: Codec = Codec::Binary { half_close: true };
    const V4: Codec = Codec::Binary { half_close: false };

    /// What each channel has received, and which have ended.
    #[derive(Debug, Default, PartialEq, Eq)]
    struct Received {
        data: BTreeMap<u32, Vec<u8>>,
        ended: Vec<u32>,
    }

    fn receive(codec: Codec, conversation: &[u8], cut: usize) -> Result<Received, ProtocolError> {
        let (mut decoder, mut buffer, mut received) = (Decoder::new(codec), BytesMut::new(), Received::default());
        for bytes in conversation.chunks(cut) {
            buffer.extend_from_slice(bytes);
            while let Some(event) = decoder.decode(&mut buffer)? {
                if let Event::Data { id, bytes, last } = event {
                    received.data.entry(id).or_default().extend_from_slice(&bytes);
                    received.ended.extend(last.then_some(id));
                }
            }
            assert!(decoder.digits.len() < 4);
        }
        Ok(received)
    }

    fn message(opcode: u8, payload: &[u8]) -> Vec<u8> {
        masked(true, opcode, payload, [9, 8, 7, 6])
    }

    fn of(data: &[(u32, &[u8])], ended: &[u32]) -> Received {
        Received { data: data.iter().map(|(id, bytes)| (*id, bytes.to_vec())).collect(), ended: ended.to_vec() }
    }

    #[test]
    fn only_version_five_ends_a_channel() {
        let ends = [message(BINARY, b"\0in"), message(BINARY, &[255, 0])].concat();
        assert_eq!(receive(V5, &ends, 1).unwrap(), of(&[(0, b"in")], &[0]));
        assert_eq!(receive(V4, &ends, 100).unwrap(), of(&[(0, b"in"), (255, b"\0")], &[]));
        for bad in [&[255_u8][..], &[255, 0, 0]] {
            assert!(receive(V5, &message(BINARY, bad), 1).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn base64_is_decoded_with_and_without_padding() {
        for text in ["0Zm9vCg==", "0Zm9vCg"] {
            for cut in [1, 2, 100] {
                assert_eq!(
                    receive(Codec::Base64, &message(TEXT, text.as_bytes()), cut).unwrap(),
                    of(&[(0, b"foo\n")], &[])
                );
            }
        }
        assert!(receive(Codec::Base64, &message(TEXT, b"0Zm9v!!!!"), 100).is_err());
    }

    #[test]
    fn empty_messages_are_nothing() {
        for codec in [V5, V4, Codec::Base64, Codec::Tunnel] {
            assert_eq!(receive(codec, &message(BINARY, b""), 1).unwrap(), Received::default());
        }
    }

    proptest! {
        #[test]
        fn channels_are_told_apart_in_any_split(
            messages in prop::collection::vec((0_u8..5, prop::collection::vec(any::<u8>(), 1..200)), 1..20),
            cut in 1_usize..300,
            base64 in any::<bool>(),
        ) {
            let mut expected = Received::default();
            let mut conversation = Vec::new();
            for (channel, bytes) in &messages {
                expected.data.entry((*channel).into()).or_default().extend_from_slice(bytes);
                conversation.extend(if base64 {
                    message(TEXT, format!("{channel}{}", BASE64.encode(bytes)).as_bytes())
                } else {
                    message(BINARY, &[&[*channel], &bytes[..]].concat())
                });
            }
            let codec = if base64 { Codec::Base64 } else { V5 };
            prop_assert_eq!(receive(codec, &conversation, cut).unwrap(), expected);
        }

        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..500), kind in 0..4, cut in 1_usize..50) {
            let codec = [V5, V4, Codec::Base64, Codec::Tunnel][usize::try_from(kind).unwrap()];
            drop(receive(codec, &message(BINARY, &bytes), cut));
            drop(receive(codec, &bytes, cut));
        }
    }
}
