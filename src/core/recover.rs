//! Finds again what an earlier daemon left: records say what was meant, shims what is.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;

use podwright_base::{ContainerId, PodId};
use podwright_store::ReadError;
use tokio::task::JoinSet;
use tracing::{info, warn};

use crate::container::entry::Container;
use crate::error::{Error, chain};
use crate::node::Node;
use crate::pod::driver::{Driver, Name};
use crate::pod::handle::{Creation, PodHandle};
use crate::pod::link;
use crate::pod::state::Phase;
use crate::pod::teardown;
use crate::record::{ContainerRecord, PodRecord};
use crate::sweep;

/// Recovers all pods, side by side, then removes what belongs to none.
///
/// # Errors
/// When the directory of pods cannot be read, or a record is of a newer version: what it tells of must not be touched.
pub(crate) async fn recover(node: &Arc<Node>) -> Result<(), Error> {
    let mut pods = JoinSet::new();
    for id in entries::<PodId>(&node.layout.pods())? {
        pods.spawn(pod(Arc::clone(node), id));
    }
    while let Some(recovered) = pods.join_next().await {
        recovered.map_err(|source| Error::step("recover a pod sandbox", source))??;
    }
    sweep::sweep(node).await
}

/// Recovers one pod, or removes what is left of one that was half made or half removed.
async fn pod(node: Arc<Node>, id: PodId) -> Result<(), Error> {
    let path = node.layout.pod_record(&id);
    let record = match podwright_store::read::<PodRecord>(&path) {
        Ok(Some(record)) if record.phase != Phase::Creating => record,
        Ok(Some(record)) => {
            undo(&node, &record).await;
            return Ok(());
        }
        Ok(None) => {
            sweep::remove_unrecorded(&node, &id).await;
            return Ok(());
        }
        Err(error @ ReadError::Damaged { .. }) => {
            warn!(pod.id = %id, error = %chain(&error), "the record of a pod sandbox is damaged: the pod is ended");
            quarantine(&path);
            sweep::end_unreadable(&node, &id).await;
            return Ok(());
        }
        Err(error) => return Err(Error::step("recover a pod sandbox", error)),
    };
    let (handle, ends) = PodHandle::new(id.clone(), Arc::clone(&record.config), Creation::Done);
    node.registry.reserve(&handle);
    let mut driver = Driver::new(Arc::clone(&node), record, ends);
    load_containers(&mut driver)?;
    match driver.record.phase {
        Phase::Ready => attach(&mut driver).await,
        Phase::Stopping => resume_stop(&mut driver).await,
        // The death of an earlier daemon may have cut its clean-up short.
        Phase::Lost { ref reason } => driver.lost(&reason.clone()),
        Phase::Creating | Phase::Stopped => {}
    }
    driver.publish();
    tokio::spawn(driver.serve());
    Ok(())
}

/// Undoes a creation that the daemon's death cut short; its caller will ask again.
async fn undo(node: &Arc<Node>, record: &PodRecord) {
    info!(pod.id = %record.id, "a creation that was cut short is undone");
    if let Err(error) = teardown::undo(node, record, None).await {
        warn!(pod.id = %record.id, error = %chain(&error), "a creation that was cut short left something behind");
        tokio::spawn(teardown::give_back_at_last(Arc::clone(node), record.clone()));
    }
}

/// Takes over the shim, and learns what happened meanwhile.
async fn attach(driver: &mut Driver) {
    let socket = driver.node.layout.shim_socket(&driver.record.id);
    match link::reconnect(&socket, &driver.record.id).await {
        Ok(subscription) => driver.take_over(subscription),
        Err(error) => driver.lost(&link::reason(&error)),
    }
}

/// Goes on with a stop that the death of an earlier daemon cut short, after a look at what had ended before it.
async fn resume_stop(driver: &mut Driver) {
    let socket = driver.node.layout.shim_socket(&driver.record.id);
    match link::reconnect(&socket, &driver.record.id).await {
        Ok(subscription) => driver.take_over(subscription),
        Err(error) => {
            warn!(pod.id = %driver.record.id, error = %chain(&error), "a stop goes on without the pod's shim")
        }
    }
    driver.resume_stop();
}

fn load_containers(driver: &mut Driver) -> Result<(), Error> {
    let node = Arc::clone(&driver.node);
    let layout = &node.layout;
    let dir = layout.containers(&driver.record.id);
    for id in entries::<ContainerId>(&dir)? {
        let path = layout.container_record(&driver.record.id, &id);
        match podwright_store::read::<ContainerRecord>(&path) {
            Ok(Some(record)) => {
                let lease = node.images.lease_layers(&record.held_layers());
                node.registry.add_container(&id, &driver.record.id);
                driver.names.insert(record.config.metadata.clone(), Name::Taken(id.clone()));
                let container = Container::new(layout, &driver.record, record, lease);
                driver.containers.insert(id, container);
            }
            // Kept for whoever looks into it, until the pod is removed.
            Ok(None) if podwright_store::is_quarantined(&path) => {}
            Ok(None) => {
                // Half made or half removed: nobody was told its id, or everybody that it is gone.
                if let Err(error) = teardown::remove_tree(&layout.container(&driver.record.id, &id)) {
                    warn!(container.id = %id, error = %error, "the rest of a container could not be removed");
                }
            }
            Err(error @ ReadError::Damaged { .. }) => {
                warn!(container.id = %id, error = %chain(&error), "the record of a container is damaged: it is ended");
                quarantine(&path);
            }
            Err(error) => return Err(Error::step("recover a container", error)),
        }
    }
    Ok(())
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
