//! A pod: what its shim sets up before any container.

use std::collections::BTreeMap;

use podwright_plan::wire::{NamespaceMode, PodPlan};

use crate::cgroup::{self, CgroupPath};
use crate::error::{CompileError, invalid};
use crate::facts::HostFacts;
use crate::sysctl::{self, Own};

/// What the kernel takes as a host name (`__NEW_UTS_LEN`), bytes.
const MAX_HOSTNAME: usize = 64;

/// What is asked of a pod.
#[derive(Debug, Clone)]
pub struct PodRequest<'a> {
    /// The pod's id.
    pub pod_id: &'a str,
    /// `NamespacePrivate` or `NamespaceHost`.
    pub network: NamespaceMode,
    /// `NamespacePrivate` or `NamespaceHost`.
    pub ipc: NamespaceMode,
    /// `NamespacePrivate` or `NamespaceHost`.
    pub uts: NamespaceMode,
    /// Whether all containers share one process namespace.
    pub shared_pid: bool,
    /// The pod's name; empty: none is set.
    pub hostname: &'a str,
    /// CRI `sysctls`, by dotted name.
    pub sysctls: &'a BTreeMap<String, String>,
    /// Bytes of the shared /dev/shm.
    pub shm_size: u64,
    /// The cgroup of the shim itself.
    pub cgroup: &'a CgroupPath,
    /// The shim's own score.
    pub oom_score_adj: i32,
}

/// Compiles a pod.
///
/// # Errors
/// When a value is bad, or would change the host instead of the pod.
pub fn pod(request: &PodRequest<'_>, facts: &HostFacts) -> Result<PodPlan, CompileError> {
    for (field, mode) in [("network", request.network), ("ipc", request.ipc), ("uts", request.uts)] {
        if mode == NamespaceMode::NamespacePod {
            return Err(invalid(format!("pod.{field}"), "POD", "is a mode of containers"));
        }
    }
    let private = |mode: NamespaceMode| mode == NamespaceMode::NamespacePrivate;
    let hostname = request.hostname;
    if hostname.len() > MAX_HOSTNAME || hostname.contains(['\0', '\n']) {
        return Err(invalid("pod.hostname", hostname, "is longer than 64 bytes or not one line"));
    }
    if !hostname.is_empty() && !private(request.uts) {
        return Err(invalid("pod.hostname", hostname, "would rename the host"));
    }
    let own = Own { network: private(request.network), ipc: private(request.ipc), uts: false };
    Ok(PodPlan {
        pod_id: request.pod_id.to_owned(),
        network: request.network.into(),
        ipc: request.ipc.into(),
        uts: request.uts.into(),
        shared_pid: request.shared_pid,
        hostname: hostname.to_owned(),
        sysctls: sysctl::sysctls(request.sysctls, own, "pod.sysctls")?,
        shm_size: if own.ipc { request.shm_size } else { 0 },
        cgroup: Some(cgroup::bare(request.cgroup, &facts.cgroup)),
        oom_score_adj: request.oom_score_adj,
    })
}
