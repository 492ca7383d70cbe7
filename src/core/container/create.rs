//! Creating a container: everything the user can be told now is told now. What comes out is a bundle on disk (an OCI
//! configuration, the launch plan, the writable layer's directories and the record) and no process yet.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use oci_spec::runtime::Spec;
use podwright_base::{ContainerId, Digest};
use podwright_compile::{Bundle, CompileError};
use podwright_images::{Image, Lease};
use podwright_plan::wire::ContainerPlan;
use podwright_spec::pod::NamespaceMode;
use podwright_spec::user::User;
use podwright_spec::{ContainerConfig, ContainerInput, PodConfig, PodFiles, PodNamespaces, ResolvedDevice};
use prost::Message;
use tokio::time::timeout;

use super::devices;
use super::profile;
use super::volumes::{self, Volumes};
use crate::clock;
use crate::error::Error;
use crate::node::Node;
use crate::pod::create::has_own_network;
use crate::pod::driver::blocking;
use crate::pod::teardown::remove_tree;
use crate::record::{ContainerRecord, PodRecord};
use crate::view::ContainerState;

/// The largest passwd or group file of an image that is looked at, in bytes.
const ACCOUNTS_LIMIT: usize = 8 << 20;
/// How long the user's volumes may take to be looked at.
const VOLUME_LIMIT: Duration = Duration::from_secs(20);

/// A container that can be started.
pub(crate) struct Prepared {
    /// Its record, written already.
    pub(crate) record: ContainerRecord,
    /// Keeps the layers of its image and of its image volumes.
    pub(crate) lease: Lease,
}

/// The pod a container is created in.
pub(crate) struct Pod {
    /// Its record.
    pub(crate) record: PodRecord,
    /// Its shim, which holds the namespaces.
    pub(crate) shim_pid: u32,
}

/// Creates a container.
///
/// # Errors
/// The field that cannot be accepted, or the step that failed. Nothing is left then.
pub(crate) async fn create(node: Arc<Node>, pod: Pod, config: Arc<ContainerConfig>) -> Result<Prepared, Error> {
    let devices = look_at_volumes(&node, &config).await?;
    blocking(move || prepare(&node, &pod, config, &devices)).await
}

/// Looks at what the user wants mounted. A file system that does not answer must hold up this container alone: the
/// threads that wait for one are few, and nobody waits for them for long.
async fn look_at_volumes(node: &Node, config: &Arc<ContainerConfig>) -> Result<Vec<ResolvedDevice>, Error> {
    let stalled = |_| Error::Stalled {
        what: format!("the creation of container {:?}", config.metadata.name),
        stage: "look at config.mounts and config.devices",
        waited: VOLUME_LIMIT,
    };
    let (volumes, config) = (Arc::clone(&node.volumes), Arc::clone(config));
    let look = async {
        let place = volumes.acquire_owned().await;
        blocking(move || {
            let _place = place;
            check_mounts(&config)?;
            devices::resolve(&config.devices)
        })
        .await
    };
    timeout(VOLUME_LIMIT, look).await.map_err(stalled)?
}

/// Makes the bundle. Blocks: it reads and writes files.
fn prepare(
    node: &Node,
    pod: &Pod,
    config: Arc<ContainerConfig>,
    devices: &[ResolvedDevice],
) -> Result<Prepared, Error> {
    // From here on a removal of the image leaves its layers.
    let (image, lease) =
        node.images.hold(&config.image).ok_or_else(|| Error::ImageNotFound { image: config.image.clone() })?;
    if let Some(artifact) = &image.artifact {
        let (name, kind) = (&config.image, &artifact.kind);
        let problem = format!("{name:?} is an artifact ({kind}), no container image: mount it as an image volume");
        return Err(Error::invalid("config.image.image", problem));
    }
    let user = resolve_user(node, &image, &config)?;
    let stop_signal =
        podwright_spec::stop_signal(&config, image.config.config().as_ref().and_then(|c| c.stop_signal().as_deref()))
            .map_err(|error| Error::invalid(format!("config.{}", error.field()), error.to_string()))?;
    let volumes = volumes::find(&node.images, &config.mounts)?;
    let id = ContainerId::random();
    let made_of = MadeOf { config: &config, image: &image, user: &user, devices, volumes: &volumes };
    let spec = specify(node, pod, &made_of, &id)?;
    let record = ContainerRecord {
        id,
        image_id: image.id.clone(),
        image_ref: image.digests.first().cloned().unwrap_or_else(|| image.id.to_string()),
        layers: image.layers.clone(),
        volumes: volumes.records,
        created_at: clock::now(),
        state: ContainerState::Created,
        user,
        stop_signal,
        config,
    };
    let plan = plan(node, pod, &spec, &record)?;
    let dir = node.layout.container(&pod.record.id, &record.id);
    write_bundle(node, pod, &spec, &plan, &record).inspect_err(|_| {
        // The first error is the one to tell; a directory without a record is swept at the next start.
        drop(remove_tree(&dir));
    })?;
    // One lease for all, taken while the first ones are held.
    let all = node.images.lease_layers(&record.held_layers());
    drop((lease, volumes.leases));
    Ok(Prepared { record, lease: all })
}

/// Returns where a container's log is, `None` when it has none.
pub(crate) fn log_path(pod: &PodConfig, container: &ContainerConfig) -> Option<PathBuf> {
    let named = !pod.log_directory.as_os_str().is_empty() && !container.log_path.is_empty();
    named.then(|| pod.log_directory.join(&container.log_path))
}

fn check_mounts(config: &ContainerConfig) -> Result<(), Error> {
    for (index, mount) in config.mounts.iter().enumerate().filter(|(_, mount)| mount.image.is_none()) {
        fs::metadata(&mount.host_path).map_err(|error| {
            let remedy = match error.kind() {
                io::ErrorKind::NotFound => ": create it on the host, or mount another path",
                _ => "",
            };
            let path = mount.host_path.display();
            Error::invalid(format!("config.mounts[{index}].host_path"), format!("{path}: {error}{remedy}"))
        })?;
    }
    Ok(())
}

fn resolve_user(node: &Node, image: &Image, config: &ContainerConfig) -> Result<User, Error> {
    let read = |path: &str| {
        let bytes = node.images.read_file(image, path, ACCOUNTS_LIMIT);
        let bytes = bytes.map_err(|source| Error::step(format!("read the image's {path}"), source))?;
        Ok::<_, Error>(bytes.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
    };
    let image_user = image.config.config().as_ref().and_then(|config| config.user().clone()).unwrap_or_default();
    let (passwd, group) = (read("/etc/passwd")?, read("/etc/group")?);
    podwright_spec::user::resolve(&config.security, &image_user, passwd.as_deref(), group.as_deref())
        .map_err(|error| Error::invalid(format!("config.{}", error.field()), error.to_string()))
}

/// What a container's specification is made of, beside its pod.
struct MadeOf<'a> {
    config: &'a ContainerConfig,
    image: &'a Image,
    user: &'a User,
    devices: &'a [ResolvedDevice],
    volumes: &'a Volumes,
}

fn specify(node: &Node, pod: &Pod, made_of: &MadeOf<'_>, id: &ContainerId) -> Result<Spec, Error> {
    let layout = &node.layout;
    let pod_id = &pod.record.id;
    let (resolv_conf, hosts, hostname) = (layout.resolv_conf(pod_id), layout.hosts(pod_id), layout.hostname(pod_id));
    let seccomp = profile::seccomp(node, made_of.config)?;
    let input = ContainerInput {
        pod: &pod.record.config,
        container: made_of.config,
        pod_id: pod_id.as_str(),
        image: &made_of.image.config,
        user: made_of.user,
        files: PodFiles { resolv_conf: Some(&resolv_conf), hosts: Some(&hosts), hostname: Some(&hostname) },
        namespaces: &namespaces(node, pod),
        cgroup_path: &pod.record.container_cgroup(id),
        devices: made_of.devices,
        image_volumes: &made_of.volumes.sources,
        seccomp: seccomp.as_ref(),
        pids_limit: None,
        host: &node.host,
    };
    podwright_spec::container_spec(&input)
        .map_err(|error| Error::invalid(format!("config.{}", error.field()), error.to_string()))
}

/// Names the pod's namespaces as another process can open them.
fn namespaces(node: &Node, pod: &Pod) -> PodNamespaces {
    let linux = &pod.record.config.linux;
    let of = |pid: u32, kind: &str| Path::new("/proc").join(pid.to_string()).join("ns").join(kind);
    let own_network = has_own_network(&pod.record.config);
    let reaper = Some(pod.record.reaper_pid).filter(|pid| *pid != 0);
    PodNamespaces {
        network: own_network.then(|| node.layout.netns(&pod.record.id)),
        ipc: (linux.ipc != NamespaceMode::Node).then(|| of(pod.shim_pid, "ipc")),
        uts: own_network.then(|| of(pod.shim_pid, "uts")),
        pid: reaper.map(|pid| of(pid, "pid")),
        target_pid: None,
    }
}

fn plan(node: &Node, pod: &Pod, spec: &Spec, record: &ContainerRecord) -> Result<ContainerPlan, Error> {
    let layout = &node.layout;
    if record.layers.is_empty() {
        return Err(Error::invalid("config.image", format!("image {} has no layers to run", record.image_id)));
    }
    let (layers, writable) = (layout.layers(), layout.container_writable(&pod.record.id, &record.id));
    let log = log_path(&pod.record.config, &record.config);
    let directory = layout.container(&pod.record.id, &record.id);
    let bundle = Bundle {
        id: record.id.as_str(),
        dir: &directory,
        layers_dir: &layers,
        lower: record.layers.iter().rev().map(Digest::hex).map(str::to_owned).collect(),
        writable_dir: &writable,
        log_path: log.as_deref(),
        log_rotation: node.log_rotation,
        stdin: record.config.stdin,
        stdin_once: record.config.stdin_once,
        shares_shm: pod.record.config.linux.ipc != NamespaceMode::Node,
    };
    podwright_compile::container(spec, &bundle, &node.facts).map_err(|error| uncompiled(&error))
}

/// What cannot be compiled was asked for: its field in the specification leads to that of the request.
pub(crate) fn uncompiled(error: &CompileError) -> Error {
    match error {
        CompileError::Unsupported { field } => {
            Error::Unsupported { field: format!("config ({field})"), feature: "what it asks for".to_owned() }
        }
        other => Error::invalid("config", other.to_string()),
    }
}

fn write_bundle(
    node: &Node,
    pod: &Pod,
    spec: &Spec,
    plan: &ContainerPlan,
    record: &ContainerRecord,
) -> Result<(), Error> {
    let layout = &node.layout;
    let (pod, id) = (&pod.record, &record.id);
    let writable = layout.container_writable(&pod.id, id);
    make_directory(&layout.container(&pod.id, id), 0o711)?;
    make_directory(&writable, 0o711)?;
    // The upper directory is the container's root directory: what it is like is what the container sees.
    let upper = writable.join("upper");
    make_directory(&upper, 0o755)?;
    let like_image = node.images.copy_root(&record.layers, &upper);
    like_image.map_err(|source| Error::step(format!("give {} the image's attributes", upper.display()), source))?;
    make_directory(&writable.join("work"), 0o700)?;
    if let Some(parent) = log_path(&pod.config, &record.config).as_deref().and_then(Path::parent) {
        make_log_directory("config.log_path", parent)?;
    }
    let config = layout.container_config(&pod.id, id);
    let json = podwright_spec::config_json(spec).map_err(|source| writing(&config, source))?;
    fs::write(&config, json).map_err(|source| writing(&config, source))?;
    let encoded = layout.container_plan(&pod.id, id);
    fs::write(&encoded, plan.encode_to_vec()).map_err(|source| writing(&encoded, source))?;
    // The record comes last: a directory without one is no container.
    podwright_store::write(&layout.container_record(&pod.id, id), record)
        .map_err(|source| Error::step(format!("record container {id}"), source))
}

/// Makes a directory that the request names.
///
/// # Errors
/// Names the field where the path itself is at fault.
pub(crate) fn make_log_directory(field: &str, dir: &Path) -> Result<(), Error> {
    fs::create_dir_all(dir).map_err(|error| match error.kind() {
        io::ErrorKind::NotADirectory | io::ErrorKind::InvalidInput | io::ErrorKind::InvalidFilename => {
            Error::invalid(field, format!("{}: {error}", dir.display()))
        }
        _ => Error::step(format!("make {}, which {field} names", dir.display()), error),
    })
}

fn make_directory(path: &Path, mode: u32) -> Result<(), Error> {
    DirBuilder::new().mode(mode).create(path).map_err(|source| Error::step(format!("make {}", path.display()), source))
}

fn writing(path: &Path, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::step(format!("write {}", path.display()), source)
}
