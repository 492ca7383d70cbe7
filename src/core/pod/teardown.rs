//! Gives back what a pod holds. Every step runs, even when an earlier one failed; all failures are reported; what is
//! gone already is no failure, so that it can be run again, after any crash.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use podwright_base::ContainerId;
use podwright_spec::pod::NamespaceMode;
use rustix::process::{Pid, Signal, kill_process};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

use super::driver::blocking;
use crate::cgroups;
use crate::error::{Error, Failures, chain};
use crate::node::Node;
use crate::record::PodRecord;
use crate::shim::{ShimClient, ShimError};

/// Ends the pod's processes and removes its network, cgroups and volatile files.
///
/// # Errors
/// [`Error::CleanUp`] with everything that could not be given back.
pub(crate) async fn give_back(
    node: &Node,
    record: &PodRecord,
    containers: &[ContainerId],
    shim: Option<ShimClient>,
) -> Result<(), Error> {
    let mut failures = Failures::default();
    end_shim(node, record, shim).await;
    for container in containers {
        let cgroup = record.container_cgroup(container);
        failures.note(format!("clear the cgroup {cgroup}"), cgroups::clear(node, cgroup.clone()).await);
    }
    failures.note(format!("clear the cgroup {}", record.cgroup), cgroups::clear(node, record.cgroup.clone()).await);
    if record.config.linux.cgroup_parent.is_empty() {
        let parent = record.cgroup_parent().to_owned();
        failures.note(format!("clear the cgroup {parent}"), cgroups::clear(node, parent.clone()).await);
    }
    if record.config.linux.network != NamespaceMode::Node {
        failures.note("detach the network", node.network.detach(&record.id).await);
        let (network, id) = (node.network.clone(), record.id.clone());
        failures.note("unpin the network namespace", blocking(move || network.unpin(&id)).await);
    }
    let state = node.layout.pod_state(&record.id);
    failures.note(format!("remove {}", state.display()), remove_tree(&state));
    failures.into_result(format!("pod sandbox {}", record.id))
}

/// Asks the shim to end everything and itself; one that does not answer is killed. What it fails to end is ended by
/// clearing its cgroups, which reports what is left.
async fn end_shim(node: &Node, record: &PodRecord, shim: Option<ShimClient>) {
    let shim = match shim {
        Some(shim) => shim,
        // A daemon that was killed may have left one that no record tells of.
        None => match ShimClient::connect(&node.layout.shim_socket(&record.id), &record.id).await {
            Ok(subscription) => subscription.client,
            Err(error) if error.is_dead() => return,
            Err(error) => {
                return warn!(pod.id = %record.id, error = %chain(&error), "the shim is ended with its cgroup");
            }
        },
    };
    let Err(error) = shim.shut_down().await else { return };
    warn!(pod.id = %record.id, error = %chain(&error), "the shim did not end what it holds");
    // While it has not answered it has not ended, so the pid is still its own.
    if matches!(error, ShimError::Silent { .. })
        && let Some(pid) = Pid::from_raw(shim.pid().cast_signed())
        && let Err(error) = kill_process(pid, Signal::KILL)
    {
        warn!(pod.id = %record.id, error = %error, "the shim could not be killed");
    }
}

/// Undoes a creation: gives back what it holds, and removes its files.
///
/// # Errors
/// What is still there.
pub(crate) async fn undo(node: &Arc<Node>, record: &PodRecord, shim: Option<ShimClient>) -> Result<(), Error> {
    give_back(node, record, &[], shim).await?;
    let (node, record) = (Arc::clone(node), record.clone());
    blocking(move || remove_pod_files(&node, &record)).await
}

/// Tries again, at growing intervals, to undo a creation that could not be undone at once.
pub(crate) async fn give_back_at_last(node: Arc<Node>, record: PodRecord) {
    let mut pause = Duration::from_secs(1);
    loop {
        sleep(pause).await;
        match undo(&node, &record, None).await {
            Ok(()) => return info!(pod.id = %record.id, "what a failed creation left is removed"),
            Err(error) => warn!(pod.id = %record.id, error = %chain(&error), "a failed creation still holds something"),
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Removes a directory and what is in it; a missing one is fine.
pub(crate) fn remove_tree(path: &Path) -> io::Result<()> {
    // A writer that is being killed can fill a directory behind the removal's back.
    for _ in 0..3 {
        match fs::remove_dir_all(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {}
            other => return other,
        }
    }
    fs::remove_dir_all(path)
}

/// The longest time between two tries to undo what could not be undone.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// How long the processes of a pod that is being stopped may take to die of SIGKILL.
pub(crate) const KILL_LIMIT: Duration = Duration::from_secs(10);

/// Kills all processes of running containers and waits until the shim has told their ends.
pub(crate) async fn kill_containers(shim: &ShimClient, running: Vec<(ContainerId, watch::Receiver<bool>)>) {
    for (id, _) in &running {
        // One that has just ended by itself is what is wanted; a shim that does not answer is dealt with next.
        if let Err(ShimError::Silent { .. }) = shim.kill(id.as_str()).await {
            return;
        }
    }
    let all = async {
        for (_, mut exited) in running {
            drop(exited.wait_for(|exited| *exited).await);
        }
    };
    if timeout(KILL_LIMIT, all).await.is_err() {
        warn!("containers of a pod that is being stopped have not died of SIGKILL yet");
    }
}

/// Removes a pod's durable directory: the record first, so that a directory half removed is known as such.
///
/// # Errors
/// When the file system refuses.
pub(crate) fn remove_pod_files(node: &Node, record: &PodRecord) -> Result<(), Error> {
    let dir = node.layout.pod(&record.id);
    podwright_store::remove(&node.layout.pod_record(&record.id))
        .map_err(|source| Error::step(format!("remove pod sandbox {}", record.id), source))?;
    remove_tree(&dir).map_err(|source| Error::step(format!("remove {}", dir.display()), source))
}
