//! Starting a shim: it is given its listening socket, so that there is nothing to wait for before it is called.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use podwright_base::PodId;

use super::socket;

/// Why there is no shim.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SpawnError {
    /// Its socket cannot be made.
    #[error("make the shim's socket {}", path.display())]
    Socket {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file for its last words cannot be made.
    #[error("make the shim's log {}", path.display())]
    Log {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Its binary cannot be executed.
    #[error("execute the shim {}: set shim.path to where podwright-shim is installed", binary.display())]
    Execute {
        /// The binary.
        binary: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Starts a pod's shim, listening on `socket_path`. It belongs to nobody: it outlives the daemon.
///
/// # Errors
/// When the socket or the log cannot be made or the binary not be executed.
pub(crate) fn spawn(binary: &Path, pod: &PodId, socket_path: &Path, log: &Path) -> Result<(), SpawnError> {
    let listener =
        socket::listen(socket_path).map_err(|source| SpawnError::Socket { path: socket_path.to_owned(), source })?;
    let log = File::create(log).map_err(|source| SpawnError::Log { path: log.to_owned(), source })?;
    // tokio reaps the dropped child once it ends; a later daemon never was its parent, init is.
    tokio::process::Command::new(binary)
        .args(["--pod", pod.as_str()])
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::from(OwnedFd::from(listener)))
        .stdout(Stdio::null())
        .stderr(Stdio::from(log))
        .kill_on_drop(false)
        .spawn()
        .map(drop)
        .map_err(|source| SpawnError::Execute { binary: binary.to_owned(), source })
}
