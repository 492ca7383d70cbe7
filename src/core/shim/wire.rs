//! One connection to a shim: frames in both directions, file descriptors attached to the first byte of theirs.

use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use podwright_plan::frame::{Decoder, FrameError, MAX_FDS, encode};
use podwright_plan::wire::Frame;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use tokio::io::Interest;
use tokio::net::UnixStream;

use super::socket;

const CHUNK: usize = 16 << 10;

/// Why a connection is of no further use.
#[derive(Debug, thiserror::Error)]
pub(super) enum WireError {
    /// The socket failed.
    #[error("the shim's socket failed")]
    Socket(#[from] io::Error),
    /// The shim sent what is no frame.
    #[error("the shim sent garbage")]
    Frame(#[from] FrameError),
    /// The kernel dropped descriptors that came along.
    #[error("file descriptors from the shim were lost: is the daemon's open-file limit reached?")]
    DescriptorsLost,
}

/// The stream, with what has been received of it.
pub(super) struct Wire {
    stream: UnixStream,
    decoder: Decoder,
    descriptors: VecDeque<OwnedFd>,
    buffer: Box<[u8]>,
}

impl Wire {
    /// Connects to the socket a shim listens on.
    ///
    /// # Errors
    /// `NotFound` or `ConnectionRefused` when there is no shim.
    pub(super) async fn connect(path: &Path) -> io::Result<Self> {
        let stream = socket::connect(path).await?;
        Ok(Self {
            stream,
            decoder: Decoder::default(),
            descriptors: VecDeque::new(),
            buffer: vec![0; CHUNK].into_boxed_slice(),
        })
    }

    /// Sends one frame and the descriptors that go with it. Must not be cancelled in the middle.
    ///
    /// # Errors
    /// When the socket fails; the stream has lost its place then.
    pub(super) async fn send(&self, frame: &Frame, descriptors: &[OwnedFd]) -> Result<(), WireError> {
        let bytes = encode(frame);
        let mut sent = 0;
        while sent < bytes.len() {
            self.stream.writable().await?;
            // The descriptors ride on the first byte.
            let attached: &[OwnedFd] = if sent == 0 { descriptors } else { &[] };
            match self.stream.try_io(Interest::WRITABLE, || send_some(&self.stream, &bytes[sent..], attached)) {
                Ok(count) => sent += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Receives the next frame, `None` when the shim closed the connection. Safe to cancel.
    ///
    /// # Errors
    /// When the socket fails or the shim sends garbage.
    pub(super) async fn receive(&mut self) -> Result<Option<Frame>, WireError> {
        loop {
            if let Some(frame) = self.decoder.next_frame()? {
                return Ok(Some(frame));
            }
            self.stream.readable().await?;
            let (stream, buffer, descriptors) = (&self.stream, &mut self.buffer, &mut self.descriptors);
            match stream.try_io(Interest::READABLE, || receive_some(stream, buffer, descriptors)) {
                Ok(Received { truncated: true, .. }) => return Err(WireError::DescriptorsLost),
                Ok(Received { bytes: 0, .. }) => return Ok(None),
                Ok(Received { bytes, .. }) => self.decoder.push(&self.buffer[..bytes]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Takes the oldest descriptor that came along with a frame.
    pub(super) fn take_descriptor(&mut self) -> Option<OwnedFd> {
        self.descriptors.pop_front()
    }
}

struct Received {
    bytes: usize,
    truncated: bool,
}

fn send_some(stream: &UnixStream, bytes: &[u8], descriptors: &[OwnedFd]) -> io::Result<usize> {
    let borrowed: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !borrowed.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(&borrowed)) {
        return Err(io::Error::other("more descriptors than a frame carries"));
    }
    Ok(sendmsg(stream, &[IoSlice::new(bytes)], &mut ancillary, SendFlags::NOSIGNAL)?)
}

fn receive_some(stream: &UnixStream, buffer: &mut [u8], descriptors: &mut VecDeque<OwnedFd>) -> io::Result<Received> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(stream, &mut [IoSliceMut::new(buffer)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            descriptors.extend(rights);
        }
    }
    Ok(Received { bytes: received.bytes, truncated: received.flags.contains(ReturnFlags::CTRUNC) })
}
