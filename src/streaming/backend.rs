//! What the server asks of the rest of the runtime: to open sessions and connections. It knows nothing else of it.

use std::error::Error;
use std::fmt;

use futures_util::future::BoxFuture;
use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;

use crate::request::{AttachRequest, ExecRequest};

/// Opens what clients are connected to. Called once per token, when the client has made all its streams.
///
/// Every future may be dropped at any point, when the client leaves: nothing of the session may stay then.
pub trait Backend: Send + Sync + 'static {
    /// Starts a command in a container (CRI `Exec`).
    fn exec(&self, request: ExecRequest) -> BoxFuture<'_, Result<Session, SessionError>>;

    /// Joins a running container's own streams (CRI `Attach`).
    fn attach(&self, request: AttachRequest) -> BoxFuture<'_, Result<Session, SessionError>>;

    /// Connects to a port on the loopback of a pod (CRI `PortForward`).
    fn port_forward(&self, pod_sandbox_id: String, port: u16) -> BoxFuture<'_, Result<Connection, SessionError>>;
}

/// What bytes are written to.
pub type Writer = Box<dyn AsyncWrite + Send + Unpin>;
/// What bytes are read from.
pub type Reader = Box<dyn AsyncRead + Send + Unpin>;

/// A process and its streams, for one client. Dropping it ends what it serves: the command of an exec, an attach's
/// part in the container's streams, never the container.
pub struct Session {
    /// Takes what the client sends; shut down when the client ends its side, dropped without that when it leaves.
    pub stdin: Option<Writer>,
    /// What the process writes; it ends once everything written before `end` has been read.
    pub stdout: Option<Reader>,
    /// The same for standard error; none with a terminal.
    pub stderr: Option<Reader>,
    /// Takes the terminal's sizes as the client changes them. One that is full keeps the last size waiting.
    pub resize: Option<mpsc::Sender<TerminalSize>>,
    /// Resolves to the exit code (0 to 255) when the process has ended. Output is read on until it ends; a stream that
    /// stays open and silent is given up after ten seconds.
    pub end: BoxFuture<'static, Result<i32, SessionError>>,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("stdin", &self.stdin.is_some())
            .field("stdout", &self.stdout.is_some())
            .field("stderr", &self.stderr.is_some())
            .field("resize", &self.resize.is_some())
            .finish_non_exhaustive()
    }
}

/// Both directions of a connection: shut down when the client ends its side, dropped when it leaves.
pub type Connection = Box<dyn ReadWrite>;

/// [`AsyncRead`] and [`AsyncWrite`] in one object.
pub trait ReadWrite: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> ReadWrite for T {}

/// A terminal's size in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct TerminalSize {
    /// Columns.
    #[serde(rename = "Width", alias = "width")]
    pub width: u16,
    /// Rows.
    #[serde(rename = "Height", alias = "height")]
    pub height: u16,
}

/// Why there is no session, or why it broke. Its text, with its causes', is what the client is told.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct SessionError(Box<dyn Error + Send + Sync>);

impl SessionError {
    /// Wraps the cause.
    pub fn new(cause: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self(cause.into())
    }

    /// Returns the error and its causes as one line.
    pub(crate) fn chain(&self) -> String {
        let causes = std::iter::successors(Some(&*self.0 as &dyn Error), |error: &&dyn Error| (*error).source());
        causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
    }
}
