//! One client's session, from the upgraded connection to its end.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::backend::{Backend, Session, SessionError};
use crate::copy::{receive, send};
use crate::forward::{Pod, serve_pairs, serve_ports};
use crate::mux::connection::{Link, LinkError};
use crate::mux::{Decode, Encode, WINDOW};
use crate::negotiate::{Agreement, ForwardProtocol, Remote, RemoteProtocol};
use crate::remote::{Channels, Wanted, greet, serve, tell};
use crate::request::RemoteRequest;
use crate::spdy;
use crate::status::{Format, Outcome};
use crate::websocket::{self, Codec};

/// WebSocket's channels of exec and attach.
const STDIN: u32 = 0;
const STDOUT: u32 = 1;
const STDERR: u32 = 2;
const ERROR: u32 = 3;
const RESIZE: u32 = 4;

/// What a session needs besides its connection.
pub(crate) struct Terms {
    pub(crate) backend: Arc<dyn Backend>,
    /// How long a client may take to open its streams.
    pub(crate) patience: Duration,
    /// Ends the session with a word to the client.
    pub(crate) stopping: CancellationToken,
    /// Set when the client has hung up.
    pub(crate) hung_up: CancellationToken,
}

/// Serves what was agreed on.
///
/// # Errors
/// When the connection breaks or the client does not keep to the protocol.
pub(crate) async fn run<S>(socket: S, agreement: Agreement, terms: &Terms) -> Result<(), LinkError>
where
    S: AsyncRead + AsyncWrite + Send,
{
    let pod = |id| Pod { backend: Arc::clone(&terms.backend), id };
    match agreement {
        Agreement::Remote(RemoteProtocol::Spdy(remote), request) => spdy_remote(socket, remote, request, terms).await,
        Agreement::Remote(RemoteProtocol::Channels(codec, format), request) => {
            channel_remote(socket, codec, format, request, terms).await
        }
        Agreement::Forward(ForwardProtocol::Spdy, request) => {
            spdy_forward(socket, &pod(request.pod_sandbox_id), terms).await
        }
        Agreement::Forward(ForwardProtocol::Tunnel, request) => {
            tunnel_forward(socket, &pod(request.pod_sandbox_id), terms).await
        }
        Agreement::Forward(ForwardProtocol::Channels(codec), request) => {
            channel_forward(socket, codec, &pod(request.pod_sandbox_id), &request.ports, terms).await
        }
    }
}

/// Drives a connection beside its session: either may end first.
async fn together<S, D, E>(socket: S, link: Link<D, E>, session: impl Future<Output = ()>) -> Result<(), LinkError>
where
    S: AsyncRead + AsyncWrite,
    D: Decode,
    E: Encode,
{
    let closer = link.closer();
    let mut driving = pin!(link.drive(socket));
    tokio::select! {
        // The client is gone: what is left of the session is dropped, and with it what it served.
        ended = &mut driving => return ended,
        () = session => closer.close(),
    }
    driving.await
}

fn open(request: RemoteRequest, backend: &dyn Backend) -> BoxFuture<'_, Result<Session, SessionError>> {
    match request {
        RemoteRequest::Exec(request) => backend.exec(request),
        RemoteRequest::Attach(request) => {
            let attaching = backend.attach(request);
            // How the container's own process ended is told by its status, not to those who look on.
            Box::pin(async { attaching.await.map(|session| Session { end: over(session.end), ..session }) })
        }
    }
}

fn over(end: BoxFuture<'static, Result<i32, SessionError>>) -> BoxFuture<'static, Result<i32, SessionError>> {
    Box::pin(async { end.await.map(|_| 0) })
}

fn wanted(request: &RemoteRequest, resize: bool) -> Wanted {
    let (tty, stdin, stdout, stderr) = match request {
        RemoteRequest::Exec(request) => (request.tty, request.stdin, request.stdout, request.stderr),
        RemoteRequest::Attach(request) => (request.tty, request.stdin, request.stdout, request.stderr),
    };
    Wanted { stdin, stdout, stderr, resize: tty && resize }
}

async fn spdy_remote<S>(socket: S, remote: Remote, request: RemoteRequest, terms: &Terms) -> Result<(), LinkError>
where
    S: AsyncRead + AsyncWrite + Send,
{
    let (link, mut opened) = Link::new(spdy::Decoder::new(), spdy::Encoder::default(), terms.hung_up.clone());
    let session = async move {
        let mut channels = Channels::default();
        let wanted = wanted(&request, remote.resize);
        if timeout(terms.patience, channels.gather(&mut opened, wanted)).await.is_err() {
            let message = format!("the client did not open its streams within {} s", terms.patience.as_secs());
            return tell(channels, &Outcome::Failed(message), remote.format).await;
        }
        // Streams opened from here on are refused.
        drop(opened);
        serve(channels, open(request, &*terms.backend), remote.format, &terms.stopping).await;
    };
    together(socket, link, session).await
}

async fn channel_remote<S>(
    socket: S,
    codec: Codec,
    format: Format,
    request: RemoteRequest,
    terms: &Terms,
) -> Result<(), LinkError>
where
    S: AsyncRead + AsyncWrite + Send,
{
    let (mut link, _) =
        Link::new(websocket::Decoder::new(codec), websocket::Encoder::new(codec), terms.hung_up.clone());
    let wanted = wanted(&request, true);
    let channels = Channels {
        stdin: wanted.stdin.then(|| link.stream(STDIN).0),
        stdout: wanted.stdout.then(|| link.stream(STDOUT).1),
        stderr: wanted.stderr.then(|| link.stream(STDERR).1),
        error: Some(link.stream(ERROR).1),
        resize: wanted.resize.then(|| link.stream(RESIZE).0),
        unused: Vec::new(),
    };
    let session = async move {
        greet(&channels).await;
        serve(channels, open(request, &*terms.backend), format, &terms.stopping).await;
    };
    together(socket, link, session).await
}

async fn spdy_forward<S>(socket: S, pod: &Pod, terms: &Terms) -> Result<(), LinkError>
where
    S: AsyncRead + AsyncWrite + Send,
{
    let (link, opened) = Link::new(spdy::Decoder::new(), spdy::Encoder::default(), terms.hung_up.clone());
    together(socket, link, serve_pairs(opened, pod, terms.patience, &terms.stopping)).await
}

/// The bytes of SPDY are those of a WebSocket's messages: one connection within the other.
async fn tunnel_forward<S>(socket: S, pod: &Pod, terms: &Terms) -> Result<(), LinkError>
where
    S: AsyncRead + AsyncWrite + Send,
{
    let codec = Codec::Tunnel;
    let (mut link, _) =
        Link::new(websocket::Decoder::new(codec), websocket::Encoder::new(codec), terms.hung_up.clone());
    let (input, output) = link.stream(0);
    let (inner, outer) = tokio::io::duplex(WINDOW);
    let (mut read, write) = tokio::io::split(outer);
    let session = async move {
        let never = CancellationToken::new();
        let carrying = async { tokio::join!(receive(input, write), send(&mut read, &output, &never)) };
        let (forwarded, _) = tokio::join!(spdy_forward(inner, pod, terms), carrying);
        if let Err(error) = forwarded {
            tracing::debug!(%error, "a tunnel broke");
        }
    };
    together(socket, link, session).await
}

async fn channel_forward<S>(socket: S, codec: Codec, pod: &Pod, ports: &[u16], terms: &Terms) -> Result<(), LinkError>
where
    S: AsyncRead + AsyncWrite + Send,
{
    let (mut link, _) =
        Link::new(websocket::Decoder::new(codec), websocket::Encoder::new(codec), terms.hung_up.clone());
    let channels = (0_u32..).step_by(2).zip(ports);
    let ports = channels.map(|(id, &port)| (port, link.stream(id), link.stream(id + 1).1)).collect();
    together(socket, link, serve_ports(ports, pod, &terms.stopping)).await
}
