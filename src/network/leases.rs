//! Leases: which pod has which addresses and host ports. A file for each pod, and two for the network itself.
//!
//! ```text
//! <root>/network/network.json      the chosen subnets, and where the search for the next address begins
//! <root>/network/node.json         the node's ranges of pod addresses, as the kubelet told them last
//! <root>/network/<pod id>.json     a pod's addresses and host ports
//! ```
//!
//! Pods of CNI networks have leases too: their addresses are not from here, their host ports are, so that no two pods
//! have the same.
//!
//! A lease is written before anything is made in the kernel, so a daemon killed at any point leaves nothing that its
//! successor does not know of. Files are renamed into place, not synced: after a power loss no pod is left.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use ipnet::{IpNet, Ipv4Net};
use podwright_base::PodId;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::claims::{ClaimError, Claims};
use crate::ipam::{Addresses, Pool};
use crate::port::HostPort;
use crate::subnet::Subnets;

const NETWORK_FILE: &str = "network.json";
const NODE_FILE: &str = "node.json";
const SUFFIX: &str = ".json";

/// Why a lease was not read, taken or given back.
#[derive(Debug, thiserror::Error)]
pub enum LeaseError {
    /// The directory cannot be made or listed.
    #[error("open the directory of address leases {}", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file cannot be read.
    #[error("read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The data has no JSON form.
    #[error("encode {}", path.display())]
    Encode {
        /// The file.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
    /// A file cannot be written.
    #[error("write {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file cannot be removed.
    #[error("remove {}", path.display())]
    Remove {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// No address is left.
    #[error(
        "all addresses of {subnet} are used by pods: remove some, or configure a larger network.ipv4 (network.ipv6 if that \
         is smaller)"
    )]
    Exhausted {
        /// The subnet.
        subnet: Ipv4Net,
    },
    /// A host port cannot be had.
    #[error(transparent)]
    Port(ClaimError),
    /// The pod has addresses of a CNI network.
    #[error("pod {pod} has addresses of a CNI network: it must be detached first")]
    OfCni {
        /// The pod.
        pod: PodId,
    },
    /// No subnet has been chosen: the bridge was never made.
    #[error("no subnet has been chosen yet")]
    NoSubnet,
}

/// What a pod has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Lease {
    /// Always there in the built-in network.
    pub(crate) ipv4: Option<Ipv4Addr>,
    pub(crate) ipv6: Option<Ipv6Addr>,
    pub(crate) ports: Vec<HostPort>,
    /// Whether the built-in network limits the pod's bandwidth, for which there may be a device more.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) shaped: bool,
    /// Only of pods of CNI networks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) guest: Option<Guest>,
}

/// What is known of a pod whose addresses are a CNI network's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Guest {
    /// Whether a plugin opens the host ports.
    pub(crate) plugin_opens_ports: bool,
    /// The host's device towards the pod, if host ports of 127.0.0.1 needed a setting of it.
    pub(crate) device: Option<String>,
}

impl Lease {
    /// The addresses that are the built-in network's.
    fn addresses(&self) -> Option<Addresses> {
        self.ipv4.filter(|_| self.guest.is_none()).map(|ipv4| (ipv4, self.ipv6))
    }
}

/// The contents of [`NETWORK_FILE`].
#[derive(Debug, Serialize, Deserialize)]
struct Choice {
    subnets: Subnets,
    next: u32,
}

/// All leases, in memory and on disk.
#[derive(Debug)]
pub(crate) struct Leases {
    dir: PathBuf,
    book: Mutex<Book>,
}

#[derive(Debug, Default)]
struct Book {
    leases: HashMap<PodId, Lease>,
    claims: Claims,
    pool: Option<Pool>,
    ranges: Vec<IpNet>,
}

impl Leases {
    /// Reads the leases of a directory, which is made if missing.
    pub(crate) fn open(dir: PathBuf) -> Result<Self, LeaseError> {
        let failed = |source| LeaseError::Directory { path: dir.clone(), source };
        fs::create_dir_all(&dir).map_err(failed)?;
        let mut book = Book::default();
        for entry in fs::read_dir(&dir).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            if let Some(pod) = pod_of(&name.to_string_lossy())
                && let Some(lease) = read::<Lease>(&dir.join(&name))?
            {
                book.claims.add(&pod, &lease.ports);
                book.leases.insert(pod, lease);
            }
        }
        if let Some(choice) = read::<Choice>(&dir.join(NETWORK_FILE))? {
            book.set_subnets(choice.subnets, choice.next);
        }
        book.ranges = read(&dir.join(NODE_FILE))?.unwrap_or_default();
        Ok(Self { dir, book: Mutex::new(book) })
    }

    /// The subnets that an earlier pod's addresses were taken from.
    pub(crate) fn subnets(&self) -> Option<Subnets> {
        self.book().pool.as_ref().map(Pool::subnets)
    }

    /// Whether a pod has an address of a subnet.
    pub(crate) fn in_use(&self, subnet: &Ipv4Net) -> bool {
        let book = self.book();
        book.leases.values().filter_map(Lease::addresses).any(|(ipv4, _)| subnet.contains(&ipv4))
    }

    /// Whether no pod has a lease.
    pub(crate) fn is_empty(&self) -> bool {
        self.book().leases.is_empty()
    }

    /// Whether a pod has an address of the built-in network.
    pub(crate) fn has_own(&self) -> bool {
        self.book().leases.values().any(|lease| lease.guest.is_none())
    }

    /// The node's ranges of pod addresses; empty when nobody has told them.
    pub(crate) fn ranges(&self) -> Vec<IpNet> {
        self.book().ranges.clone()
    }

    /// Keeps the node's ranges of pod addresses, also over restarts.
    pub(crate) fn set_ranges(&self, ranges: &[IpNet]) -> Result<(), LeaseError> {
        let mut book = self.book();
        self.write(&self.dir.join(NODE_FILE), &ranges)?;
        book.ranges = ranges.to_vec();
        Ok(())
    }

    /// Makes subnets those of which addresses are taken, now and after a restart.
    pub(crate) fn choose(&self, subnets: Subnets) -> Result<(), LeaseError> {
        let mut book = self.book();
        if book.pool.as_ref().map(Pool::subnets) != Some(subnets) {
            book.set_subnets(subnets, 0);
        }
        self.write_choice(&book)
    }

    /// Takes addresses and host ports for a pod. One that has a lease keeps its addresses.
    pub(crate) fn take(&self, pod: &PodId, ports: &[HostPort], shaped: bool) -> Result<Lease, LeaseError> {
        let mut book = self.book();
        book.claims.check(pod, ports).map_err(LeaseError::Port)?;
        let kept = book.leases.get(pod).cloned();
        if let Some(lease) = kept.as_ref().filter(|lease| lease.ports == ports && lease.shaped == shaped) {
            return Ok(lease.clone());
        }
        let (addresses, new) = match &kept {
            Some(lease) => (lease.addresses().ok_or_else(|| LeaseError::OfCni { pod: pod.clone() })?, false),
            None => (book.take()?, true),
        };
        let lease = Lease { ipv4: Some(addresses.0), ipv6: addresses.1, ports: ports.to_vec(), shaped, guest: None };
        let written = self.write(&self.path(pod), &lease).and_then(|()| self.write_choice(&book));
        if let Err(error) = written {
            if new && let Some(pool) = &mut book.pool {
                pool.give_back(addresses);
            }
            return Err(error);
        }
        book.enter(pod, lease.clone());
        Ok(lease)
    }

    /// Keeps what a pod of a CNI network has; it may have a lease of a CNI network already.
    pub(crate) fn admit(&self, pod: &PodId, lease: &Lease) -> Result<(), LeaseError> {
        let mut book = self.book();
        book.claims.check(pod, &lease.ports).map_err(LeaseError::Port)?;
        self.write(&self.path(pod), lease)?;
        book.enter(pod, lease.clone());
        Ok(())
    }

    /// Whether a pod other than this one needs the setting of a device.
    pub(crate) fn shares_device(&self, pod: &PodId, device: &str) -> bool {
        let of = |lease: &Lease| lease.guest.as_ref().is_some_and(|guest| guest.device.as_deref() == Some(device));
        self.book().leases.iter().any(|(other, lease)| other != pod && of(lease))
    }

    /// A pod's lease.
    pub(crate) fn get(&self, pod: &PodId) -> Option<Lease> {
        self.book().leases.get(pod).cloned()
    }

    /// All leases.
    pub(crate) fn all(&self) -> Vec<(PodId, Lease)> {
        self.book().leases.iter().map(|(pod, lease)| (pod.clone(), lease.clone())).collect()
    }

    /// Gives a pod's addresses and host ports back; a pod that has none is fine.
    pub(crate) fn give_back(&self, pod: &PodId) -> Result<(), LeaseError> {
        let mut book = self.book();
        // The file goes first: should that fail, the addresses stay taken, as they would after a restart.
        remove(&self.path(pod))?;
        if let Some(lease) = book.leases.remove(pod) {
            book.claims.remove(pod, &lease.ports);
            if let (Some(pool), Some(addresses)) = (&mut book.pool, lease.addresses()) {
                pool.give_back(addresses);
            }
        }
        Ok(())
    }

    /// Lists the pods that have a file here but are not among the live ones, and removes what a killed daemon had
    /// only begun to write.
    pub(crate) fn strays(&self, live: &HashSet<PodId>) -> Result<Vec<PodId>, LeaseError> {
        let _book = self.book();
        let failed = |source| LeaseError::Directory { path: self.dir.clone(), source };
        let mut strays = Vec::new();
        for entry in fs::read_dir(&self.dir).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            let name = name.to_string_lossy();
            if name.ends_with(".new") {
                remove(&self.dir.join(&*name))?;
            } else if let Some(pod) = pod_of(&name).filter(|pod| !live.contains(pod)) {
                strays.push(pod);
            }
        }
        Ok(strays)
    }

    fn path(&self, pod: &PodId) -> PathBuf {
        self.dir.join(format!("{pod}{SUFFIX}"))
    }

    fn write_choice(&self, book: &Book) -> Result<(), LeaseError> {
        let Some(pool) = &book.pool else { return Ok(()) };
        self.write(&self.dir.join(NETWORK_FILE), &Choice { subnets: pool.subnets(), next: pool.next() })
    }

    /// Replaces a file whole.
    fn write<T: Serialize>(&self, path: &Path, data: &T) -> Result<(), LeaseError> {
        let bytes = serde_json::to_vec(data).map_err(|source| LeaseError::Encode { path: path.to_owned(), source })?;
        podwright_base::replace(path, &bytes).map_err(|source| LeaseError::Write { path: path.to_owned(), source })
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        // Every change of the book is complete before anything in it can panic.
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Book {
    fn set_subnets(&mut self, subnets: Subnets, next: u32) {
        let mut pool = Pool::new(subnets, next);
        self.leases.values().filter_map(Lease::addresses).for_each(|addresses| pool.mark(addresses));
        self.pool = Some(pool);
    }

    fn enter(&mut self, pod: &PodId, lease: Lease) {
        if let Some(last) = self.leases.get(pod) {
            self.claims.remove(pod, &last.ports);
        }
        self.claims.add(pod, &lease.ports);
        self.leases.insert(pod.clone(), lease);
    }

    fn take(&mut self) -> Result<Addresses, LeaseError> {
        let pool = self.pool.as_mut().ok_or(LeaseError::NoSubnet)?;
        pool.take().ok_or(LeaseError::Exhausted { subnet: pool.subnets().ipv4 })
    }
}

/// The pod whose lease a file is.
fn pod_of(name: &str) -> Option<PodId> {
    name.strip_suffix(SUFFIX)?.parse().ok()
}

/// Reads a file, `None` when there is none, or none that makes sense.
fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, LeaseError> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(LeaseError::Read { path: path.to_owned(), source }),
    };
    // A file is damaged by a power loss only, after which nobody uses what it says: the sweep removes it.
    Ok(serde_json::from_slice(&bytes)
        .inspect_err(|error| tracing::warn!(file = %path.display(), %error, "a lease is damaged and left out"))
        .ok())
}

fn remove(path: &Path) -> Result<(), LeaseError> {
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(LeaseError::Remove { path: path.to_owned(), source })
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::port::Protocol;

    fn subnets(ipv4: &str) -> Subnets {
        Subnets { ipv4: ipv4.parse().unwrap(), ipv6: Some("fd00::/64".parse().unwrap()) }
    }

    fn tcp(host_port: u16, container_port: u16) -> HostPort {
        HostPort { protocol: Protocol::Tcp, host_ip: None, host_port, container_port }
    }

    fn open(dir: &Path) -> Leases {
        Leases::open(dir.join("network")).unwrap()
    }

    #[test]
    fn leases_outlive_the_daemon() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (PodId::random(), PodId::random());
        let leases = open(dir.path());
        assert!(matches!(leases.take(&a, &[], false), Err(LeaseError::NoSubnet)));
        leases.choose(subnets("10.88.0.0/24")).unwrap();
        let lease = leases.take(&a, &[tcp(80, 8080)], false).unwrap();
        assert_eq!(leases.take(&a, &[tcp(80, 8080)], false).unwrap(), lease);

        let leases = open(dir.path());
        assert_eq!(leases.subnets(), Some(subnets("10.88.0.0/24")));
        assert_eq!(leases.take(&a, &[tcp(80, 8080)], false).unwrap(), lease);
        leases.give_back(&a).unwrap();
        leases.give_back(&a).unwrap();

        let leases = open(dir.path());
        assert_eq!(leases.get(&a), None);
        let ipv4 = leases.take(&b, &[], false).unwrap().ipv4;
        assert_eq!(ipv4, Some(Ipv4Addr::new(10, 88, 0, 3)), "the search goes on where it ended");
        assert_eq!(leases.strays(&HashSet::new()).unwrap(), [b]);
    }

    #[test]
    fn an_exhausted_subnet_and_a_taken_port_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (PodId::random(), PodId::random());
        let leases = open(dir.path());
        leases.choose(subnets("10.88.0.0/30")).unwrap();
        leases.take(&a, &[tcp(80, 8080)], false).unwrap();
        let taken = leases.take(&b, &[tcp(80, 1)], false).unwrap_err();
        assert!(taken.to_string().starts_with(&format!("host port 80/tcp is used by pod {a}")), "{taken}");
        let exhausted = leases.take(&b, &[], false).unwrap_err();
        assert!(exhausted.to_string().starts_with("all addresses of 10.88.0.0/30 are used"), "{exhausted}");
        leases.give_back(&a).unwrap();
        leases.take(&b, &[tcp(80, 1)], false).unwrap();
    }

    #[test]
    fn other_subnets_leave_old_leases_alone() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (PodId::random(), PodId::random());
        let leases = open(dir.path());
        leases.choose(subnets("10.88.0.0/24")).unwrap();
        let old = leases.take(&a, &[], false).unwrap();
        leases.choose(subnets("10.99.0.0/24")).unwrap();
        assert!(leases.in_use(&"10.88.0.0/24".parse().unwrap()));
        assert_eq!(leases.take(&a, &[], false).unwrap(), old);
        let new = leases.take(&b, &[], false).unwrap();
        assert_eq!((new.ipv4, new.ipv6 != old.ipv6), (Some(Ipv4Addr::new(10, 99, 0, 3)), true));
    }

    #[test]
    fn pods_of_cni_networks_share_host_ports_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (PodId::random(), PodId::random());
        let leases = open(dir.path());
        let guest = Some(Guest { plugin_opens_ports: false, device: Some("cni0".to_owned()) });
        let of_a = Lease {
            ipv4: Some(Ipv4Addr::new(10, 88, 0, 2)),
            ipv6: None,
            ports: vec![tcp(80, 80)],
            shaped: false,
            guest,
        };
        leases.admit(&a, &of_a).unwrap();
        assert!(matches!(leases.take(&a, &[], false), Err(LeaseError::OfCni { pod }) if pod == a));
        assert!(leases.shares_device(&b, "cni0") && !leases.shares_device(&a, "cni0"));
        let ranges: Vec<IpNet> = vec!["10.1.0.0/24".parse().unwrap()];
        leases.set_ranges(&ranges).unwrap();

        let leases = open(dir.path());
        leases.choose(subnets("10.88.0.0/24")).unwrap();
        assert!(!leases.in_use(&"10.88.0.0/24".parse().unwrap()));
        let taken = leases.take(&b, &[tcp(80, 1)], false);
        assert!(matches!(taken, Err(LeaseError::Port(ClaimError::Taken { pod, .. })) if pod == a));
        assert_eq!(leases.take(&b, &[], false).unwrap().ipv4, of_a.ipv4, "other networks' addresses are not its own");
        leases.give_back(&a).unwrap();
        assert_eq!((leases.ranges(), leases.get(&a)), (ranges, None));
        assert_eq!(leases.strays(&HashSet::new()).unwrap(), [b], "the node's file is no pod's");
    }

    #[test]
    fn what_a_crash_left_is_a_stray() {
        let dir = tempfile::tempdir().unwrap();
        let leases = open(dir.path());
        let (damaged, begun) = (PodId::random(), PodId::random());
        let files = dir.path().join("network");
        fs::write(files.join(format!("{damaged}.json")), "").unwrap();
        fs::write(files.join(format!("{begun}.new")), "{").unwrap();
        let leases_after = open(dir.path());
        assert_eq!(leases_after.strays(&HashSet::new()).unwrap(), std::slice::from_ref(&damaged));
        leases.give_back(&damaged).unwrap();
        assert_eq!(fs::read_dir(files).unwrap().count(), 0);
    }
}
