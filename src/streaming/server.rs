//! The server: its address, its connections, its end.

use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use http::{Method, Response, StatusCode};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::{TokioIo, TokioTimer};
use podwright_base::config::Streaming;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use crate::backend::Backend;
use crate::hangup::Hangup;
use crate::idle::Activity;
use crate::negotiate::{Agreement, negotiate, refusal};
use crate::request::{AttachRequest, ExecRequest, PortForwardRequest, Request, TokenError};
use crate::session::{Terms, run};
use crate::tls::{Tls, TlsError};
use crate::token::Tokens;

/// Connections that may be on their way to a session. Each has to make its request in time.
const ARRIVING: usize = 256;
/// How long a client may take for its TLS handshake, and then for its request.
const ARRIVAL: Duration = Duration::from_secs(10);
/// What a request's head may have, in bytes.
const HEAD: usize = 16 << 10;
/// How long sessions may take to tell their clients that the server stops.
const FAREWELL: Duration = Duration::from_secs(5);

/// Why the server did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The address cannot be listened on.
    #[error("listen on {address} for streaming")]
    Listen {
        /// The configured address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The certificate or its key cannot be used.
    #[error("set up TLS for streaming")]
    Tls(#[from] TlsError),
}

/// The streaming server. It serves as long as a clone of it is there.
#[derive(Debug, Clone)]
pub struct Server {
    tokens: Arc<Tokens>,
    /// Scheme and authority of all URLs.
    base: String,
    address: SocketAddr,
    running: Arc<Running>,
}

#[derive(Debug)]
struct Running {
    /// No new connections; sessions tell their clients.
    stopping: CancellationToken,
    /// Sessions that are still there are dropped.
    aborting: CancellationToken,
    tasks: TaskTracker,
    _guards: [DropGuard; 2],
}

impl Server {
    /// Listens and serves.
    ///
    /// # Errors
    /// When the address is taken or TLS cannot be set up.
    pub async fn start(config: &Streaming, backend: Arc<dyn Backend>) -> Result<Self, StartError> {
        let tls = Tls::load(config)?;
        let failed = |source| StartError::Listen { address: config.address, source };
        let listener = TcpListener::bind(config.address).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let scheme = if tls.is_some() { "https" } else { "http" };
        let (stopping, aborting, tasks) = (CancellationToken::new(), CancellationToken::new(), TaskTracker::new());
        let tokens = Arc::new(Tokens::default());
        let shared = Shared {
            tokens: Arc::clone(&tokens),
            tls,
            idle: Duration::from_secs(config.idle_timeout_seconds.get()),
            backend,
            patience: Duration::from_secs(config.stream_creation_timeout_seconds.get()),
            stopping: stopping.clone(),
            aborting: aborting.clone(),
            tasks: tasks.clone(),
        };
        tasks.spawn(accept(listener, Arc::new(shared)));
        let guards = [stopping.clone().drop_guard(), aborting.clone().drop_guard()];
        let running = Arc::new(Running { stopping, aborting, tasks, _guards: guards });
        Ok(Self { tokens, base: format!("{scheme}://{}", reachable(address)), address, running })
    }

    /// Returns where it listens, with the port it was given.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns a URL for one exec (CRI `Exec`), good once and for a minute.
    ///
    /// # Errors
    /// When the request makes no sense or too many URLs are unused.
    pub fn exec(&self, request: ExecRequest) -> Result<String, TokenError> {
        self.url(request.try_into()?)
    }

    /// Returns a URL for one attach (CRI `Attach`), good once and for a minute.
    ///
    /// # Errors
    /// When the request makes no sense or too many URLs are unused.
    pub fn attach(&self, request: AttachRequest) -> Result<String, TokenError> {
        self.url(request.try_into()?)
    }

    /// Returns a URL for one port-forward session (CRI `PortForward`), good once and for a minute.
    ///
    /// # Errors
    /// When the request makes no sense or too many URLs are unused.
    pub fn port_forward(&self, request: PortForwardRequest) -> Result<String, TokenError> {
        self.url(request.try_into()?)
    }

    fn url(&self, request: Request) -> Result<String, TokenError> {
        let verb = request.verb();
        Ok(format!("{}/{verb}/{}", self.base, self.tokens.issue(request)?))
    }

    /// Stops listening, has all sessions tell their clients so, and returns when they are over: within seconds.
    pub async fn shutdown(&self) {
        self.running.stopping.cancel();
        self.running.tasks.close();
        if timeout(FAREWELL, self.running.tasks.wait()).await.is_err() {
            self.running.aborting.cancel();
            self.running.tasks.wait().await;
        }
    }
}

/// Returns an address that a client on this host can connect to.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

/// What all connections share.
struct Shared {
    tokens: Arc<Tokens>,
    tls: Option<Tls>,
    idle: Duration,
    backend: Arc<dyn Backend>,
    patience: Duration,
    stopping: CancellationToken,
    aborting: CancellationToken,
    tasks: TaskTracker,
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let arriving = Arc::new(Semaphore::new(ARRIVING));
    let stopping = shared.stopping.clone();
    let serving = async {
        loop {
            let permit = Arc::clone(&arriving).acquire_owned().await.expect("the semaphore is never closed");
            match listener.accept().await {
                Ok((socket, _)) => {
                    let arrival = arrive(socket, Arc::clone(&shared), permit);
                    shared.tasks.spawn(shared.aborting.clone().run_until_cancelled_owned(arrival));
                }
                Err(error) => {
                    // Out of files, mostly: some are given back soon, and to try at once would only burn a processor.
                    tracing::warn!(%error, "a streaming connection was not accepted");
                    sleep(Duration::from_millis(100)).await;
                }
            }
        }
    };
    stopping.run_until_cancelled(serving).await;
}

/// Takes a connection to its request; the session goes on in a task of its own.
async fn arrive(socket: TcpStream, shared: Arc<Shared>, permit: OwnedSemaphorePermit) {
    // A keystroke and its echo are small, and wait for nothing.
    let hangup = match socket.set_nodelay(true).and_then(|()| Hangup::watch(&socket)) {
        Ok(hangup) => Arc::new(hangup),
        Err(error) => return tracing::warn!(%error, "a streaming connection cannot be served"),
    };
    if shared.tls.is_none() {
        return request(socket, hangup, shared, permit).await;
    }
    let reading = Arc::clone(&shared);
    let config = tokio::task::spawn_blocking(move || reading.tls.as_ref().map(Tls::config));
    let Ok(Some(config)) = config.await else { return };
    match timeout(ARRIVAL, TlsAcceptor::from(config).accept(socket)).await {
        Ok(Ok(socket)) => request(socket, hangup, shared, permit).await,
        Ok(Err(error)) => tracing::debug!(%error, "a TLS handshake failed"),
        Err(_) => tracing::debug!("a TLS handshake took too long"),
    }
}

/// Serves the one request of a connection.
async fn request<S>(socket: S, hangup: Arc<Hangup>, shared: Arc<Shared>, permit: OwnedSemaphorePermit)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let service = service_fn(|request| {
        let response = answer(request, &hangup, &shared);
        async { Ok::<_, Infallible>(response) }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(ARRIVAL)
        .max_buf_size(HEAD)
        .serve_connection(TokioIo::new(socket), service)
        .with_upgrades();
    if let Err(error) = connection.await {
        tracing::debug!(%error, "a streaming request failed");
    }
    drop(permit);
}

/// Answers a request, and starts its session where there is one.
fn answer(mut request: http::Request<Incoming>, hangup: &Arc<Hangup>, shared: &Arc<Shared>) -> Response<String> {
    let plain = |status| refusal(status, format!("{status}\n"));
    let mut path = request.uri().path().split('/');
    let (Some(""), Some(verb @ ("exec" | "attach" | "portforward")), Some(token), None) =
        (path.next(), path.next(), path.next(), path.next())
    else {
        return plain(StatusCode::NOT_FOUND);
    };
    if ![Method::GET, Method::POST].contains(request.method()) {
        return plain(StatusCode::METHOD_NOT_ALLOWED);
    }
    let Some(asked) = shared.tokens.redeem(verb, token) else { return plain(StatusCode::NOT_FOUND) };
    let (verb, target) = (asked.verb(), asked.target().to_owned());
    match negotiate(request.method(), request.headers(), asked) {
        Err(error) => {
            tracing::debug!(verb, target, %error, "a streaming client was refused");
            error.response()
        }
        Ok((agreement, response)) => {
            let upgrade = hyper::upgrade::on(&mut request);
            let hangup = Arc::clone(hangup);
            let session = Arc::clone(shared).serve(upgrade, hangup, agreement, verb, target);
            shared.tasks.spawn(shared.aborting.clone().run_until_cancelled_owned(session));
            response
        }
    }
}

impl Shared {
    /// Serves a session on what becomes of its connection.
    async fn serve(
        self: Arc<Self>,
        upgrade: OnUpgrade,
        hangup: Arc<Hangup>,
        agreement: Agreement,
        verb: &'static str,
        target: String,
    ) {
        let socket = match upgrade.await {
            Ok(upgraded) => TokioIo::new(upgraded),
            Err(error) => {
                return tracing::debug!(verb, target, %error, "a streaming client left before its session began");
            }
        };
        let (socket, activity) = Activity::watch(socket);
        let terms = Terms {
            backend: Arc::clone(&self.backend),
            patience: self.patience,
            stopping: self.stopping.clone(),
            hung_up: CancellationToken::new(),
        };
        let watching = async {
            hangup.seen().await;
            terms.hung_up.cancel();
            std::future::pending::<Infallible>().await
        };
        tokio::select! {
            ended = run(socket, agreement, &terms) => match ended {
                Ok(()) => tracing::debug!(verb, target, "a streaming session has ended"),
                Err(error) => {
                    let cause = std::error::Error::source(&error).map(ToString::to_string);
                    tracing::debug!(verb, target, %error, cause, "a streaming session broke");
                }
            },
            () = activity.ceased(self.idle) => {
                tracing::info!(verb, target, seconds = self.idle.as_secs(), "an idle streaming session was ended");
            }
            never = watching => match never {},
        }
    }
}
