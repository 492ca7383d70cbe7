//! The whole on-disk layout. No other file joins path components of Podwright's own directories.
//!
//! ```text
//! <root>/  (kept over a reboot)            <state>/  (gone after a reboot)
//!   content/index.json, blobs/sha256/<hex>   podwright.sock            the CRI socket
//!   content/ingest/                          daemon.lock               one daemon per state directory
//!   layers/<diffID hex>/                     pods/<id>/shim.sock
//!   images/<image id hex>.json               pods/<id>/shim.log        a shim's last words
//!   images.open                              (while a daemon runs)
//!   daemon.lock                              one daemon per root directory, too
//!   pods/<id>/record.json                    pods/<id>/resolv.conf, hosts, hostname
//!   pods/<id>/containers/<id>/record.json
//!   pods/<id>/containers/<id>/config.json    the OCI runtime configuration
//!   pods/<id>/containers/<id>/plan           the launch plan, encoded
//!   pods/<id>/containers/<id>/rootfs/        upper/ and work/
//!   network/                                 leases of the built-in network
//!   network/cni/                             what pods were attached by, of CNI networks
//! ```

use std::path::{Path, PathBuf};

use crate::{ContainerId, PodId};

/// The root directory when none is configured.
pub const DEFAULT_ROOT: &str = "/var/lib/podwright";
/// The state directory when none is configured.
pub const DEFAULT_STATE: &str = "/run/podwright";
/// Where network namespaces are pinned, as `ip netns` and CNI plugins expect.
pub const NETNS_DIR: &str = "/run/netns";

/// Where one daemon keeps its files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    root: PathBuf,
    state: PathBuf,
}

impl Layout {
    /// Makes the layout below a root directory (kept over reboots) and a state directory (lost on reboot); both absolute.
    pub fn new(root: impl Into<PathBuf>, state: impl Into<PathBuf>) -> Self {
        Self { root: root.into(), state: state.into() }
    }

    /// The directory that outlives a reboot.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The directory that is gone after a reboot.
    pub fn state(&self) -> &Path {
        &self.state
    }

    /// What tells this daemon's kernel objects (bridge, namespace pins, nftables table, default cgroup) from those of
    /// another daemon on the host: eight hex digits of the state directory's path, or nothing for the default one.
    pub fn instance(&self) -> Option<String> {
        if self.state == Path::new(DEFAULT_STATE) {
            return None;
        }
        // FNV-1a: stable over releases, which `DefaultHasher` does not promise.
        let hash = self
            .state
            .as_os_str()
            .as_encoded_bytes()
            .iter()
            .fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193));
        Some(format!("{hash:08x}"))
    }

    /// The CRI socket when no address is configured.
    pub fn socket(&self) -> PathBuf {
        self.state.join("podwright.sock")
    }

    /// Locked by the one daemon that uses these directories: each has a lock of its own.
    pub fn locks(&self) -> [PathBuf; 2] {
        [self.state.join("daemon.lock"), self.root.join("daemon.lock")]
    }

    /// Blobs in progress and done, as an OCI image layout.
    pub fn content(&self) -> PathBuf {
        self.root.join("content")
    }

    /// Unpacked layers, a directory for each diffID (hex).
    pub fn layers(&self) -> PathBuf {
        self.root.join("layers")
    }

    /// Image records.
    pub fn images(&self) -> PathBuf {
        self.root.join("images")
    }

    /// There while a daemon may write images.
    pub fn images_mark(&self) -> PathBuf {
        self.root.join("images.open")
    }

    /// Leases of the built-in network.
    pub fn network(&self) -> PathBuf {
        self.root.join("network")
    }

    /// What pods were attached by, of CNI networks.
    pub fn cni_attachments(&self) -> PathBuf {
        self.network().join("cni")
    }

    /// All pods' durable directories.
    pub fn pods(&self) -> PathBuf {
        self.root.join("pods")
    }

    /// One pod's durable directory.
    pub fn pod(&self, pod: &PodId) -> PathBuf {
        self.pods().join(pod.as_str())
    }

    /// A pod's record.
    pub fn pod_record(&self, pod: &PodId) -> PathBuf {
        self.pod(pod).join("record.json")
    }

    /// The directory of a pod's containers.
    pub fn containers(&self, pod: &PodId) -> PathBuf {
        self.pod(pod).join("containers")
    }

    /// A container's directory: its OCI bundle.
    pub fn container(&self, pod: &PodId, container: &ContainerId) -> PathBuf {
        self.containers(pod).join(container.as_str())
    }

    /// A container's record.
    pub fn container_record(&self, pod: &PodId, container: &ContainerId) -> PathBuf {
        self.container(pod, container).join("record.json")
    }

    /// A container's OCI runtime configuration.
    pub fn container_config(&self, pod: &PodId, container: &ContainerId) -> PathBuf {
        self.container(pod, container).join("config.json")
    }

    /// A container's launch plan, as the shim takes it.
    pub fn container_plan(&self, pod: &PodId, container: &ContainerId) -> PathBuf {
        self.container(pod, container).join("plan")
    }

    /// Holds a container's writable layer: `upper/` and `work/`.
    pub fn container_writable(&self, pod: &PodId, container: &ContainerId) -> PathBuf {
        self.container(pod, container).join("rootfs")
    }

    /// All pods' volatile directories.
    pub fn state_pods(&self) -> PathBuf {
        self.state.join("pods")
    }

    /// One pod's volatile directory: the shim's socket and the files bind mounted into its containers.
    pub fn pod_state(&self, pod: &PodId) -> PathBuf {
        self.state_pods().join(pod.as_str())
    }

    /// Where the pod's shim listens.
    pub fn shim_socket(&self, pod: &PodId) -> PathBuf {
        self.pod_state(pod).join("shim.sock")
    }

    /// A shim's last words.
    pub fn shim_log(&self, pod: &PodId) -> PathBuf {
        self.pod_state(pod).join("shim.log")
    }

    /// The pod's `/etc/resolv.conf`.
    pub fn resolv_conf(&self, pod: &PodId) -> PathBuf {
        self.pod_state(pod).join("resolv.conf")
    }

    /// The pod's `/etc/hosts`.
    pub fn hosts(&self, pod: &PodId) -> PathBuf {
        self.pod_state(pod).join("hosts")
    }

    /// The pod's `/etc/hostname`.
    pub fn hostname(&self, pod: &PodId) -> PathBuf {
        self.pod_state(pod).join("hostname")
    }

    /// The pod's network namespace pin.
    pub fn netns(&self, pod: &PodId) -> PathBuf {
        Path::new(NETNS_DIR).join(format!("{}{pod}", self.netns_prefix()))
    }

    /// What the names of this daemon's network namespace pins begin with; the pod's id follows.
    pub fn netns_prefix(&self) -> String {
        match self.instance() {
            None => "podwright-".to_owned(),
            Some(instance) => format!("podwright-{instance}-"),
        }
    }

    /// The cgroup, below each hierarchy's mount, of pods that name no parent.
    pub fn default_cgroup_parent(&self) -> String {
        match self.instance() {
            None => "/podwright".to_owned(),
            Some(instance) => format!("/podwright-{instance}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_daemons_share_no_name() {
        let (a, b) = (Layout::new("/a", "/a/run"), Layout::new("/b", "/b/run"));
        let pod = PodId::random();
        assert_ne!(a.netns(&pod), b.netns(&pod));
        assert_ne!(a.default_cgroup_parent(), b.default_cgroup_parent());
        assert_eq!(Layout::new(DEFAULT_ROOT, DEFAULT_STATE).instance(), None);
    }
}
