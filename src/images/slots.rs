//! One unpack per layer at a time: whoever needs a layer that another pull is fetching waits for it and shares it, and
//! fetches it itself when the other one fails or is given up.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use podwright_base::Digest;

use crate::snapshot::Staged;
use crate::store::Store;

/// Layers in flight.
#[derive(Debug, Default)]
pub(crate) struct Slots {
    slots: Mutex<HashMap<Digest, Arc<Slot>>>,
}

/// Locked while its layer is being unpacked; remembers it until it is published or given up.
type Slot = tokio::sync::Mutex<Weak<Staged>>;

/// How a layer came about.
#[derive(Debug)]
pub(crate) enum Obtained {
    /// It was there.
    Present,
    /// It is unpacked, and published with the image that needs it.
    Staged(Arc<Staged>),
}

impl Slots {
    /// Returns the layer, by `unpack` when nobody has it. The caller holds a lease on it.
    pub(crate) async fn obtain<E>(
        &self,
        store: &Store,
        diff_id: &Digest,
        unpack: impl AsyncFnOnce() -> Result<Arc<Staged>, E>,
    ) -> Result<Obtained, E> {
        let slot = self.slot(diff_id);
        let mut staged = slot.lock().await;
        if store.has_layer(diff_id) {
            return Ok(Obtained::Present);
        }
        if let Some(known) = staged.upgrade() {
            return Ok(Obtained::Staged(known));
        }
        let new = unpack().await?;
        *staged = Arc::downgrade(&new);
        Ok(Obtained::Staged(new))
    }

    fn slot(&self, diff_id: &Digest) -> Arc<Slot> {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        slots.retain(|_, slot| {
            // Only the map has it, so the lock is free.
            Arc::strong_count(slot) > 1 || slot.try_lock().is_ok_and(|staged| staged.strong_count() > 0)
        });
        Arc::clone(slots.entry(diff_id.clone()).or_default())
    }
}
