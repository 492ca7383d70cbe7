//! Unix sockets at paths of any length: the kernel takes 107 bytes, which a state directory with a pod's id below it may
//! exceed. The directory is opened first, and the socket named by way of its descriptor.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use tokio::net::UnixStream;

/// A directory held open, and the short way to a name in it.
struct Short {
    _directory: File,
    path: PathBuf,
}

fn shorten(socket: &Path) -> io::Result<Short> {
    let (Some(parent), Some(name)) = (socket.parent(), socket.file_name()) else {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    };
    let flags = (OFlags::PATH | OFlags::DIRECTORY).bits();
    let directory = OpenOptions::new().read(true).custom_flags(flags.cast_signed()).open(parent)?;
    let path = Path::new("/proc/self/fd").join(directory.as_raw_fd().to_string()).join(name);
    Ok(Short { _directory: directory, path })
}

/// Listens at a path, in place of what an earlier process may have left there. For root alone.
///
/// # Errors
/// The file system's.
pub(super) fn listen(socket: &Path) -> io::Result<UnixListener> {
    match fs::remove_file(socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(shorten(socket)?.path)?;
    fs::set_permissions(socket, Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Connects to the socket at a path.
///
/// # Errors
/// `NotFound` when there is none, `ConnectionRefused` when nobody listens on it.
pub(super) async fn connect(socket: &Path) -> io::Result<UnixStream> {
    let short = shorten(socket)?;
    UnixStream::connect(&short.path).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_path_longer_than_the_kernel_takes_serves() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("d".repeat(120)).join("shim.sock");
        fs::create_dir(socket.parent().unwrap()).unwrap();
        for _ in 0..2 {
            let listener = listen(&socket).unwrap();
            assert_eq!(fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
            connect(&socket).await.unwrap();
            drop(listener);
            assert_eq!(connect(&socket).await.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
        }
    }
}
