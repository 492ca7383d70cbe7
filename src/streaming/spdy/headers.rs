//! Header blocks: name and value pairs, all of a connection in one zlib stream for each direction.

use bytes::{Buf, BufMut, BytesMut};
use flate2::{Decompress, FlushDecompress, Status};

use crate::mux::{Headers, ProtocolError};
use crate::spdy::dictionary::{ADLER, DICTIONARY};

/// What a block may inflate to, in bytes: clients send three short headers.
pub(crate) const LIMIT: usize = 16 << 10;

const WHAT: &str = "a header block";

fn malformed<T>(reason: &'static str) -> Result<T, ProtocolError> {
    Err(ProtocolError::Malformed { what: WHAT, reason })
}

/// Inflates and parses what the client sends. Every block must pass through it, the unwanted too: each builds on those
/// before it.
pub(crate) struct Inflater {
    zlib: Decompress,
    block: Vec<u8>,
}

impl Inflater {
    pub(crate) fn new() -> Self {
        Self { zlib: Decompress::new(true), block: Vec::new() }
    }

    /// Parses a compressed block.
    ///
    /// # Errors
    /// The connection cannot go on after one.
    pub(crate) fn headers(&mut self, compressed: &[u8]) -> Result<Headers, ProtocolError> {
        self.inflate(compressed)?;
        parse(&self.block)
    }

    fn inflate(&mut self, mut compressed: &[u8]) -> Result<(), ProtocolError> {
        self.block.clear();
        self.block.reserve(LIMIT + 1);
        loop {
            let (taken, given) = (self.zlib.total_in(), self.block.len());
            let status = self.zlib.decompress_vec(compressed, &mut self.block, FlushDecompress::Sync);
            let taken = usize::try_from(self.zlib.total_in() - taken).unwrap_or(usize::MAX);
            compressed = compressed.get(taken..).unwrap_or_default();
            match status {
                Err(error) if error.needs_dictionary() == Some(ADLER) => {
                    self.zlib.set_dictionary(&DICTIONARY).map_err(ProtocolError::Inflate)?;
                    continue;
                }
                Err(error) => return Err(ProtocolError::Inflate(error)),
                Ok(Status::StreamEnd) => return malformed("the compressed stream ends"),
                Ok(Status::Ok | Status::BufError) => {}
            }
            if self.block.len() > LIMIT {
                return Err(ProtocolError::TooLarge { what: WHAT, size: self.block.len(), limit: LIMIT });
            }
            if taken == 0 && self.block.len() == given {
                // Nothing moves any more: all was inflated, or the rest makes no sense.
                return if compressed.is_empty() { Ok(()) } else { malformed("it does not inflate to its end") };
            }
        }
    }
}

/// Parses an inflated block.
fn parse(mut block: &[u8]) -> Result<Headers, ProtocolError> {
    fn text(block: &mut &[u8]) -> Result<String, ProtocolError> {
        let Ok(length) = block.try_get_u32() else { return malformed("a length is cut off") };
        let Some((text, rest)) = usize::try_from(length).ok().and_then(|length| block.split_at_checked(length)) else {
            return malformed("a length points past the end");
        };
        *block = rest;
        match std::str::from_utf8(text) {
            Ok(text) => Ok(text.to_owned()),
            Err(_) => malformed("it is not UTF-8"),
        }
    }
    let Ok(count) = block.try_get_u32() else { return malformed("the number of headers is cut off") };
    let mut headers = Headers::new();
    for _ in 0..count {
        let name = text(&mut block)?;
        if name.is_empty() || name.bytes().any(|byte| byte.is_ascii_uppercase()) {
            return malformed("a header name is empty or not in lower case");
        }
        let value = text(&mut block)?;
        if headers.insert(name, value).is_some() {
            return malformed("a header name is there twice");
        }
    }
    if block.is_empty() { Ok(headers) } else { malformed("bytes are left over") }
}

/// Writes the server's own header blocks, all without a header, which is all that its replies need. They are stored,
/// not compressed: a compressor would cost each connection a quarter of a megabyte to save nothing.
#[derive(Default)]
pub(crate) struct EmptyBlocks {
    begun: bool,
}

impl EmptyBlocks {
    /// Appends the next block.
    pub(crate) fn put(&mut self, out: &mut BytesMut) {
        if !self.begun {
            // RFC 1950: deflate with a 32 KiB window, a preset dictionary, and the dictionary's sum.
            out.put_slice(&[0x78, 0xbb]);
            out.put_u32(ADLER);
            self.begun = true;
        }
        // RFC 1951, 3.2.4: a stored block of four bytes, its length and the complement of that; the bytes say "no headers".
        out.put_slice(&[0, 4, 0, !4, !0, 0, 0, 0, 0]);
        // An empty stored block, as a flush makes it: Go's inflater gives nothing out before it has seen one.
        out.put_slice(&[0, 0, 0, !0, !0]);
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use flate2::{Compress, Compression, FlushCompress};
    use proptest::prelude::*;

    use super::*;

    /// What a client does.
    pub(crate) struct Deflater(Compress);

    impl Deflater {
        pub(crate) fn new() -> Self {
            let mut zlib = Compress::new(Compression::best(), true);
            zlib.set_dictionary(&DICTIONARY).unwrap();
            Self(zlib)
        }

        pub(crate) fn raw(&mut self, block: &[u8]) -> Vec<u8> {
            let mut out = Vec::with_capacity(block.len() + 1024);
            self.0.compress_vec(block, &mut out, FlushCompress::Sync).unwrap();
            assert!(out.len() < out.capacity());
            out
        }

        pub(crate) fn headers(&mut self, headers: &[(&str, &str)]) -> Vec<u8> {
            self.raw(&block(headers))
        }
    }

    pub(crate) fn block(headers: &[(&str, &str)]) -> Vec<u8> {
        let text = |text: &str| [&u32::try_from(text.len()).unwrap().to_be_bytes(), text.as_bytes()].concat();
        let mut block = u32::try_from(headers.len()).unwrap().to_be_bytes().to_vec();
        block.extend(headers.iter().flat_map(|(name, value)| [text(name), text(value)].concat()));
        block
    }

    #[test]
    fn blocks_build_on_each_other() {
        let (mut deflater, mut inflater) = (Deflater::new(), Inflater::new());
        for kind in ["error", "stdin", "stdout"] {
            let sent = [("streamtype", kind), ("port", "80")];
            let headers = inflater.headers(&deflater.headers(&sent)).unwrap();
            assert_eq!(headers, sent.map(|(name, value)| (name.to_owned(), value.to_owned())).into());
        }
    }

    #[test]
    fn own_blocks_inflate_to_no_headers() {
        let (mut blocks, mut inflater) = (EmptyBlocks::default(), Inflater::new());
        for _ in 0..3 {
            let mut out = BytesMut::new();
            blocks.put(&mut out);
            assert!(out.ends_with(&[0, 0, 0xff, 0xff]), "it is flushed");
            assert_eq!(inflater.headers(&out).unwrap(), Headers::new());
        }
    }

    #[test]
    fn a_block_that_inflates_without_end_is_cut_off() {
        let bomb = Deflater::new().raw(&vec![0; 1 << 20]);
        assert!(bomb.len() < 4096);
        let mut inflater = Inflater::new();
        assert!(matches!(inflater.headers(&bomb), Err(ProtocolError::TooLarge { .. })));
        assert!(inflater.block.capacity() <= 2 * LIMIT, "{}", inflater.block.capacity());
    }

    #[test]
    fn broken_blocks_are_refused() {
        let long = "x".repeat(LIMIT);
        for headers in [&[("Upper", "x")][..], &[("", "x")], &[("a", "1"), ("a", "2")], &[("a", &long)]] {
            assert!(Inflater::new().headers(&Deflater::new().headers(headers)).is_err(), "{:?}", headers[0].0);
        }
        for block in [&[0, 0, 0, 1][..], &[0, 0], &[0, 0, 0, 1, 0, 0, 0, 9, b'a'], &[0, 0, 0, 0, 1]] {
            assert!(Inflater::new().headers(&Deflater::new().raw(block)).is_err(), "{block:?}");
        }
        assert!(Inflater::new().headers(&[0x78, 0x9c]).is_err());
    }

    proptest! {
        #[test]
        fn no_block_panics_or_grows(block in prop::collection::vec(any::<u8>(), 0..2000), raw in any::<bool>()) {
            let mut inflater = Inflater::new();
            let compressed = if raw { block } else { Deflater::new().raw(&block) };
            drop(inflater.headers(&compressed));
            prop_assert!(inflater.block.capacity() <= 2 * LIMIT);
        }
    }
}
