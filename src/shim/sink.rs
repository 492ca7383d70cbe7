//! One client's end of one output stream: it takes what it can at once, and the rest waits, up to a limit.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;

use rustix::io::Errno;

use crate::output::CHUNK;
use crate::poll::{Poll, Token};

/// Bytes that may wait for a client.
pub(crate) const MAX_WAITING: usize = 1 << 20;

/// Why a client's end is of no further use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lost {
    /// The client has closed its side, or nothing can be written to it.
    Left,
    /// It reads too slowly.
    Slow,
    /// The stream has ended and all of it was written.
    Done,
}

/// A client's end.
#[derive(Debug)]
pub(crate) struct Sink {
    fd: OwnedFd,
    token: Token,
    waiting: VecDeque<u8>,
    /// The stream has ended: no more will be offered.
    ending: bool,
}

impl Sink {
    /// Takes what a client reads from, and makes it non-blocking.
    pub(crate) fn open(fd: OwnedFd, token: Token, poll: &Poll) -> Result<Self, Errno> {
        rustix::io::ioctl_fionbio(&fd, true)?;
        poll.add_writer(&fd, token, false)?;
        Ok(Self { fd, token, waiting: VecDeque::new(), ending: false })
    }

    /// Passes on what the container said, at most a chunk at once.
    pub(crate) fn offer(&mut self, bytes: &[u8], poll: &Poll) -> Result<(), Lost> {
        let idle = self.waiting.is_empty();
        let rest = if idle { &bytes[self.write(bytes)?..] } else { bytes };
        if rest.is_empty() {
            return Ok(());
        }
        if self.waiting.len() + rest.len() > MAX_WAITING {
            return Err(Lost::Slow);
        }
        // From a whole chunk on the buffer doubles, and so ends at the limit without overshooting.
        self.waiting.reserve(rest.len().max(if idle { CHUNK } else { 0 }));
        self.waiting.extend(rest);
        if idle { self.await_room(true, poll) } else { Ok(()) }
    }

    /// Writes what waits, when there is room.
    pub(crate) fn flush(&mut self, poll: &Poll) -> Result<(), Lost> {
        let written = self.write(self.waiting.as_slices().0)?;
        self.waiting.drain(..written);
        if !self.waiting.is_empty() {
            return Ok(());
        }
        self.waiting = VecDeque::new();
        if self.ending { Err(Lost::Done) } else { self.await_room(false, poll) }
    }

    /// The stream has ended.
    pub(crate) fn end(&mut self) -> Result<(), Lost> {
        self.ending = true;
        if self.waiting.is_empty() { Err(Lost::Done) } else { Ok(()) }
    }

    /// Closes it.
    pub(crate) fn close(self, poll: &Poll) {
        // It is in the set since it was opened, and nothing else takes it out.
        let _unwatched = poll.remove(&self.fd);
    }

    /// Writes once: what is left after that finds no room before the poll set says so.
    fn write(&self, bytes: &[u8]) -> Result<usize, Lost> {
        match rustix::io::retry_on_intr(|| rustix::io::write(&self.fd, bytes)) {
            Ok(written) => Ok(written),
            Err(Errno::AGAIN) => Ok(0),
            Err(_) => Err(Lost::Left),
        }
    }

    fn await_room(&self, wanted: bool, poll: &Poll) -> Result<(), Lost> {
        // Nobody could tell when to go on.
        poll.set_writer(&self.fd, self.token, wanted).map_err(|_| Lost::Left)
    }
}

#[cfg(test)]
mod tests {
    use rustix::pipe::{PipeFlags, pipe_with};

    use super::*;
    use crate::lines::Stream;

    fn sink() -> (Poll, OwnedFd, Sink) {
        let poll = Poll::new().unwrap();
        let (read, write) = pipe_with(PipeFlags::empty()).unwrap();
        rustix::io::ioctl_fionbio(&read, true).unwrap();
        let sink = Sink::open(write, Token::ClientOutput(1, Stream::Stdout), &poll).unwrap();
        (poll, read, sink)
    }

    fn take(read: &OwnedFd, into: &mut Vec<u8>) -> usize {
        let mut bytes = [0; 10_000];
        let count = rustix::io::read(read, &mut bytes).unwrap();
        into.extend_from_slice(&bytes[..count]);
        count
    }

    #[test]
    fn what_waits_comes_in_order_and_the_end_after_it() {
        let (poll, read, mut sink) = sink();
        let sent: Vec<u8> = (0..600_000_u32).map(|n| (n % 251) as u8).collect();
        for part in sent.chunks(CHUNK) {
            sink.offer(part, &poll).unwrap();
        }
        sink.end().unwrap();
        let mut got = Vec::new();
        while got.len() < sent.len() {
            take(&read, &mut got);
            match sink.flush(&poll) {
                Ok(()) => assert!(!sink.waiting.is_empty()),
                Err(lost) => assert_eq!((lost, sink.waiting.capacity()), (Lost::Done, 0)),
            }
            if sink.waiting.is_empty() {
                break;
            }
        }
        sink.close(&poll);
        while take(&read, &mut got) != 0 {}
        assert!(got == sent);
    }

    #[test]
    fn a_slow_client_holds_no_more_than_the_limit() {
        let (poll, _read, mut sink) = sink();
        let mut offered = 0;
        let lost = loop {
            match sink.offer(&[b'x'; CHUNK - 1], &poll) {
                Ok(()) => offered += CHUNK - 1,
                Err(lost) => break lost,
            }
            assert!(sink.waiting.capacity() <= MAX_WAITING);
        };
        assert_eq!(lost, Lost::Slow);
        // All of the limit was used, and the pipe besides.
        assert!(offered > MAX_WAITING, "{offered}");
    }

    #[test]
    fn one_that_left_is_told() {
        let (poll, read, mut sink) = sink();
        drop(read);
        let mut ready = Vec::new();
        poll.wait(None, &mut ready).unwrap();
        assert!(ready[0].readable && !ready[0].writable);
        assert_eq!(sink.offer(b"x", &poll), Err(Lost::Left));
        assert_eq!(sink.end(), Err(Lost::Done));
    }
}
