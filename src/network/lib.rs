//! Pod networks: namespace pins, networks of CNI plugins, and the built-in bridge.
//!
//! [`Network`] is the face. With a CNI configuration its pods are attached by plugins (`podwright-cni`). Without one
//! they are on a bridge of its own: a veth pair each, limits of bandwidth where annotations ask for them, IPv4 and IPv6 addresses from leases on disk, masquerade and host
//! ports by an nf_tables table of its own. All of it is made with the first pod, carries the daemon's instance in its
//! names, and is found again by name after a crash. A pod is detached from what it was attached to, whatever is
//! configured by then; host ports that no plugin opens are the built-in table's.
//!
//! Layers, each using those below: `attach`, `guest`, `sweep` (the steps) · `readiness`, `bridge`, `ruleset`, `leases`
//! (what they work on) · `shape` · `link`, `qdisc`, `nft`, `conntrack`, `listeners` (messages) · `netlink` (exchanges).
//! `subnet`, `ipam` and `claims` are pure.

mod attach;
mod bridge;
mod claims;
mod conntrack;
mod guest;
mod ipam;
mod leases;
mod link;
mod listeners;
mod nft;
mod pin;
mod port;
mod progress;
mod qdisc;
mod readiness;
pub mod resolver;
mod ruleset;
mod settings;
mod shape;
mod subnet;
mod sweep;
mod sysctl;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use podwright_base::{Layout, PodId, config};
use podwright_cni::{Bandwidth, Cni};
use tokio::sync::OwnedMutexGuard;
use tokio::time::timeout;

pub use crate::attach::{AttachError, DetachError, UndoError};
pub use crate::bridge::BridgeError;
pub use crate::claims::ClaimError;
pub use crate::leases::LeaseError;
pub use crate::listeners::ListenerError;
pub use crate::port::{HostPort, Protocol};
pub use crate::progress::Unfinished;
pub use crate::readiness::Status;
pub use crate::settings::OpenError;
pub use crate::shape::ShapeError;
pub use crate::sweep::{SweepError, Swept};
pub use crate::sysctl::SysctlError;
pub use podwright_cni::{AddFailure, AddResult, CheckError, GenerateError, RecordError};
use podwright_netlink as netlink;
pub use podwright_netlink::NetlinkError;
pub use podwright_sys::netns::{EnterError, PinError};

use crate::attach::{Attach, detach};
use crate::bridge::Bridge;
use crate::guest::Join;
use crate::leases::Leases;
use crate::link::Link;
use crate::pin::Pins;
use crate::progress::Progress;
use crate::readiness::Readiness;
use crate::resolver::Dns;
use crate::ruleset::Ruleset;
use crate::settings::settings;

/// How long an operation on one pod may take: the kernel does each step in microseconds, unless it is stuck.
const OPERATION_LIMIT: Duration = Duration::from_secs(30);
/// How long the sweep may take.
const SWEEP_LIMIT: Duration = Duration::from_secs(120);

/// Why the node's ranges of pod addresses were not taken over.
#[derive(Debug, thiserror::Error)]
pub enum RangeError {
    /// They cannot be read.
    #[error("pod_cidr {text:?}: it takes address ranges such as 10.244.1.0/24, separated by commas")]
    Malformed {
        /// As told.
        text: String,
    },
    /// They cannot be kept.
    #[error("keep the node's pod addresses")]
    Keep(#[source] LeaseError),
    /// The CNI configuration that they are for cannot be written.
    #[error("write the CNI configuration of the node's pod addresses")]
    Generate(#[source] GenerateError),
}

/// What is asked for a pod.
#[derive(Debug, Clone, Copy)]
pub struct PodRequest<'a> {
    /// Host ports.
    pub ports: &'a [HostPort],
    /// CRI `metadata.namespace`.
    pub namespace: &'a str,
    /// CRI `metadata.name`.
    pub name: &'a str,
    /// CRI `metadata.uid`.
    pub uid: &'a str,
    /// CRI `annotations`.
    pub annotations: &'a BTreeMap<String, String>,
    /// CRI `dns_config`.
    pub dns: Option<Dns<'a>>,
    /// CRI `linux.cgroup_parent`; may be empty.
    pub cgroup: &'a str,
}

/// What a pod has of the network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attachment {
    /// The pod's addresses, an IPv4 address first when there is one.
    pub ips: Vec<IpAddr>,
    /// The hardware address of the pod's interface; empty when CNI plugins do not tell it.
    pub mac: String,
    /// The pod's interface.
    pub interface: String,
}

/// The network of one daemon's pods. Clones are the same network.
#[derive(Clone, Debug)]
pub struct Network(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    cni: Cni,
    cni_template: Option<PathBuf>,
    collects: bool,
    readiness: Readiness,
    /// What the aliases of our devices begin with.
    alias: String,
    pins: Pins,
    bridge: Bridge,
    leases: Leases,
    ruleset: Ruleset,
    /// One operation on a pod at a time, also when nobody waits for an earlier one any more.
    busy: Mutex<HashMap<PodId, Arc<tokio::sync::Mutex<()>>>>,
}

impl Network {
    /// Opens the network of a daemon: checks the configuration and reads the leases. Nothing is made in the kernel
    /// before the first pod.
    ///
    /// # Errors
    /// When the configuration makes no sense or the leases cannot be read.
    pub async fn open(layout: &Layout, config: &config::Network) -> Result<Self, OpenError> {
        let instance = layout.instance();
        let settings = settings(instance.as_deref(), config)?;
        let ruleset = Ruleset::new(instance.as_deref(), &settings.name, config.masquerade);
        let dir = layout.network();
        let leases = tokio::task::spawn_blocking(move || Leases::open(dir))
            .await
            .map_err(|error| match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(_) => OpenError::Cancelled,
            })?
            .map_err(OpenError::Leases)?;
        Ok(Self(Arc::new(Inner {
            cni: Cni::new(podwright_cni::Settings {
                conf_dir: config.cni_conf_dir.clone(),
                bin_dirs: config.cni_bin_dirs.clone(),
                records: layout.cni_attachments(),
                plugin_limit: Duration::from_secs(config.cni_plugin_timeout_seconds),
            }),
            cni_template: config.cni_conf_template.clone(),
            collects: config.cni_gc,
            readiness: Readiness::default(),
            alias: instance.map_or_else(|| "podwright ".to_owned(), |instance| format!("podwright-{instance} ")),
            pins: Pins::new(layout.clone()),
            bridge: Bridge::new(settings),
            leases,
            ruleset,
            busy: Mutex::default(),
        })))
    }

    /// Tells whether pods can be attached (CRI `NetworkReady`); CNI plugins' answers may be some seconds old.
    pub async fn status(&self) -> Status {
        self.0.readiness.of(&self.0.cni).await
    }

    /// Takes the node's ranges of pod addresses over (CRI `UpdateRuntimeConfig`): for the configured CNI template, for
    /// CNI plugins that ask for them, and for the built-in network where no other subnet is configured. They are kept
    /// over restarts.
    ///
    /// # Errors
    /// When they are none, cannot be kept, or the template cannot be used.
    pub async fn set_pod_cidr(&self, text: &str) -> Result<(), RangeError> {
        let malformed = |_| RangeError::Malformed { text: text.to_owned() };
        let ranges: Vec<IpNet> = text
            .split(',')
            .map(|range| range.trim().parse::<IpNet>().map(|range| range.trunc()))
            .collect::<Result<_, _>>()
            .map_err(malformed)?;
        if self.0.leases.ranges() != ranges {
            self.0.leases.set_ranges(&ranges).map_err(RangeError::Keep)?;
            tracing::info!(pod_cidr = text, "the node has other pod addresses");
        }
        let Some(template) = &self.0.cni_template else { return Ok(()) };
        if let Some(file) = self.0.cni.generate(template, &ranges).map_err(RangeError::Generate)? {
            tracing::info!(file = %file.display(), "the CNI configuration is written");
        }
        Ok(())
    }

    /// Gives a pod's network namespace its name under `/run/netns`, by which it outlives its processes. Idempotent.
    ///
    /// # Errors
    /// When the kernel refuses the mount.
    pub fn pin(&self, pod: &PodId, netns: BorrowedFd<'_>) -> Result<PathBuf, PinError> {
        self.0.pins.pin(pod, netns)
    }

    /// Takes the name of a pod's network namespace away. Idempotent.
    ///
    /// # Errors
    /// When the kernel refuses to unmount it.
    pub fn unpin(&self, pod: &PodId) -> Result<(), PinError> {
        self.0.pins.unpin(pod)
    }

    /// Attaches a pod's pinned network namespace to the CNI network, or without one to the bridge, and opens its host
    /// ports. Undoes itself on failure; a pod that is attached to the bridge keeps its addresses and connections.
    ///
    /// # Errors
    /// The step that failed; within 30 seconds, or for CNI within twice what a plugin may take, and as long for undoing.
    pub async fn attach(&self, pod: &PodId, netns: &Path, request: &PodRequest<'_>) -> Result<Attachment, AttachError> {
        let unfinished = |source| AttachError::Unfinished { pod: pod.clone(), source };
        let network = self.0.cni.network().map_err(AttachError::CniConfig)?;
        let turn = self.turn(pod).await.map_err(unfinished)?;
        if let Some(network) = network {
            let ranges = self.0.leases.ranges();
            return Join { inner: &self.0, network: &network, pod, netns, request, ranges: &ranges }.run(turn).await;
        }
        let bandwidth = Bandwidth::of(request.annotations).map_err(AttachError::Annotation)?;
        self.0.cni.del(pod.as_str()).await.map_err(AttachError::Earlier)?;
        let (owned, netns, ports) = (pod.clone(), netns.to_owned(), request.ports.to_vec());
        self.run(turn, move |inner, progress| {
            Attach { inner, pod: &owned, netns: &netns, ports: &ports, bandwidth: &bandwidth, progress }.run()
        })
        .await
        .map_err(unfinished)?
    }

    /// Undoes all of a pod's network but the pin, by what it was attached with. Idempotent; works when the namespace or
    /// the configuration is gone.
    ///
    /// # Errors
    /// All that could not be undone, after everything was tried; within 30 seconds, and what each CNI plugin may take.
    pub async fn detach(&self, pod: &PodId) -> Result<(), DetachError> {
        let failed = |failures| DetachError { pod: pod.clone(), failures };
        let turn = self.turn(pod).await.map_err(|error| failed(vec![UndoError::Unfinished(error)]))?;
        let mut failures = Vec::new();
        if let Err(error) = self.0.cni.del(pod.as_str()).await {
            failures.extend(error.0.into_iter().map(UndoError::Cni));
        }
        let owned = pod.clone();
        let outcome = self.run(turn, move |inner, progress| detach(inner, &owned, progress)).await;
        failures.extend(outcome.unwrap_or_else(|error| vec![UndoError::Unfinished(error)]));
        if failures.is_empty() { Ok(()) } else { Err(failed(failures)) }
    }

    /// What CNI plugins made for a pod; `None` for pods of the bridge.
    ///
    /// # Errors
    /// When the record of it cannot be read.
    pub fn plugins_result(&self, pod: &PodId) -> Result<Option<AddResult>, RecordError> {
        self.0.cni.result(pod.as_str())
    }

    /// Asks CNI plugins whether what they made for a pod is still there (CHECK).
    ///
    /// # Errors
    /// The plugin that says no, in its own words, or that the pod is not attached to a CNI network.
    pub async fn check(&self, pod: &PodId) -> Result<(), CheckError> {
        self.0.cni.check(pod.as_str()).await
    }

    /// Removes what an earlier daemon left of pods that are not live: attachments to CNI networks, leases, veth pairs,
    /// host ports and pins. For the daemon's start, before anything is attached.
    pub async fn sweep(&self, live: &HashSet<PodId>) -> Swept {
        let mut errors = Vec::new();
        // First: plugins may want the pins, which go with the rest.
        let network = self.0.cni.network().unwrap_or_else(|error| {
            errors.push(SweepError::CniConfig(error));
            None
        });
        if let Some(network) = &network {
            errors.extend(guest::recall(&self.0, network, live).await.into_iter().map(SweepError::Cni));
        }
        let containers = live.iter().map(PodId::to_string).collect();
        let guests = self.0.cni.sweep(&containers, network.as_ref().filter(|_| self.0.collects)).await;
        errors.extend(guests.failures.0.into_iter().map(SweepError::Cni));
        let (inner, live, progress) = (Arc::clone(&self.0), live.clone(), Progress::new());
        let seen = progress.clone();
        let work = move || sweep::sweep(&inner, &live, &progress);
        let mut swept = bounded(SWEEP_LIMIT, &seen, work)
            .await
            .unwrap_or_else(|error| Swept { errors: vec![SweepError::Unfinished(error)], ..Swept::default() });
        swept.attachments = guests.detached;
        swept.errors.splice(0..0, errors);
        swept
    }

    /// Has CNI plugins remove what belongs to no pod, unless pods are being attached or detached right now.
    pub async fn collect(&self) -> Vec<SweepError> {
        if !self.0.collects {
            return Vec::new();
        }
        match self.0.cni.network() {
            Ok(Some(network)) => {
                let errors = self.0.cni.gc(&network).await.unwrap_or_default();
                errors.into_iter().map(SweepError::Cni).collect()
            }
            Ok(None) => Vec::new(),
            Err(error) => vec![SweepError::CniConfig(error)],
        }
    }

    /// Waits until no other operation on the pod is under way.
    async fn turn(&self, pod: &PodId) -> Result<OwnedMutexGuard<()>, Unfinished> {
        let begun = Instant::now();
        let turn = timeout(OPERATION_LIMIT, self.0.turn(pod)).await;
        turn.map_err(|_| Unfinished::Busy { waited: begun.elapsed() })
    }

    /// Does blocking work on a pod, whose turn it is.
    async fn run<T: Send + 'static>(
        &self,
        turn: OwnedMutexGuard<()>,
        work: impl FnOnce(&Inner, &Progress) -> T + Send + 'static,
    ) -> Result<T, Unfinished> {
        let (inner, progress) = (Arc::clone(&self.0), Progress::new());
        let seen = progress.clone();
        let work = move || {
            // With the work, not with the wait for it: the next operation must see this one's end.
            let _turn = turn;
            work(&inner, &progress)
        };
        bounded(OPERATION_LIMIT, &seen, work).await
    }
}

impl Inner {
    /// Waits until no other operation on the pod is under way.
    async fn turn(&self, pod: &PodId) -> OwnedMutexGuard<()> {
        let lock = {
            let mut busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
            busy.retain(|_, lock| Arc::strong_count(lock) > 1);
            Arc::clone(busy.entry(pod.clone()).or_default())
        };
        lock.lock_owned().await
    }

    /// What a pod's veth end says about itself, for `ip link` and the sweep.
    fn alias(&self, pod: &PodId) -> String {
        format!("{}{pod}", self.alias)
    }

    /// Whether a device is the host's end of a pod's veth pair: it says so, or its daemon was killed before it could.
    fn is_end(&self, pod: &PodId, link: &Link) -> bool {
        link.kind == "veth" && (link.alias == self.alias(pod) || (link.alias.is_empty() && link.master.is_some()))
    }

    /// The pod that a device says it belongs to, if the device is this daemon's.
    fn pod_of_alias(&self, alias: &str) -> Option<PodId> {
        alias.strip_prefix(&self.alias)?.parse().ok()
    }
}

/// Does work on a thread that may block, and waits for it for a bounded time. Work that nobody waits for any more is
/// told so: it undoes itself when the kernel comes back.
async fn bounded<T: Send + 'static>(
    limit: Duration,
    progress: &Progress,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Unfinished> {
    struct Abandon<'a>(&'a Progress, bool);
    impl Drop for Abandon<'_> {
        fn drop(&mut self) {
            if !self.1 {
                self.0.abandon();
            }
        }
    }
    let mut abandon = Abandon(progress, false);
    let outcome = timeout(limit, tokio::task::spawn_blocking(work)).await;
    abandon.1 = outcome.is_ok();
    match outcome {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => Err(Unfinished::Cancelled),
        },
        Err(_) => Err(progress.stalled()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn work_that_hangs_is_told_that_nobody_waits() {
        let (release, held) = std::sync::mpsc::channel::<()>();
        let (ended, end) = std::sync::mpsc::channel();
        let progress = Progress::new();
        let seen = progress.clone();
        let work = move || {
            assert!(held.recv().is_err(), "released by the other end's drop");
            ended.send(progress.is_abandoned()).unwrap();
        };
        let outcome = bounded(Duration::ZERO, &seen, work).await;
        assert!(matches!(outcome, Err(Unfinished::Stalled { .. })), "{outcome:?}");
        drop(release);
        assert!(end.recv().unwrap(), "whoever gave up has said so");
    }
}
