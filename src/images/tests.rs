//! The crate's tests that need a layer, an archive or a registry of their own making.

mod artifact;
mod complete;
mod concurrent;
pub(crate) mod image;
mod layout;
mod load;
mod power_cut;
mod pull;
mod pull_auth;
mod pull_faults;
mod pull_resume;
mod pull_tls;
mod pull_trust;
mod registry;
mod store;
mod verify;
