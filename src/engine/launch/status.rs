//! What a forked process tells its launcher on its way to the user's program, and the word by which it goes on.
//!
//! A `SOCK_SEQPACKET` pair: one message a datagram, and the end of file comes when the child's end closes, which its
//! close-on-exec flag makes the moment of the exec. A message before the exec tells that apart from a child that was
//! killed on its way:
//!
//! ```text
//! child                         shim
//!   CONSOLE + master's fd  ->     (with a terminal)
//!   READY                  ->     every step is done, the program is next
//!   LISTENER + its fd      ->     (with a filter that asks) until the word comes that it has been delivered
//!   execve                 ->     end of file: it runs
//!   FAILURE                ->     or a step has failed, execve among them
//! ```
//!
//! A container outside of a pod says more and waits more; see [`crate::standalone`].

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use podwright_plan::wire;
use prost::Message;
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};

use crate::failure::Failure;

const READY: u8 = b'R';
const CONSOLE: u8 = b'C';
const FAILURE: u8 = b'F';
const ENVIRONMENT: u8 = b'E';
const CREATED: u8 = b'W';
const INIT: u8 = b'I';
const LISTENER: u8 = b'L';
const GO: u8 = b'G';

/// More than the longest failure: a path has 4096 bytes at most, and a failure carries one, with a few words.
const LONGEST: usize = 16 << 10;

/// The child's end.
#[derive(Debug)]
pub(crate) struct Reporter(OwnedFd);

/// The shim's end.
#[derive(Debug)]
pub(crate) struct Receiver(OwnedFd);

/// One message.
#[derive(Debug)]
pub(crate) enum Report {
    Ready,
    Console(OwnedFd),
    /// The pidfd of the process that goes on in this one's place.
    Init(OwnedFd),
    /// Of the seccomp filter; the process waits for the word that it has been delivered.
    Listener(OwnedFd),
    Environment,
    Created,
    Failed(Failure),
    /// The child's end is closed.
    End,
}

/// Makes both ends; the shim's is non-blocking.
pub(crate) fn pair() -> Result<(Receiver, Reporter), Errno> {
    let (ours, childs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    rustix::io::ioctl_fionbio(&ours, true)?;
    Ok((Receiver(ours), Reporter(childs)))
}

impl AsFd for Reporter {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsFd for Receiver {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Reporter {
    /// Reports by a connected socket.
    pub(crate) fn new(socket: OwnedFd) -> Self {
        Self(socket)
    }

    /// Says that namespaces, root and mounts are there.
    pub(crate) fn environment(&self) -> Result<(), Errno> {
        rustix::io::write(&self.0, &[ENVIRONMENT])?;
        Ok(())
    }

    /// Says that the container waits for its start.
    pub(crate) fn created(&self) -> Result<(), Errno> {
        rustix::io::write(&self.0, &[CREATED])?;
        Ok(())
    }

    /// Waits for the launcher's word.
    pub(crate) fn wait_for_go(&self) -> Result<(), Failure> {
        let mut word = [0];
        match rustix::io::retry_on_intr(|| rustix::io::read(&self.0, &mut word)) {
            Ok(1) if word == [GO] => Ok(()),
            Ok(_) => Err(Failure::launch("wait for the launcher", "", Errno::CONNRESET)),
            Err(errno) => Err(Failure::launch("wait for the launcher", "", errno)),
        }
    }

    /// Says that the user's program is next.
    pub(crate) fn ready(&self) -> Result<(), Errno> {
        // write(2), not sendmsg(2): a seccomp filter that allows little allows this.
        rustix::io::write(&self.0, &[READY])?;
        Ok(())
    }

    /// Says which step failed.
    pub(crate) fn failed(&self, failure: Failure) -> Result<(), Errno> {
        let mut message = vec![FAILURE];
        wire::Failure::from(failure).encode_raw(&mut message);
        message.truncate(LONGEST);
        rustix::io::write(&self.0, &message)?;
        Ok(())
    }

    /// Hands the terminal's master over.
    pub(crate) fn console(&self, master: BorrowedFd<'_>) -> Result<(), Errno> {
        self.pass(CONSOLE, master)
    }

    /// Says that another process goes on.
    pub(crate) fn init(&self, pidfd: BorrowedFd<'_>) -> Result<(), Errno> {
        self.pass(INIT, pidfd)
    }

    /// Hands the listener of the seccomp filter over.
    pub(crate) fn listener(&self, listener: BorrowedFd<'_>) -> Result<(), Errno> {
        self.pass(LISTENER, listener)
    }

    /// A second one of the same socket.
    pub(crate) fn try_clone(&self) -> Result<Self, Errno> {
        rustix::io::fcntl_dupfd_cloexec(&self.0, 0).map(Self)
    }

    fn pass(&self, tag: u8, descriptor: BorrowedFd<'_>) -> Result<(), Errno> {
        let fds = [descriptor];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        control.push(SendAncillaryMessage::ScmRights(&fds));
        sendmsg(&self.0, &[IoSlice::new(&[tag])], &mut control, SendFlags::NOSIGNAL)?;
        Ok(())
    }
}

impl Receiver {
    /// Listens to a connected socket.
    pub(crate) fn new(socket: OwnedFd) -> Self {
        Self(socket)
    }

    /// Gives the process the word to go on.
    pub(crate) fn go(&self) -> Result<(), Errno> {
        rustix::net::send(&self.0, &[GO], SendFlags::NOSIGNAL)?;
        Ok(())
    }

    /// Takes the next message; `EAGAIN` when there is none yet.
    pub(crate) fn receive(&self) -> Result<Report, Errno> {
        let mut bytes = vec![0; LONGEST];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut parts = [IoSliceMut::new(&mut bytes)];
        let flags = RecvFlags::CMSG_CLOEXEC;
        let length = match recvmsg(&self.0, &mut parts, &mut control, flags) {
            Ok(message) => message.bytes,
            // The child was killed with something of ours unread in its end; there is nothing that we send, but the
            // kernel is free to say so.
            Err(Errno::CONNRESET) => 0,
            Err(errno) => return Err(errno),
        };
        let descriptor = control.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
            _ => None,
        });
        let Some((tag, body)) = bytes[..length].split_first() else {
            return Ok(Report::End);
        };
        match (*tag, descriptor) {
            (READY, None) => Ok(Report::Ready),
            (ENVIRONMENT, None) => Ok(Report::Environment),
            (CREATED, None) => Ok(Report::Created),
            (CONSOLE, Some(master)) => Ok(Report::Console(master)),
            (INIT, Some(pidfd)) => Ok(Report::Init(pidfd)),
            (LISTENER, Some(listener)) => Ok(Report::Listener(listener)),
            (FAILURE, None) => match wire::Failure::decode(body) {
                Ok(failure) => Ok(Report::Failed(failure.into())),
                Err(_) => Err(Errno::BADMSG),
            },
            _ => Err(Errno::BADMSG),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_arrive_whole_and_in_order() {
        let (receiver, reporter) = pair().unwrap();
        assert_eq!(receiver.receive().unwrap_err(), Errno::AGAIN);
        let failure = Failure::launch("open bind source", "x".repeat(4096), Errno::NOENT);
        reporter.console(reporter.as_fd()).unwrap();
        reporter.ready().unwrap();
        reporter.failed(failure.clone()).unwrap();
        drop(reporter);
        // The console that was handed over is the reporter's own end: only when it goes does the file end.
        let Report::Console(master) = receiver.receive().unwrap() else { panic!("no console") };
        assert!(matches!(receiver.receive().unwrap(), Report::Ready));
        assert!(matches!(receiver.receive().unwrap(), Report::Failed(seen) if seen == failure));
        assert_eq!(receiver.receive().unwrap_err(), Errno::AGAIN);
        drop(master);
        assert!(matches!(receiver.receive().unwrap(), Report::End));
    }
}
