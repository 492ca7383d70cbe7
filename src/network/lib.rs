//! Pod networks: namespace pins and the built-in bridge.
//!
//! [`Network`] is the face. Without a CNI configuration its pods are on a bridge of its own: a veth pair each, IPv4
//! and IPv6 addresses from leases on disk, masquerade and host ports by an nf_tables table of its own. All of it is
//! made with the first pod, carries the daemon's instance in its names, and is found again by name after a crash.
//!
//! Layers, each using those below: `attach`, `sweep` (the steps) · `bridge`, `ruleset`, `leases` (what they work on) ·
//! `link`, `nft`, `conntrack` (messages) · `netlink` (exchanges). `subnet` and `ipam` are pure. CNI goes beside
//! `bridge`, behind the same face.

mod attach;
mod bridge;
mod cni;
mod conntrack;
mod ipam;
mod leases;
mod link;
mod netlink;
mod nft;
mod pin;
mod port;
mod progress;
pub mod resolver;
mod ruleset;
mod subnet;
mod sweep;
mod sysctl;

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use podwright_base::{Layout, PodId, config};
use tokio::sync::OwnedMutexGuard;
use tokio::time::timeout;

pub use crate::attach::{AttachError, DetachError, UndoError};
pub use crate::bridge::BridgeError;
pub use crate::leases::LeaseError;
pub use crate::netlink::NetlinkError;
pub use crate::port::{HostPort, Protocol};
pub use crate::progress::Unfinished;
pub use crate::sweep::{SweepError, Swept};
pub use crate::sysctl::SysctlError;
pub use podwright_sys::netns::{EnterError, PinError};

use crate::attach::{Attach, detach};
use crate::bridge::{Bridge, Settings};
use crate::leases::Leases;
use crate::pin::Pins;
use crate::progress::Progress;
use crate::ruleset::Ruleset;

/// How long an operation on one pod may take: the kernel does each step in microseconds, unless it is stuck.
const OPERATION_LIMIT: Duration = Duration::from_secs(30);
/// How long the sweep may take.
const SWEEP_LIMIT: Duration = Duration::from_secs(120);

/// Why the network cannot be used at all.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The configured name is none that a device can have.
    #[error("network.bridge {name:?}: a device's name has 1 to 15 characters without '/', ':' and white space")]
    BridgeName {
        /// As configured.
        name: String,
    },
    /// The configured IPv4 subnet has no room.
    #[error("network.ipv4 {subnet}: a prefix of at most /{} has room for a pod", subnet::LONGEST_IPV4)]
    Ipv4TooSmall {
        /// As configured.
        subnet: ipnet::Ipv4Net,
    },
    /// The configured IPv6 subnet has no room.
    #[error("network.ipv6 {subnet}: a prefix of at most /{} has room for a pod", subnet::LONGEST_IPV6)]
    Ipv6TooSmall {
        /// As configured.
        subnet: ipnet::Ipv6Net,
    },
    /// The leases cannot be read.
    #[error("read the address leases of pods")]
    Leases(#[source] LeaseError),
    /// The daemon is going down.
    #[error("the daemon ended before the network was opened")]
    Cancelled,
}

/// Whether pods can be attached (CRI `NetworkReady`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// Whether they can.
    pub ready: bool,
    /// One word, for programs; empty when ready.
    pub reason: String,
    /// What is the matter and what to do, for people; empty when ready.
    pub message: String,
}

/// What a pod has of the network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attachment {
    /// The pod's addresses, IPv4 first.
    pub ips: Vec<IpAddr>,
    /// The hardware address of the pod's interface.
    pub mac: String,
    /// The pod's interface.
    pub interface: String,
}

/// The network of one daemon's pods. Clones are the same network.
#[derive(Clone, Debug)]
pub struct Network(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    cni_conf_dir: PathBuf,
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
            cni_conf_dir: config.cni_conf_dir.clone(),
            alias: instance.map_or_else(|| "podwright ".to_owned(), |instance| format!("podwright-{instance} ")),
            pins: Pins::new(layout.clone()),
            bridge: Bridge::new(settings),
            leases,
            ruleset,
            busy: Mutex::default(),
        })))
    }

    /// Tells whether pods can be attached (CRI `NetworkReady`).
    pub fn status(&self) -> Status {
        let not_ready = |reason: &str, message| Status { ready: false, reason: reason.to_owned(), message };
        match self.check_cni() {
            Ok(()) => Status { ready: true, reason: String::new(), message: String::new() },
            Err(AttachError::CniDir { dir, source }) => {
                not_ready("CNIConfigUnreadable", format!("{}: {source}", dir.display()))
            }
            Err(error) => not_ready("CNINotSupported", error.to_string()),
        }
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

    /// Attaches a pod's pinned network namespace to the bridge and opens its host ports. Undoes itself on failure; a
    /// pod that is attached keeps its addresses and connections.
    ///
    /// # Errors
    /// The step that failed; within 30 seconds in any case.
    pub async fn attach(&self, pod: &PodId, netns: &Path, ports: &[HostPort]) -> Result<Attachment, AttachError> {
        self.check_cni()?;
        let (owned, netns, ports) = (pod.clone(), netns.to_owned(), ports.to_vec());
        self.run(pod, move |inner, progress| {
            Attach { inner, pod: &owned, netns: &netns, ports: &ports, progress }.run()
        })
        .await
        .map_err(|source| AttachError::Unfinished { pod: pod.clone(), source })?
    }

    /// Undoes all of a pod's network but the pin. Idempotent; works when the namespace is gone.
    ///
    /// # Errors
    /// All that could not be undone, after everything was tried; within 30 seconds in any case.
    pub async fn detach(&self, pod: &PodId) -> Result<(), DetachError> {
        let owned = pod.clone();
        let outcome = self.run(pod, move |inner, progress| detach(inner, &owned, progress)).await;
        let failures = outcome.unwrap_or_else(|error| vec![UndoError::Unfinished(error)]);
        if failures.is_empty() { Ok(()) } else { Err(DetachError { pod: pod.clone(), failures }) }
    }

    /// Removes what an earlier daemon left of pods that are not live: leases, veth pairs, host ports and pins. For the
    /// daemon's start, before anything is attached.
    pub async fn sweep(&self, live: &HashSet<PodId>) -> Swept {
        let (inner, live, progress) = (Arc::clone(&self.0), live.clone(), Progress::new());
        let seen = progress.clone();
        let work = move || sweep::sweep(&inner, &live, &progress);
        match bounded(SWEEP_LIMIT, &seen, work).await {
            Ok(swept) => swept,
            Err(error) => Swept { errors: vec![SweepError::Unfinished(error)], ..Swept::default() },
        }
    }

    fn check_cni(&self) -> Result<(), AttachError> {
        let dir = &self.0.cni_conf_dir;
        match cni::configuration(dir) {
            Ok(None) => Ok(()),
            Ok(Some(file)) => Err(AttachError::Cni { file }),
            Err(source) => Err(AttachError::CniDir { dir: dir.clone(), source }),
        }
    }

    /// Does blocking work on a pod, after any that is still under way.
    async fn run<T: Send + 'static>(
        &self,
        pod: &PodId,
        work: impl FnOnce(&Inner, &Progress) -> T + Send + 'static,
    ) -> Result<T, Unfinished> {
        let begun = Instant::now();
        let guard = timeout(OPERATION_LIMIT, self.0.turn(pod))
            .await
            .map_err(|_| Unfinished::Busy { waited: begun.elapsed() })?;
        let (inner, progress) = (Arc::clone(&self.0), Progress::new());
        let seen = progress.clone();
        let work = move || {
            // With the work, not with the wait for it: the next operation must see this one's end.
            let _guard = guard;
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

/// Checks the configuration of the bridge.
fn settings(instance: Option<&str>, config: &config::Network) -> Result<Settings, OpenError> {
    let name = match (&config.bridge, instance) {
        (Some(name), _) => name.clone(),
        (None, None) => "podwright0".to_owned(),
        (None, Some(instance)) => format!("pw{instance}"),
    };
    let bad = |c: char| c == '/' || c == ':' || c.is_whitespace() || c.is_control();
    if name.is_empty() || name.len() > link::MAX_NAME || name.contains(bad) || name == "." || name == ".." {
        return Err(OpenError::BridgeName { name });
    }
    if let Some(subnet) = config.ipv4.filter(|subnet| subnet.prefix_len() > subnet::LONGEST_IPV4) {
        return Err(OpenError::Ipv4TooSmall { subnet });
    }
    if let Some(subnet) = config.ipv6.filter(|subnet| subnet.prefix_len() > subnet::LONGEST_IPV6) {
        return Err(OpenError::Ipv6TooSmall { subnet });
    }
    Ok(Settings {
        name,
        ipv4: config.ipv4.map(|subnet| subnet.trunc()),
        ipv6: config.ipv6.map(|subnet| subnet.trunc()),
        enable_ipv6: config.enable_ipv6,
        mtu: config.mtu,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_bridge_can_be_is_named() {
        let config = |bridge: &str| config::Network { bridge: Some(bridge.to_owned()), ..config::Network::default() };
        for bad in ["", "a/b", "a b", "sixteen-letters!", ".."] {
            assert!(matches!(settings(None, &config(bad)), Err(OpenError::BridgeName { .. })), "{bad:?}");
        }
        assert_eq!(settings(None, &config("br0")).unwrap().name, "br0");
        assert_eq!(settings(Some("01234567"), &config::Network::default()).unwrap().name, "pw01234567");
        let small = config::Network { ipv4: Some("10.0.0.0/31".parse().unwrap()), ..config::Network::default() };
        assert!(matches!(settings(None, &small), Err(OpenError::Ipv4TooSmall { .. })));
    }

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
