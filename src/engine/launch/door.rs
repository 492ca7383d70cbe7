//! Where a created container waits for its start: a unix socket that `start` connects to.
//!
//! The connection takes the place of the launcher's status socket, so that whoever starts the container is told why its
//! program could not be executed.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use crate::failure::{Failure, Named};
use crate::status::{Receiver, Reporter};

/// The socket's name in the container's state directory.
const NAME: &str = "start";

/// The listening socket, held by the container's process alone once its creator has ended.
#[derive(Debug)]
pub struct Door(OwnedFd);

impl Door {
    /// Makes the socket in a container's state directory.
    ///
    /// # Errors
    /// The kernel's, `EADDRINUSE` when there is one.
    pub fn make(directory: BorrowedFd<'_>) -> Result<Self, Failure> {
        let socket = socket().in_shim("make start socket", NAME)?;
        rustix::net::bind(&socket, &address(directory).in_shim("make start socket", NAME)?)
            .in_shim("bind start socket", NAME)?;
        rustix::net::listen(&socket, 1).in_shim("listen on start socket", NAME)?;
        Ok(Self(socket))
    }

    /// Waits until someone starts the container, and gives the way to report to them.
    pub(crate) fn wait(&self) -> Result<Reporter, Failure> {
        let accept = || rustix::net::accept_with(&self.0, SocketFlags::CLOEXEC);
        let caller = Reporter::new(rustix::io::retry_on_intr(accept).in_child("wait for the start", "")?);
        caller.wait_for_go().map(|()| caller)
    }
}

impl AsFd for Door {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Tells whether a container waits behind its door.
///
/// # Errors
/// The kernel's.
pub fn is_waiting(directory: BorrowedFd<'_>) -> Result<bool, Errno> {
    match rustix::fs::statat(directory, NAME, rustix::fs::AtFlags::SYMLINK_NOFOLLOW) {
        Ok(_) => Ok(true),
        Err(Errno::NOENT) => Ok(false),
        Err(errno) => Err(errno),
    }
}

/// Knocks: the container goes on. From here on it is no longer one that waits.
pub(crate) fn knock(directory: BorrowedFd<'_>) -> Result<Receiver, Failure> {
    let socket = socket().in_shim("make socket", "")?;
    rustix::net::connect(&socket, &address(directory).in_shim("connect to the container", NAME)?)
        .in_shim("connect to the container", NAME)?;
    // Before the word: should this process be killed in between, the container ends rather than pass for one that waits.
    rustix::fs::unlinkat(directory, NAME, rustix::fs::AtFlags::empty()).in_shim("remove start socket", NAME)?;
    let receiver = Receiver::new(socket);
    receiver.go().in_shim("start the container", "")?;
    Ok(receiver)
}

fn socket() -> Result<OwnedFd, Errno> {
    rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
}

/// By the descriptor: the directory's own path may be longer than the 107 bytes of an address.
fn address(directory: BorrowedFd<'_>) -> Result<SocketAddrUnix, Errno> {
    use std::os::fd::AsRawFd;
    SocketAddrUnix::new(Path::new("/proc/self/fd").join(directory.as_raw_fd().to_string()).join(NAME))
}

/// Opens a container's state directory for [`Door::make`], [`is_waiting`] and [`crate::release`].
///
/// # Errors
/// The kernel's.
pub fn open_directory(path: &Path) -> Result<OwnedFd, Errno> {
    rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}
