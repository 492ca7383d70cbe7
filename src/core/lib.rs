//! Pods and containers: their state, the operations on them, and recovery after the daemon's death.
//!
//! [`Runtime`] is the whole public face. Each pod is owned by one task, its driver; everyone else sends it commands and
//! reads the snapshots it publishes. What a pod is meant to be is in its record on disk, what it is in its shim: a
//! daemon that starts compares the two.

mod cgroups;
mod clock;
mod container;
pub mod error;
mod host;
mod node;
mod pod;
mod record;
mod recover;
mod registry;
mod runtime;
pub mod session;
mod shim;
mod sweep;
mod usage;
pub mod view;

pub use error::Error;
pub use runtime::Runtime;
pub use session::ExecOutput;
pub use usage::Use;
