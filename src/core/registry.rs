//! Which pods and containers there are, and who owns them: the one place where ids and names are looked up.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use podwright_base::{ContainerId, PodId};
use podwright_spec::pod::PodMetadata;

use crate::error::Error;
use crate::pod::handle::PodHandle;

/// All pods of this daemon.
#[derive(Debug, Default)]
pub(crate) struct Registry {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    pods: BTreeMap<String, PodHandle>,
    names: HashMap<PodMetadata, PodId>,
    containers: BTreeMap<String, PodId>,
}

/// What reserving a pod's name came to.
pub(crate) enum Reserved {
    /// The name was free and is taken now.
    New,
    /// The name has an owner.
    Taken(PodHandle),
}

impl Registry {
    /// Takes a pod's name for a new pod, or finds its owner.
    pub(crate) fn reserve(&self, handle: &PodHandle) -> Reserved {
        let mut inner = self.lock();
        let name = handle.config.metadata.clone();
        if let Some(owner) = inner.names.get(&name).and_then(|id| inner.pods.get(id.as_str())) {
            return Reserved::Taken(owner.clone());
        }
        inner.names.insert(name, handle.id.clone());
        inner.pods.insert(handle.id.as_str().to_owned(), handle.clone());
        Reserved::New
    }

    /// Forgets a pod, its name and its containers.
    pub(crate) fn forget(&self, pod: &PodId) {
        let mut inner = self.lock();
        if let Some(handle) = inner.pods.remove(pod.as_str())
            && inner.names.get(&handle.config.metadata) == Some(pod)
        {
            inner.names.remove(&handle.config.metadata);
        }
        inner.containers.retain(|_, owner| owner != pod);
    }

    /// Notes which pod a container belongs to.
    pub(crate) fn add_container(&self, container: &ContainerId, pod: &PodId) {
        self.lock().containers.insert(container.as_str().to_owned(), pod.clone());
    }

    /// Forgets a container.
    pub(crate) fn forget_container(&self, container: &ContainerId) {
        self.lock().containers.remove(container.as_str());
    }

    /// Finds the pod with an id or a unique prefix of it.
    ///
    /// # Errors
    /// [`Error::PodNotFound`], or [`Error::AmbiguousId`].
    pub(crate) fn pod(&self, id: &str) -> Result<PodHandle, Error> {
        // One that is being created does not exist yet for anybody but its creator.
        match lookup(&self.lock().pods, id, |handle| handle.view().is_some())? {
            Some((_, handle)) => Ok(handle.clone()),
            None => Err(Error::PodNotFound { id: id.to_owned() }),
        }
    }

    /// Finds the container with an id or a unique prefix of it, and its pod.
    ///
    /// # Errors
    /// [`Error::ContainerNotFound`], or [`Error::AmbiguousId`].
    pub(crate) fn container(&self, id: &str) -> Result<(ContainerId, PodHandle), Error> {
        let inner = self.lock();
        let missing = || Error::ContainerNotFound { id: id.to_owned() };
        let (found, pod) = lookup(&inner.containers, id, |_| true)?.ok_or_else(missing)?;
        let handle = inner.pods.get(pod.as_str()).ok_or_else(missing)?;
        Ok((found.parse().map_err(|_| missing())?, handle.clone()))
    }

    /// Returns every pod, in the order of ids.
    pub(crate) fn pods(&self) -> Vec<PodHandle> {
        self.lock().pods.values().cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Nothing in here panics half-way through a change, so a poisoned map is still whole.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Finds a key by itself or by a prefix that no other key has.
fn lookup<'a, V>(
    map: &'a BTreeMap<String, V>,
    prefix: &str,
    visible: impl Fn(&V) -> bool,
) -> Result<Option<(&'a String, &'a V)>, Error> {
    if prefix.is_empty() {
        return Ok(None);
    }
    let mut matches = map
        .range(prefix.to_owned()..)
        .take_while(|(key, _)| key.starts_with(prefix))
        .filter(|(_, value)| visible(value))
        .peekable();
    let first = matches.next();
    match (first, matches.peek()) {
        (Some((key, _)), Some(_)) if key != prefix => {
            Err(Error::AmbiguousId { prefix: prefix.to_owned(), count: 1 + matches.count() })
        }
        (first, _) => Ok(first),
    }
}

/// Wraps an error that more than one caller is told.
pub(crate) fn shared(error: &Arc<Error>) -> Error {
    Error::Joined(Arc::clone(error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_find_one_or_say_how_many() {
        let map: BTreeMap<String, u8> = [("ab1".into(), 1), ("ab2".into(), 2), ("c".into(), 3)].into();
        assert_eq!(lookup(&map, "c", |_| true).unwrap().unwrap().1, &3);
        assert_eq!(lookup(&map, "ab1", |_| true).unwrap().unwrap().1, &1);
        assert!(lookup(&map, "", |_| true).unwrap().is_none());
        assert!(lookup(&map, "d", |_| true).unwrap().is_none());
        assert!(matches!(lookup(&map, "ab", |_| true), Err(Error::AmbiguousId { count: 2, .. })));
    }
}
