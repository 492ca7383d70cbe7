//! How the rest of the daemon reaches a pod's driver.

use std::sync::Arc;
use std::time::{Duration, Instant};

use podwright_base::{ContainerId, PodId};
use podwright_spec::{ContainerConfig, PodConfig};
use tokio::sync::{mpsc, oneshot, watch};

use crate::error::Error;
use crate::registry::shared;
use crate::session::Access;
use crate::view::PodView;

/// How many commands may wait for a driver before their senders do.
const QUEUE: usize = 32;
/// How long a call waits for a creation before it says where that hangs: less than the kubelet's own deadline.
const PATIENCE: Duration = Duration::from_secs(100);

/// Answers one caller.
pub(crate) type Reply<T> = oneshot::Sender<Result<T, Error>>;

/// What a pod's driver can be asked.
pub(crate) enum Command {
    /// Creates a container, or joins the creation of the same one.
    Create { config: Box<ContainerConfig>, reply: Reply<ContainerId> },
    /// Starts a container.
    Start { id: ContainerId, reply: Reply<()> },
    /// Stops a container: its stop signal, and SIGKILL after the time-out.
    Stop { id: ContainerId, timeout: Duration, reply: Reply<()> },
    /// Removes a container, running or not.
    Remove { id: ContainerId, reply: Reply<()> },
    /// Opens a container's log file anew.
    ReopenLog { id: ContainerId, reply: Reply<()> },
    /// Lets a caller into a running container.
    Enter { id: ContainerId, reply: Reply<Access> },
    /// Stops the sandbox and everything in it.
    StopPod { reply: Reply<()> },
    /// Stops and removes the sandbox.
    RemovePod { reply: Reply<()> },
}

/// How far a creation is.
#[derive(Debug, Clone)]
pub(crate) enum Creation {
    /// In this stage since then.
    Underway(&'static str, Instant),
    /// The sandbox was ready.
    Done,
    /// It failed and was undone.
    Failed(Arc<Error>),
}

/// Reaches one pod.
#[derive(Debug, Clone)]
pub(crate) struct PodHandle {
    /// The sandbox's id.
    pub(crate) id: PodId,
    /// What was asked for.
    pub(crate) config: Arc<PodConfig>,
    commands: mpsc::Sender<Command>,
    creation: watch::Receiver<Creation>,
    view: watch::Receiver<Option<Arc<PodView>>>,
}

/// The driver's ends of a handle's channels.
pub(crate) struct DriverEnds {
    /// What callers ask.
    pub(crate) commands: mpsc::Receiver<Command>,
    /// How far the creation is.
    pub(crate) creation: watch::Sender<Creation>,
    /// What the outside sees; nothing until the sandbox was ready once.
    pub(crate) view: watch::Sender<Option<Arc<PodView>>>,
}

impl PodHandle {
    /// Makes a handle and its driver's ends.
    pub(crate) fn new(id: PodId, config: Arc<PodConfig>, creation: Creation) -> (Self, DriverEnds) {
        let (commands_in, commands) = mpsc::channel(QUEUE);
        let (creation_in, creation) = watch::channel(creation);
        let (view_in, view) = watch::channel(None);
        let ends = DriverEnds { commands, creation: creation_in, view: view_in };
        (Self { id, config, commands: commands_in, creation, view }, ends)
    }

    /// Returns what the outside sees of the pod, `None` before its creation is done.
    pub(crate) fn view(&self) -> Option<Arc<PodView>> {
        self.view.borrow().clone()
    }

    /// Waits until the creation is done or has failed.
    ///
    /// # Errors
    /// The creation's, or [`Error::Stalled`] with its stage when it takes too long.
    pub(crate) async fn created(&self) -> Result<(), Error> {
        let mut creation = self.creation.clone();
        let settled = creation.wait_for(|creation| !matches!(creation, Creation::Underway(..)));
        if let Ok(settled) = tokio::time::timeout(PATIENCE, settled).await {
            return match settled.as_deref() {
                Ok(Creation::Done) => Ok(()),
                Ok(Creation::Failed(error)) => Err(shared(error)),
                _ => Err(Error::PodNotFound { id: self.id.to_string() }),
            };
        }
        match &*self.creation.borrow() {
            Creation::Underway(stage, since) => Err(Error::Stalled {
                what: format!("the creation of pod sandbox {}", self.id),
                stage,
                waited: since.elapsed(),
            }),
            Creation::Done => Ok(()),
            Creation::Failed(error) => Err(shared(error)),
        }
    }

    /// Sends a command and waits for its answer. The command is carried out even when the caller goes away.
    ///
    /// # Errors
    /// The command's; [`Error::PodNotFound`] when the pod was removed meanwhile.
    pub(crate) async fn ask<T>(&self, command: impl FnOnce(Reply<T>) -> Command) -> Result<T, Error> {
        let gone = || Error::PodNotFound { id: self.id.to_string() };
        let (reply, answer) = oneshot::channel();
        self.commands.send(command(reply)).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }
}
