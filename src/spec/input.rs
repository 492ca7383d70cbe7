//! What a container's specification is made from: configuration, image, the pod's state, and facts of the host.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use oci_spec::image::ImageConfiguration;
use oci_spec::runtime::LinuxSeccomp;

use crate::user::User;
use crate::{ContainerConfig, PodConfig};

/// All that [`crate::container_spec`] looks at.
#[derive(Debug, Clone, Copy)]
pub struct ContainerInput<'a> {
    /// The pod's configuration.
    pub pod: &'a PodConfig,
    /// The container's configuration.
    pub container: &'a ContainerConfig,
    /// The pod's id.
    pub pod_id: &'a str,
    /// The image's configuration.
    pub image: &'a ImageConfiguration,
    /// Who the process runs as, from [`crate::user::resolve`].
    pub user: &'a User,
    /// Files that the pod's containers share.
    pub files: PodFiles<'a>,
    /// Namespaces that the pod holds.
    pub namespaces: &'a PodNamespaces,
    /// The container's cgroup, below each hierarchy's mount.
    pub cgroup_path: &'a str,
    /// `ContainerConfig.devices` with directories expanded into the nodes in them.
    pub devices: &'a [ResolvedDevice],
    /// What `ContainerConfig.mounts` that are image volumes show, by their place in it.
    pub image_volumes: &'a BTreeMap<usize, VolumeSource>,
    /// The profile that `security.seccomp` names: the runtime's own, or the parsed file. Absent when it names none.
    pub seccomp: Option<&'a LinuxSeccomp>,
    /// How many processes the container may have; absent: as many as its parent cgroup allows.
    pub pids_limit: Option<i64>,
    /// Facts of this host.
    pub host: &'a HostTraits,
}

/// What an image volume is made of: parts of unpacked layers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VolumeSource {
    /// Directories, each over the next one, topmost first; at least one.
    Directories(Vec<PathBuf>),
    /// One file.
    File(PathBuf),
}

/// Host paths of the files that are bind mounted into each of a pod's containers; absent ones are not mounted.
#[derive(Debug, Clone, Copy, Default)]
pub struct PodFiles<'a> {
    /// For `/etc/resolv.conf`.
    pub resolv_conf: Option<&'a Path>,
    /// For `/etc/hosts`.
    pub hosts: Option<&'a Path>,
    /// For `/etc/hostname`.
    pub hostname: Option<&'a Path>,
}

/// Where the pod's namespaces can be opened (`/run/netns/…`, `/proc/<pid>/ns/…`); absent: the host's is used.
#[derive(Debug, Clone, Default)]
pub struct PodNamespaces {
    /// Network.
    pub network: Option<PathBuf>,
    /// System V and POSIX interprocess communication.
    pub ipc: Option<PathBuf>,
    /// Host name.
    pub uts: Option<PathBuf>,
    /// Processes, when the pod's containers share them.
    pub pid: Option<PathBuf>,
    /// Processes of the container that the configuration targets.
    pub target_pid: Option<PathBuf>,
}

/// What this host has and allows.
#[derive(Debug, Clone, Default)]
pub struct HostTraits {
    /// The host's name.
    pub hostname: String,
    /// Capabilities that the daemon itself has, and so can give (bit n: capability n of `linux/capability.h`).
    pub capabilities: u64,
    /// Whether AppArmor is on.
    pub apparmor: bool,
    /// Name of the runtime's own AppArmor profile, once it is loaded.
    pub apparmor_default: Option<String>,
    /// Whether SELinux is on.
    pub selinux: bool,
    /// Whether swap can be limited apart from memory.
    pub swap_accounting: bool,
    /// Whether huge pages can be limited.
    pub hugetlb: bool,
    /// Soft and hard limit on open files that containers get; absent: they inherit the shim's.
    pub nofile: Option<(u64, u64)>,
    /// Nodes of the host's `/dev`: what a privileged container finds in its own.
    pub devices: Vec<ResolvedDevice>,
}

/// A device node, found on the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResolvedDevice {
    /// Where the container finds it.
    pub path: PathBuf,
    /// Its kind.
    pub kind: DeviceKind,
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
    /// Permission bits of the node.
    pub mode: u32,
    /// Owner of the node.
    pub uid: u32,
    /// Group of the node.
    pub gid: u32,
    /// What the cgroup lets the container do: of r, w and m.
    pub access: String,
}

/// The kinds of device nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceKind {
    /// A character device.
    Char,
    /// A block device.
    Block,
}
