//! Cuts a stream's bytes into lines of the CRI log: `time stream P|F text\n`. Pure: bytes in, text out.
//!
//! A line of the container becomes pieces of at most `max` bytes: all but the last are tagged P, the last F. A piece
//! is only written once it is known whether more follows, so the same bytes give the same pieces however the reads
//! fall; what is not decided yet is carried over, never more than `max` bytes. At the end of the stream a line that
//! lacks its newline is closed with F.

use std::io::BufRead;

use podwright_sys::stamp::Stamp;

/// Longest text of a log line when the plan does not say.
pub(crate) const DEFAULT_MAX_LINE: usize = 16 << 10;

/// Which of the container's outputs a line came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stream {
    /// File descriptor 1, and everything a terminal shows.
    Stdout,
    /// File descriptor 2.
    Stderr,
}

/// Whether a log line ends the container's line.
#[derive(Debug, Clone, Copy)]
enum Tag {
    Partial,
    Full,
}

/// The cutter of one stream.
#[derive(Debug)]
pub(crate) struct Lines {
    stream: Stream,
    max: usize,
    /// The beginning of a line whose end has not been seen.
    carry: Vec<u8>,
}

impl Lines {
    /// Makes a cutter with a limit on a piece's text (0: [`DEFAULT_MAX_LINE`]).
    pub(crate) fn new(stream: Stream, max_line: u32) -> Self {
        let max = if max_line == 0 { DEFAULT_MAX_LINE } else { max_line as usize };
        Self { stream, max, carry: Vec::new() }
    }

    /// Appends the log lines that `input` completes to `out`, and returns how many bytes it took: fewer than all when
    /// `out` has grown to `enough` bytes, for the caller to empty it and come back with the rest.
    pub(crate) fn cut(&mut self, stamp: &Stamp, input: &[u8], out: &mut Vec<u8>, enough: usize) -> usize {
        let mut rest = input;
        while !rest.is_empty() && out.len() < enough {
            let room = self.max - self.carry.len();
            // One byte more than there is room for: a newline there still makes the piece the line's last.
            let window = &rest[..rest.len().min(room + 1)];
            match newline(window) {
                Some(at) => {
                    self.piece(stamp, Tag::Full, &window[..at], out);
                    rest = &rest[at + 1..];
                }
                None if window.len() > room => {
                    self.piece(stamp, Tag::Partial, &window[..room], out);
                    rest = &rest[room..];
                }
                None => {
                    self.carry.extend_from_slice(window);
                    rest = &[];
                }
            }
        }
        input.len() - rest.len()
    }

    /// Closes a line that was left without its newline when the stream ended.
    pub(crate) fn finish(&mut self, stamp: &Stamp, out: &mut Vec<u8>) {
        if !self.carry.is_empty() {
            self.piece(stamp, Tag::Full, &[], out);
        }
    }

    fn piece(&mut self, stamp: &Stamp, tag: Tag, text: &[u8], out: &mut Vec<u8>) {
        out.extend_from_slice(stamp.as_bytes());
        out.extend_from_slice(match (self.stream, tag) {
            (Stream::Stdout, Tag::Full) => b" stdout F ",
            (Stream::Stdout, Tag::Partial) => b" stdout P ",
            (Stream::Stderr, Tag::Full) => b" stderr F ",
            (Stream::Stderr, Tag::Partial) => b" stderr P ",
        });
        if !self.carry.is_empty() {
            out.extend_from_slice(&self.carry);
            // Given back, not kept: most streams carry nothing most of the time.
            self.carry = Vec::new();
        }
        out.extend_from_slice(text);
        out.push(b'\n');
    }
}

/// Finds the first newline by the C library's vectorised search, which `skip_until` uses and slices do not offer.
fn newline(mut window: &[u8]) -> Option<usize> {
    let before = window;
    let skipped = window.skip_until(b'\n').ok()?;
    (before[..skipped].last() == Some(&b'\n')).then(|| skipped - 1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const STAMP: &str = "1970-01-01T00:00:00.000000000Z";

    /// Cuts the input in the given chunks, with the output emptied whenever it holds `enough`.
    fn log(max: u32, chunks: &[&[u8]], enough: usize) -> String {
        let stamp = Stamp::at(0, 0);
        let mut lines = Lines::new(Stream::Stderr, max);
        let (mut log, mut out) = (Vec::new(), Vec::new());
        for mut chunk in chunks.iter().copied() {
            while !chunk.is_empty() {
                let taken = lines.cut(&stamp, chunk, &mut out, enough);
                chunk = &chunk[taken..];
                log.append(&mut out);
            }
        }
        lines.finish(&stamp, &mut log);
        String::from_utf8(log).unwrap()
    }

    fn expect(pieces: &[(&str, &str)]) -> String {
        pieces.iter().map(|(tag, text)| format!("{STAMP} stderr {tag} {text}\n")).collect()
    }

    #[test]
    fn lines_within_the_limit_are_full() {
        assert_eq!(log(4, &[b"ab\n\nabcd\n"], 1), expect(&[("F", "ab"), ("F", ""), ("F", "abcd")]));
    }

    #[test]
    fn longer_lines_are_split_and_the_last_piece_is_full() {
        assert_eq!(
            log(4, &[b"abcde\nabcdefgh\n"], 1),
            expect(&[("P", "abcd"), ("F", "e"), ("P", "abcd"), ("F", "efgh")])
        );
    }

    #[test]
    fn what_lacks_its_newline_at_the_end_is_full() {
        assert_eq!(log(4, &[b"a\nbc"], 1), expect(&[("F", "a"), ("F", "bc")]));
        assert_eq!(log(4, &[b"abcd"], 1), expect(&[("F", "abcd")]));
        assert_eq!(log(4, &[b""], 1), "");
    }

    #[test]
    fn the_default_limit_is_16_kib() {
        let line = vec![b'x'; DEFAULT_MAX_LINE + 1];
        let text = String::from_utf8(line.clone()).unwrap();
        assert_eq!(log(0, &[&line, b"\n"], 1), expect(&[("P", &text[1..]), ("F", "x")]));
    }

    proptest! {
        #[test]
        fn the_reads_do_not_matter(input in "[ab\n]{0,200}", cuts in prop::collection::vec(0_usize..200, 0..8), max in 1_u32..20, enough in 1_usize..400) {
            let whole = log(max, &[input.as_bytes()], usize::MAX);
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(input.len())).collect();
            cuts.push(0);
            cuts.push(input.len());
            cuts.sort_unstable();
            let chunks: Vec<&[u8]> = cuts.windows(2).map(|pair| &input.as_bytes()[pair[0]..pair[1]]).collect();
            prop_assert_eq!(log(max, &chunks, enough), whole);
        }

        #[test]
        fn the_pieces_give_the_input_back(input in "[ab\n]{0,200}", max in 1_u32..20) {
            let mut back = String::new();
            for line in log(max, &[input.as_bytes()], usize::MAX).split_terminator('\n') {
                let (tag, text) = line[STAMP.len() + " stderr ".len()..].split_once(' ').unwrap();
                prop_assert!(text.len() <= max as usize);
                back.push_str(text);
                match tag {
                    "F" => back.push('\n'),
                    "P" => prop_assert_eq!(text.len(), max as usize),
                    other => prop_assert!(false, "tag {}", other),
                }
            }
            let mut closed = input;
            if !closed.is_empty() && !closed.ends_with('\n') {
                closed.push('\n');
            }
            prop_assert_eq!(back, closed);
        }
    }
}
