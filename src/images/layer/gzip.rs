//! gzip (RFC 1952) without its checksum, for bytes that SHA-256 is taken of anyway: the CRC beside it costs a tenth of
//! the inflating and proves nothing more. Everything else is read as `flate2` reads it: one member after the other, and
//! nothing else behind the last.

use std::io::{self, BufRead, Read};

use flate2::{Decompress, FlushDecompress, Status};

const MAGIC: [u8; 3] = [0x1f, 0x8b, 8];
const HAS_HEADER_CRC: u8 = 2;
const HAS_EXTRA: u8 = 4;
const HAS_NAME: u8 = 8;
const HAS_COMMENT: u8 = 16;

/// Inflates what it reads.
pub(crate) struct Gunzip<R> {
    source: R,
    inflate: Decompress,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// A member's header comes, or the end.
    Between,
    Inside,
    Ended,
}

impl<R: BufRead> Gunzip<R> {
    pub(crate) fn new(source: R) -> Self {
        Self { source, inflate: Decompress::new(false), state: State::Between }
    }

    /// Reads a member's header; at the end of the stream there is none.
    fn header(&mut self) -> io::Result<State> {
        if self.source.fill_buf()?.is_empty() {
            return Ok(State::Ended);
        }
        // Magic and method, flags, time, what made it.
        let mut fixed = [0; 10];
        self.source.read_exact(&mut fixed)?;
        if !fixed.starts_with(&MAGIC) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "there is no gzip header"));
        }
        let flags = fixed[3];
        if flags & HAS_EXTRA != 0 {
            let mut length = [0; 2];
            self.source.read_exact(&mut length)?;
            self.pass(u16::from_le_bytes(length).into())?;
        }
        for text in [HAS_NAME, HAS_COMMENT] {
            if flags & text != 0 {
                self.source.skip_until(0)?;
            }
        }
        if flags & HAS_HEADER_CRC != 0 {
            self.pass(2)?;
        }
        self.inflate.reset(false);
        Ok(State::Inside)
    }

    /// Inflates until the buffer is full: that many bytes at once are what the decompressor is quickest with.
    fn member(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut filled = 0;
        while filled < buffer.len() {
            let input = match self.source.fill_buf() {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                input => input?,
            };
            let (read, written) = (self.inflate.total_in(), self.inflate.total_out());
            let status = self.inflate.decompress(input, &mut buffer[filled..], FlushDecompress::None)?;
            let (read, written) = (self.inflate.total_in() - read, self.inflate.total_out() - written);
            // Neither is more than the slice it counts in.
            let (read, written) = (read as usize, written as usize);
            let is_stuck = input.is_empty() && written == 0;
            self.source.consume(read);
            filled += written;
            if status == Status::StreamEnd {
                // The checksum and the length.
                self.pass(8)?;
                self.state = State::Between;
                break;
            }
            if is_stuck {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(filled)
    }

    /// Passes over bytes that must be there.
    fn pass(&mut self, length: u64) -> io::Result<()> {
        let passed = io::copy(&mut self.source.by_ref().take(length), &mut io::sink())?;
        if passed == length { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }
}

impl<R: BufRead> Read for Gunzip<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while !buffer.is_empty() {
            match self.state {
                State::Ended => break,
                State::Between => self.state = self.header()?,
                State::Inside => {
                    let read = self.member(buffer)?;
                    if read > 0 {
                        return Ok(read);
                    }
                }
            }
        }
        Ok(0)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::bufread::MultiGzDecoder;
    use flate2::{Compression, GzBuilder};
    use proptest::prelude::*;

    use super::*;

    fn member(builder: GzBuilder, bytes: &[u8]) -> Vec<u8> {
        let mut encoder = builder.write(Vec::new(), Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn inflate(bytes: &[u8]) -> io::Result<Vec<u8>> {
        let mut plain = Vec::new();
        Gunzip::new(bytes).read_to_end(&mut plain).map(|_| plain)
    }

    #[test]
    fn members_follow_each_other_and_their_headers_are_passed_over() {
        let long = vec![b'x'; 300_000];
        let mut bytes = member(GzBuilder::new().extra(vec![1; 700]).filename("name").comment("says"), &long);
        bytes.extend(member(GzBuilder::new(), b""));
        bytes.extend(member(GzBuilder::new(), b"more"));
        assert_eq!(inflate(&bytes).unwrap(), [&long, &b"more"[..]].concat());
    }

    #[test]
    fn a_cut_stream_is_an_error_wherever_it_is_cut() {
        let bytes = member(GzBuilder::new().filename("name"), b"some bytes, some bytes, some bytes");
        for end in 1..bytes.len() {
            assert_eq!(inflate(&bytes[..end]).unwrap_err().kind(), io::ErrorKind::UnexpectedEof, "cut at {end}");
        }
    }

    proptest! {
        #[test]
        fn what_flate2_reads_is_read_alike(
            plain in proptest::collection::vec(0_u8..4, 0..2000),
            at in any::<prop::sample::Index>(),
            flip in any::<u8>(),
        ) {
            let mut bytes = member(GzBuilder::new(), &plain);
            let at = at.index(bytes.len());
            bytes[at] ^= flip;
            let mut expected = Vec::new();
            if MultiGzDecoder::new(&bytes[..]).read_to_end(&mut expected).is_ok() {
                prop_assert_eq!(inflate(&bytes).unwrap(), expected);
            } else {
                // Whatever comes, it ends, in bounded memory.
                let _ = inflate(&bytes);
            }
        }
    }
}
