//! Containers: what a pod's driver does with them.

pub(crate) mod create;
pub(crate) mod devices;
pub(crate) mod entry;
pub(crate) mod operations;
mod profile;
pub(crate) mod state;
pub(crate) mod stop;
pub(crate) mod volumes;
