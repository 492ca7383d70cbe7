//! What the outside sees of pods and containers: snapshots that a pod's driver publishes and any task may read.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use podwright_base::{ContainerId, Digest, PodId};
use podwright_spec::user::User;
use podwright_spec::{ContainerConfig, PodConfig};
use serde::{Deserialize, Serialize};

/// A pod sandbox at one moment (CRI `PodSandboxStatus`, `PodSandbox`).
#[derive(Debug, Clone)]
pub struct PodView {
    /// The sandbox's id.
    pub id: PodId,
    /// What was asked for.
    pub config: Arc<PodConfig>,
    /// CRI `SANDBOX_READY`, else `SANDBOX_NOTREADY`.
    pub ready: bool,
    /// Why a sandbox that was never stopped is not ready; empty otherwise.
    pub reason: String,
    /// Unix nanoseconds.
    pub created_at: i64,
    /// Process id of the shim, while it lives.
    pub shim_pid: Option<u32>,
    /// The pod's addresses, IPv4 first; empty with the host's network.
    pub ips: Vec<IpAddr>,
    /// Where the network namespace is pinned; absent with the host's network.
    pub netns: Option<PathBuf>,
    /// Cgroup of the pod's shim, below each hierarchy's mount; containers are its siblings.
    pub cgroup: String,
    /// All containers of the pod, oldest first.
    pub containers: Vec<Arc<ContainerView>>,
}

/// A container at one moment (CRI `ContainerStatus`, `Container`).
#[derive(Debug, Clone)]
pub struct ContainerView {
    /// The container's id.
    pub id: ContainerId,
    /// The sandbox it belongs to.
    pub pod: PodId,
    /// What was asked for.
    pub config: Arc<ContainerConfig>,
    /// The image's id: the digest of its configuration.
    pub image_id: Digest,
    /// A digest reference of the image (`name@sha256:…`), or its id when it has none.
    pub image_ref: String,
    /// The ids of the images that its image volumes are of, by their place in `config.mounts`.
    pub volume_images: BTreeMap<usize, Digest>,
    /// Unix nanoseconds.
    pub created_at: i64,
    /// Where it is in its life.
    pub state: ContainerState,
    /// Absolute path of the CRI log; absent when the container has none.
    pub log_path: Option<PathBuf>,
    /// Who the process runs as.
    pub user: User,
    /// The signal that stops it, as a number.
    pub stop_signal: i32,
    /// Where the OCI runtime configuration is kept.
    pub bundle_config: PathBuf,
}

/// Where a container is in its life (CRI `ContainerState` with its data).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ContainerState {
    /// CRI `CONTAINER_CREATED`.
    Created,
    /// CRI `CONTAINER_RUNNING`.
    Running {
        /// Process id on the host.
        pid: u32,
        /// Unix nanoseconds.
        started_at: i64,
    },
    /// CRI `CONTAINER_EXITED`.
    Exited(Exited),
}

/// How a container ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exited {
    /// Unix nanoseconds; 0 when it never ran.
    pub started_at: i64,
    /// Unix nanoseconds.
    pub finished_at: i64,
    /// 0-255; 128 for a failed start, 128 + signal for a killed process.
    pub code: i32,
    /// CRI `reason`.
    pub reason: ExitReason,
    /// CRI `message`: the cause in words; empty for an ordinary exit.
    pub message: String,
}

/// CRI `ContainerStatus.reason` of an exited container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExitReason {
    /// Exit code 0.
    Completed,
    /// Any other exit code.
    Error,
    /// The kernel killed a process of it for want of memory.
    #[serde(rename = "OOMKilled")]
    OomKilled,
    /// The user's program could not be started.
    StartError,
    /// The process was lost with its shim or with the host; the exit code is a guess.
    Unknown,
}

impl ExitReason {
    /// Returns the word that the CRI and the kubelet use.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Completed => "Completed",
            Self::Error => "Error",
            Self::OomKilled => "OOMKilled",
            Self::StartError => "StartError",
            Self::Unknown => "Unknown",
        }
    }
}
