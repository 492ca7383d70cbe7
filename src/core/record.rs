//! What is kept on disk of a pod and of a container: the intent that recovery compares with the kernel's truth.

use std::net::IpAddr;
use std::sync::Arc;

use podwright_base::{ContainerId, Digest, PodId};
use podwright_spec::user::User;
use podwright_spec::{ContainerConfig, PodConfig};
use serde::{Deserialize, Serialize};

use crate::container::volumes::VolumeRecord;
use crate::pod::state::Phase;
use crate::view::ContainerState;

/// A pod sandbox's record.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct PodRecord {
    /// The sandbox's id.
    pub(crate) id: PodId,
    /// What was asked for.
    pub(crate) config: Arc<PodConfig>,
    /// Unix nanoseconds.
    pub(crate) created_at: i64,
    /// Where the sandbox is in its life.
    pub(crate) phase: Phase,
    /// Cgroup of the shim; the containers' are its siblings.
    pub(crate) cgroup: String,
    /// Init of the shared pid namespace, 0 when there is none.
    pub(crate) reaper_pid: u32,
    /// The pod's addresses, IPv4 first.
    pub(crate) ips: Vec<IpAddr>,
}

impl PodRecord {
    /// Returns the cgroup below which the pod's shim and containers have theirs.
    pub(crate) fn cgroup_parent(&self) -> &str {
        self.cgroup.rsplit_once('/').map_or("", |(parent, _)| parent)
    }

    /// Returns the cgroup of one of the pod's containers.
    pub(crate) fn container_cgroup(&self, container: &ContainerId) -> String {
        format!("{}/{container}", self.cgroup_parent())
    }
}

/// A container's record.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct ContainerRecord {
    /// The container's id.
    pub(crate) id: ContainerId,
    /// What was asked for.
    pub(crate) config: Arc<ContainerConfig>,
    /// The image's id.
    pub(crate) image_id: Digest,
    /// A digest reference of the image, or its id.
    pub(crate) image_ref: String,
    /// The image's layers, bottom first: held until the container is removed.
    pub(crate) layers: Vec<Digest>,
    /// Its image volumes; records from before there were any have none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) volumes: Vec<VolumeRecord>,
    /// Unix nanoseconds.
    pub(crate) created_at: i64,
    /// Where the container is in its life.
    pub(crate) state: ContainerState,
    /// Who the process runs as.
    pub(crate) user: User,
    /// The signal that stops it.
    pub(crate) stop_signal: i32,
}

impl ContainerRecord {
    /// Returns every layer that the container needs, those of its image volumes among them.
    pub(crate) fn held_layers(&self) -> Vec<Digest> {
        self.layers.iter().chain(self.volumes.iter().flat_map(|volume| &volume.layers)).cloned().collect()
    }
}
