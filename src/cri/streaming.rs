//! Exec, Attach and PortForward: a URL of the streaming server for the client, and for that server a way to what the
//! client wants to reach.

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use podwright_core::session::{self, Streams};
use podwright_core::view::ContainerState;
use podwright_core::{Error, Runtime};
use podwright_proto::runtime::v1;
use podwright_streaming::{
    AttachRequest, Backend, Connection, ExecRequest, PortForwardRequest, Server, Session, SessionError, TerminalSize,
    TokenError,
};
use tokio::sync::mpsc;
use tonic::Status;

use crate::status::of;

/// Sizes of a terminal that may wait to be applied.
const SIZES: usize = 4;

/// Hands out a URL for a command with streams.
pub(crate) fn exec(runtime: &Runtime, server: &Server, request: v1::ExecRequest) -> Result<v1::ExecResponse, Status> {
    check_running(runtime, &request.container_id)?;
    let request = ExecRequest {
        container_id: request.container_id,
        command: request.cmd,
        tty: request.tty,
        stdin: request.stdin,
        stdout: request.stdout,
        stderr: request.stderr,
    };
    Ok(v1::ExecResponse { url: server.exec(request).map_err(refused)? })
}

/// Hands out a URL for the streams of a container's own process.
pub(crate) fn attach(
    runtime: &Runtime,
    server: &Server,
    request: v1::AttachRequest,
) -> Result<v1::AttachResponse, Status> {
    check_running(runtime, &request.container_id)?;
    let request = AttachRequest {
        container_id: request.container_id,
        tty: request.tty,
        stdin: request.stdin,
        stdout: request.stdout,
        stderr: request.stderr,
    };
    Ok(v1::AttachResponse { url: server.attach(request).map_err(refused)? })
}

/// Hands out a URL for connections to a pod's ports.
pub(crate) fn port_forward(
    runtime: &Runtime,
    server: &Server,
    request: v1::PortForwardRequest,
) -> Result<v1::PortForwardResponse, Status> {
    let pod = runtime.pod(&request.pod_sandbox_id).map_err(|error| of(&error))?;
    if !pod.ready {
        return Err(of(&Error::PodNotReady { pod: pod.id.clone(), reason: pod.reason.clone() }));
    }
    let request = PortForwardRequest { pod_sandbox_id: request.pod_sandbox_id, ports: request.port };
    Ok(v1::PortForwardResponse { url: server.port_forward(request).map_err(refused)? })
}

/// What the user can be told now is not left for the client to find out.
fn check_running(runtime: &Runtime, id: &str) -> Result<(), Status> {
    let container = runtime.container(id).map_err(|error| of(&error))?;
    let problem = match container.state {
        ContainerState::Running { .. } => return Ok(()),
        ContainerState::Created => "it is created, not running: start it first",
        ContainerState::Exited(_) => "it is not running: it has exited",
    };
    Err(of(&Error::WrongState { container: container.id.clone(), problem: problem.to_owned() }))
}

fn refused(error: TokenError) -> Status {
    match error {
        TokenError::Invalid { .. } => Status::invalid_argument(error.to_string()),
        TokenError::Exhausted { .. } => Status::resource_exhausted(error.to_string()),
    }
}

/// The runtime, as the streaming server sees it.
pub(crate) struct Sessions(Runtime);

impl Sessions {
    /// Serves a runtime's containers and pods.
    pub(crate) fn new(runtime: Runtime) -> Self {
        Self(runtime)
    }
}

impl Backend for Sessions {
    fn exec(&self, request: ExecRequest) -> BoxFuture<'_, Result<Session, SessionError>> {
        async move {
            let ExecRequest { container_id, command, tty, stdin, stdout, stderr } = request;
            let streams = Streams { stdin, stdout, stderr };
            let session = self.0.exec(&container_id, &command, tty, streams).await;
            session.map(for_server).map_err(SessionError::new)
        }
        .boxed()
    }

    fn attach(&self, request: AttachRequest) -> BoxFuture<'_, Result<Session, SessionError>> {
        async move {
            let AttachRequest { container_id, stdin, stdout, stderr, .. } = request;
            let session = self.0.attach(&container_id, Streams { stdin, stdout, stderr }).await;
            session.map(for_server).map_err(SessionError::new)
        }
        .boxed()
    }

    fn port_forward(&self, pod_sandbox_id: String, port: u16) -> BoxFuture<'_, Result<Connection, SessionError>> {
        async move {
            let stream = self.0.connect(&pod_sandbox_id, port).await.map_err(SessionError::new)?;
            Ok(Box::new(stream) as Connection)
        }
        .boxed()
    }
}

fn for_server(session: session::Session) -> Session {
    let session::Session { stdin, stdout, stderr, resize, end } = session;
    Session {
        stdin: stdin.map(|stdin| Box::new(stdin) as _),
        stdout: stdout.map(|stdout| Box::new(stdout) as _),
        stderr: stderr.map(|stderr| Box::new(stderr) as _),
        resize: resize.map(sizes),
        end: async move { end.await.map_err(SessionError::new) }.boxed(),
    }
}

/// Passes a terminal's sizes on.
fn sizes(to: mpsc::Sender<(u16, u16)>) -> mpsc::Sender<TerminalSize> {
    let (sender, mut from) = mpsc::channel::<TerminalSize>(SIZES);
    tokio::spawn(async move {
        while let Some(size) = from.recv().await {
            if to.send((size.width, size.height)).await.is_err() {
                return;
            }
        }
    });
    sender
}
