//! A container's output: pipes or a console on one side, the log file and attached clients on the other.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use podwright_plan::wire;
use rustix::buffer::spare_capacity;
use rustix::io::Errno;

use crate::clients::Clients;
use crate::lines::{Lines, Stream};
use crate::logfile::LogFile;
use crate::poll::{Poll, Serial, Token};
use podwright_sys::stamp::Stamp;

/// Bytes read at once: what a pipe holds.
pub(crate) const CHUNK: usize = 64 << 10;
/// Bytes of log text after which it is written.
const TEXT: usize = 128 << 10;

/// More than a terminal holds.
const CONSOLE: u64 = 1 << 20;

/// Buffers that all containers share. Empty until the first read; given back when the pod is quiet.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    chunk: Vec<u8>,
    text: Vec<u8>,
}

impl Scratch {
    /// Lends the buffer for reads, empty.
    pub(crate) fn chunk(&mut self) -> &mut Vec<u8> {
        self.chunk.clear();
        &mut self.chunk
    }

    /// Gives the memory back.
    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }
}

/// Where the container writes to.
#[derive(Debug)]
struct Source {
    fd: OwnedFd,
    lines: Lines,
    /// A terminal's master: its text is on the way for a moment after the last writer is gone.
    console: bool,
}

/// What a read came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Read {
    Bytes(usize),
    Nothing,
    End,
}

/// A container's streams and its log.
#[derive(Debug)]
pub(crate) struct Output {
    serial: Serial,
    max_line: u32,
    log: LogFile,
    stdout: Option<Source>,
    stderr: Option<Source>,
}

impl Output {
    /// Opens the log, with no streams yet.
    pub(crate) fn open(serial: Serial, log: &wire::Log) -> Result<Self, Errno> {
        Ok(Self { serial, max_line: log.max_line, log: LogFile::open(log)?, stdout: None, stderr: None })
    }

    /// Begins to read a pair of pipes.
    pub(crate) fn attach_pipes(&mut self, poll: &Poll, stdout: OwnedFd, stderr: OwnedFd) -> Result<(), Errno> {
        for (fd, stream) in [(stdout, Stream::Stdout), (stderr, Stream::Stderr)] {
            poll.add(&fd, Token::Output(self.serial, stream))?;
            let lines = Lines::new(stream, self.max_line);
            *self.source(stream) = Some(Source { fd, lines, console: false });
        }
        Ok(())
    }

    /// Begins to read a terminal's master.
    pub(crate) fn attach_console(&mut self, poll: &Poll, master: OwnedFd) -> Result<(), Errno> {
        poll.add(&master, Token::Output(self.serial, Stream::Stdout))?;
        let lines = Lines::new(Stream::Stdout, self.max_line);
        self.stdout = Some(Source { fd: master, lines, console: true });
        Ok(())
    }

    /// The log file.
    pub(crate) fn log(&mut self) -> &mut LogFile {
        &mut self.log
    }

    /// Why the log cannot be written, while it cannot.
    pub(crate) fn problem(&self) -> Option<Errno> {
        self.log.problem()
    }

    /// What the log's rotation last failed with, until it succeeds.
    pub(crate) fn rotation_problem(&self) -> Option<Errno> {
        self.log.rotation_problem()
    }

    /// Whether a stream has not ended.
    pub(crate) fn reads(&self, stream: Stream) -> bool {
        match stream {
            Stream::Stdout => self.stdout.is_some(),
            Stream::Stderr => self.stderr.is_some(),
        }
    }

    /// The terminal's master, until it has ended.
    pub(crate) fn console(&self) -> Option<BorrowedFd<'_>> {
        self.stdout.as_ref().filter(|source| source.console).map(|source| source.fd.as_fd())
    }

    /// Whether every stream has ended and all of it is in the log.
    pub(crate) fn finished(&self) -> bool {
        self.stdout.is_none() && self.stderr.is_none() && self.problem().is_none()
    }

    /// Moves what one stream has to say into the log and to clients, once. A log that has a problem afterwards wants
    /// [`Output::pause`].
    pub(crate) fn pump(&mut self, stream: Stream, clients: &mut Clients, poll: &Poll, scratch: &mut Scratch) {
        if self.problem().is_none() && self.step(stream, clients, poll, scratch) == Read::End {
            self.close(stream, clients, poll, scratch);
        }
    }

    /// Takes the streams out of the poll set while the log cannot be written.
    pub(crate) fn pause(&self, poll: &Poll) -> Result<(), Errno> {
        self.sources().try_for_each(|source| poll.remove(&source.fd))
    }

    /// Puts them back.
    pub(crate) fn resume(&self, poll: &Poll) -> Result<(), Errno> {
        let watch = |source: &Source, stream| poll.add(&source.fd, Token::Output(self.serial, stream));
        self.stdout.as_ref().map_or(Ok(()), |source| watch(source, Stream::Stdout))?;
        self.stderr.as_ref().map_or(Ok(()), |source| watch(source, Stream::Stderr))
    }

    /// Takes what is left once every process that should write is gone, and closes the streams: at most what the pipe
    /// holds at this moment, since a process that got away may hold the other end and write for ever.
    ///
    /// A console is closed when it says that its last writer is gone, or when this is the `last` attempt. Whatever
    /// cannot be logged now stays in the pipe. Says whether all streams are closed.
    pub(crate) fn drain(&mut self, last: bool, clients: &mut Clients, poll: &Poll, scratch: &mut Scratch) -> bool {
        for stream in [Stream::Stdout, Stream::Stderr] {
            let Some(source) = self.source(stream) else { continue };
            let console = source.console;
            // What a terminal still has cannot be asked for; an error means that no bytes can be read either.
            let held = if console { Ok(CONSOLE) } else { rustix::io::ioctl_fionread(&source.fd) };
            let mut left = held.unwrap_or(0);
            let end = loop {
                if self.problem().is_some() {
                    break false;
                }
                match self.step(stream, clients, poll, scratch) {
                    Read::Bytes(count) if (count as u64) < left => left -= count as u64,
                    Read::Bytes(_) | Read::Nothing => break !console || last,
                    Read::End => break true,
                }
            };
            if end {
                self.close(stream, clients, poll, scratch);
            }
        }
        self.stdout.is_none() && self.stderr.is_none()
    }

    fn source(&mut self, stream: Stream) -> &mut Option<Source> {
        match stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        }
    }

    fn sources(&self) -> impl Iterator<Item = &Source> {
        self.stdout.iter().chain(&self.stderr)
    }

    /// Reads once, logs it and tells it to clients.
    fn step(&mut self, stream: Stream, clients: &mut Clients, poll: &Poll, scratch: &mut Scratch) -> Read {
        let Some(source) = self.source(stream) else { return Read::Nothing };
        let chunk = scratch.chunk();
        chunk.reserve(CHUNK);
        match rustix::io::retry_on_intr(|| rustix::io::read(&source.fd, spare_capacity(chunk))) {
            Ok(0) => return Read::End,
            Ok(_) => {}
            Err(Errno::AGAIN) => return Read::Nothing,
            // A console answers EIO when its last slave is closed; any other error will not get better either.
            Err(_) => return Read::End,
        }
        let stamp = Stamp::now();
        let mut rest = &scratch.chunk[..];
        while !rest.is_empty() && self.log.wanted() {
            let Some(source) = self.source(stream) else { break };
            scratch.text.clear();
            let taken = source.lines.cut(&stamp, rest, &mut scratch.text, TEXT);
            rest = &rest[taken..];
            self.log.write(&scratch.text);
        }
        clients.offer(stream, &scratch.chunk, poll);
        Read::Bytes(scratch.chunk.len())
    }

    /// Closes a stream, also for clients, and logs the line it left open.
    fn close(&mut self, stream: Stream, clients: &mut Clients, poll: &Poll, scratch: &mut Scratch) {
        let Some(mut source) = self.source(stream).take() else { return };
        // Fails only when the log is held, and the descriptor is not in the set.
        let _unwatched = poll.remove(&source.fd);
        clients.end(stream, poll);
        scratch.text.clear();
        source.lines.finish(&Stamp::now(), &mut scratch.text);
        self.log.write(&scratch.text);
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use rustix::pipe::{PipeFlags, pipe_with};

    use super::*;

    struct Fixture {
        dir: tempfile::TempDir,
        poll: Poll,
        scratch: Scratch,
        clients: Clients,
        output: Output,
        stdout: OwnedFd,
        stderr: OwnedFd,
    }

    impl Fixture {
        fn new(log: Option<&str>) -> Self {
            let dir = tempfile::tempdir().unwrap();
            let path = log.map_or_else(|| dir.path().join("log").to_str().unwrap().to_owned(), str::to_owned);
            let poll = Poll::new().unwrap();
            let mut output = Output::open(1, &log_at(&path)).unwrap();
            let (out, stdout) = pipe_with(PipeFlags::NONBLOCK).unwrap();
            let (err, stderr) = pipe_with(PipeFlags::NONBLOCK).unwrap();
            output.attach_pipes(&poll, out, err).unwrap();
            Self { dir, poll, scratch: Scratch::default(), clients: Clients::new(), output, stdout, stderr }
        }

        fn pump(&mut self, stream: Stream) {
            self.output.pump(stream, &mut self.clients, &self.poll, &mut self.scratch);
        }

        fn drain(&mut self, last: bool) -> bool {
            self.output.drain(last, &mut self.clients, &self.poll, &mut self.scratch)
        }

        fn log(&self) -> Vec<String> {
            texts(&self.dir.path().join("log"))
        }
    }

    fn log_at(path: &str) -> wire::Log {
        wire::Log { path: path.to_owned(), ..Default::default() }
    }

    /// The log's lines without their times.
    fn texts(path: &Path) -> Vec<String> {
        let log = std::fs::read_to_string(path).unwrap();
        // Not by `lines`, which would take a terminal's carriage return for a part of the line's end.
        log.split_terminator('\n').map(|line| line.split_once(' ').unwrap().1.to_owned()).collect()
    }

    #[test]
    fn both_streams_are_logged_until_they_end() {
        let mut test = Fixture::new(None);
        rustix::io::write(&test.stdout, b"out\nrest").unwrap();
        rustix::io::write(&test.stderr, b"err\n").unwrap();
        test.pump(Stream::Stdout);
        test.pump(Stream::Stderr);
        test.pump(Stream::Stderr);
        assert_eq!(test.log(), ["stdout F out", "stderr F err"]);
        assert!(!test.output.finished());
        let (stdout, stderr) = (test.stdout, test.stderr);
        drop((stdout, stderr));
        test.output.pump(Stream::Stdout, &mut test.clients, &test.poll, &mut test.scratch);
        test.output.pump(Stream::Stderr, &mut test.clients, &test.poll, &mut test.scratch);
        assert!(test.output.finished());
        assert_eq!(texts(&test.dir.path().join("log")), ["stdout F out", "stderr F err", "stdout F rest"]);
    }

    #[test]
    fn a_pipe_that_somebody_keeps_open_is_drained_to_what_it_holds() {
        let mut test = Fixture::new(None);
        rustix::io::write(&test.stdout, &[b'x'; 40_000]).unwrap();
        assert!(test.drain(false));
        assert!(test.output.finished());
        assert_eq!(test.log().iter().map(|text| text.len() - "stdout F ".len()).sum::<usize>(), 40_000);
        assert_eq!(rustix::io::write(&test.stdout, b"late").unwrap_err(), Errno::PIPE);
    }

    #[test]
    fn a_full_disk_stops_the_reading_and_loses_nothing() {
        let mut test = Fixture::new(Some("/dev/full"));
        rustix::io::write(&test.stdout, b"one\n").unwrap();
        test.pump(Stream::Stdout);
        assert_eq!(test.output.problem(), Some(Errno::NOSPC));
        test.output.pause(&test.poll).unwrap();
        rustix::io::write(&test.stdout, b"two\n").unwrap();
        test.pump(Stream::Stdout);
        assert!(!test.drain(true));
        assert_eq!(rustix::io::ioctl_fionread(&test.output.stdout.as_ref().unwrap().fd).unwrap(), 4);

        let path = test.dir.path().join("log");
        let fixed = LogFile::open(&log_at(path.to_str().unwrap())).unwrap();
        let held = std::mem::replace(&mut test.output.log, fixed);
        assert_eq!(held.problem(), Some(Errno::NOSPC));
        test.output.resume(&test.poll).unwrap();
        assert!(test.drain(true));
        assert_eq!(test.log(), ["stdout F two"]);
    }

    #[test]
    fn a_console_is_all_stdout_and_ends_with_its_last_slave() {
        let mut test = Fixture::new(None);
        let flags = rustix::pty::OpenptFlags::RDWR | rustix::pty::OpenptFlags::NOCTTY;
        let master = rustix::pty::openpt(flags).unwrap();
        rustix::pty::grantpt(&master).unwrap();
        rustix::pty::unlockpt(&master).unwrap();
        let slave = rustix::pty::ioctl_tiocgptpeer(&master, flags).unwrap();
        rustix::io::ioctl_fionbio(&master, true).unwrap();
        test.output = Output::open(2, &log_at(test.dir.path().join("log").to_str().unwrap())).unwrap();
        test.output.attach_console(&test.poll, master).unwrap();
        rustix::io::write(&slave, b"hello\n").unwrap();
        assert!(!test.drain(false));
        drop(slave);
        while !test.drain(false) {
            std::thread::yield_now();
        }
        assert_eq!(test.log(), ["stdout F hello\r"]);
    }

    #[test]
    fn without_a_log_output_is_read_and_dropped() {
        let mut test = Fixture::new(Some(""));
        rustix::io::write(&test.stdout, b"one\n").unwrap();
        test.pump(Stream::Stdout);
        assert_eq!(rustix::io::ioctl_fionread(&test.output.stdout.as_ref().unwrap().fd).unwrap(), 0);
    }
}
