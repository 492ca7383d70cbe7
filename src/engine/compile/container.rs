//! A container: its OCI specification and bundle, to the plan that its shim executes.

use std::path::Path;

use oci_spec::runtime::Spec;
use podwright_plan::wire;

use crate::cgroup::{self, CgroupPath};
use crate::error::{CompileError, invalid, missing, unsupported};
use crate::facts::HostFacts;
use crate::mounts::{self, Surroundings, absolute};
use crate::seccomp::{self, Filter};
use crate::{devices, namespaces, process, sysctl, unsupported};

/// What belongs to a container beside its specification.
#[derive(Debug, Clone)]
pub struct Bundle<'a> {
    /// The container's id.
    pub id: &'a str,
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

/// Compiles a container.
///
/// # Errors
/// When a field is bad, more than this version does, or more than this host can.
pub fn container(spec: &Spec, bundle: &Bundle<'_>, facts: &HostFacts) -> Result<wire::ContainerPlan, CompileError> {
    unsupported::refuse(spec)?;
    let linux = spec.linux().as_ref().ok_or_else(|| missing("linux"))?;
    let program = spec.process().as_ref().ok_or_else(|| missing("process"))?;
    let namespaces = namespaces::namespaces(linux.namespaces().as_deref().unwrap_or_default())?;
    if spec.hostname().as_ref().is_some_and(|name| !name.is_empty()) && !namespaces.uts {
        // With the pod's namespace it is the pod's name, which the shim has set: `PodPlan.hostname`.
        return Err(invalid("hostname", spec.hostname().clone().unwrap_or_default(), "would rename the host"));
    }
    let cgroup_path = cgroup_path(spec)?;
    let around = Surroundings {
        cgroup: &cgroup_path,
        cgroup_namespace: namespaces.cgroup,
        shares_shm: bundle.shares_shm,
        facts,
    };
    let mounts = mounts::mounts(spec, &around)?;
    let host_dev = mounts::binds_dev(&mounts);
    let sysctls = linux.sysctl().iter().flatten();
    Ok(wire::ContainerPlan {
        id: bundle.id.to_owned(),
        pid: namespaces.pid.into(),
        cgroup_namespace: namespaces.cgroup,
        rootfs: Some(rootfs(spec, bundle)?),
        mounts,
        devices: devices::devices(linux.devices().as_deref().unwrap_or_default(), host_dev)?,
        symlinks: devices::symlinks(host_dev),
        masked_paths: paths(linux.masked_paths().as_deref(), "linux.maskedPaths")?,
        readonly_paths: paths(linux.readonly_paths().as_deref(), "linux.readonlyPaths")?,
        sysctls: sysctl::sysctls(sysctls, namespaces.own, "linux.sysctl")?,
        cgroup: Some(cgroup::container(&cgroup_path, linux.resources().as_ref(), &facts.cgroup)?),
        process: Some(process::process(program, filter(spec, facts)?, facts)?),
        log: Some(wire::Log {
            path: bundle.log_path.map(|path| absolute(path, "log path")).transpose()?.unwrap_or_default(),
            max_line: 0,
            max_bytes: bundle.log_rotation.map_or(0, |(bytes, _)| bytes),
            max_files: bundle.log_rotation.map_or(0, |(_, files)| files),
        }),
        stdin: bundle.stdin,
        stdin_once: bundle.stdin_once,
        hostname: String::new(),
    })
}

/// Compiles the specification's system call filter; without a profile there is none.
pub(crate) fn filter(spec: &Spec, facts: &HostFacts) -> Result<Filter, CompileError> {
    match spec.linux().as_ref().and_then(|linux| linux.seccomp().as_ref()) {
        Some(profile) => Ok(seccomp::assemble(profile, facts.seccomp_arch)?),
        None => Ok(Filter::default()),
    }
}

fn cgroup_path(spec: &Spec) -> Result<CgroupPath, CompileError> {
    let path = spec.linux().as_ref().and_then(|linux| linux.cgroups_path().as_deref());
    let path = mounts::text(path.ok_or_else(|| missing("linux.cgroupsPath"))?, "linux.cgroupsPath")?;
    path.parse().map_err(|error: cgroup::InvalidCgroupPath| invalid("linux.cgroupsPath", path, error.problem))
}

fn rootfs(spec: &Spec, bundle: &Bundle<'_>) -> Result<wire::Rootfs, CompileError> {
    if bundle.lower.is_empty() {
        return Err(missing("image layers"));
    }
    // Where `root.path` points is the bundle's matter; what it says about the mount is compiled.
    let root = spec.root().as_ref().ok_or_else(|| missing("root"))?;
    let propagation = spec.linux().as_ref().and_then(|linux| linux.rootfs_propagation().as_deref());
    let shared_propagation = match propagation.unwrap_or_default() {
        "" | "private" | "rprivate" | "slave" | "rslave" => false,
        "shared" | "rshared" => true,
        "unbindable" | "runbindable" => return Err(unsupported("linux.rootfsPropagation=unbindable")),
        other => return Err(invalid("linux.rootfsPropagation", other, "is no kind of propagation")),
    };
    Ok(wire::Rootfs {
        layers_dir: absolute(bundle.layers_dir, "layers directory")?,
        lower: bundle.lower.clone(),
        writable_dir: absolute(bundle.writable_dir, "writable directory")?,
        readonly: root.readonly().unwrap_or(false),
        shared_propagation,
    })
}

fn paths(paths: Option<&[String]>, field: &str) -> Result<Vec<String>, CompileError> {
    paths.unwrap_or_default().iter().map(|path| absolute(Path::new(path), field)).collect()
}
