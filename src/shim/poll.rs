//! What the loop waits for: file descriptors in an epoll set, each named by a token, and a few deadlines.
//!
//! Tokens carry a serial number that is never used twice, not a place in a table: an event that was already
//! fetched for something gone since then finds nothing, instead of its successor.

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::epoll;
use rustix::io::Errno;

use crate::lines::Stream;

/// Names one thing (a connection, a container, an exec) for as long as the shim lives.
pub(crate) type Serial = u64;

/// Events fetched at once.
const BATCH: usize = 32;

/// What became ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Token {
    /// A daemon connects.
    Listener,
    /// A child has ended.
    Children,
    /// A daemon's connection.
    Connection(Serial),
    /// A container's output.
    Output(Serial, Stream),
    /// A container's standard input.
    Input(Serial),
    /// What an attached client says to the container.
    ClientInput(Serial),
    /// What an attached client is told.
    ClientOutput(Serial, Stream),
    /// The launch of a container.
    ContainerLaunch(Serial),
    /// The launch of an exec.
    ExecLaunch(Serial),
}

impl Token {
    const KIND_BITS: u32 = 4;

    fn encode(self) -> epoll::EventData {
        let (kind, serial) = match self {
            Self::Listener => (0, 0),
            Self::Children => (1, 0),
            Self::Connection(serial) => (2, serial),
            Self::Output(serial, Stream::Stdout) => (3, serial),
            Self::Output(serial, Stream::Stderr) => (4, serial),
            Self::ContainerLaunch(serial) => (5, serial),
            Self::ExecLaunch(serial) => (6, serial),
            Self::Input(serial) => (7, serial),
            Self::ClientInput(serial) => (8, serial),
            Self::ClientOutput(serial, Stream::Stdout) => (9, serial),
            Self::ClientOutput(serial, Stream::Stderr) => (10, serial),
        };
        epoll::EventData::new_u64(serial << Self::KIND_BITS | kind)
    }

    /// `None` for data that no token encodes to, which the kernel never gives back.
    fn decode(data: epoll::EventData) -> Option<Self> {
        let serial = data.u64() >> Self::KIND_BITS;
        Some(match data.u64() & ((1 << Self::KIND_BITS) - 1) {
            0 => Self::Listener,
            1 => Self::Children,
            2 => Self::Connection(serial),
            3 => Self::Output(serial, Stream::Stdout),
            4 => Self::Output(serial, Stream::Stderr),
            5 => Self::ContainerLaunch(serial),
            6 => Self::ExecLaunch(serial),
            7 => Self::Input(serial),
            8 => Self::ClientInput(serial),
            9 => Self::ClientOutput(serial, Stream::Stdout),
            10 => Self::ClientOutput(serial, Stream::Stderr),
            _ => return None,
        })
    }
}

/// What a token is ready for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ready {
    /// Who.
    pub(crate) token: Token,
    /// Bytes can be read, or the other side is gone.
    pub(crate) readable: bool,
    /// Bytes can be written.
    pub(crate) writable: bool,
}

/// The set of watched file descriptors.
#[derive(Debug)]
pub(crate) struct Poll {
    epoll: OwnedFd,
}

impl Poll {
    /// Makes an empty set.
    pub(crate) fn new() -> Result<Self, Errno> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        Ok(Self { epoll })
    }

    /// Watches a file descriptor for input.
    pub(crate) fn add(&self, fd: impl AsFd, token: Token) -> Result<(), Errno> {
        epoll::add(&self.epoll, fd, token.encode(), epoll::EventFlags::IN)
    }

    /// Watches for room to write, besides input, or no longer.
    pub(crate) fn set_writing(&self, fd: impl AsFd, token: Token, writing: bool) -> Result<(), Errno> {
        epoll::modify(&self.epoll, fd, token.encode(), epoll::EventFlags::IN | room(writing))
    }

    /// Watches what is only written to: for its other side's end, and for room if there is something to write.
    pub(crate) fn add_writer(&self, fd: impl AsFd, token: Token, writing: bool) -> Result<(), Errno> {
        epoll::add(&self.epoll, fd, token.encode(), room(writing))
    }

    /// Watches what is only written to for room, or no longer.
    pub(crate) fn set_writer(&self, fd: impl AsFd, token: Token, writing: bool) -> Result<(), Errno> {
        epoll::modify(&self.epoll, fd, token.encode(), room(writing))
    }

    /// Stops watching. Closing is not enough where another process may hold the same open file.
    pub(crate) fn remove(&self, fd: impl AsFd) -> Result<(), Errno> {
        epoll::delete(&self.epoll, fd)
    }

    /// Waits until something is ready or the time has passed (`None`: for ever), and appends what is to `ready`.
    pub(crate) fn wait(&self, time: Option<Duration>, ready: &mut Vec<Ready>) -> Result<(), Errno> {
        // A duration that does not fit is as good as no limit.
        let time = time.and_then(|time| time.try_into().ok());
        let mut space = [MaybeUninit::uninit(); BATCH];
        let events = match epoll::wait(&self.epoll, &mut space, time.as_ref()) {
            Ok((events, _)) => events,
            Err(Errno::INTR) => return Ok(()),
            Err(error) => return Err(error),
        };
        ready.extend(events.iter().filter_map(|event| {
            // Copied out: the kernel's structure is packed, references into it are not allowed.
            let (data, flags) = (event.data, event.flags);
            let writable = flags.contains(epoll::EventFlags::OUT);
            let readable = flags.intersects(epoll::EventFlags::IN | epoll::EventFlags::HUP | epoll::EventFlags::ERR);
            Some(Ready { token: Token::decode(data)?, readable, writable })
        }));
        Ok(())
    }
}

/// The kernel always tells of the other side's end besides.
fn room(wanted: bool) -> epoll::EventFlags {
    if wanted { epoll::EventFlags::OUT } else { epoll::EventFlags::empty() }
}

/// What a deadline is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Timer {
    /// Nobody has connected to a shim without a pod for too long.
    Alone,
    /// Nothing has happened for a while: buffers can go.
    Quiet,
    /// An exec has used up its time.
    ExecTimeout(Serial),
    /// Look again whether a container's processes are gone.
    ContainerEnding(Serial),
    /// Look again whether an exec's processes are gone.
    ExecEnding(Serial),
    /// Accept connections again.
    Accept,
    /// Try a log again that could not be written.
    LogRetry(Serial),
    /// Look again whether a shutdown is done.
    Shutdown,
}

/// Deadlines that were set. A handful at most, so a list is searched.
#[derive(Debug, Default)]
pub(crate) struct Timers {
    set: Vec<(Instant, Timer)>,
}

impl Timers {
    /// Sets a timer, or moves it when it is set already.
    pub(crate) fn set(&mut self, timer: Timer, after: Duration) {
        self.cancel(timer);
        self.set.push((Instant::now() + after, timer));
    }

    /// Takes a timer back.
    pub(crate) fn cancel(&mut self, timer: Timer) {
        self.set.retain(|(_, other)| *other != timer);
    }

    /// How long the loop may sleep.
    pub(crate) fn next(&self, now: Instant) -> Option<Duration> {
        self.set.iter().map(|(at, _)| at.saturating_duration_since(now)).min()
    }

    /// Takes out one timer whose time has come, the earliest.
    pub(crate) fn expired(&mut self, now: Instant) -> Option<Timer> {
        let (place, _) =
            self.set.iter().enumerate().filter(|(_, (at, _))| *at <= now).min_by_key(|(_, (at, _))| *at)?;
        Some(self.set.swap_remove(place).1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_survive_the_kernel() {
        let serial = u64::from(u32::MAX) + 7;
        for token in [
            Token::Listener,
            Token::Children,
            Token::Connection(serial),
            Token::Output(serial, Stream::Stdout),
            Token::Output(serial, Stream::Stderr),
            Token::ContainerLaunch(serial),
            Token::ExecLaunch(serial),
            Token::Input(serial),
            Token::ClientInput(serial),
            Token::ClientOutput(serial, Stream::Stdout),
            Token::ClientOutput(serial, Stream::Stderr),
        ] {
            assert_eq!(Token::decode(token.encode()), Some(token));
        }
        assert_eq!(Token::decode(epoll::EventData::new_u64(11)), None);
    }

    #[test]
    fn a_closed_pipe_is_readable() {
        let poll = Poll::new().unwrap();
        let (read, write) = rustix::pipe::pipe().unwrap();
        poll.add(&read, Token::Children).unwrap();
        let mut ready = Vec::new();
        poll.wait(Some(Duration::ZERO), &mut ready).unwrap();
        assert!(ready.is_empty());
        drop(write);
        poll.wait(None, &mut ready).unwrap();
        assert!(matches!(ready[..], [Ready { token: Token::Children, readable: true, writable: false }]));
    }

    #[test]
    fn the_earliest_timer_comes_first_and_a_moved_one_once() {
        let mut timers = Timers::default();
        assert_eq!(timers.next(Instant::now()), None);
        timers.set(Timer::Alone, Duration::from_secs(50));
        timers.set(Timer::Quiet, Duration::from_secs(30));
        timers.set(Timer::Alone, Duration::from_secs(10));
        timers.set(Timer::Shutdown, Duration::from_secs(99));
        timers.cancel(Timer::Shutdown);
        let later = Instant::now() + Duration::from_secs(40);
        assert_eq!(timers.next(later), Some(Duration::ZERO));
        assert_eq!(timers.expired(later), Some(Timer::Alone));
        assert_eq!(timers.expired(later), Some(Timer::Quiet));
        assert_eq!(timers.expired(later), None);
    }
}
