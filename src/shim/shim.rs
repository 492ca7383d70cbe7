//! The shim's state and its loop: one thread that waits for daemons, children, output and deadlines.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use podwright_launch::Pod;
use podwright_plan::frame;
use podwright_plan::wire::frame::Kind;
use podwright_plan::wire::{self, Frame, Reply, event, reply};
use podwright_sys::{idle_memory, signalling::ChildExits};
use rustix::io::Errno;
use rustix::net::SocketFlags;

use crate::connection::{Connection, ConnectionError};
use crate::container::Container;
use crate::exec::Exec;
use crate::output::Scratch;
use crate::poll::{Poll, Ready, Serial, Timer, Timers, Token};
use crate::shutdown::Shutdown;
use crate::words::say;

/// How long a shim without a pod waits for a daemon.
const ALONE: Duration = Duration::from_secs(60);
/// How long connections wait when none can be accepted.
const ACCEPT_RETRY: Duration = Duration::from_secs(1);
/// How long nothing happens before buffers are given back.
const QUIET: Duration = Duration::from_secs(2);

/// Why the shim ends before it was told to.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ShimError {
    /// A descriptor cannot be watched.
    #[error("cannot watch {what}")]
    Watch {
        what: &'static str,
        #[source]
        source: Errno,
    },
    /// Waiting failed.
    #[error("cannot wait for events")]
    Wait(#[source] Errno),
    /// A step of the pod's set-up failed: the process is half inside.
    #[error("the pod could not be set up")]
    SetUp,
}

/// A request that waits for its answer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Waiter {
    pub(crate) connection: Serial,
    pub(crate) request: u64,
}

/// The pod that this process holds.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) pod: Pod,
    /// Init of the shared pid namespace, while it lives.
    pub(crate) reaper: Option<u32>,
}

/// Whether the process has a pod, and whether it goes on.
#[derive(Debug)]
pub(crate) enum PodState {
    /// None yet.
    Absent,
    /// Set up.
    Ready(Held),
    /// The set-up failed on the way.
    Failed,
}

/// Everything that the shim knows.
#[derive(Debug)]
pub(crate) struct Shim {
    pub(crate) pod_id: String,
    pub(crate) pod: PodState,
    pub(crate) containers: Vec<Container>,
    pub(crate) execs: Vec<Exec>,
    pub(crate) shutdown: Option<Shutdown>,
    pub(crate) connections: Vec<Connection>,
    pub(crate) poll: Poll,
    pub(crate) timers: Timers,
    pub(crate) scratch: Scratch,
    listener: OwnedFd,
    children: ChildExits,
    last_serial: Serial,
}

impl Shim {
    /// Takes a listening, non-blocking socket. SIGCHLD is blocked and comes by `children`.
    pub(crate) fn new(pod_id: String, listener: OwnedFd, children: ChildExits) -> Result<Self, ShimError> {
        let watch = |what| move |source| ShimError::Watch { what, source };
        let poll = Poll::new().map_err(watch("anything"))?;
        poll.add(&listener, Token::Listener).map_err(watch("the listener"))?;
        poll.add(&children, Token::Children).map_err(watch("children"))?;
        let mut timers = Timers::default();
        timers.set(Timer::Alone, ALONE);
        Ok(Self {
            pod_id,
            pod: PodState::Absent,
            containers: Vec::new(),
            execs: Vec::new(),
            shutdown: None,
            connections: Vec::new(),
            poll,
            timers,
            scratch: Scratch::default(),
            listener,
            children,
            last_serial: 0,
        })
    }

    /// Runs until the pod is shut down, or nobody wants one.
    pub(crate) fn run(mut self) -> Result<(), ShimError> {
        let mut ready = Vec::new();
        loop {
            let now = Instant::now();
            while let Some(timer) = self.timers.expired(now) {
                if timer == Timer::Alone && self.is_alone() {
                    return Ok(());
                }
                self.on_timer(timer);
            }
            self.drop_broken();
            if self.finish_shutdown() {
                return Ok(());
            }
            if matches!(self.pod, PodState::Failed) {
                self.flush_all();
                return Err(ShimError::SetUp);
            }
            self.poll.wait(self.timers.next(Instant::now()), &mut ready).map_err(ShimError::Wait)?;
            if !ready.is_empty() {
                self.timers.set(Timer::Quiet, QUIET);
            }
            for ready in ready.drain(..) {
                self.on_ready(ready);
            }
        }
    }

    /// Makes a serial number that nothing had before.
    pub(crate) fn serial(&mut self) -> Serial {
        self.last_serial += 1;
        self.last_serial
    }

    /// Sends an event to every connection that subscribed.
    pub(crate) fn publish(&mut self, kind: event::Kind) {
        let bytes = frame::encode(&Frame { kind: Some(Kind::Event(wire::Event { kind: Some(kind) })) });
        for connection in self.connections.iter_mut().filter(|connection| connection.subscribed) {
            connection.send(bytes.clone(), None);
        }
    }

    /// Answers a request, when its connection is still there.
    pub(crate) fn reply(&mut self, to: Waiter, result: reply::Result, fd: Option<OwnedFd>) {
        if let Some(connection) = self.connections.iter_mut().find(|connection| connection.serial == to.connection) {
            connection.send_frame(Kind::Reply(Reply { id: to.request, result: Some(result) }), fd);
        }
    }

    /// Gives connections a moment to take what is left, before the process ends.
    pub(crate) fn flush_all(&mut self) {
        const PATIENCE: Duration = Duration::from_secs(1);
        let deadline = Instant::now() + PATIENCE;
        for connection in &mut self.connections {
            while connection.unsent() && Instant::now() < deadline {
                let mut fds = [rustix::event::PollFd::new(&*connection, rustix::event::PollFlags::OUT)];
                let step = rustix::time::Timespec { tv_sec: 0, tv_nsec: 50_000_000 };
                if rustix::event::poll(&mut fds, Some(&step)).is_err() {
                    break;
                }
                connection.flush();
            }
        }
    }

    fn is_alone(&self) -> bool {
        self.connections.is_empty() && matches!(self.pod, PodState::Absent)
    }

    fn on_timer(&mut self, timer: Timer) {
        match timer {
            // Somebody is here, or a pod is: it is set again when the last one leaves.
            Timer::Alone => {}
            Timer::Quiet => {
                self.scratch.clear();
                idle_memory::release();
            }
            Timer::ExecTimeout(serial) => self.exec_timed_out(serial),
            Timer::ContainerEnding(serial) => self.check_ending(serial),
            Timer::ExecEnding(serial) => self.check_exec_ending(serial),
            Timer::LogRetry(serial) => self.retry_log(serial),
            Timer::Accept => self.accept(),
            // Looked at after every round of the loop.
            Timer::Shutdown => {}
        }
    }

    fn on_ready(&mut self, ready: Ready) {
        match ready.token {
            Token::Listener => self.accept(),
            Token::Children => {
                if let Err(error) = self.children.acknowledge() {
                    say(format_args!("cannot read child notices: {error}"));
                }
                self.reap();
            }
            Token::Connection(serial) => self.on_connection(serial, ready),
            Token::Output(serial, stream) => self.on_output(serial, stream),
            Token::Input(serial) => self.on_input(serial, ready),
            Token::ClientInput(serial) => self.on_client_input(serial),
            Token::ClientOutput(serial, stream) => self.on_client_output(serial, stream, ready),
            Token::ContainerLaunch(serial) => self.on_container_launch(serial),
            Token::ExecLaunch(serial) => self.on_exec_launch(serial),
        }
    }

    /// Accepts every daemon that waits. The socket's mode decides who can connect; this is the second lock.
    fn accept(&mut self) {
        loop {
            let socket = match rustix::net::accept_with(&self.listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
                Ok(socket) => socket,
                Err(Errno::AGAIN) => return self.watch_listener(),
                Err(Errno::INTR | Errno::CONNABORTED) => continue,
                Err(error) => return self.rest_listener(error),
            };
            let uid = match getsockopt(&socket, PeerCredentials) {
                Ok(peer) => peer.uid(),
                Err(error) => {
                    say(format_args!("cannot tell who connects: {error}"));
                    continue;
                }
            };
            if uid != 0 && uid != rustix::process::geteuid().as_raw() {
                say(format_args!("refused a connection of user {uid}"));
                continue;
            }
            let serial = self.serial();
            match self.poll.add(&socket, Token::Connection(serial)) {
                Ok(()) => self.connections.push(Connection::new(serial, socket)),
                Err(error) => say(format_args!("cannot watch a connection: {error}")),
            }
        }
    }

    /// Watches the listener again after a rest.
    fn watch_listener(&self) {
        match self.poll.add(&self.listener, Token::Listener) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => say(format_args!("cannot watch the listener: {error}")),
        }
    }

    /// Leaves the listener alone for a while when the process is out of descriptors: it would be ready again at once.
    fn rest_listener(&mut self, error: Errno) {
        say(format_args!("cannot accept a connection: {error}"));
        match self.poll.remove(&self.listener) {
            // It is resting already.
            Ok(()) | Err(Errno::NOENT) => self.timers.set(Timer::Accept, ACCEPT_RETRY),
            Err(error) => say(format_args!("cannot rest the listener: {error}")),
        }
    }

    fn on_connection(&mut self, serial: Serial, ready: Ready) {
        if let Some(connection) = self.connection(serial)
            && ready.writable
        {
            connection.flush();
        }
        if ready.readable
            && let Err(error) = self.receive(serial)
            && let Some(connection) = self.connection(serial)
        {
            connection.broken = Some(error);
        }
    }

    /// Handles what one receive brought: a peer that sends without end does not keep the loop from the others.
    fn receive(&mut self, serial: Serial) -> Result<(), ConnectionError> {
        if let Some(connection) = self.connection(serial)
            && !connection.receive()?
        {
            return Ok(());
        }
        while let Some(connection) = self.connection(serial) {
            let Some(request) = connection.next_request()? else { break };
            self.on_request(serial, request)?;
        }
        Ok(())
    }

    pub(crate) fn connection(&mut self, serial: Serial) -> Option<&mut Connection> {
        self.connections.iter_mut().find(|connection| connection.serial == serial && connection.broken.is_none())
    }

    /// Closes connections that are over, with what is tied to them, and tells the poll set who waits to write.
    fn drop_broken(&mut self) {
        for connection in &mut self.connections {
            let unsent = connection.unsent();
            if unsent != connection.writing {
                connection.writing = unsent;
                if let Err(source) = self.poll.set_writing(&*connection, Token::Connection(connection.serial), unsent) {
                    connection.broken = Some(ConnectionError::Socket { step: "watch", source });
                }
            }
        }
        while let Some(place) = self.connections.iter().position(|connection| connection.broken.is_some()) {
            let connection = self.connections.swap_remove(place);
            // A container that is being started may hold a copy, and its end would be told for ever.
            if let Err(error) = self.poll.remove(&connection) {
                say(format_args!("cannot stop watching a connection: {error}"));
            }
            match connection.broken {
                None | Some(ConnectionError::Closed) => {}
                Some(error) => say(format_args!("closed a connection: {}", Chain(&error))),
            }
            self.kill_tied(connection.serial);
            if self.is_alone() {
                self.timers.set(Timer::Alone, ALONE);
            }
        }
    }
}

/// An error with its causes, on one line.
pub(crate) struct Chain<'a>(pub(crate) &'a dyn std::error::Error);

impl std::fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)?;
        let mut source = self.0.source();
        while let Some(error) = source {
            write!(f, ": {error}")?;
            source = error.source();
        }
        Ok(())
    }
}
