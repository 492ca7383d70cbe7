//! A blocking connection to a shim.

use std::collections::VecDeque;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use podwright_plan::frame::{Decoder, encode};
use podwright_plan::wire::frame::Kind;
use podwright_plan::wire::reply::Result as Answer;
use podwright_plan::wire::request::Op;
use podwright_plan::wire::{self, Exit, Frame, Inspected, Request, event};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
};

/// After this long a test is stuck and fails.
const STUCK: Duration = Duration::from_secs(60);

pub(crate) struct Client {
    socket: UnixStream,
    decoder: Decoder,
    descriptors: VecDeque<OwnedFd>,
    replies: VecDeque<wire::Reply>,
    events: VecDeque<event::Kind>,
    last: u64,
}

impl Client {
    pub(crate) fn connect(path: &Path) -> Self {
        let socket = UnixStream::connect(path).unwrap();
        socket.set_read_timeout(Some(STUCK)).unwrap();
        Self {
            socket,
            decoder: Decoder::default(),
            descriptors: VecDeque::new(),
            replies: VecDeque::new(),
            events: VecDeque::new(),
            last: 0,
        }
    }

    /// Sends bytes that may be no frame.
    pub(crate) fn send_raw(&mut self, bytes: &[u8]) {
        rustix::io::write(&self.socket, bytes).unwrap();
    }

    /// Sends a request and does not wait.
    pub(crate) fn send(&mut self, op: Op, fds: &[BorrowedFd<'_>]) -> u64 {
        self.last += 1;
        let bytes = encode(&Frame { kind: Some(Kind::Request(Request { id: self.last, op: Some(op) })) });
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            control.push(SendAncillaryMessage::ScmRights(fds));
        }
        let sent = rustix::net::sendmsg(&self.socket, &[IoSlice::new(&bytes)], &mut control, SendFlags::NOSIGNAL);
        assert_eq!(sent.unwrap(), bytes.len());
        self.last
    }

    /// Waits for the answer to a request.
    pub(crate) fn answer(&mut self, id: u64) -> Answer {
        loop {
            if let Some(place) = self.replies.iter().position(|reply| reply.id == id) {
                return self.replies.remove(place).unwrap().result.unwrap();
            }
            assert!(self.receive(), "the shim closed the connection");
        }
    }

    pub(crate) fn ask(&mut self, op: Op) -> Answer {
        let id = self.send(op, &[]);
        self.answer(id)
    }

    /// Asks, and gives the descriptors that came with the answer.
    pub(crate) fn ask_for(&mut self, op: Op, fds: &[BorrowedFd<'_>]) -> (Answer, Vec<OwnedFd>) {
        let id = self.send(op, fds);
        let answer = self.answer(id);
        (answer, self.descriptors.drain(..).collect())
    }

    /// Asks for what must not be, and gives the failure.
    pub(crate) fn refused(&mut self, op: Op) -> wire::Failure {
        match self.ask(op) {
            Answer::Failure(failure) => failure,
            other => panic!("not refused: {other:?}"),
        }
    }

    pub(crate) fn started(&mut self, plan: wire::ContainerPlan) -> wire::Started {
        match self.ask(Op::Start(plan)) {
            Answer::Started(started) => started,
            other => panic!("not started: {other:?}"),
        }
    }

    pub(crate) fn execed(&mut self, plan: wire::ExecPlan, fds: &[BorrowedFd<'_>]) -> wire::Execed {
        match self.ask_for(Op::Exec(plan), fds).0 {
            Answer::Execed(execed) => execed,
            other => panic!("not executed: {other:?}"),
        }
    }

    pub(crate) fn inspect(&mut self) -> Inspected {
        match self.ask(Op::Inspect(wire::Inspect {})) {
            Answer::Inspected(inspected) => inspected,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn subscribe(&mut self) -> Inspected {
        match self.ask(Op::Subscribe(wire::Subscribe {})) {
            Answer::Inspected(inspected) => inspected,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn kill(&mut self, container: &str) {
        let signal = wire::Signal { container_id: container.into(), signal: 9, all: true, ..Default::default() };
        assert_eq!(self.ask(Op::Signal(signal)), Answer::Done(wire::Done {}));
    }

    /// Waits for the next event.
    pub(crate) fn event(&mut self) -> event::Kind {
        loop {
            if let Some(event) = self.events.pop_front() {
                return event;
            }
            assert!(self.receive(), "the shim closed the connection");
        }
    }

    /// Waits for the end of a container, past other events.
    pub(crate) fn container_exit(&mut self, container: &str) -> Exit {
        loop {
            match self.event() {
                event::Kind::ContainerExited(exited) if exited.container_id == container => {
                    return exited.exit.unwrap();
                }
                _ => {}
            }
        }
    }

    /// Waits for the end of an exec, past other events.
    pub(crate) fn exec_exit(&mut self, exec: &str) -> Exit {
        loop {
            match self.event() {
                event::Kind::ExecExited(exited) if exited.exec_id == exec => return exited.exit.unwrap(),
                _ => {}
            }
        }
    }

    /// Whether the shim has closed the connection, once it says nothing more.
    pub(crate) fn closed(&mut self) -> bool {
        while self.receive() {}
        true
    }

    fn receive(&mut self) -> bool {
        let mut bytes = [0; 4096];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut slices = [IoSliceMut::new(&mut bytes)];
        let received = rustix::io::retry_on_intr(|| {
            rustix::net::recvmsg(self.socket.as_fd(), &mut slices, &mut control, RecvFlags::CMSG_CLOEXEC)
        });
        let received = match received {
            Ok(received) => received,
            // The shim has left bytes of ours unread.
            Err(rustix::io::Errno::CONNRESET) => return false,
            Err(error) => panic!("the shim does not answer: {error}"),
        };
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = message {
                self.descriptors.extend(fds);
            }
        }
        self.decoder.push(&bytes[..received.bytes]);
        while let Some(frame) = self.decoder.next_frame().unwrap() {
            match frame.kind.unwrap() {
                Kind::Reply(reply) => self.replies.push_back(reply),
                Kind::Event(event) => self.events.push_back(event.kind.unwrap()),
                Kind::Request(request) => panic!("the shim asks: {request:?}"),
            }
        }
        received.bytes != 0
    }
}
