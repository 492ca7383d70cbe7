//! The crate's tests that need a layer, an archive or a registry of their own making.

mod apply;
mod archive;
pub(crate) mod layer;
mod load;
mod pull;
mod pull_auth;
mod pull_faults;
mod pull_tls;
mod registry;
mod rootfs;
mod store;
