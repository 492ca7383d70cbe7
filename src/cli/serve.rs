//! `podwright serve`: configuration → directories → recovery → sockets → drain.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use futures_util::stream::{self, Stream};
use podwright_base::{Config, Layout, config, config_file};
use podwright_core::Runtime;
use podwright_images::Images;
use podwright_network::Network;
use podwright_store::DaemonLock;
use podwright_streaming::Server;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::net::{UnixListener, UnixStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{Place, telemetry};

/// How long requests under way may take to end once the daemon is asked to stop. What they do goes on in the shims, or
/// is finished by the next daemon.
const DRAIN: Duration = Duration::from_secs(20);
/// How long the process waits for its own blocked threads at the very end.
const LINGER: Duration = Duration::from_secs(1);
/// How long to wait after a client could not be accepted: what is exhausted then does not come back at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serve the CRI on a unix socket.
#[derive(Debug, Args)]
pub(crate) struct Serve {
    #[command(flatten)]
    place: Place,
}

impl Serve {
    /// Serves until SIGTERM or SIGINT.
    pub(crate) fn run(self) -> anyhow::Result<()> {
        let config = self.configuration()?;
        telemetry::start(&config.log)?;
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        let outcome = runtime.block_on(serve(config));
        // A thread that waits for a user's dead file system must not keep the daemon from ending.
        runtime.shutdown_timeout(LINGER);
        outcome
    }

    fn configuration(self) -> anyhow::Result<Config> {
        let Place { config, root, state, address } = self.place;
        let required = config.is_some();
        let mut loaded = config_file::load(&config.unwrap_or_else(|| config::DEFAULT_PATH.into()), required)?;
        loaded.root = root.unwrap_or(loaded.root);
        loaded.state = state.unwrap_or(loaded.state);
        loaded.address = address.or(loaded.address);
        for path in [&mut loaded.root, &mut loaded.state] {
            *path = std::path::absolute(&path).with_context(|| format!("make {} absolute", path.display()))?;
        }
        config_file::check(&loaded)?;
        Ok(loaded)
    }
}

async fn serve(config: Config) -> anyhow::Result<()> {
    // Signals are caught from the beginning: one that comes during recovery must not cut it short.
    let stop = on_stop_signal()?;
    let layout = Layout::new(&config.root, &config.state);
    make_directories(&layout)?;
    let [state, root] = layout.locks();
    let _locks = (DaemonLock::take(&state)?, DaemonLock::take(&root)?);
    raise_open_file_limit();
    install_tls();
    let images = Images::open(&layout, &config.registry)?;
    let network = Network::open(&layout, &config.network).await?;
    let runtime = Runtime::start(&config, layout.clone(), images.clone(), network).await?;
    let address = config.address.clone().unwrap_or_else(|| layout.socket());
    let listener = listen(&address)?;
    info!(address = %address.display(), version = env!("CARGO_PKG_VERSION"), "serving");
    tell_systemd(&[sd_notify::NotifyState::Ready]);
    tokio::spawn(recover(images.clone()));
    let streaming = Server::start(&config.streaming, podwright_cri::backend(runtime.clone())).await?;
    let routes = podwright_cri::services(runtime.clone(), images.clone(), streaming.clone());
    let drained = CancellationToken::new();
    let server =
        tonic::transport::Server::builder().add_routes(routes).serve_with_incoming_shutdown(connections(listener), {
            let (stop, drained) = (stop.clone(), drained.clone());
            async move {
                stop.cancelled().await;
                info!("draining");
                tell_systemd(&[sd_notify::NotifyState::Stopping]);
                tokio::spawn(async move {
                    tokio::time::sleep(DRAIN).await;
                    drained.cancel();
                });
            }
        });
    tokio::select! {
        result = server => result.context("serve the CRI")?,
        () = drained.cancelled() => warn!("requests are still under way; the next daemon takes up what they began"),
    }
    streaming.shutdown().await;
    runtime.close().await;
    images.close()?;
    info!("stopped");
    Ok(())
}

/// Looks after images that a power cut may have damaged, beside all that is served.
async fn recover(images: Images) {
    if let Err(error) = images.recover().await {
        let error: &dyn std::error::Error = &error;
        warn!(error, "images are checked again at the next start");
    }
}

/// Takes as many open files as the administrator allows: each pod takes some here, and its shim inherits the limit.
fn raise_open_file_limit() {
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }) {
        warn!(error = %error, "the limit of open files stays as low as it is");
    }
}

/// Returns what is cancelled by SIGTERM or SIGINT.
fn on_stop_signal() -> anyhow::Result<CancellationToken> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let stop = CancellationToken::new();
    let token = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        token.cancel();
    });
    Ok(stop)
}

fn make_directories(layout: &Layout) -> anyhow::Result<()> {
    for (dir, mode) in [
        (layout.root().to_owned(), 0o711),
        (layout.state().to_owned(), 0o711),
        (layout.pods(), 0o711),
        (layout.state_pods(), 0o711),
    ] {
        DirBuilder::new().recursive(true).mode(mode).create(&dir).with_context(|| format!("make {}", dir.display()))?;
    }
    Ok(())
}

/// Chooses the one TLS implementation, before anything may need it.
fn install_tls() {
    if rustls::crypto::ring::default_provider().install_default().is_err() {
        warn!("a TLS provider was installed before");
    }
}

/// Listens on the CRI socket. It is made beside its place and renamed into it, so that it never has another mode, and a
/// socket that a killed daemon left is replaced.
fn listen(address: &Path) -> anyhow::Result<UnixListener> {
    if let Some(parent) = address.parent() {
        DirBuilder::new()
            .recursive(true)
            .mode(0o711)
            .create(parent)
            .with_context(|| format!("make {}", parent.display()))?;
    }
    match fs::symlink_metadata(address) {
        Ok(found) if !std::os::unix::fs::FileTypeExt::is_socket(&found.file_type()) => {
            bail!("listen on {}: it exists and is no socket: choose another --address", address.display())
        }
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("look at {}", address.display()));
        }
        _ => {}
    }
    let mut beside = address.as_os_str().to_owned();
    beside.push(".new");
    let beside = PathBuf::from(beside);
    match fs::remove_file(&beside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("remove {}", beside.display()));
        }
        _ => {}
    }
    let listener = UnixListener::bind(&beside).with_context(|| format!("listen on {}", address.display()))?;
    fs::set_permissions(&beside, Permissions::from_mode(0o660))
        .and_then(|()| fs::rename(&beside, address))
        .with_context(|| format!("listen on {}", address.display()))?;
    Ok(listener)
}

/// Accepts clients for ever. Running out of descriptors is no reason to stop serving those that are connected.
fn connections(listener: UnixListener) -> impl Stream<Item = io::Result<UnixStream>> {
    stream::unfold(listener, |listener| async {
        loop {
            match listener.accept().await {
                Ok((client, _)) => return Some((Ok(client), listener)),
                Err(error) => {
                    warn!(error = %error, "a client could not be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    })
}

/// Tells systemd how far the daemon is, where it was started by it.
fn tell_systemd(state: &[sd_notify::NotifyState]) {
    if let Err(error) = sd_notify::notify(state) {
        warn!(error = %error, "systemd could not be told");
    }
}
