//! One daemon's connection: requests with their file descriptors in, replies and events out, all without blocking.

use std::collections::VecDeque;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use podwright_plan::frame::{self, Decoder, FrameError, MAX_FDS};
use podwright_plan::wire::frame::Kind;
use podwright_plan::wire::{Frame, Request};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags,
};

use crate::poll::Serial;

/// Bytes received at once.
const RECEIVE: usize = 4 << 10;
/// Bytes that may wait for a peer that does not read. A daemon that was dropped connects and inspects again.
const MAX_QUEUED: usize = 1 << 20;

/// Why a connection is closed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectionError {
    /// The peer has closed it.
    #[error("closed by the peer")]
    Closed,
    /// The socket failed.
    #[error("cannot {step} on a connection")]
    Socket {
        step: &'static str,
        #[source]
        source: Errno,
    },
    /// Bytes that are no frame.
    #[error("the peer sent what is no frame")]
    Frame(#[from] FrameError),
    /// A frame that only a shim may send.
    #[error("the peer sent a frame that is no request")]
    NoRequest,
    /// File descriptors that no request said would come, or fewer than one said.
    #[error("the file descriptors that came do not fit the requests")]
    Descriptors,
    /// The peer does not read.
    #[error("the peer has left more than {MAX_QUEUED} bytes unread")]
    Slow,
}

#[derive(Debug)]
struct Outgoing {
    bytes: Vec<u8>,
    fd: Option<OwnedFd>,
}

/// A connected daemon.
#[derive(Debug)]
pub(crate) struct Connection {
    /// Names the connection.
    pub(crate) serial: Serial,
    /// Whether events go to it.
    pub(crate) subscribed: bool,
    /// Why it is to be closed, once that is so.
    pub(crate) broken: Option<ConnectionError>,
    /// Whether the loop waits for room to write.
    pub(crate) writing: bool,
    socket: OwnedFd,
    decoder: Decoder,
    descriptors: VecDeque<OwnedFd>,
    outgoing: VecDeque<Outgoing>,
    queued: usize,
    /// Bytes of the first outgoing frame that are gone.
    sent: usize,
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Connection {
    /// Takes a connected, non-blocking stream socket.
    pub(crate) fn new(serial: Serial, socket: OwnedFd) -> Self {
        Self {
            serial,
            subscribed: false,
            broken: None,
            writing: false,
            socket,
            decoder: Decoder::default(),
            descriptors: VecDeque::new(),
            outgoing: VecDeque::new(),
            queued: 0,
            sent: 0,
        }
    }

    /// Receives once; whether anything came. Requests are then taken by [`Connection::next_request`] before the next
    /// receive: the kernel ends a receive after the bytes that carry descriptors, so those in hand are of these requests.
    pub(crate) fn receive(&mut self) -> Result<bool, ConnectionError> {
        let mut bytes = [0_u8; RECEIVE];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = rustix::io::retry_on_intr(|| {
            rustix::net::recvmsg(
                &self.socket,
                &mut [IoSliceMut::new(&mut bytes)],
                &mut control,
                RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT,
            )
        });
        let received = match received {
            Ok(received) => received,
            Err(Errno::AGAIN) => return Ok(false),
            Err(source) => return Err(ConnectionError::Socket { step: "receive", source }),
        };
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                self.descriptors.extend(descriptors);
            }
        }
        if received.flags.contains(ReturnFlags::CTRUNC) {
            return Err(ConnectionError::Descriptors);
        }
        if received.bytes == 0 {
            return Err(ConnectionError::Closed);
        }
        self.decoder.push(&bytes[..received.bytes]);
        Ok(true)
    }

    /// Takes the next whole request out of what was received.
    pub(crate) fn next_request(&mut self) -> Result<Option<Request>, ConnectionError> {
        match self.decoder.next_frame()?.map(|frame| frame.kind) {
            Some(Some(Kind::Request(request))) => Ok(Some(request)),
            Some(_) => Err(ConnectionError::NoRequest),
            // Left over: nobody will take them, or more than one frame can bring.
            None if self.decoder.is_empty() && !self.descriptors.is_empty() => Err(ConnectionError::Descriptors),
            None if self.descriptors.len() > MAX_FDS => Err(ConnectionError::Descriptors),
            None => Ok(None),
        }
    }

    /// Takes the next descriptor that came with the requests.
    pub(crate) fn take_descriptor(&mut self) -> Result<OwnedFd, ConnectionError> {
        self.descriptors.pop_front().ok_or(ConnectionError::Descriptors)
    }

    /// Queues a frame that was encoded, with a descriptor or without, and sends what the socket takes.
    pub(crate) fn send(&mut self, bytes: Vec<u8>, fd: Option<OwnedFd>) {
        if self.broken.is_some() {
            return;
        }
        // One frame always fits: a reply must not be refused for its own size.
        if !self.outgoing.is_empty() && self.queued + bytes.len() > MAX_QUEUED {
            self.broken = Some(ConnectionError::Slow);
            return;
        }
        self.queued += bytes.len();
        self.outgoing.push_back(Outgoing { bytes, fd });
        self.flush();
    }

    /// Encodes and sends a frame.
    pub(crate) fn send_frame(&mut self, kind: Kind, fd: Option<OwnedFd>) {
        self.send(frame::encode(&Frame { kind: Some(kind) }), fd);
    }

    /// Sends what the socket takes.
    pub(crate) fn flush(&mut self) {
        while let Some(first) = self.outgoing.front() {
            match self.transmit(first) {
                Ok(count) => {
                    self.sent += count;
                    self.queued -= count;
                    if self.sent == first.bytes.len() {
                        self.outgoing.pop_front();
                        self.sent = 0;
                    }
                }
                Err(Errno::AGAIN) => return,
                Err(source) => {
                    self.broken = Some(ConnectionError::Socket { step: "send", source });
                    return;
                }
            }
        }
        // A burst of events may have grown it.
        self.outgoing = VecDeque::new();
    }

    /// Whether bytes wait for the peer to read.
    pub(crate) fn unsent(&self) -> bool {
        !self.outgoing.is_empty() && self.broken.is_none()
    }

    fn transmit(&self, first: &Outgoing) -> Result<usize, Errno> {
        let bytes = [IoSlice::new(&first.bytes[self.sent..])];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        // A descriptor goes with its frame's first byte.
        let fds: Vec<BorrowedFd<'_>> = first.fd.iter().filter(|_| self.sent == 0).map(AsFd::as_fd).collect();
        if !fds.is_empty() {
            control.push(SendAncillaryMessage::ScmRights(&fds));
        }
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        rustix::io::retry_on_intr(|| rustix::net::sendmsg(&self.socket, &bytes, &mut control, flags))
    }
}

#[cfg(test)]
mod tests {
    use podwright_plan::wire::request::Op;
    use podwright_plan::wire::{Done, Reply, reply};
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    use super::*;

    fn pair() -> (Connection, OwnedFd) {
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None).unwrap();
        (Connection::new(1, ours), theirs)
    }

    fn inspect(id: u64) -> Vec<u8> {
        let request = Request { id, op: Some(Op::Inspect(Default::default())) };
        frame::encode(&Frame { kind: Some(Kind::Request(request)) })
    }

    fn send_with(socket: &OwnedFd, bytes: &[u8], fds: &[BorrowedFd<'_>]) {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(12))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(control.push(SendAncillaryMessage::ScmRights(fds)));
        let sent = rustix::net::sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::empty()).unwrap();
        assert_eq!(sent, bytes.len());
    }

    fn done() -> Kind {
        Kind::Reply(Reply { id: 1, result: Some(reply::Result::Done(Done {})) })
    }

    #[test]
    fn requests_come_with_their_descriptors() {
        let (mut connection, peer) = pair();
        assert!(!connection.receive().unwrap());
        rustix::io::write(&peer, &inspect(1)).unwrap();
        send_with(&peer, &inspect(2), &[peer.as_fd(), peer.as_fd()]);
        let mut ids = Vec::new();
        while connection.receive().unwrap() {
            while let Some(request) = connection.next_request().unwrap() {
                ids.push(request.id);
                if request.id == 2 {
                    connection.take_descriptor().unwrap();
                    connection.take_descriptor().unwrap();
                }
            }
        }
        assert_eq!(ids, [1, 2]);
        assert!(matches!(connection.take_descriptor(), Err(ConnectionError::Descriptors)));
    }

    #[test]
    fn descriptors_nobody_asked_for_end_the_connection() {
        let (mut connection, peer) = pair();
        send_with(&peer, &inspect(1), &[peer.as_fd()]);
        assert!(connection.receive().unwrap());
        assert_eq!(connection.next_request().unwrap().unwrap().id, 1);
        assert!(matches!(connection.next_request(), Err(ConnectionError::Descriptors)));
    }

    #[test]
    fn more_descriptors_than_a_frame_may_bring_end_the_connection() {
        let (mut connection, peer) = pair();
        send_with(&peer, &inspect(1), &[peer.as_fd(); 12]);
        assert!(matches!(connection.receive(), Err(ConnectionError::Descriptors)));
        // And frame by frame, with no frame ever whole.
        let (mut connection, peer) = pair();
        send_with(&peer, &[200, 0], &[peer.as_fd(); 3]);
        send_with(&peer, &[0, 0, 1], &[peer.as_fd()]);
        assert!(connection.receive().unwrap());
        assert!(connection.next_request().unwrap().is_none());
        assert!(connection.receive().unwrap());
        assert!(matches!(connection.next_request(), Err(ConnectionError::Descriptors)));
    }

    #[test]
    fn garbage_and_replies_end_the_connection() {
        let (mut connection, peer) = pair();
        rustix::io::write(&peer, &[0xff; 64]).unwrap();
        assert!(connection.receive().unwrap());
        assert!(matches!(connection.next_request(), Err(ConnectionError::Frame(_))));
        let (mut connection, peer) = pair();
        rustix::io::write(&peer, &frame::encode(&Frame { kind: Some(done()) })).unwrap();
        assert!(connection.receive().unwrap());
        assert!(matches!(connection.next_request(), Err(ConnectionError::NoRequest)));
        drop(peer);
        assert!(matches!(connection.receive(), Err(ConnectionError::Closed)));
    }

    #[test]
    fn a_peer_that_does_not_read_is_given_up() {
        let (mut connection, peer) = pair();
        let mut frames = 0;
        while connection.broken.is_none() {
            connection.send(vec![0; 64 << 10], None);
            frames += 1;
            assert!(frames < 100, "the queue grows without bound");
        }
        assert!(matches!(connection.broken, Some(ConnectionError::Slow)));
        drop(peer);
    }

    #[test]
    fn a_frame_larger_than_the_socket_arrives_whole_with_its_descriptor() {
        let (mut connection, peer) = pair();
        let sent: Vec<u8> = (0..3_000_000_u32).map(|n| n as u8).collect();
        connection.send(sent.clone(), Some(peer.try_clone().unwrap()));
        assert!(connection.unsent());
        let (mut got, mut fds) = (Vec::new(), 0);
        while got.len() < sent.len() {
            let mut bytes = vec![0; 1 << 16];
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(12))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let mut slices = [IoSliceMut::new(&mut bytes)];
            let received = rustix::net::recvmsg(&peer, &mut slices, &mut control, RecvFlags::CMSG_CLOEXEC).unwrap();
            for message in control.drain() {
                if let RecvAncillaryMessage::ScmRights(received) = message {
                    fds += received.count();
                }
            }
            got.extend_from_slice(&bytes[..received.bytes]);
            connection.flush();
        }
        assert!(got == sent && fds == 1 && !connection.unsent());
    }
}
