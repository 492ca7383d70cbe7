//! A container's terminal: its master goes to whoever listens on `--console-socket`, or is served by this process.

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
    sendmsg,
};
use rustix::termios::{OptionalActions, Termios};

use crate::error::Error;

/// What the receiver is told the terminal's name is: it is one of the container's own devpts.
const NAME: &[u8] = b"/dev/ptmx";
/// Bytes that are taken from one side before the other has them.
const BUFFER: usize = 16 << 10;

/// Sends a master to a socket; without a socket it stays the caller's.
pub(crate) fn hand_over(master: OwnedFd, socket: Option<&Path>) -> Result<Option<OwnedFd>, Error> {
    let Some(path) = socket else { return Ok(Some(master)) };
    send(&master, path).map_err(Error::step("send the terminal to", path.display()))?;
    Ok(None)
}

fn send(master: &OwnedFd, path: &Path) -> Result<(), Errno> {
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    let fds = [master.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    control.push(SendAncillaryMessage::ScmRights(&fds));
    sendmsg(&socket, &[IoSlice::new(NAME)], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// This process's terminal while it shows a container's: every key goes to the container.
#[derive(Debug)]
pub(crate) struct Raw(Termios);

impl Raw {
    /// Sets standard input to raw; `None` where it is no terminal.
    pub(crate) fn set() -> Option<Self> {
        let before = rustix::termios::tcgetattr(rustix::stdio::stdin()).ok()?;
        let mut raw = before.clone();
        raw.make_raw();
        rustix::termios::tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, &raw).ok()?;
        Some(Self(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // There is nobody left to tell.
        let _ = rustix::termios::tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, &self.0);
    }
}

/// Gives a container's terminal the size of this process's.
pub(crate) fn resize(master: BorrowedFd<'_>) {
    // A size that cannot be told is no reason to end.
    if let Ok(size) = rustix::termios::tcgetwinsize(rustix::stdio::stdin()) {
        let _ = rustix::termios::tcsetwinsize(master, size);
    }
}

/// Copies between a container's terminal and this process's standard streams.
#[derive(Debug)]
pub(crate) struct Copy {
    master: OwnedFd,
    typed: Vec<u8>,
    /// Whether standard input has not ended.
    listens: bool,
    /// Whether the terminal has another side.
    shows: bool,
}

impl Copy {
    /// Takes the master.
    pub(crate) fn new(master: OwnedFd) -> Result<Self, Error> {
        rustix::io::ioctl_fionbio(&master, true).map_err(Error::step("make non-blocking", "the terminal"))?;
        Ok(Self { master, typed: Vec::new(), listens: true, shows: true })
    }

    pub(crate) fn master(&self) -> BorrowedFd<'_> {
        self.master.as_fd()
    }

    /// Waits until there is something to copy, or `other` is readable, and copies. Says whether `other` is.
    pub(crate) fn turn(&mut self, other: BorrowedFd<'_>) -> Result<bool, Errno> {
        let stdin = rustix::stdio::stdin();
        let wants_key = if self.listens && self.typed.is_empty() { PollFlags::IN } else { PollFlags::empty() };
        let mut wants = if self.shows { PollFlags::IN } else { PollFlags::empty() };
        wants.set(PollFlags::OUT, self.shows && !self.typed.is_empty());
        let mut waits = vec![PollFd::from_borrowed_fd(other, PollFlags::IN)];
        // What is not waited for would still tell of its hang-up, again and again.
        if self.shows {
            waits.push(PollFd::new(&self.master, wants));
        }
        if !wants_key.is_empty() {
            waits.push(PollFd::from_borrowed_fd(stdin, wants_key));
        }
        if let Err(errno) = poll(&mut waits, None) {
            return if errno == Errno::INTR { Ok(false) } else { Err(errno) };
        }
        let ready = !waits[0].revents().is_empty();
        let shown = self.shows && !waits[1].revents().is_empty();
        let typed = !wants_key.is_empty() && waits.last().is_some_and(|it| !it.revents().is_empty());
        drop(waits);
        if typed {
            self.read_keys()?;
        }
        if shown {
            self.write_keys()?;
            self.show()?;
        }
        Ok(ready)
    }

    /// Shows what the container has written before its end.
    pub(crate) fn drain(&mut self) -> Result<(), Errno> {
        self.show()
    }

    fn read_keys(&mut self) -> Result<(), Errno> {
        let mut part = [0; BUFFER];
        match rustix::io::read(rustix::stdio::stdin(), &mut part) {
            Ok(0) | Err(Errno::IO) => self.listens = false,
            Ok(length) => self.typed.extend_from_slice(&part[..length]),
            Err(Errno::INTR | Errno::AGAIN) => {}
            Err(errno) => return Err(errno),
        }
        Ok(())
    }

    fn write_keys(&mut self) -> Result<(), Errno> {
        if self.typed.is_empty() {
            return Ok(());
        }
        match rustix::io::write(&self.master, &self.typed) {
            Ok(length) => drop(self.typed.drain(..length)),
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(Errno::IO) => self.shows = false,
            Err(errno) => return Err(errno),
        }
        Ok(())
    }

    fn show(&mut self) -> Result<(), Errno> {
        let mut part = [0; BUFFER];
        loop {
            match rustix::io::read(&self.master, &mut part) {
                Ok(length) if length > 0 => write_all(&part[..length])?,
                // The other side is closed: EIO is a terminal's way to say so.
                Ok(_) | Err(Errno::IO) => {
                    self.shows = false;
                    return Ok(());
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(()),
                Err(errno) => return Err(errno),
            }
        }
    }
}

fn write_all(mut bytes: &[u8]) -> Result<(), Errno> {
    while !bytes.is_empty() {
        match rustix::io::write(rustix::stdio::stdout(), bytes) {
            Ok(length) => bytes = &bytes[length..],
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}
