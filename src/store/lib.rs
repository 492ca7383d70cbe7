//! Records on disk: one JSON file each, replaced atomically, and the lock that keeps a second daemon out.
//!
//! A record is an envelope with a format version around the caller's data. Records are renamed into place, not
//! synced: they describe kernel objects that a power loss ends too. What must outlive one (images) syncs first.

mod lock;
mod record;

pub use lock::{DaemonLock, LockError};
pub use record::{ReadError, WriteError, is_quarantined, quarantine, read, remove, write};
