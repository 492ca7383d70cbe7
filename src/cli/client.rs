//! The connection to a daemon.

use std::error::Error;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use hyper_util::rt::TokioIo;
use podwright_proto::podwright::v1::node_client::NodeClient;
use podwright_proto::runtime::v1::image_service_client::ImageServiceClient;
use podwright_proto::runtime::v1::runtime_service_client::RuntimeServiceClient;
use podwright_proto::runtime::v1::{ContainerStatus, ContainerStatusRequest};
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};

/// Two capped streams of an ExecSync, and room for the rest.
const MESSAGE_LIMIT: usize = 64 << 20;

/// A daemon's services, on one connection.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    /// Pods and containers.
    pub(crate) runtime: RuntimeServiceClient<Channel>,
    /// Images.
    pub(crate) images: ImageServiceClient<Channel>,
    /// What the CRI lacks.
    pub(crate) node: NodeClient<Channel>,
}

impl Client {
    /// Connects to the daemon that listens on `socket`.
    pub(crate) async fn connect(socket: &Path) -> Result<Self> {
        // The first connection is made here and thrown away: its error is the plain one, of the socket alone.
        UnixStream::connect(socket).await.with_context(|| unreachable(socket))?;
        let path: PathBuf = socket.to_owned();
        // The URI is a formality of HTTP/2; the connector below decides where it goes.
        let channel = Endpoint::from_static("http://podwright.localhost").connect_with_connector_lazy(
            tower::service_fn(move |_| {
                let path = path.clone();
                async move { Ok::<_, io::Error>(TokioIo::new(UnixStream::connect(path).await?)) }
            }),
        );
        Ok(Self {
            runtime: RuntimeServiceClient::new(channel.clone()).max_decoding_message_size(MESSAGE_LIMIT),
            images: ImageServiceClient::new(channel.clone()).max_decoding_message_size(MESSAGE_LIMIT),
            node: NodeClient::new(channel),
        })
    }

    /// Asks for a container's status.
    pub(crate) async fn container_status(&mut self, id: &str) -> Result<ContainerStatus, tonic::Status> {
        let request = ContainerStatusRequest { container_id: id.to_owned(), verbose: false };
        let status = self.runtime.container_status(request).await?.into_inner().status;
        status.ok_or_else(|| tonic::Status::internal("the daemon's answer has no status"))
    }
}

fn unreachable(socket: &Path) -> String {
    let socket = socket.display();
    format!("cannot reach the daemon at {socket} (`podwright serve` starts one, --address names another socket)")
}

/// How long the daemon may be away, as it is for an upgrade: pods run on meanwhile.
const AWAY: Duration = Duration::from_secs(30);

/// Bears with a daemon that is being replaced, for a while.
#[derive(Debug)]
pub(crate) struct Patience {
    heard: Instant,
}

impl Patience {
    /// Begins when the daemon has just been heard.
    pub(crate) fn new() -> Self {
        Self { heard: Instant::now() }
    }

    /// Takes the outcome of a call that will be made again; `None`: the daemon is away, and may yet come back.
    ///
    /// # Errors
    /// The daemon's own answer was an error, or it has been away for too long.
    pub(crate) fn bear<T>(&mut self, outcome: Result<T, tonic::Status>) -> Result<Option<T>, tonic::Status> {
        match outcome {
            Err(status) if is_lost(&status) && self.heard.elapsed() < AWAY => Ok(None),
            outcome => {
                self.heard = Instant::now();
                outcome.map(Some)
            }
        }
    }
}

/// Tells whether a call failed on its way: only then has the failure a source, as an answer cannot carry one.
fn is_lost(status: &tonic::Status) -> bool {
    status.code() == tonic::Code::Unavailable || status.source().is_some()
}

/// Makes an error of a call's failure: the daemon's own words, without the code, which they already tell.
pub(crate) fn said(status: tonic::Status) -> anyhow::Error {
    match status.message() {
        message if status.source().is_some() => anyhow::anyhow!("the daemon went away: {message}"),
        "" => anyhow::anyhow!("{}", status.code()),
        message => anyhow::anyhow!("{message}"),
    }
}
