//! A container's configuration, validated: what CRI `ContainerConfig` asks for.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::pod::NamespaceMode;

/// A container as the kubelet asked for it (CRI `ContainerConfig`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerConfig {
    /// CRI `metadata`.
    pub metadata: ContainerMetadata,
    /// CRI `image.image`: the reference or id to run.
    pub image: String,
    /// CRI `image.user_specified_image`, empty when not given.
    pub user_specified_image: String,
    /// CRI `command`: replaces the image's entrypoint.
    pub command: Vec<String>,
    /// CRI `args`: replaces the image's cmd.
    pub args: Vec<String>,
    /// CRI `working_dir`; empty: the image's.
    pub working_dir: String,
    /// CRI `envs`, in order; values are bytes.
    pub envs: Vec<(String, Vec<u8>)>,
    /// CRI `mounts`, in order.
    pub mounts: Vec<Mount>,
    /// CRI `devices`.
    pub devices: Vec<Device>,
    /// CRI `labels`.
    pub labels: BTreeMap<String, String>,
    /// CRI `annotations`.
    pub annotations: BTreeMap<String, String>,
    /// CRI `log_path`, relative to the pod's log directory; empty: no log.
    pub log_path: String,
    /// CRI `stdin`.
    pub stdin: bool,
    /// CRI `stdin_once`.
    pub stdin_once: bool,
    /// CRI `tty`.
    pub tty: bool,
    /// CRI `stop_signal` (field 18) as a signal's number; absent: the image's, else SIGTERM.
    pub stop_signal: Option<i32>,
    /// CRI `linux.resources`.
    pub resources: Resources,
    /// CRI `linux.security_context`.
    pub security: Security,
}

/// CRI `ContainerMetadata`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ContainerMetadata {
    /// The container's name in its pod.
    pub name: String,
    /// How often the kubelet has made it.
    pub attempt: u32,
}

/// CRI `Mount`: of a host path, or of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// CRI `container_path`.
    pub container_path: String,
    /// CRI `host_path`; empty for an image.
    pub host_path: PathBuf,
    /// CRI `image` and `image_sub_path`; configurations recorded before there were image volumes have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<ImageVolume>,
    /// CRI `readonly`.
    pub readonly: bool,
    /// CRI `recursive_read_only`.
    pub recursive_read_only: bool,
    /// CRI `selinux_relabel`.
    pub selinux_relabel: bool,
    /// CRI `propagation`.
    pub propagation: Propagation,
}

/// What of an image is mounted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageVolume {
    /// CRI `image.image`: its reference or id.
    pub image: String,
    /// CRI `image.user_specified_image`, empty when not given.
    pub user_specified_image: String,
    /// CRI `image_sub_path`: a path inside the image; empty: its root.
    pub sub_path: String,
}

/// CRI `MountPropagation`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Propagation {
    /// No mount passes in either direction.
    #[default]
    Private,
    /// The host's mounts appear in the container.
    HostToContainer,
    /// Mounts appear both ways.
    Bidirectional,
}

/// CRI `Device`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// CRI `container_path`.
    pub container_path: String,
    /// CRI `host_path`: a device node, or a directory of them.
    pub host_path: PathBuf,
    /// CRI `permissions`: of r, w and m.
    pub permissions: String,
}

/// CRI `LinuxContainerResources`. Zero means unset, as in the CRI.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    /// CRI `cpu_period`, microseconds.
    pub cpu_period: i64,
    /// CRI `cpu_quota`, microseconds.
    pub cpu_quota: i64,
    /// CRI `cpu_shares`.
    pub cpu_shares: i64,
    /// CRI `memory_limit_in_bytes`.
    pub memory_limit_in_bytes: i64,
    /// CRI `memory_swap_limit_in_bytes`.
    pub memory_swap_limit_in_bytes: i64,
    /// CRI `oom_score_adj`.
    pub oom_score_adj: i64,
    /// CRI `cpuset_cpus`.
    pub cpuset_cpus: String,
    /// CRI `cpuset_mems`.
    pub cpuset_mems: String,
    /// CRI `hugepage_limits`: page size ("2MB") and bytes.
    pub hugepage_limits: Vec<(String, u64)>,
    /// CRI `unified`: cgroup v2 files and values.
    pub unified: BTreeMap<String, String>,
}

/// CRI `LinuxContainerSecurityContext`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Security {
    /// CRI `capabilities.add_capabilities`, with or without `CAP_`, or ALL.
    pub add_capabilities: Vec<String>,
    /// CRI `capabilities.drop_capabilities`.
    pub drop_capabilities: Vec<String>,
    /// CRI `capabilities.add_ambient_capabilities`.
    pub add_ambient_capabilities: Vec<String>,
    /// CRI `privileged`.
    pub privileged: bool,
    /// CRI `namespace_options.pid`.
    pub pid: NamespaceMode,
    /// CRI `run_as_user`, `run_as_username`.
    pub user: RunAs,
    /// CRI `run_as_group`.
    pub run_as_group: Option<u32>,
    /// CRI `supplemental_groups`.
    pub supplemental_groups: Vec<u32>,
    /// CRI `supplemental_groups_policy`: whether the image's groups count (Merge) or not (Strict).
    pub strict_supplemental_groups: bool,
    /// CRI `readonly_rootfs`.
    pub readonly_rootfs: bool,
    /// CRI `no_new_privs`.
    pub no_new_privs: bool,
    /// CRI `masked_paths`.
    pub masked_paths: Vec<String>,
    /// CRI `readonly_paths`.
    pub readonly_paths: Vec<String>,
    /// CRI `seccomp`.
    pub seccomp: SecurityProfile,
    /// CRI `apparmor`.
    pub apparmor: SecurityProfile,
    /// CRI `selinux_options`: user, role, type, level.
    pub selinux: Option<SelinuxOptions>,
}

/// Who the process runs as.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum RunAs {
    /// The image's user, else root.
    #[default]
    Image,
    /// CRI `run_as_user`.
    Uid(u32),
    /// CRI `run_as_username`, looked up in the image's passwd.
    Name(String),
}

/// CRI `SecurityProfile`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum SecurityProfile {
    /// Not given: unconfined for seccomp, the runtime's own for AppArmor where the host has it.
    #[default]
    Unset,
    /// The runtime's own.
    RuntimeDefault,
    /// None.
    Unconfined,
    /// A profile file (seccomp) or a loaded profile's name (AppArmor).
    Localhost(String),
}

/// CRI `SELinuxOption`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SelinuxOptions {
    /// SELinux user.
    pub user: String,
    /// SELinux role.
    pub role: String,
    /// SELinux type.
    pub kind: String,
    /// SELinux level.
    pub level: String,
}
