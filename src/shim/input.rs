//! A container's standard input: a pipe or a console that attached clients write to.
//!
//! ```text
//!              open                no room
//!  Awaited ───────────▶ Open ◀───────────────▶ Waiting
//!                         │       all written      │ all written, and no more is to come
//!                         ▼                        ▼
//!                      Closed ◀────────────────────┘
//! ```
//!
//! What the container does not take waits here, never more than one read, and clients are not read meanwhile. A
//! container whose plan keeps no stdin open stays *Unwanted*.

use std::os::fd::OwnedFd;

use podwright_plan::wire::ContainerPlan;
use rustix::io::Errno;

use crate::poll::{Poll, Serial, Token};

/// Where it is.
#[derive(Debug)]
enum State {
    Unwanted,
    Awaited,
    Open { fd: OwnedFd },
    Waiting { fd: OwnedFd, bytes: Vec<u8>, written: usize, last: bool },
    Closed,
}

/// What this means for the clients that write to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reading {
    /// They are read.
    On,
    /// They have to wait.
    Paused,
    /// Nobody will read them again.
    Over,
}

/// A container's standard input.
#[derive(Debug)]
pub(crate) struct Input {
    container: Serial,
    /// Whether it ends with the first client: the plan says so, and there is no terminal, which has no end.
    once: bool,
    state: State,
}

impl Input {
    /// Makes it as the plan wants it.
    pub(crate) fn of(container: Serial, plan: &ContainerPlan) -> Self {
        let terminal = plan.process.as_ref().is_some_and(|process| process.terminal);
        let state = if plan.stdin { State::Awaited } else { State::Unwanted };
        Self { container, once: plan.stdin_once && !terminal, state }
    }

    /// Takes the container's pipe, non-blocking.
    pub(crate) fn open(&mut self, fd: OwnedFd) {
        self.state = State::Open { fd };
    }

    /// Takes a copy of the container's console if it is wanted: the original's place in the poll set is its output's.
    pub(crate) fn open_console(&mut self, master: &OwnedFd) -> Result<(), Errno> {
        if self.wanted() {
            self.open(rustix::io::fcntl_dupfd_cloexec(master, 3)?);
        }
        Ok(())
    }

    /// Whether the plan keeps it open.
    pub(crate) fn wanted(&self) -> bool {
        !matches!(self.state, State::Unwanted)
    }

    /// Whether clients are to be read.
    pub(crate) fn reading(&self) -> Reading {
        match self.state {
            State::Open { .. } => Reading::On,
            State::Awaited | State::Waiting { last: false, .. } => Reading::Paused,
            State::Unwanted | State::Waiting { last: true, .. } | State::Closed => Reading::Over,
        }
    }

    /// Passes on what a client said. Only while [`Reading::On`].
    pub(crate) fn write(&mut self, bytes: &[u8], poll: &Poll) {
        let State::Open { fd } = &self.state else { return };
        let Some(written) = write(fd, bytes) else { return self.close(poll) };
        if written == bytes.len() {
            return;
        }
        let State::Open { fd } = std::mem::replace(&mut self.state, State::Closed) else { return };
        // Closed without that: nobody could tell when to go on.
        if poll.add_writer(&fd, Token::Input(self.container), true).is_ok() {
            self.state = State::Waiting { fd, bytes: bytes[written..].to_vec(), written: 0, last: false };
        }
    }

    /// Writes what waits, when there is room or nobody reads any more.
    pub(crate) fn flush(&mut self, poll: &Poll) {
        let State::Waiting { fd, bytes, written, .. } = &mut self.state else { return };
        let Some(count) = write(fd, &bytes[*written..]) else { return self.close(poll) };
        *written += count;
        if *written < bytes.len() {
            return;
        }
        if let State::Waiting { fd, last, .. } = std::mem::replace(&mut self.state, State::Closed) {
            unwatch(&fd, poll);
            if !last {
                self.state = State::Open { fd };
            }
        }
    }

    /// A client has said all that it will. What waits is still written.
    pub(crate) fn client_ended(&mut self, poll: &Poll) {
        match &mut self.state {
            State::Waiting { last, .. } if self.once => *last = true,
            State::Open { .. } if self.once => self.close(poll),
            _ => {}
        }
    }

    /// Closes it for good.
    pub(crate) fn close(&mut self, poll: &Poll) {
        match &self.state {
            State::Unwanted => return,
            State::Waiting { fd, .. } => unwatch(fd, poll),
            State::Awaited | State::Open { .. } | State::Closed => {}
        }
        self.state = State::Closed;
    }
}

/// Takes it out of the set, in which it is while something waits.
fn unwatch(fd: &OwnedFd, poll: &Poll) {
    let _unwatched = poll.remove(fd);
}

/// Writes once; `None` when nobody will read it.
fn write(fd: &OwnedFd, bytes: &[u8]) -> Option<usize> {
    match rustix::io::retry_on_intr(|| rustix::io::write(fd, bytes)) {
        Ok(written) => Some(written),
        Err(Errno::AGAIN) => Some(0),
        // Closed by the container; a console whose last slave is gone. Any other error will not get better either.
        Err(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use rustix::pipe::{PipeFlags, pipe_with};

    use super::*;

    fn input(once: bool) -> (Poll, OwnedFd, Input) {
        let plan = ContainerPlan { stdin: true, stdin_once: once, ..Default::default() };
        let mut input = Input::of(1, &plan);
        assert_eq!(input.reading(), Reading::Paused);
        let (read, write) = pipe_with(PipeFlags::NONBLOCK).unwrap();
        input.open(write);
        (Poll::new().unwrap(), read, input)
    }

    /// Fills the pipe and lets this many bytes wait.
    fn overfill(input: &mut Input, poll: &Poll, waiting: usize) -> usize {
        let sent = (64 << 10) + waiting;
        input.write(&vec![b'x'; sent], poll);
        assert_eq!(input.reading(), Reading::Paused);
        sent
    }

    fn read_all(read: &OwnedFd) -> usize {
        let mut bytes = vec![0; 1 << 20];
        rustix::io::read(read, &mut bytes).unwrap()
    }

    #[test]
    fn clients_wait_while_there_is_no_room() {
        let (poll, read, mut input) = input(false);
        let sent = overfill(&mut input, &poll, 1000);
        input.client_ended(&poll);
        let first = read_all(&read);
        input.flush(&poll);
        assert_eq!(input.reading(), Reading::On);
        assert_eq!(first + read_all(&read), sent);
        // Nothing is watched that would never be quiet.
        let mut ready = Vec::new();
        poll.wait(Some(std::time::Duration::ZERO), &mut ready).unwrap();
        assert!(ready.is_empty());
    }

    #[test]
    fn once_it_ends_with_the_first_client_after_what_waits() {
        let (poll, read, mut input) = input(true);
        let sent = overfill(&mut input, &poll, 1000);
        input.client_ended(&poll);
        assert_eq!(input.reading(), Reading::Over);
        let first = read_all(&read);
        input.flush(&poll);
        assert_eq!(first + read_all(&read), sent);
        assert_eq!(read_all(&read), 0);
    }

    #[test]
    fn it_is_over_when_nobody_reads_it() {
        let (poll, read, mut input) = input(false);
        overfill(&mut input, &poll, 1);
        drop(read);
        input.flush(&poll);
        assert_eq!(input.reading(), Reading::Over);
        let (poll, read, mut input) = self::input(false);
        drop(read);
        input.write(b"x", &poll);
        assert_eq!(input.reading(), Reading::Over);
    }

    #[test]
    fn a_terminal_does_not_end_with_its_client() {
        let process = podwright_plan::wire::Process { terminal: true, ..Default::default() };
        let plan = ContainerPlan { stdin: true, stdin_once: true, process: Some(process), ..Default::default() };
        let mut input = Input::of(1, &plan);
        let (_read, write) = pipe_with(PipeFlags::NONBLOCK).unwrap();
        input.open(write);
        input.client_ended(&Poll::new().unwrap());
        assert_eq!(input.reading(), Reading::On);
        assert!(input.wanted() && !Input::of(1, &ContainerPlan::default()).wanted());
    }
}
