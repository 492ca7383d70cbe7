//! Pins: the pods' network namespaces under `/run/netns`, where `ip netns` and CNI plugins find them.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use podwright_base::paths::NETNS_DIR;
use podwright_base::{Layout, PodId};
use podwright_sys::netns::{self, PinError};

/// The pins of one daemon.
#[derive(Debug)]
pub(crate) struct Pins {
    layout: Layout,
    prepared: Mutex<bool>,
}

impl Pins {
    /// Names the pins of a daemon; nothing is made.
    pub(crate) fn new(layout: Layout) -> Self {
        Self { layout, prepared: Mutex::new(false) }
    }

    /// Where a pod's pin is, or would be.
    pub(crate) fn path(&self, pod: &PodId) -> PathBuf {
        self.layout.netns(pod)
    }

    /// Pins a pod's namespace and returns where.
    pub(crate) fn pin(&self, pod: &PodId, netns: BorrowedFd<'_>) -> Result<PathBuf, PinError> {
        self.prepare()?;
        let path = self.path(pod);
        netns::pin(netns, &path)?;
        Ok(path)
    }

    /// Removes a pod's pin; one that is not there is fine.
    pub(crate) fn unpin(&self, pod: &PodId) -> Result<(), PinError> {
        netns::unpin(&self.path(pod))
    }

    /// Keeps all other daemons of the host out until the file is dropped.
    pub(crate) fn lock(&self) -> Result<File, PinError> {
        self.prepare()?;
        netns::lock_dir(Path::new(NETNS_DIR))
    }

    /// Lists the pods that have a pin but are not among the live ones.
    pub(crate) fn strays(&self, live: &HashSet<PodId>) -> io::Result<Vec<PodId>> {
        let entries = match fs::read_dir(NETNS_DIR) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let prefix = self.layout.netns_prefix();
        let mut strays = Vec::new();
        for entry in entries {
            let name = entry?.file_name();
            // What follows must be an id and nothing else: the default daemon's prefix begins the others' too.
            let pod = name.to_str().and_then(|name| name.strip_prefix(&prefix)?.parse::<PodId>().ok());
            strays.extend(pod.filter(|pod| !live.contains(pod)));
        }
        Ok(strays)
    }

    fn prepare(&self) -> Result<(), PinError> {
        let mut prepared = self.prepared.lock().unwrap_or_else(PoisonError::into_inner);
        if !*prepared {
            netns::prepare_dir(Path::new(NETNS_DIR))?;
            *prepared = true;
        }
        Ok(())
    }
}
