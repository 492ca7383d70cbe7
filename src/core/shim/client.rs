//! Requests to a shim, their replies, and the events it sends unasked.
//!
//! One task owns the connection. A caller that goes away does not disturb it: its reply is dropped when it comes.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use podwright_base::PodId;
use podwright_plan::frame::MAX_FRAME;
use podwright_plan::wire::{
    self, Event, Failure, Frame, Hello, Inspected, Request, frame::Kind, reply::Result as Answer, request::Op,
};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use tracing::{debug, warn};

use super::wire::{Wire, WireError};

/// For everything that a healthy shim does at once.
const QUICK: Duration = Duration::from_secs(10);
/// For the launch of a process: mounts of a user's volumes may be slow.
const LAUNCH: Duration = Duration::from_secs(60);
const QUEUE: usize = 64;
const SIGKILL: u32 = 9;
/// The protocol's minor version that brought attaching.
const ATTACH_SINCE: u32 = 1;
/// The one that brought overlays as mounts.
const OVERLAY_SINCE: u32 = 2;
/// What a frame has around a request, in bytes, at the most.
const ENVELOPE: usize = 64;

/// Why the shim did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ShimError {
    /// There is no shim at the socket.
    #[error("connect to the shim at {}", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The connection ended: the shim died, or dropped it.
    #[error("the shim is gone")]
    Gone,
    /// No answer in time.
    #[error("the shim has not answered {op:?} for {}s", after.as_secs())]
    Silent {
        /// The request.
        op: &'static str,
        /// For how long.
        after: Duration,
    },
    /// The request is larger than a frame may be.
    #[error("{op:?} takes {bytes} bytes; the shim takes {MAX_FRAME}")]
    TooLarge {
        /// The request.
        op: &'static str,
        /// Its size.
        bytes: usize,
    },
    /// The shim was started by an older version, which would close the connection over the request.
    #[error("the pod's shim is of an older version that has no {op:?}: recreate the pod")]
    TooOld {
        /// The request.
        op: &'static str,
    },
    /// The shim tried and failed.
    #[error("{}", describe(.0))]
    Failed(Failure),
    /// The shim answered what the request cannot be answered with.
    #[error("the shim answered {op:?} with something else")]
    Confused {
        /// The request.
        op: &'static str,
    },
}

impl ShimError {
    /// Whether nobody is there any more: what lived in the pod has no parent.
    pub(crate) fn is_dead(&self) -> bool {
        match self {
            Self::Connect { source, .. } => {
                matches!(source.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::ConnectionRefused)
            }
            _ => false,
        }
    }

    /// Returns what kind of failure the shim reported, if it did.
    pub(crate) fn cause(&self) -> Option<wire::Cause> {
        match self {
            Self::Failed(failure) => Some(failure.cause()),
            _ => None,
        }
    }
}

/// Puts a failure into words: the step, its subject, the system's error.
fn describe(failure: &Failure) -> String {
    let mut text = failure.step.clone();
    if !failure.subject.is_empty() {
        text.push_str(&format!(" {:?}", failure.subject));
    }
    if failure.errno != 0 {
        text.push_str(&format!(": {}", std::io::Error::from_raw_os_error(failure.errno)));
    }
    if !failure.detail.is_empty() {
        text.push_str(&format!(": {}", failure.detail));
    }
    text
}

/// A connection that has said hello and subscribed.
pub(crate) struct Subscription {
    /// For requests.
    pub(crate) client: ShimClient,
    /// What the shim sends unasked; closed when the shim is gone.
    pub(crate) events: mpsc::Receiver<Event>,
    /// What the shim knew when the events began.
    pub(crate) inspected: Inspected,
}

/// Asks one shim. Clones share the connection.
#[derive(Debug, Clone)]
pub(crate) struct ShimClient {
    requests: mpsc::Sender<Outgoing>,
    pid: u32,
    /// The protocol's minor version that it speaks.
    minor: u32,
}

#[derive(Debug)]
struct Outgoing {
    op: Op,
    /// Whether a descriptor comes with the answer, unless that is a failure.
    brings: bool,
    descriptors: Vec<OwnedFd>,
    reply: oneshot::Sender<Incoming>,
}

#[derive(Debug)]
struct Incoming {
    answer: Answer,
    descriptor: Option<OwnedFd>,
}

impl ShimClient {
    /// Connects, compares protocol versions and subscribes to events.
    ///
    /// # Errors
    /// When there is no shim, it belongs to another pod, or speaks another major version.
    pub(crate) async fn connect(socket: &Path, pod: &PodId) -> Result<Subscription, ShimError> {
        let connect = Wire::connect(socket);
        let wire = timeout(QUICK, connect)
            .await
            .map_err(|_| ShimError::Silent { op: "connect", after: QUICK })?
            .map_err(|source| ShimError::Connect { path: socket.to_owned(), source })?;
        let (requests, outgoing) = mpsc::channel(QUEUE);
        let (events_in, events) = mpsc::channel(QUEUE);
        let mut client = Self { requests, pid: 0, minor: 0 };
        tokio::spawn(run(wire, outgoing, events_in, pod.clone()));
        let hello =
            Hello { major: podwright_plan::MAJOR, minor: podwright_plan::MINOR, pod_id: pod.as_str().to_owned() };
        // The kernel names the maker of the listening socket as the peer, which is a daemon: the shim says who it is.
        match client.ask("hello", Op::Hello(hello), Vec::new(), QUICK).await?.answer {
            Answer::Hello(hello) => (client.pid, client.minor) = (hello.pid, hello.minor),
            _ => return Err(ShimError::Confused { op: "hello" }),
        }
        match client.ask("subscribe", Op::Subscribe(wire::Subscribe {}), Vec::new(), QUICK).await?.answer {
            Answer::Inspected(inspected) => Ok(Subscription { client, events, inspected }),
            _ => Err(ShimError::Confused { op: "subscribe" }),
        }
    }

    /// Returns the shim's process id.
    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// Makes the pod's namespaces. The descriptor is its network namespace.
    ///
    /// # Errors
    /// The step that failed.
    pub(crate) async fn set_up_pod(&self, plan: wire::PodPlan) -> Result<(wire::PodReady, Option<OwnedFd>), ShimError> {
        let incoming = self.ask("set up pod", Op::SetupPod(plan), Vec::new(), LAUNCH).await?;
        match incoming.answer {
            Answer::PodReady(ready) => Ok((ready, incoming.descriptor)),
            _ => Err(ShimError::Confused { op: "set up pod" }),
        }
    }

    /// Starts a container, or joins its start under way.
    ///
    /// # Errors
    /// The step that failed.
    pub(crate) async fn start(&self, plan: wire::ContainerPlan) -> Result<wire::Started, ShimError> {
        let is_overlay = |mount: &wire::Mount| matches!(mount.kind, Some(wire::mount::Kind::Overlay(_)));
        if self.minor < OVERLAY_SINCE && plan.mounts.iter().any(is_overlay) {
            return Err(ShimError::TooOld { op: "image volumes" });
        }
        match self.ask("start", Op::Start(plan), Vec::new(), LAUNCH).await?.answer {
            Answer::Started(started) => Ok(started),
            _ => Err(ShimError::Confused { op: "start" }),
        }
    }

    /// Runs a command in a container; its standard streams are the given descriptors, or those of a terminal whose master
    /// comes back.
    ///
    /// # Errors
    /// The step that failed.
    pub(crate) async fn exec(
        &self,
        plan: wire::ExecPlan,
        stdio: Vec<OwnedFd>,
    ) -> Result<(wire::Execed, Option<OwnedFd>), ShimError> {
        let incoming = self.ask("exec", Op::Exec(plan), stdio, LAUNCH).await?;
        match incoming.answer {
            Answer::Execed(execed) => Ok((execed, incoming.descriptor)),
            _ => Err(ShimError::Confused { op: "exec" }),
        }
    }

    /// Joins a container's streams; the descriptors are the client's ends, in the order of the request.
    ///
    /// # Errors
    /// When the container does not run, or has no such stream.
    pub(crate) async fn attach(&self, request: wire::Attach, stdio: Vec<OwnedFd>) -> Result<(), ShimError> {
        if self.minor < ATTACH_SINCE {
            return Err(ShimError::TooOld { op: "attach" });
        }
        match self.ask("attach", Op::Attach(request), stdio, QUICK).await?.answer {
            Answer::Done(_) => Ok(()),
            _ => Err(ShimError::Confused { op: "attach" }),
        }
    }

    /// Sets the size of a container's terminal, in characters.
    ///
    /// # Errors
    /// When it has none.
    pub(crate) async fn resize(&self, container: &str, width: u16, height: u16) -> Result<(), ShimError> {
        let size = wire::ConsoleSize { width: width.into(), height: height.into() };
        let op = wire::Resize { container_id: container.to_owned(), size: Some(size) };
        self.done("resize", Op::Resize(op)).await
    }

    /// Sends a signal to a container's init.
    ///
    /// # Errors
    /// `CAUSE_NOT_FOUND` or `CAUSE_INVALID_STATE` when it does not run.
    pub(crate) async fn signal(&self, container: &str, signal: i32) -> Result<(), ShimError> {
        let signal = u32::try_from(signal).unwrap_or_default();
        let op = wire::Signal { container_id: container.to_owned(), exec_id: String::new(), signal, all: false };
        self.done("signal", Op::Signal(op)).await
    }

    /// Kills all processes of a container, running or starting.
    ///
    /// # Errors
    /// `CAUSE_NOT_FOUND` or `CAUSE_INVALID_STATE` when there are none.
    pub(crate) async fn kill(&self, container: &str) -> Result<(), ShimError> {
        self.kill_exec(container, "").await
    }

    /// Kills all processes of a command in a container; with an empty `exec`, all of the container.
    ///
    /// # Errors
    /// `CAUSE_NOT_FOUND` or `CAUSE_INVALID_STATE` when there are none.
    pub(crate) async fn kill_exec(&self, container: &str, exec: &str) -> Result<(), ShimError> {
        let (container_id, exec_id) = (container.to_owned(), exec.to_owned());
        self.done("kill", Op::Signal(wire::Signal { container_id, exec_id, signal: SIGKILL, all: true })).await
    }

    /// Has a container's log file opened anew.
    ///
    /// # Errors
    /// When it does not run or the file cannot be opened.
    pub(crate) async fn reopen_log(&self, container: &str) -> Result<(), ShimError> {
        self.done("reopen log", Op::ReopenLog(wire::ReopenLog { container_id: container.to_owned() })).await
    }

    /// Drops what the shim keeps of an exited container, or of one of its execs.
    ///
    /// # Errors
    /// When the shim is gone.
    pub(crate) async fn forget(&self, container: &str, exec: &str) -> Result<(), ShimError> {
        let op = wire::Forget { container_id: container.to_owned(), exec_id: exec.to_owned() };
        self.done("forget", Op::Forget(op)).await
    }

    /// Ends the shim and everything in the pod.
    ///
    /// # Errors
    /// When it does not answer. One that is gone already is none.
    pub(crate) async fn shut_down(&self) -> Result<(), ShimError> {
        match self.done("shut down", Op::Shutdown(wire::Shutdown {})).await {
            Err(ShimError::Gone) => Ok(()),
            other => other,
        }
    }

    async fn done(&self, op: &'static str, request: Op) -> Result<(), ShimError> {
        match self.ask(op, request, Vec::new(), QUICK).await?.answer {
            Answer::Done(_) => Ok(()),
            _ => Err(ShimError::Confused { op }),
        }
    }

    async fn ask(
        &self,
        op: &'static str,
        request: Op,
        descriptors: Vec<OwnedFd>,
        limit: Duration,
    ) -> Result<Incoming, ShimError> {
        let bytes = encoded_len(&request);
        if bytes > MAX_FRAME {
            // The shim would have to close the connection over it.
            return Err(ShimError::TooLarge { op, bytes });
        }
        let (reply, answer) = oneshot::channel();
        let exchange = async {
            let brings = brings_descriptor(&request);
            let outgoing = Outgoing { op: request, brings, descriptors, reply };
            self.requests.send(outgoing).await.map_err(|_| ShimError::Gone)?;
            answer.await.map_err(|_| ShimError::Gone)
        };
        let incoming = timeout(limit, exchange).await.map_err(|_| ShimError::Silent { op, after: limit })??;
        match incoming.answer {
            Answer::Failure(failure) => Err(ShimError::Failed(failure)),
            answer => Ok(Incoming { answer, descriptor: incoming.descriptor }),
        }
    }
}

/// Whether the shim answers a request with a descriptor: a pod's network namespace, a terminal's master.
fn brings_descriptor(request: &Op) -> bool {
    match request {
        Op::SetupPod(_) => true,
        Op::Exec(plan) => plan.process.as_ref().is_some_and(|process| process.terminal),
        _ => false,
    }
}

fn encoded_len(request: &Op) -> usize {
    request.encoded_len() + ENVELOPE
}

/// Owns the connection until either side ends it.
async fn run(wire: Wire, outgoing: mpsc::Receiver<Outgoing>, events: mpsc::Sender<Event>, pod: PodId) {
    match exchange(wire, outgoing, events).await {
        Ok(()) => debug!(pod.id = %pod, "the shim's connection ended"),
        Err(error) => warn!(pod.id = %pod, error = %error, "the shim's connection failed"),
    }
}

async fn exchange(
    mut wire: Wire,
    mut outgoing: mpsc::Receiver<Outgoing>,
    events: mpsc::Sender<Event>,
) -> Result<(), WireError> {
    let mut pending = HashMap::new();
    let mut next_id = 0;
    loop {
        tokio::select! {
            request = outgoing.recv() => {
                let Some(Outgoing { op, brings, descriptors, reply }) = request else { return Ok(()) };
                next_id += 1;
                pending.insert(next_id, Pending { reply, brings });
                let frame = Frame { kind: Some(Kind::Request(Request { id: next_id, op: Some(op) })) };
                wire.send(&frame, &descriptors).await?;
            }
            frame = wire.receive() => {
                let Some(frame) = frame? else { return Ok(()) };
                match frame.kind {
                    Some(Kind::Reply(reply)) => deliver(&mut wire, &mut pending, reply),
                    // A full queue holds the shim's events back, never its containers.
                    Some(Kind::Event(event)) => drop(events.send(event).await),
                    _ => debug!("the shim sent a frame of a kind this daemon does not know"),
                }
            }
        }
    }
}

/// A request that waits for its answer.
struct Pending {
    reply: oneshot::Sender<Incoming>,
    brings: bool,
}

fn deliver(wire: &mut Wire, pending: &mut HashMap<u64, Pending>, reply: wire::Reply) {
    let (Some(waiting), Some(answer)) = (pending.remove(&reply.id), reply.result) else { return };
    let brings = waiting.brings && !matches!(answer, Answer::Failure(_));
    let descriptor = if brings { wire.take_descriptor() } else { None };
    // A caller that stopped waiting has dropped its receiver; the answer is in Inspect, should anyone ask.
    drop(waiting.reply.send(Incoming { answer, descriptor }));
}
