//! The clients attached to one container: each is told what the container says and may speak to it, and none of them
//! holds up another, the log or the container.

use std::os::fd::OwnedFd;

use podwright_launch::ExecStdio;
use rustix::buffer::spare_capacity;
use rustix::io::Errno;

use crate::input::Reading;
use crate::lines::Stream;
use crate::output::CHUNK;
use crate::poll::{Poll, Serial, Token};
use crate::sink::{Lost, Sink};
use crate::words::say;

/// An attached client: what is left of its streams.
#[derive(Debug)]
pub(crate) struct Client {
    serial: Serial,
    /// In the poll set while clients are read.
    stdin: Option<OwnedFd>,
    stdout: Option<Sink>,
    stderr: Option<Sink>,
    /// Whether it was cut off for reading too slowly.
    slow: bool,
}

impl Client {
    /// Whether it was cut off for reading too slowly.
    pub(crate) fn was_slow(&self) -> bool {
        self.slow
    }

    /// Whether the container could still have heard from it.
    pub(crate) fn could_speak(&self) -> bool {
        self.stdin.is_some()
    }

    /// Closes what it has.
    pub(crate) fn close(mut self, poll: &Poll) {
        self.close_stdin(poll);
        self.close_sinks(poll);
    }

    fn gone(&self) -> bool {
        self.slow || (self.stdin.is_none() && self.stdout.is_none() && self.stderr.is_none())
    }

    fn sink(&mut self, stream: Stream) -> &mut Option<Sink> {
        match stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        }
    }

    fn close_stdin(&mut self, poll: &Poll) {
        if let Some(stdin) = self.stdin.take() {
            // Not in the set while clients have to wait.
            let _unwatched = poll.remove(&stdin);
        }
    }

    fn close_sinks(&mut self, poll: &Poll) {
        for sink in [self.stdout.take(), self.stderr.take()].into_iter().flatten() {
            sink.close(poll);
        }
    }

    /// Sees to what became of one of its streams.
    fn follow(&mut self, stream: Stream, result: Result<(), Lost>, poll: &Poll) {
        match result {
            Ok(()) => {}
            Err(Lost::Left | Lost::Done) => {
                if let Some(sink) = self.sink(stream).take() {
                    sink.close(poll);
                }
            }
            Err(Lost::Slow) => {
                self.slow = true;
                self.close_sinks(poll);
            }
        }
    }
}

/// What a client said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Said {
    /// What is in the buffer now.
    Something,
    /// Nothing for now.
    Nothing,
    /// Nothing, and it never will again.
    End,
}

/// All clients of a container.
#[derive(Debug)]
pub(crate) struct Clients {
    list: Vec<Client>,
    reading: Reading,
}

impl Clients {
    /// None yet.
    pub(crate) fn new() -> Self {
        Self { list: Vec::new(), reading: Reading::Paused }
    }

    /// Whether this is one of them.
    pub(crate) fn has(&self, client: Serial) -> bool {
        self.list.iter().any(|other| other.serial == client)
    }

    /// Adds a client with the ends that it has.
    pub(crate) fn add(&mut self, serial: Serial, stdio: ExecStdio, poll: &Poll) -> Result<(), Errno> {
        let mut client = Client { serial, stdin: None, stdout: None, stderr: None, slow: false };
        match self.connect(&mut client, stdio, poll) {
            Ok(()) => self.list.push(client),
            Err(error) => {
                client.close(poll);
                return Err(error);
            }
        }
        Ok(())
    }

    fn connect(&self, client: &mut Client, stdio: ExecStdio, poll: &Poll) -> Result<(), Errno> {
        if let Some(stdin) = stdio.stdin
            && self.reading != Reading::Over
        {
            rustix::io::ioctl_fionbio(&stdin, true)?;
            if self.reading == Reading::On {
                poll.add(&stdin, Token::ClientInput(client.serial))?;
            }
            client.stdin = Some(stdin);
        }
        for (fd, stream) in [(stdio.stdout, Stream::Stdout), (stdio.stderr, Stream::Stderr)] {
            if let Some(fd) = fd {
                let sink = Sink::open(fd, Token::ClientOutput(client.serial, stream), poll)?;
                *client.sink(stream) = Some(sink);
            }
        }
        Ok(())
    }

    /// Tells every client of a stream what the container said.
    pub(crate) fn offer(&mut self, stream: Stream, bytes: &[u8], poll: &Poll) {
        for client in &mut self.list {
            if let Some(sink) = client.sink(stream) {
                let result = sink.offer(bytes, poll);
                client.follow(stream, result, poll);
            }
        }
    }

    /// A stream has ended: it is closed for every client that has read all of it, and for the others then.
    pub(crate) fn end(&mut self, stream: Stream, poll: &Poll) {
        for client in &mut self.list {
            if let Some(sink) = client.sink(stream) {
                let result = sink.end();
                client.follow(stream, result, poll);
            }
        }
    }

    /// A client has closed its side of a stream, or can be told more of it.
    pub(crate) fn on_output(&mut self, serial: Serial, stream: Stream, left: bool, poll: &Poll) {
        let Some(client) = self.list.iter_mut().find(|client| client.serial == serial) else { return };
        let Some(sink) = client.sink(stream) else { return };
        let result = if left { Err(Lost::Left) } else { sink.flush(poll) };
        client.follow(stream, result, poll);
    }

    /// Reads once from a client into an empty buffer.
    pub(crate) fn read(&mut self, serial: Serial, into: &mut Vec<u8>, poll: &Poll) -> Said {
        // What became ready before all had to wait.
        if self.reading != Reading::On {
            return Said::Nothing;
        }
        let Some(client) = self.list.iter_mut().find(|client| client.serial == serial) else { return Said::Nothing };
        let Some(stdin) = &client.stdin else { return Said::Nothing };
        into.reserve(CHUNK);
        match rustix::io::retry_on_intr(|| rustix::io::read(stdin, spare_capacity(into))) {
            Err(Errno::AGAIN) => Said::Nothing,
            // An error says that the client is gone, by a socket.
            Ok(0) | Err(_) => {
                client.close_stdin(poll);
                Said::End
            }
            Ok(_) => Said::Something,
        }
    }

    /// Reads from clients, or no longer, as the container's input is.
    pub(crate) fn follow(&mut self, reading: Reading, poll: &Poll) {
        if reading == self.reading {
            return;
        }
        self.reading = reading;
        for client in &mut self.list {
            let Some(stdin) = &client.stdin else { continue };
            let watched = match reading {
                Reading::On => poll.add(stdin, Token::ClientInput(client.serial)),
                Reading::Paused => poll.remove(stdin),
                Reading::Over => Err(Errno::PIPE),
            };
            let Err(error) = watched else { continue };
            if reading != Reading::Over {
                say(format_args!("cannot read from a client: {error}"));
            }
            client.close_stdin(poll);
        }
    }

    /// Takes out those that have left or were cut off.
    pub(crate) fn take_gone(&mut self) -> Vec<Client> {
        self.list.extract_if(.., |client| client.gone()).collect()
    }

    /// Closes them all.
    pub(crate) fn close(&mut self, poll: &Poll) {
        for client in self.list.drain(..) {
            client.close(poll);
        }
    }
}
