//! Finds again what an earlier daemon left: records say what was meant, shims what is.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;

use podwright_base::{ContainerId, PodId};
use tokio::task::JoinSet;
use tracing::{info, warn};

use crate::clock;
use crate::container::entry::Container;
use crate::container::state::Event;
use crate::error::{Error, chain};
use crate::node::Node;
use crate::pod::driver::{Driver, Name};
use crate::pod::handle::{Creation, PodHandle};
use crate::pod::state::Phase;
use crate::pod::teardown;
use crate::record::{ContainerRecord, PodRecord};
use crate::shim::{ShimClient, ShimError};
use crate::sweep;

/// Recovers all pods, side by side, then removes what belongs to none.
///
/// # Errors
/// When the directory of pods cannot be read.
pub(crate) async fn recover(node: &Arc<Node>) -> Result<(), Error> {
    let mut pods = JoinSet::new();
    for id in entries::<PodId>(&node.layout.pods())? {
        pods.spawn(pod(Arc::clone(node), id));
    }
    pods.join_all().await;
    sweep::sweep(node).await
}

/// Recovers one pod, or removes what is left of one that was half made or half removed.
async fn pod(node: Arc<Node>, id: PodId) {
    let record = match podwright_store::read::<PodRecord>(&node.layout.pod_record(&id)) {
        Ok(Some(record)) if record.phase != Phase::Creating => record,
        Ok(Some(record)) => return undo(&node, &record).await,
        Ok(None) => return sweep::remove_unrecorded(&node, &id).await,
        Err(error) => {
            warn!(pod.id = %id, error = %chain(&error), "the record of a pod sandbox cannot be read: the pod is ended");
            quarantine(&node.layout.pod_record(&id));
            return sweep::end_unreadable(&node, &id).await;
        }
    };
    let (handle, ends) = PodHandle::new(id.clone(), Arc::clone(&record.config), Creation::Done);
    node.registry.reserve(&handle);
    let mut driver = Driver::new(Arc::clone(&node), record, ends);
    load_containers(&mut driver);
    match driver.record.phase {
        Phase::Ready => attach(&mut driver).await,
        Phase::Stopping => driver.resume_stop(),
        // What a lost pod still holds is given back when it is stopped or removed.
        Phase::Creating | Phase::Lost { .. } | Phase::Stopped => {}
    }
    driver.publish();
    tokio::spawn(driver.serve());
}

/// Undoes a creation that the daemon's death cut short; its caller will ask again.
async fn undo(node: &Node, record: &PodRecord) {
    info!(pod.id = %record.id, "a creation that was cut short is undone");
    let undone = teardown::give_back(node, record, &[], None).await;
    if let Err(error) = undone.and_then(|()| teardown::remove_pod_files(node, record)) {
        warn!(pod.id = %record.id, error = %chain(&error), "a creation that was cut short left something behind");
    }
}

/// Takes over the shim, and learns what happened meanwhile.
async fn attach(driver: &mut Driver) {
    let socket = driver.node.layout.shim_socket(&driver.record.id);
    match ShimClient::connect(&socket, &driver.record.id).await {
        Ok(mut subscription) => {
            let inspected = std::mem::take(&mut subscription.inspected);
            driver.adopt(subscription);
            for known in &inspected.containers {
                driver.reconcile(known);
            }
            lose_unknown(driver, &inspected.containers);
        }
        Err(error) => {
            let reason = match &error {
                ShimError::Connect { .. } => {
                    "the pod's shim is gone: it was killed, or the host was restarted".to_owned()
                }
                other => format!("the pod's shim cannot be used: {}", chain(other)),
            };
            driver.lost(&reason);
        }
    }
}

/// A container that is recorded as running and that its shim does not know is not running.
fn lose_unknown(driver: &mut Driver, known: &[podwright_plan::wire::ContainerState]) {
    let unknown: Vec<ContainerId> = driver
        .containers
        .values()
        .filter(|container| container.pid().is_some())
        .map(|container| container.record.id.clone())
        .filter(|id| !known.iter().any(|known| known.id == id.as_str()))
        .collect();
    for id in unknown {
        let message = "the pod's shim does not know it".to_owned();
        driver.change(&id, Event::Lost { at: clock::now(), message });
    }
}

fn load_containers(driver: &mut Driver) {
    let node = Arc::clone(&driver.node);
    let layout = &node.layout;
    let dir = layout.containers(&driver.record.id);
    let ids = entries::<ContainerId>(&dir).unwrap_or_else(|error| {
        warn!(pod.id = %driver.record.id, error = %chain(&error), "a pod's containers cannot be listed");
        Vec::new()
    });
    for id in ids {
        let path = layout.container_record(&driver.record.id, &id);
        match podwright_store::read::<ContainerRecord>(&path) {
            Ok(Some(record)) => {
                let lease = node.images.lease_layers(&record.layers);
                node.registry.add_container(&id, &driver.record.id);
                driver.names.insert(record.config.metadata.clone(), Name::Taken(id.clone()));
                let container = Container::new(layout, &driver.record, record, lease);
                driver.containers.insert(id, container);
            }
            Ok(None) => {
                // Half made or half removed: nobody was told its id, or everybody that it is gone.
                if let Err(error) = teardown::remove_tree(&layout.container(&driver.record.id, &id)) {
                    warn!(container.id = %id, error = %error, "the rest of a container could not be removed");
                }
            }
            Err(error) => {
                warn!(container.id = %id, error = %chain(&error), "the record of a container cannot be read");
                quarantine(&path);
            }
        }
    }
}

fn quarantine(path: &Path) {
    match podwright_store::quarantine(path) {
        Ok(place) => warn!(path = %place.display(), "an unreadable record is kept"),
        Err(error) => warn!(error = %chain(&error), "an unreadable record could not be put aside"),
    }
}

/// Lists the ids that a directory's entries are named by; other names are not ours.
pub(crate) fn entries<T: std::str::FromStr>(dir: &Path) -> Result<Vec<T>, Error> {
    let failed = |source: io::Error| Error::step(format!("list {}", dir.display()), source);
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(failed)?,
    };
    let mut ids = Vec::new();
    for entry in entries {
        if let Some(id) = entry.map_err(failed)?.file_name().to_str().and_then(|name| name.parse().ok()) {
            ids.push(id);
        }
    }
    Ok(ids)
}
