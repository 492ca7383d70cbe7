//! A container: its OCI specification and what belongs to it beside that, to the plan that the launch half executes.
//!
//! There are two kinds: a container of a pod, made of image layers, whose output the pod's shim logs; and a standalone one
//! as OCI runtimes have it, with a directory for its root and namespaces as the specification lists them.

use std::path::Path;

use oci_spec::runtime::Spec;
use podwright_plan::wire;

use crate::cgroup::{self, CgroupDriver, CgroupPlace};
use crate::error::{CompileError, invalid, missing, unsupported};
use crate::facts::HostFacts;
use crate::listener::Owner;
use crate::mounts::{self, Surroundings, absolute};
use crate::sysctl::Own;
use crate::{devices, hooks, id_maps, namespaces, net_devices, process, sysctl, unsupported};

/// What belongs to a container beside its specification.
#[derive(Debug, Clone)]
pub struct Bundle<'a> {
    /// The container's id.
    pub id: &'a str,
    /// Absolute directory of the bundle, which has the specification in it.
    pub dir: &'a Path,
    /// Absolute directory of unpacked layers.
    pub layers_dir: &'a Path,
    /// Names of the image's layers in it, topmost first; at least one.
    pub lower: Vec<String>,
    /// Absolute directory that holds `upper/` and `work/`.
    pub writable_dir: &'a Path,
    /// The CRI log file; `None`: output is read and dropped.
    pub log_path: Option<&'a Path>,
    /// Bytes at which the log is rotated, and the rotated files that are kept; `None`: it is not.
    pub log_rotation: Option<(u64, u32)>,
    /// Whether a pipe to the process's stdin is kept open.
    pub stdin: bool,
    /// Whether it is closed once the first attached client has left.
    pub stdin_once: bool,
    /// Whether a tmpfs on /dev/shm is the one that the pod's containers share: in a pod with an IPC namespace of its own.
    pub shares_shm: bool,
}

/// What belongs to a container outside of a pod beside its specification.
#[derive(Debug, Clone, Copy)]
pub struct Standalone<'a> {
    /// The container's id.
    pub id: &'a str,
    /// Absolute directory that `root.path` may be relative to.
    pub bundle: &'a Path,
    /// Descriptors above 2 that its program inherits.
    pub preserve_fds: u32,
    /// Who makes its cgroup, which decides what `linux.cgroupsPath` says.
    pub cgroup_driver: CgroupDriver<'a>,
}

/// Compiles a container outside of a pod.
///
/// # Errors
/// When a field is bad, more than this version does, or more than this host can.
pub fn standalone(
    spec: &Spec,
    standalone: &Standalone<'_>,
    facts: &HostFacts,
) -> Result<wire::ContainerPlan, CompileError> {
    unsupported::refuse(spec)?;
    let linux = spec.linux().as_ref().ok_or_else(|| missing("linux"))?;
    let (namespaces, own) = namespaces::listed(linux.namespaces().as_deref().unwrap_or_default())?;
    let has = |kind: wire::NamespaceKind| namespaces.iter().any(|it| it.kind() == kind);
    let place = CgroupPlace::of(spec, standalone.id, standalone.cgroup_driver)?;
    let around = Surroundings {
        cgroup: place.path(),
        cgroup_namespace: has(wire::NamespaceKind::Cgroup),
        shares_shm: false,
        facts,
    };
    let pid = if has(wire::NamespaceKind::Pid) {
        wire::NamespaceMode::NamespacePrivate
    } else {
        wire::NamespaceMode::NamespaceHost
    };
    let root = spec.root().as_ref().ok_or_else(|| missing("root"))?;
    let owner = Owner { id: standalone.id, bundle: standalone.bundle, status: "creating" };
    let mut plan = inside(spec, owner, &around, own)?;
    let process = plan.process.as_mut().ok_or_else(|| missing("process"))?;
    process.preserve_fds = standalone.preserve_fds;
    let (uid_maps, gid_maps) = id_maps::id_maps(linux, &namespaces)?;
    Ok(wire::ContainerPlan {
        id: standalone.id.to_owned(),
        pid: pid.into(),
        rootfs: Some(wire::Rootfs {
            path: absolute(&standalone.bundle.join(root.path()), "root.path")?,
            ..root_mount(spec)?
        }),
        cgroup: Some(cgroup::container(&place, spec, &facts.cgroup)?),
        hostname: name(spec.hostname().as_deref(), "hostname", own.uts)?,
        domainname: name(spec.domainname().as_deref(), "domainname", own.uts)?,
        hooks: hooks::hooks(spec.hooks().as_ref())?,
        uid_maps,
        gid_maps,
        net_devices: net_devices::net_devices(linux, own.network)?,
        time_offsets: id_maps::time_offsets(linux, &namespaces)?,
        namespaces,
        ..plan
    })
}

/// A name of the UTS namespace, which must not be the host's.
fn name(name: Option<&str>, field: &str, own_namespace: bool) -> Result<String, CompileError> {
    match name.unwrap_or_default() {
        "" => Ok(String::new()),
        name if own_namespace => Ok(name.to_owned()),
        name => Err(invalid(field, name, "would rename the host: linux.namespaces lists no uts namespace")),
    }
}

/// Compiles a container of a pod.
///
/// # Errors
/// When a field is bad, more than this version does, or more than this host can.
pub fn container(spec: &Spec, bundle: &Bundle<'_>, facts: &HostFacts) -> Result<wire::ContainerPlan, CompileError> {
    unsupported::refuse(spec)?;
    unsupported::refuse_in_pod(spec)?;
    let linux = spec.linux().as_ref().ok_or_else(|| missing("linux"))?;
    let namespaces = namespaces::in_pod(linux.namespaces().as_deref().unwrap_or_default())?;
    if spec.hostname().as_ref().is_some_and(|name| !name.is_empty()) && !namespaces.uts {
        // With the pod's namespace it is the pod's name, which the shim has set: `PodPlan.hostname`.
        return Err(invalid("hostname", spec.hostname().clone().unwrap_or_default(), "would rename the host"));
    }
    if linux.cgroups_path().is_none() {
        return Err(missing("linux.cgroupsPath"));
    }
    let place = CgroupPlace::of(spec, bundle.id, CgroupDriver::Cgroupfs(None))?;
    let around = Surroundings {
        cgroup: place.path(),
        cgroup_namespace: namespaces.cgroup,
        shares_shm: bundle.shares_shm,
        facts,
    };
    let owner = Owner { id: bundle.id, bundle: bundle.dir, status: "creating" };
    let plan = inside(spec, owner, &around, namespaces.own)?;
    Ok(wire::ContainerPlan {
        id: bundle.id.to_owned(),
        pid: namespaces.pid.into(),
        cgroup_namespace: namespaces.cgroup,
        rootfs: Some(layers(spec, bundle)?),
        cgroup: Some(cgroup::container(&place, spec, &facts.cgroup)?),
        log: Some(wire::Log {
            path: bundle.log_path.map(|path| absolute(path, "log path")).transpose()?.unwrap_or_default(),
            max_line: 0,
            max_bytes: bundle.log_rotation.map_or(0, |(bytes, _)| bytes),
            max_files: bundle.log_rotation.map_or(0, |(_, files)| files),
        }),
        stdin: bundle.stdin,
        stdin_once: bundle.stdin_once,
        ..plan
    })
}

/// Compiles what is alike for both kinds: all that is inside the root, and the process.
fn inside(
    spec: &Spec,
    owner: Owner<'_>,
    around: &Surroundings<'_>,
    own: Own,
) -> Result<wire::ContainerPlan, CompileError> {
    let linux = spec.linux().as_ref().ok_or_else(|| missing("linux"))?;
    let program = spec.process().as_ref().ok_or_else(|| missing("process"))?;
    let mounts = mounts::mounts(spec, around)?;
    let host_dev = mounts::binds_dev(&mounts);
    let facts = around.facts;
    Ok(wire::ContainerPlan {
        mounts,
        devices: devices::devices(linux.devices().as_deref().unwrap_or_default(), host_dev)?,
        symlinks: devices::symlinks(host_dev),
        masked_paths: paths(linux.masked_paths().as_deref(), "linux.maskedPaths")?,
        readonly_paths: paths(linux.readonly_paths().as_deref(), "linux.readonlyPaths")?,
        sysctls: sysctl::sysctls(linux.sysctl().iter().flatten(), own, "linux.sysctl")?,
        process: Some(process::process(program, process::Surroundings { spec, linux, owner, facts })?),
        ..wire::ContainerPlan::default()
    })
}

fn layers(spec: &Spec, bundle: &Bundle<'_>) -> Result<wire::Rootfs, CompileError> {
    if bundle.lower.is_empty() {
        return Err(missing("image layers"));
    }
    Ok(wire::Rootfs {
        layers_dir: absolute(bundle.layers_dir, "layers directory")?,
        lower: bundle.lower.clone(),
        writable_dir: absolute(bundle.writable_dir, "writable directory")?,
        ..root_mount(spec)?
    })
}

/// Compiles what the specification says about the root's mount. Where the root is, is the caller's matter.
fn root_mount(spec: &Spec) -> Result<wire::Rootfs, CompileError> {
    let root = spec.root().as_ref().ok_or_else(|| missing("root"))?;
    let propagation = spec.linux().as_ref().and_then(|linux| linux.rootfs_propagation().as_deref());
    let shared_propagation = match propagation.unwrap_or_default() {
        "" | "private" | "rprivate" | "slave" | "rslave" => false,
        "shared" | "rshared" => true,
        "unbindable" | "runbindable" => return Err(unsupported("linux.rootfsPropagation=unbindable")),
        other => return Err(invalid("linux.rootfsPropagation", other, "is no kind of propagation")),
    };
    Ok(wire::Rootfs { readonly: root.readonly().unwrap_or(false), shared_propagation, ..wire::Rootfs::default() })
}

fn paths(paths: Option<&[String]>, field: &str) -> Result<Vec<String>, CompileError> {
    paths.unwrap_or_default().iter().map(|path| absolute(Path::new(path), field)).collect()
}
