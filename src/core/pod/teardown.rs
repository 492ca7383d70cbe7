//! Gives back what a pod holds. Every step runs, even when an earlier one failed; all failures are reported; what is
//! gone already is no failure, so that it can be run again, after any crash.

use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use podwright_base::ContainerId;
use podwright_spec::pod::NamespaceMode;
use rustix::process::{Pid, Signal, kill_process};
use tokio::sync::watch;
use tokio::time::timeout;

use crate::cgroups;
use crate::error::{Error, Failures};
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
    failures.note("end the shim", end_shim(node, record, shim).await);
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
        failures.note("unpin the network namespace", node.network.unpin(&record.id));
    }
    let state = node.layout.pod_state(&record.id);
    failures.note(format!("remove {}", state.display()), remove_tree(&state));
    failures.into_result(format!("pod sandbox {}", record.id))
}

/// Asks the shim to end everything and itself; one that does not answer is killed.
async fn end_shim(node: &Node, record: &PodRecord, shim: Option<ShimClient>) -> Result<(), ShimError> {
    let shim = match shim {
        Some(shim) => shim,
        // A daemon that was killed may have left one that no record tells of.
        None => match ShimClient::connect(&node.layout.shim_socket(&record.id), &record.id).await {
            Ok(subscription) => subscription.client,
            Err(ShimError::Connect { .. } | ShimError::Gone) => return Ok(()),
            Err(error) => return Err(error),
        },
    };
    match shim.shut_down().await {
        Ok(()) => Ok(()),
        Err(error) => {
            // Its connection is open, so the pid is still its own.
            if let Some(pid) = Pid::from_raw(shim.pid().cast_signed()) {
                tracing::warn!(pod.id = %record.id, error = %error, "the shim is killed");
                return match kill_process(pid, Signal::KILL) {
                    Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
                    Err(_) => Err(error),
                };
            }
            Err(error)
        }
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

/// How long the processes of a pod that is being stopped may take to die of SIGKILL.
pub(crate) const KILL_LIMIT: Duration = Duration::from_secs(10);

/// Kills all processes of running containers and waits until the shim has told their ends.
pub(crate) async fn kill_containers(shim: &ShimClient, running: Vec<(ContainerId, watch::Receiver<bool>)>) {
    for (id, _) in &running {
        // One that has just ended by itself is what is wanted; a shim that does not answer is dealt with next.
        drop(shim.signal(id.as_str(), Signal::KILL.as_raw(), true).await);
    }
    let all = async {
        for (_, mut exited) in running {
            drop(exited.wait_for(|exited| *exited).await);
        }
    };
    if timeout(KILL_LIMIT, all).await.is_err() {
        tracing::warn!("containers of a pod that is being stopped have not died of SIGKILL yet");
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
