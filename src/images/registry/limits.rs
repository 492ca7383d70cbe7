//! How many bodies of blobs are in flight: over the whole node, and from one registry.
//!
//! Whoever waits is served in the order of coming. The registry's turn is waited for first: a transfer that queues for a
//! busy registry takes no place from the others.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use podwright_base::config::Registry as Config;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Counts transfers.
#[derive(Debug)]
pub struct Limits {
    node: Arc<Semaphore>,
    per_registry: usize,
    registries: Mutex<HashMap<String, Arc<Semaphore>>>,
}

/// The right to have one body in flight, until it is dropped.
#[derive(Debug)]
#[must_use = "a dropped permit limits nothing"]
pub struct Permit {
    _registry: OwnedSemaphorePermit,
    _node: OwnedSemaphorePermit,
}

impl Limits {
    /// Takes the configuration's limits; each is at least one.
    pub fn new(config: &Config) -> Self {
        let bound = |limit: usize| limit.clamp(1, Semaphore::MAX_PERMITS);
        Self {
            node: Arc::new(Semaphore::new(bound(config.max_concurrent_transfers))),
            per_registry: bound(config.max_concurrent_transfers_per_registry),
            registries: Mutex::default(),
        }
    }

    /// Waits for the right to have one more body from `host` (with its port, if it has one) in flight.
    pub async fn acquire(&self, host: &str) -> Permit {
        const OPEN: &str = "no limit is ever closed";
        let registry = self.registry(host).acquire_owned().await.expect(OPEN);
        let node = Arc::clone(&self.node).acquire_owned().await.expect(OPEN);
        Permit { _registry: registry, _node: node }
    }

    /// Takes the right if there is one that nobody waits for.
    pub fn try_acquire(&self, host: &str) -> Option<Permit> {
        let registry = self.registry(host).try_acquire_owned().ok()?;
        let node = Arc::clone(&self.node).try_acquire_owned().ok()?;
        Some(Permit { _registry: registry, _node: node })
    }

    fn registry(&self, host: &str) -> Arc<Semaphore> {
        let mut registries = self.registries.lock().unwrap_or_else(PoisonError::into_inner);
        // Permits and waiters hold their semaphore; one that only the map holds is at its full count.
        registries.retain(|_, registry| Arc::strong_count(registry) > 1);
        let entry = registries.entry(host.to_owned());
        Arc::clone(entry.or_insert_with(|| Arc::new(Semaphore::new(self.per_registry))))
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use super::*;

    fn limits(node: usize, per_registry: usize) -> Limits {
        Limits::new(&Config {
            max_concurrent_transfers: node,
            max_concurrent_transfers_per_registry: per_registry,
            ..Config::default()
        })
    }

    fn poll<T>(future: std::pin::Pin<&mut impl Future<Output = T>>) -> Option<T> {
        match future.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(value) => Some(value),
            Poll::Pending => None,
        }
    }

    #[test]
    fn a_registry_and_the_node_have_bounds_of_their_own() {
        let limits = limits(3, 2);
        let a = [limits.try_acquire("a").unwrap(), limits.try_acquire("a").unwrap()];
        assert!(limits.try_acquire("a").is_none());
        let b = limits.try_acquire("b").unwrap();
        assert!(limits.try_acquire("b").is_none(), "the node's three are in use");
        drop(a);
        assert!(limits.try_acquire("b").is_some());
        drop(b);
        let _forgets = limits.try_acquire("c");
        assert_eq!(limits.registries.lock().unwrap().len(), 1);
    }

    #[test]
    fn waiters_are_served_in_the_order_of_coming() {
        let limits = limits(1, 1);
        let held = limits.try_acquire("a").unwrap();
        let (mut first, mut second) = (pin!(limits.acquire("b")), pin!(limits.acquire("c")));
        assert!(poll(first.as_mut()).is_none() && poll(second.as_mut()).is_none());
        drop(held);
        assert!(limits.try_acquire("a").is_none(), "it overtakes nobody");
        assert!(poll(second.as_mut()).is_none());
        let held = poll(first.as_mut()).unwrap();
        assert!(poll(second.as_mut()).is_none());
        drop(held);
        assert!(poll(second.as_mut()).is_some());
    }

    #[test]
    fn a_busy_registry_takes_no_place_from_others() {
        let limits = limits(2, 1);
        let _held = limits.try_acquire("slow").unwrap();
        let mut queued = pin!(limits.acquire("slow"));
        assert!(poll(queued.as_mut()).is_none());
        assert!(limits.try_acquire("quick").is_some());
    }
}
