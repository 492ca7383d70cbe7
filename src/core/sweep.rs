//! Removes what belongs to no pod: the rest of creations and removals that a crash cut short.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Weak;
use std::time::Duration;

use podwright_base::PodId;
use tracing::{info, warn};

use crate::cgroups;
use crate::error::{Error, chain};
use crate::node::Node;
use crate::pod::teardown::remove_tree;
use crate::recover::entries;
use crate::shim::ShimClient;

/// The time between two collections of what belongs to no pod in CNI networks.
const NETWORK_COLLECTION: Duration = Duration::from_secs(300);

/// Removes volatile directories, network objects and cgroups that no pod owns, and layers that nothing uses.
///
/// # Errors
/// When the state directory cannot be read. What cannot be removed is logged: it holds up nobody.
pub(crate) async fn sweep(node: &Node) -> Result<(), Error> {
    let live: HashSet<PodId> = node.registry.pods().into_iter().map(|pod| pod.id).collect();
    for id in entries::<PodId>(&node.layout.state_pods())? {
        if !live.contains(&id) {
            info!(pod.id = %id, "the rest of a pod is removed");
            end_shim(node, &id).await;
            report(&id, "volatile directory", remove_tree(&node.layout.pod_state(&id)));
        }
    }
    let swept = node.network.sweep(&live).await;
    for error in &swept.errors {
        warn!(error = %chain(error), "a part of a network that no pod has could not be removed");
    }
    let [pins, links, leases] = [swept.pins.len(), swept.links.len(), swept.leases.len()];
    let attachments = swept.attachments.len();
    if pins + links + leases + attachments > 0 {
        info!(pins, links, leases, attachments, "networks were swept");
    }
    sweep_cgroups(node, &live).await;
    // The leases of all containers are taken again: what is not leased now is not needed.
    if let Err(error) = node.images.collect() {
        warn!(error = %chain(&error), "unused layers are left");
    }
    Ok(())
}

/// Has network plugins remove what belongs to no pod, again and again as long as there is a node.
pub(crate) async fn collect_networks(node: Weak<Node>) {
    loop {
        tokio::time::sleep(NETWORK_COLLECTION).await;
        let Some(node) = node.upgrade() else { return };
        for error in node.network.collect().await {
            warn!(error = %chain(&error), "network plugins did not remove what belongs to no pod");
        }
    }
}

/// Ends a pod whose record is not there (a creation that had not begun, a removal nearly done).
pub(crate) async fn remove_unrecorded(node: &Node, id: &PodId) {
    end_shim(node, id).await;
    if podwright_store::is_quarantined(&node.layout.pod_record(id)) {
        return warn!(pod.id = %id, "what a pod with a damaged record left is kept: remove {}", node.layout.pod(id).display());
    }
    info!(pod.id = %id, "the rest of a pod is removed");
    report(id, "directory", remove_tree(&node.layout.pod(id)));
}

/// Ends a pod whose record cannot be read; its directory stays, for whoever looks into it.
pub(crate) async fn end_unreadable(node: &Node, id: &PodId) {
    end_shim(node, id).await;
}

async fn end_shim(node: &Node, id: &PodId) {
    match ShimClient::connect(&node.layout.shim_socket(id), id).await {
        Ok(subscription) => report(id, "shim", subscription.client.shut_down().await),
        Err(error) if error.is_dead() => {}
        Err(error) => report(id, "shim", Err(error)),
    }
}

/// Pods without a parent of the kubelet's have their cgroups below the daemon's own.
async fn sweep_cgroups(node: &Node, live: &HashSet<PodId>) {
    let parent = node.layout.default_cgroup_parent();
    let mut left = HashSet::new();
    let directories = cgroups::parse(&parent).map(|path| node.facts.cgroup.directories(&path));
    for dir in directories.unwrap_or_default() {
        left.extend(pods_below(&dir));
    }
    for id in left.difference(live) {
        report(id, "cgroup", cgroups::clear(node, format!("{parent}/pod{id}")).await);
    }
}

fn pods_below(dir: &Path) -> Vec<PodId> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Vec::new() };
    let names = entries.flatten().map(|entry| entry.file_name());
    names.filter_map(|name| name.to_str()?.strip_prefix("pod")?.parse().ok()).collect()
}

fn report<E: std::error::Error>(id: &PodId, what: &str, result: Result<(), E>) {
    if let Err(error) = result {
        warn!(pod.id = %id, error = %chain(&error), "the {what} of a pod that is gone could not be removed");
    }
}
