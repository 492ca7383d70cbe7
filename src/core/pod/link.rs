//! A driver's link to its pod's shim: taken over, lost, made again. Only a shim that is dead makes a pod lost: a
//! connection can end for lesser reasons, and what runs in the pod does not need it.

use std::time::Duration;

use podwright_base::ContainerId;
use podwright_plan::wire;
use tokio::time::sleep;
use tracing::{info, warn};

use super::driver::{Done, Driver};
use super::state::{Event, Phase};
use crate::cgroups;
use crate::clock;
use crate::container::state::Event as ContainerEvent;
use crate::error::chain;
use crate::shim::{ShimClient, ShimError, Subscription};

/// How often a shim that is there but does not talk is tried before its pod is given up.
const TRIES: u32 = 5;
/// Before the second try; each further one waits twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(200);

impl Driver {
    /// Takes over the connection to the pod's shim, and learns what happened while nobody listened.
    pub(crate) fn take_over(&mut self, mut subscription: Subscription) {
        let inspected = std::mem::take(&mut subscription.inspected);
        let shim = subscription.client.clone();
        self.adopt(subscription);
        for known in &inspected.containers {
            self.reconcile(known);
        }
        self.lose_unknown(&inspected);
        for id in inspected.starting.iter().filter_map(|id| id.parse().ok()) {
            self.begin_start(&id, Vec::new());
        }
        self.end_unowned(&inspected, &shim);
    }

    /// A container that is recorded as running and that its shim does not know is not running.
    fn lose_unknown(&mut self, inspected: &wire::Inspected) {
        let known = |id: &ContainerId| inspected.containers.iter().any(|known| known.id == id.as_str());
        let running = self.containers.values().filter(|container| container.pid().is_some());
        let unknown: Vec<_> = running.map(|container| container.record.id.clone()).filter(|id| !known(id)).collect();
        for id in unknown {
            let message = "the pod's shim does not know it".to_owned();
            self.change(&id, ContainerEvent::Lost { at: clock::now(), message });
        }
    }

    /// A container that the shim has and no record tells of (it was damaged) could be neither seen nor stopped.
    fn end_unowned(&self, inspected: &wire::Inspected, shim: &ShimClient) {
        let starting = inspected.starting.iter();
        let all = inspected.containers.iter().map(|known| &known.id).chain(starting);
        for id in all.filter(|id| !id.parse().is_ok_and(|id: ContainerId| self.containers.contains_key(&id))) {
            warn!(pod.id = %self.record.id, container.id = %id, "a container without a record is ended");
            let (id, shim) = (id.clone(), shim.clone());
            tokio::spawn(async move {
                // One that has exited cannot be killed, and one that was killed is forgotten with its pod at the latest.
                drop(shim.kill(&id).await);
                drop(shim.forget(&id, "").await);
            });
        }
    }

    /// Makes the connection again, unless the sandbox is on its way in or out.
    pub(crate) fn connection_ended(&mut self) {
        self.disconnect();
        if self.is_stopping() || self.record.phase != Phase::Ready {
            return;
        }
        let (socket, pod) = (self.node.layout.shim_socket(&self.record.id), self.record.id.clone());
        self.tasks.spawn(async move { Done::Reconnected(reconnect(&socket, &pod).await.map(Box::new)) });
    }

    /// Applies the end of an attempt to make the connection again.
    pub(crate) fn reconnected(&mut self, result: Result<Box<Subscription>, ShimError>) {
        if self.is_stopping() || self.record.phase != Phase::Ready {
            return;
        }
        match result {
            Ok(subscription) => {
                info!(pod.id = %self.record.id, "the connection to the pod's shim is made again");
                self.take_over(*subscription);
                self.publish();
            }
            Err(error) => self.lost(&reason(&error)),
        }
    }

    /// Notes that the shim is gone, and ends what it can no longer look after.
    pub(crate) fn lost(&mut self, reason: &str) {
        self.disconnect();
        warn!(pod.id = %self.record.id, reason, "pod sandbox is lost");
        if let Err(error) = self.enter(Event::ShimGone { reason: reason.to_owned() }) {
            warn!(pod.id = %self.record.id, error = %chain(&error), "the loss could not be recorded");
        }
        for id in self.containers.keys() {
            let (node, cgroup) = (std::sync::Arc::clone(&self.node), self.record.container_cgroup(id));
            tokio::spawn(async move {
                if let Err(error) = cgroups::clear(&node, cgroup).await {
                    warn!(error = %chain(&error), "processes of a lost pod may be left");
                }
            });
        }
        self.lose_containers(reason);
        self.publish();
    }

    pub(crate) fn lose_containers(&mut self, reason: &str) {
        let ids: Vec<_> = self.containers.keys().cloned().collect();
        for id in ids {
            self.change(&id, ContainerEvent::Lost { at: clock::now(), message: reason.to_owned() });
        }
    }
}

/// Connects to a shim, patiently with one that is there but slow.
///
/// # Errors
/// At once when there is none, after some tries when it does not talk.
pub(crate) async fn reconnect(
    socket: &std::path::Path,
    pod: &podwright_base::PodId,
) -> Result<Subscription, ShimError> {
    let mut pause = FIRST_PAUSE;
    for _ in 1..TRIES {
        match ShimClient::connect(socket, pod).await {
            Err(error) if !error.is_dead() => {
                warn!(pod.id = %pod, error = %chain(&error), "the pod's shim is tried again")
            }
            settled => return settled,
        }
        sleep(pause).await;
        pause *= 2;
    }
    ShimClient::connect(socket, pod).await
}

/// Words why a pod's shim cannot be used.
pub(crate) fn reason(error: &ShimError) -> String {
    if error.is_dead() {
        "the pod's shim is gone: it was killed, or the host was restarted".to_owned()
    } else {
        format!("the pod's shim cannot be used: {}", chain(error))
    }
}
