//! A container's log file in the CRI's format, read as it grows and is rotated.
//!
//! Each line is `TIME stdout|stderr P|F TEXT`; P says that the program's line goes on in the next line of the same stream.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// How much is read at once.
const CHUNK: usize = 64 << 10;

/// Which of the program's streams a line was written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stream {
    /// stdout
    Stdout,
    /// stderr
    Stderr,
}

/// A line of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Line<'a> {
    /// Where the program wrote it.
    pub(crate) stream: Stream,
    /// Whether the program's line ends here.
    pub(crate) full: bool,
    /// What it wrote, without the line's end.
    pub(crate) text: &'a [u8],
}

/// Reads one line; `None`: it is not in the CRI's format.
pub(crate) fn parse(line: &[u8]) -> Option<Line<'_>> {
    let mut words = line.splitn(4, |byte| *byte == b' ');
    let time = words.next()?;
    if !time.first()?.is_ascii_digit() {
        return None;
    }
    let stream = match words.next()? {
        b"stdout" => Stream::Stdout,
        b"stderr" => Stream::Stderr,
        _ => return None,
    };
    // The tag is a list with colons between, of which only the first is defined.
    let full = match words.next()?.split(|byte| *byte == b':').next()? {
        b"F" => true,
        b"P" => false,
        _ => return None,
    };
    Some(Line { stream, full, text: words.next().unwrap_or_default() })
}

/// A log file, read on from where it was left.
#[derive(Debug)]
pub(crate) struct LogReader {
    path: PathBuf,
    file: Option<File>,
    /// The beginning of a line whose end is not written yet.
    rest: Vec<u8>,
}

impl LogReader {
    /// Reads the log at `path` from its beginning; it may not be there yet.
    pub(crate) fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), file: None, rest: Vec::new() }
    }

    /// Copies all that has been written since the last call.
    ///
    /// # Errors
    /// The file cannot be read or is no CRI log, or the output cannot be written.
    pub(crate) fn copy(&mut self, stdout: &mut impl Write, stderr: &mut impl Write) -> io::Result<()> {
        loop {
            if self.file.is_none() {
                self.file = open(&self.path)?;
            }
            // Asked before the last read: the log's writer goes over to a new file only after it has finished the
            // old one, so what is read after a new one was seen is all of the old.
            let rotated = self.rotated()?;
            self.read_on(stdout, stderr)?;
            if !rotated {
                break;
            }
            self.file = None;
        }
        stdout.flush()?;
        stderr.flush()
    }

    fn rotated(&self) -> io::Result<bool> {
        let Some(file) = &self.file else { return Ok(false) };
        let held = file.metadata()?;
        match fs::metadata(&self.path) {
            Ok(there) => Ok((there.dev(), there.ino()) != (held.dev(), held.ino())),
            // Moved away, and not made anew yet.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn read_on(&mut self, stdout: &mut impl Write, stderr: &mut impl Write) -> io::Result<()> {
        let Some(file) = &mut self.file else { return Ok(()) };
        let mut chunk = vec![0; CHUNK];
        loop {
            let length = file.read(&mut chunk)?;
            if length == 0 {
                return Ok(());
            }
            self.rest.extend_from_slice(&chunk[..length]);
            let Some(end) = self.rest.iter().rposition(|byte| *byte == b'\n') else { continue };
            for line in self.rest[..end].split(|byte| *byte == b'\n') {
                let malformed = || io::Error::new(io::ErrorKind::InvalidData, "a line is not in the CRI's log format");
                let line = parse(line).ok_or_else(malformed)?;
                match line.stream {
                    Stream::Stdout => write_text(stdout, &line)?,
                    Stream::Stderr => write_text(stderr, &line)?,
                }
            }
            self.rest.drain(..=end);
        }
    }
}

fn open(path: &Path) -> io::Result<Option<File>> {
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn write_text(out: &mut impl Write, line: &Line<'_>) -> io::Result<()> {
    out.write_all(line.text)?;
    if line.full { out.write_all(b"\n") } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIME: &str = "2026-11-24T21:57:00.123456789Z";

    #[test]
    fn lines_are_read() {
        let line = |text: &str| format!("{TIME} {text}").into_bytes();
        for (text, want) in [
            ("stdout F hello  world ", Some((Stream::Stdout, true, "hello  world "))),
            ("stderr P part", Some((Stream::Stderr, false, "part"))),
            ("stdout F ", Some((Stream::Stdout, true, ""))),
            ("stdout F", Some((Stream::Stdout, true, ""))),
            ("stdout P:x:y z", Some((Stream::Stdout, false, "z"))),
            ("stdin F x", None),
            ("stdout X x", None),
            ("stdout", None),
        ] {
            let want = want.map(|(stream, full, text)| Line { stream, full, text: text.as_bytes() });
            assert_eq!(parse(&line(text)), want, "{text}");
        }
        assert_eq!(parse(b""), None);
        assert_eq!(parse(b"stdout F x"), None);
    }

    struct Log {
        path: PathBuf,
        reader: LogReader,
        _dir: tempfile::TempDir,
    }

    impl Log {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("0.log");
            Self { reader: LogReader::new(&path), path, _dir: dir }
        }

        fn append(&self, text: &str) {
            let mut file = File::options().create(true).append(true).open(&self.path).unwrap();
            file.write_all(text.replace("TIME", TIME).as_bytes()).unwrap();
        }

        fn read(&mut self) -> (String, String) {
            let (mut out, mut err) = (Vec::new(), Vec::new());
            self.reader.copy(&mut out, &mut err).unwrap();
            (String::from_utf8(out).unwrap(), String::from_utf8(err).unwrap())
        }

        fn expect(&mut self, out: &str, err: &str) {
            assert_eq!(self.read(), (out.to_owned(), err.to_owned()));
        }
    }

    #[test]
    fn a_growing_file_is_read_on() {
        let mut log = Log::new();
        log.expect("", "");
        log.append("TIME stdout F one\nTIME stderr F two\nTIME std");
        log.expect("one\n", "two\n");
        log.expect("", "");
        log.append("out P thr");
        log.expect("", "");
        log.append("\nTIME stdout F ee\n");
        log.expect("three\n", "");
    }

    #[test]
    fn a_rotated_file_is_finished_before_the_new_one() {
        let mut log = Log::new();
        log.append("TIME stdout F one\n");
        log.expect("one\n", "");
        log.append("TIME stdout F two\n");
        fs::rename(&log.path, log.path.with_extension("old")).unwrap();
        log.expect("two\n", "");
        log.append("TIME stdout F three\n");
        log.expect("three\n", "");
    }

    #[test]
    fn another_file_is_no_log() {
        let mut log = Log::new();
        log.append("#!/bin/sh\n");
        let error = log.reader.copy(&mut Vec::new(), &mut Vec::new()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }
}
