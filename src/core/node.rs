//! What all pods of this daemon share.

use std::path::PathBuf;
use std::sync::Arc;

use podwright_base::Layout;
use podwright_compile::HostFacts;
use podwright_images::Images;
use podwright_network::Network;
use tokio::sync::Semaphore;

use crate::registry::Registry;
use crate::usage::Usages;

/// The node a daemon serves.
pub(crate) struct Node {
    /// Where files are.
    pub(crate) layout: Layout,
    /// What this host has.
    pub(crate) facts: HostFacts,
    /// Images and their layers.
    pub(crate) images: Images,
    /// Pod networks.
    pub(crate) network: Network,
    /// All pods.
    pub(crate) registry: Registry,
    /// What containers are made with on this host.
    pub(crate) host: podwright_spec::HostTraits,
    /// Bytes at which containers' logs are rotated, and the files that are kept; `None`: the kubelet does it.
    pub(crate) log_rotation: Option<(u64, u32)>,
    /// Places for looking at users' volumes, whose file systems may not answer.
    pub(crate) volumes: Arc<Semaphore>,
    /// What containers have written.
    pub(crate) usages: Usages,
    /// The shim's binary.
    pub(crate) shim: PathBuf,
}
