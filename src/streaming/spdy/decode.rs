//! Takes the client's frames apart. Data is passed on in the pieces it arrives in, however large its frame; of control
//! frames one is held at a time.

use bytes::{Buf, Bytes, BytesMut};

use crate::mux::{Decode, Event, Headers, ProtocolError};
use crate::spdy::headers::Inflater;
use crate::spdy::{
    FLAG_FIN, FLAG_UNIDIRECTIONAL, GOAWAY, HEADERS, PING, RST_STREAM, SETTINGS, SYN_REPLY, SYN_STREAM, VERSION,
    WINDOW_UPDATE,
};

/// The largest control frame, in bytes; what clients send has under a hundred.
const CONTROL_LIMIT: usize = 16 << 10;
const HEADER: usize = 8;

/// The data frame that is arriving.
#[derive(Debug, Clone, Copy)]
struct Data {
    id: u32,
    left: usize,
    last: bool,
}

/// See the file's head.
pub(crate) struct Decoder {
    inflater: Inflater,
    data: Option<Data>,
    newest: u32,
}

fn malformed<T>(what: &'static str, reason: &'static str) -> Result<T, ProtocolError> {
    Err(ProtocolError::Malformed { what, reason })
}

impl Decoder {
    pub(crate) fn new() -> Self {
        Self { inflater: Inflater::new(), data: None, newest: 0 }
    }

    /// Passes on what there is of a data frame.
    fn piece(&mut self, data: Data, buffer: &mut BytesMut) -> Option<Event> {
        let count = data.left.min(buffer.len());
        let left = data.left - count;
        self.data = (left > 0).then_some(Data { left, ..data });
        if count == 0 && (left > 0 || !data.last) {
            return None;
        }
        Some(Event::Data { id: data.id, bytes: buffer.split_to(count), last: data.last && left == 0 })
    }

    fn data(&self, id: u32, flags: u8, left: usize) -> Result<Data, ProtocolError> {
        match id {
            0 => malformed("DATA", "it is on no stream"),
            id if id > self.newest => malformed("DATA", "its stream was never opened"),
            id => Ok(Data { id, left, last: flags & FLAG_FIN != 0 }),
        }
    }

    /// Takes a whole control frame apart; none where nothing is to be done about it.
    fn control(&mut self, kind: u16, flags: u8, mut payload: Bytes) -> Result<Option<Event>, ProtocolError> {
        let exactly = |what, size, payload: &Bytes| match payload.len() {
            length if length == size => Ok(()),
            _ => malformed(what, "its length is not that of its kind"),
        };
        match kind {
            SYN_STREAM => self.open(flags, payload).map(Some),
            SYN_REPLY | HEADERS => {
                let Ok(id) = payload.try_get_u32() else { return malformed("HEADERS", "it is cut off") };
                self.inflater.headers(&payload)?;
                let last = kind == HEADERS && flags & FLAG_FIN != 0;
                Ok(last.then(|| Event::Data { id: id & 0x7fff_ffff, bytes: BytesMut::new(), last }))
            }
            RST_STREAM => {
                exactly("RST_STREAM", 8, &payload)?;
                Ok(Some(Event::Reset { id: payload.get_u32() & 0x7fff_ffff }))
            }
            PING => {
                exactly("PING", 4, &payload)?;
                // A client's have odd numbers; an even one would answer ours, and we send none.
                let asks = payload[3] & 1 == 1;
                Ok(asks.then_some(Event::Ping(payload)))
            }
            GOAWAY => exactly("GOAWAY", 8, &payload).map(|()| Some(Event::Leaving)),
            // Sending is not held back by windows: see the module's head.
            WINDOW_UPDATE => exactly("WINDOW_UPDATE", 8, &payload).map(|()| None),
            SETTINGS => match payload.try_get_u32() {
                Ok(count) if payload.len() as u64 == u64::from(count) * 8 => Ok(None),
                _ => malformed("SETTINGS", "its length is not that of its entries"),
            },
            // 2.2.1: frames of unknown kinds are passed over.
            _ => Ok(None),
        }
    }

    fn open(&mut self, flags: u8, mut payload: Bytes) -> Result<Event, ProtocolError> {
        // The stream, the one it belongs to, its priority and an unused byte.
        if payload.len() < 10 {
            return malformed("SYN_STREAM", "it is cut off");
        }
        let id = payload.get_u32() & 0x7fff_ffff;
        payload.advance(6);
        let headers: Headers = self.inflater.headers(&payload)?;
        if id.is_multiple_of(2) || id <= self.newest {
            return malformed("SYN_STREAM", "its number is even or not above the last one");
        }
        self.newest = id;
        let one_way = flags & FLAG_UNIDIRECTIONAL != 0;
        Ok(Event::Open { id, headers, last: flags & FLAG_FIN != 0, one_way })
    }
}

impl Decode for Decoder {
    fn decode(&mut self, buffer: &mut BytesMut) -> Result<Option<Event>, ProtocolError> {
        loop {
            if let Some(data) = self.data {
                return Ok(self.piece(data, buffer));
            }
            let Some(mut header) = buffer.get(..HEADER) else { return Ok(None) };
            let (word, flags, size) = (header.get_u32(), header.get_u8(), header.get_uint(3));
            let size = usize::try_from(size).unwrap_or(usize::MAX);
            if word >> 31 == 0 {
                let data = self.data(word, flags, size)?;
                buffer.advance(HEADER);
                match self.piece(data, buffer) {
                    None if self.data.is_none() => continue,
                    event => return Ok(event),
                }
            }
            let version = (word >> 16) & 0x7fff;
            if version != u32::from(VERSION) {
                return malformed("a control frame", "it is not of version 3");
            }
            if size > CONTROL_LIMIT {
                return Err(ProtocolError::TooLarge { what: "a control frame", size, limit: CONTROL_LIMIT });
            }
            if buffer.len() < HEADER + size {
                return Ok(None);
            }
            buffer.advance(HEADER);
            let payload = buffer.split_to(size).freeze();
            let kind = u16::try_from(word & 0xffff).unwrap_or_default();
            if let Some(event) = self.control(kind, flags, payload)? {
                return Ok(Some(event));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::spdy::headers::tests::Deflater;

    fn control(kind: u16, flags: u8, payload: &[u8]) -> Vec<u8> {
        let size = u32::try_from(payload.len()).unwrap() | (u32::from(flags) << 24);
        [&(0x8003_0000 | u32::from(kind)).to_be_bytes(), &size.to_be_bytes(), payload].concat()
    }

    fn data(id: u32, flags: u8, payload: &[u8]) -> Vec<u8> {
        let size = u32::try_from(payload.len()).unwrap() | (u32::from(flags) << 24);
        [&id.to_be_bytes(), &size.to_be_bytes(), payload].concat()
    }

    fn open(deflater: &mut Deflater, id: u32, flags: u8) -> Vec<u8> {
        let headers = deflater.headers(&[("streamtype", "stdin")]);
        control(SYN_STREAM, flags, &[&id.to_be_bytes()[..], &[0; 6], &headers].concat())
    }

    /// Feeds a conversation in pieces and joins the data that belongs together.
    fn decode(conversation: &[u8], cuts: &[usize]) -> Result<Vec<Event>, ProtocolError> {
        let (mut decoder, mut buffer, mut events) = (Decoder::new(), BytesMut::new(), Vec::<Event>::new());
        let mut cuts = cuts.iter().copied().cycle();
        let mut rest = conversation;
        while !rest.is_empty() {
            let (now, later) = rest.split_at(cuts.next().unwrap_or(rest.len()).clamp(1, rest.len()));
            buffer.extend_from_slice(now);
            rest = later;
            while let Some(event) = decoder.decode(&mut buffer)? {
                match (events.last_mut(), event) {
                    (
                        Some(Event::Data { id, bytes, last: last @ false }),
                        Event::Data { id: same, bytes: more, last: end },
                    ) if *id == same => {
                        bytes.extend_from_slice(&more);
                        *last = end;
                    }
                    (_, event) => events.push(event),
                }
            }
            assert!(buffer.len() <= HEADER + CONTROL_LIMIT, "{}", buffer.len());
        }
        Ok(events)
    }

    fn conversation() -> Vec<u8> {
        let mut deflater = Deflater::new();
        [
            control(SETTINGS, 0, &[&1_u32.to_be_bytes()[..], &[0, 0, 0, 7, 0, 1, 0, 0]].concat()),
            open(&mut deflater, 1, 0),
            open(&mut deflater, 5, FLAG_FIN),
            control(77, 0, b"unknown"),
            data(1, 0, b""),
            data(1, 0, &[7; 40_000]),
            control(WINDOW_UPDATE, 0, &[0, 0, 0, 1, 0, 0, 1, 0]),
            data(1, FLAG_FIN, b"end"),
            control(PING, 0, &[0, 0, 0, 9]),
            control(PING, 0, &[0, 0, 0, 8]),
            control(RST_STREAM, 0, &[0, 0, 0, 5, 0, 0, 0, 5]),
            control(GOAWAY, 0, &[0; 8]),
        ]
        .concat()
    }

    fn events() -> Vec<Event> {
        let headers: Headers = [("streamtype".to_owned(), "stdin".to_owned())].into();
        vec![
            Event::Open { id: 1, headers: headers.clone(), last: false, one_way: false },
            Event::Open { id: 5, headers, last: true, one_way: false },
            Event::Data { id: 1, bytes: BytesMut::from(&[&[7; 40_000][..], b"end"].concat()[..]), last: true },
            Event::Ping(Bytes::from_static(&[0, 0, 0, 9])),
            Event::Reset { id: 5 },
            Event::Leaving,
        ]
    }

    #[test]
    fn an_empty_last_frame_ends_its_stream() {
        let mut bytes = open(&mut Deflater::new(), 1, 0);
        bytes.extend(data(1, FLAG_FIN, b""));
        let end = Event::Data { id: 1, bytes: BytesMut::new(), last: true };
        assert_eq!(decode(&bytes, &[]).unwrap().pop(), Some(end));
    }

    #[test]
    fn what_breaks_the_rules_is_refused() {
        let opened = |more: Vec<u8>| [open(&mut Deflater::new(), 3, 0), more].concat();
        let mut deflater = Deflater::new();
        let twice = [open(&mut deflater, 3, 0), open(&mut deflater, 3, 0)].concat();
        for (case, bytes) in [
            ("data before any stream", data(1, 0, b"x")),
            ("data on no stream", opened(data(0, 0, b"x"))),
            ("data on a stream never opened", opened(data(5, 0, b"x"))),
            ("a stream opened twice", twice),
            ("a server's stream", open(&mut Deflater::new(), 2, 0)),
            ("a short SYN_STREAM", control(SYN_STREAM, 0, &[0; 9])),
            ("a short RST_STREAM", control(RST_STREAM, 0, &[0; 7])),
            ("a long PING", control(PING, 0, &[0; 5])),
            ("SETTINGS with a wrong count", control(SETTINGS, 0, &[0xff; 12])),
            ("version 2", [&[0x80, 2, 0, 6, 0, 0, 0, 4][..], &[0, 0, 0, 1]].concat()),
            ("a huge control frame", vec![0x80, 3, 0, 8, 0, 0xff, 0xff, 0xff]),
        ] {
            assert!(decode(&bytes, &[]).is_err(), "{case}");
        }
    }

    proptest! {
        #[test]
        fn splits_make_no_difference(cuts in prop::collection::vec(1_usize..5000, 1..20)) {
            prop_assert_eq!(decode(&conversation(), &cuts).unwrap(), events());
        }

        #[test]
        fn no_bytes_panic_or_pile_up(bytes in prop::collection::vec(any::<u8>(), 0..3000), cuts in prop::collection::vec(1_usize..64, 1..9)) {
            drop(decode(&bytes, &cuts));
        }

        #[test]
        fn no_damage_panics_or_piles_up(at in any::<prop::sample::Index>(), byte in any::<u8>(), cut in 1_usize..3000) {
            let mut bytes = conversation();
            let at = at.index(bytes.len());
            bytes[at] = byte;
            drop(decode(&bytes, &[cut]));
        }
    }
}
