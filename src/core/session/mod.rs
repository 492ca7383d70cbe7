//! What callers do inside a running container or pod: commands run to their end, streams, connections.
//!
//! The driver only lets them in ([`Access`]); from then on they talk to the shim themselves, and the pod's state is not
//! touched. Whoever drops what it was given ends what it began there.

mod attach;
mod exec;
mod pipes;
mod port;
mod sync;

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use oci_spec::runtime::Spec;
use podwright_base::{ContainerId, PodId};
use podwright_compile::ExecRequest;
use podwright_plan::wire::{Cause, ExecPlan, Exit, Stdio};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{sleep, timeout};

use crate::container::create::uncompiled;
use crate::error::{Error, chain};
use crate::node::Node;
use crate::shim::ShimClient;

pub(crate) use attach::attach;
pub(crate) use exec::exec;
pub use pipes::{Reader, Writer};
pub(crate) use port::connect;
pub use sync::ExecOutput;
pub(crate) use sync::run;

/// How long the shim may take to end a command that nobody wants any more.
const END_LIMIT: Duration = Duration::from_secs(15);
const END_PAUSE: Duration = Duration::from_millis(20);
/// Sizes of a terminal that may wait to be applied.
const SIZES: usize = 4;

/// Lets a caller into a running container.
pub(crate) struct Access {
    /// The pod's shim.
    pub(crate) shim: ShimClient,
    /// The pod.
    pub(crate) pod: PodId,
    /// The container.
    pub(crate) container: ContainerId,
    /// A name for the command, of which there is no other.
    pub(crate) exec: String,
    /// Told when the command of that name has ended; dropped when that cannot be told any more.
    pub(crate) exit: oneshot::Receiver<Exit>,
    /// True once the container has exited.
    pub(crate) exited: watch::Receiver<bool>,
    /// Whether the container has a terminal.
    pub(crate) tty: bool,
}

/// Which streams a caller wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Streams {
    /// To write to the process.
    pub stdin: bool,
    /// To read what it says.
    pub stdout: bool,
    /// To read its errors apart; never with a terminal.
    pub stderr: bool,
}

/// A process and its streams. Dropping it ends what it serves: a command, never the container's own process.
pub struct Session {
    /// Takes the process's input.
    pub stdin: Option<Writer>,
    /// Gives its output, to its end.
    pub stdout: Option<Reader>,
    /// Gives its errors, to their end.
    pub stderr: Option<Reader>,
    /// Takes the size of its terminal: columns and rows.
    pub resize: Option<mpsc::Sender<(u16, u16)>>,
    /// Resolves to the exit code once the process has ended.
    pub end: End,
}

/// Resolves to a process's exit code.
pub type End = Pin<Box<dyn Future<Output = Result<i32, Error>> + Send>>;

/// Ends a command when it is dropped, unless its exit was told, and has the shim forget it in any case.
struct Guard {
    shim: ShimClient,
    container: String,
    exec: String,
    ended: bool,
}

impl Guard {
    fn new(access: &Access) -> Self {
        let (shim, container) = (access.shim.clone(), access.container.to_string());
        Self { shim, container, exec: access.exec.clone(), ended: false }
    }

    /// Notes that the command has ended by itself.
    fn ended(mut self) {
        self.ended = true;
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let (shim, container, exec) = (self.shim.clone(), self.container.clone(), self.exec.clone());
        let ended = self.ended;
        // Outside a runtime the daemon is going down, and the connection that the command is tied to goes with it.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                if timeout(END_LIMIT, forget(&shim, &container, &exec, ended)).await.is_err() {
                    tracing::warn!(container.id = container, exec.id = exec, "a command did not die of SIGKILL");
                }
            });
        }
    }
}

/// Kills a command that has not ended, and has the shim forget it.
async fn forget(shim: &ShimClient, container: &str, exec: &str, ended: bool) {
    if !ended && let Err(error) = shim.kill_exec(container, exec).await {
        tracing::debug!(container.id = container, error = %chain(&error), "a command needed no kill");
    }
    // It cannot be forgotten before it has ended; any other answer means that there is nothing to forget.
    while shim.forget(container, exec).await.is_err_and(|error| error.cause() == Some(Cause::InvalidState)) {
        sleep(END_PAUSE).await;
    }
}

/// Plans a command: everything but its arguments is as the container's own process has it.
///
/// # Errors
/// When the container's configuration cannot be read or the command is empty.
fn plan(
    node: &Node,
    access: &Access,
    command: &[String],
    tty: bool,
    streams: Streams,
    limit: Option<Duration>,
) -> Result<ExecPlan, Error> {
    let path = node.layout.container_config(&access.pod, &access.container);
    let spec = Spec::load(&path).map_err(|source| Error::step(format!("read {}", path.display()), source))?;
    let process = podwright_spec::exec_process(&spec, command, tty)
        .map_err(|error| Error::invalid(error.field(), error.to_string()))?;
    let bundle = node.layout.container(&access.pod, &access.container);
    let request = ExecRequest {
        container_id: access.container.as_str(),
        bundle: &bundle,
        exec_id: &access.exec,
        stdio: Stdio { stdin: streams.stdin, stdout: streams.stdout, stderr: streams.stderr },
        tied_to_connection: true,
        timeout_ms: limit.map_or(0, |limit| u64::try_from(limit.as_millis()).unwrap_or(u64::MAX)),
    };
    podwright_compile::exec(&process, &spec, &request, &node.facts).map_err(|error| uncompiled(&error))
}
