//! The daemon's side of a pod's shim: starting its process, and talking to it.

mod client;
mod process;
mod socket;
mod wire;

pub(crate) use client::{ShimClient, ShimError, Subscription};
pub(crate) use process::spawn;
