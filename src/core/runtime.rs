//! The public face: what the CRI can ask of pods and containers.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use podwright_base::{Config, ContainerId, Layout, PodId};
use podwright_compile::{CgroupPath, InvalidCgroupPath};
use podwright_images::Images;
use podwright_network::{Network, RangeError};
use podwright_spec::{ContainerConfig, PodConfig};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;

use crate::cgroups;
use crate::clock;
use crate::error::{Error, chain};
use crate::host;
use crate::node::Node;
use crate::pod::driver::Driver;
use crate::pod::handle::{Command, Creation, PodHandle};
use crate::pod::state::Phase;
use crate::record::PodRecord;
use crate::recover;
use crate::registry::{Registry, Reserved};
use crate::session::{self, Access, ExecOutput, Session, Streams};
use crate::sweep;
use crate::usage::{Subject, Usages, Use};
use crate::view::{ContainerView, PodView};

/// How many containers' volumes are looked at at once.
const VOLUME_LOOKERS: usize = 32;

/// The node's pods and containers. Clones are the same node.
#[derive(Clone)]
pub struct Runtime {
    node: Arc<Node>,
}

impl Runtime {
    /// Takes over what an earlier daemon left: running pods are found again, half-made ones undone, and what belongs to
    /// nobody is removed.
    ///
    /// # Errors
    /// When this host lacks what every pod needs, or the directories cannot be used. A pod that cannot be recovered is
    /// no error: it is reported as lost.
    pub async fn start(config: &Config, layout: Layout, images: Images, network: Network) -> Result<Self, Error> {
        let facts = host::facts()?;
        let traits = host::traits(&facts)?;
        let shim = host::shim_binary(config.shim.path.as_deref())?;
        let registry = Registry::default();
        let volumes = Arc::new(Semaphore::new(VOLUME_LOOKERS));
        let log = &config.container_log;
        let log_rotation = (log.max_bytes > 0).then_some((log.max_bytes, log.max_files));
        let usages = Usages::default();
        let node = Node { layout, facts, images, network, registry, host: traits, log_rotation, volumes, usages, shim };
        let runtime = Self { node: Arc::new(node) };
        recover::recover(&runtime.node).await?;
        tokio::spawn(sweep::collect_networks(Arc::downgrade(&runtime.node)));
        // What containers from before have written is counted by the time somebody asks.
        runtime.written();
        Ok(runtime)
    }

    /// Creates a sandbox, joins the creation of the same one, or finds it created (CRI `RunPodSandbox`).
    ///
    /// # Errors
    /// The step that failed, with everything undone; [`Error::NameInUse`] when another sandbox has the name.
    pub async fn run_pod(&self, config: PodConfig) -> Result<PodId, Error> {
        let id = PodId::random();
        let config = Arc::new(config);
        let record = self.new_record(id.clone(), Arc::clone(&config))?;
        let (handle, ends) =
            PodHandle::new(id.clone(), Arc::clone(&config), Creation::Underway("reserved", Instant::now()));
        match self.node.registry.reserve(&handle) {
            Reserved::New => {
                tokio::spawn(Driver::new(Arc::clone(&self.node), record, ends).create());
                handle.created().await?;
                Ok(id)
            }
            Reserved::Taken(owner) => {
                let same = owner.config == config;
                if same {
                    owner.created().await?;
                }
                if same && owner.view().is_some_and(|view| view.ready) {
                    return Ok(owner.id);
                }
                if same {
                    let reason = owner.view().map_or_else(|| "it is gone".to_owned(), |view| view.reason.clone());
                    return Err(Error::PodNotReady {
                        pod: owner.id,
                        reason: format!("{reason}; remove it, or raise the attempt"),
                    });
                }
                let name = format!("{}/{}", config.metadata.namespace, config.metadata.name);
                Err(Error::NameInUse { what: "pod sandbox", name, id: owner.id.to_string() })
            }
        }
    }

    fn new_record(&self, id: PodId, config: Arc<PodConfig>) -> Result<PodRecord, Error> {
        let parent = match config.linux.cgroup_parent.as_str() {
            "" => format!("{}/pod{id}", self.node.layout.default_cgroup_parent()),
            parent => parent.to_owned(),
        };
        let cgroup: CgroupPath = format!("{parent}/{id}")
            .parse()
            .map_err(|error: InvalidCgroupPath| Error::invalid("config.linux.cgroup_parent", error.to_string()))?;
        Ok(PodRecord {
            cgroup: cgroup.as_str().to_owned(),
            id,
            config,
            created_at: clock::now(),
            phase: Phase::Creating,
            reaper_pid: 0,
            ips: Vec::new(),
        })
    }

    /// Stops a sandbox and all that runs in it; a missing or stopped one is fine (CRI `StopPodSandbox`).
    ///
    /// # Errors
    /// What could not be given back; a further call tries again.
    pub async fn stop_pod(&self, id: &str) -> Result<(), Error> {
        idempotent(async { self.node.registry.pod(id)?.ask(|reply| Command::StopPod { reply }).await }.await)
    }

    /// Stops and removes a sandbox with its containers; a missing one is fine (CRI `RemovePodSandbox`).
    ///
    /// # Errors
    /// What could not be given back; a further call tries again.
    pub async fn remove_pod(&self, id: &str) -> Result<(), Error> {
        idempotent(async { self.node.registry.pod(id)?.ask(|reply| Command::RemovePod { reply }).await }.await)
    }

    /// Returns a sandbox, by its id or a unique prefix of it.
    ///
    /// # Errors
    /// [`Error::PodNotFound`]; one that is being created does not exist yet.
    pub fn pod(&self, id: &str) -> Result<Arc<PodView>, Error> {
        self.node.registry.pod(id)?.view().ok_or_else(|| Error::PodNotFound { id: id.to_owned() })
    }

    /// Returns all sandboxes.
    pub fn pods(&self) -> Vec<Arc<PodView>> {
        self.node.registry.pods().iter().filter_map(PodHandle::view).collect()
    }

    /// Creates a container in a sandbox, or finds the one that has the same name and configuration (CRI
    /// `CreateContainer`).
    ///
    /// # Errors
    /// The field that cannot be accepted, or the step that failed. Nothing is left then.
    pub async fn create_container(&self, pod: &str, config: ContainerConfig) -> Result<ContainerId, Error> {
        let config = Box::new(config);
        self.node.registry.pod(pod)?.ask(|reply| Command::Create { config, reply }).await
    }

    /// Starts a container; one that runs already is fine (CRI `StartContainer`).
    ///
    /// # Errors
    /// The step that failed; the container has exited with code 128 then.
    pub async fn start_container(&self, id: &str) -> Result<(), Error> {
        let (id, pod) = self.node.registry.container(id)?;
        pod.ask(|reply| Command::Start { id, reply }).await
    }

    /// Stops a container: its stop signal, and SIGKILL after `timeout`. One that is missing or does not run is fine
    /// (CRI `StopContainer`).
    ///
    /// # Errors
    /// [`Error::Stalled`] when it outlives SIGKILL.
    pub async fn stop_container(&self, id: &str, timeout: Duration) -> Result<(), Error> {
        idempotent(
            async {
                let (id, pod) = self.node.registry.container(id)?;
                pod.ask(|reply| Command::Stop { id, timeout, reply }).await
            }
            .await,
        )
    }

    /// Removes a container, running or not; a missing one is fine (CRI `RemoveContainer`).
    ///
    /// # Errors
    /// What could not be removed; a further call tries again.
    pub async fn remove_container(&self, id: &str) -> Result<(), Error> {
        idempotent(
            async {
                let (id, pod) = self.node.registry.container(id)?;
                pod.ask(|reply| Command::Remove { id, reply }).await
            }
            .await,
        )
    }

    /// Returns a container, by its id or a unique prefix of it.
    ///
    /// # Errors
    /// [`Error::ContainerNotFound`].
    pub fn container(&self, id: &str) -> Result<Arc<ContainerView>, Error> {
        let (found, pod) = self.node.registry.container(id)?;
        pod.view()
            .and_then(|view| view.containers.iter().find(|container| container.id == found).cloned())
            .ok_or_else(|| Error::ContainerNotFound { id: id.to_owned() })
    }

    /// Returns all containers.
    pub fn containers(&self) -> Vec<Arc<ContainerView>> {
        self.pods().iter().flat_map(|pod| pod.containers.clone()).collect()
    }

    /// Opens a container's log file anew: the file exists on return (CRI `ReopenContainerLog`).
    ///
    /// # Errors
    /// [`Error::WrongState`] when it does not run; no file is made then.
    pub async fn reopen_log(&self, id: &str) -> Result<(), Error> {
        let (id, pod) = self.node.registry.container(id)?;
        pod.ask(|reply| Command::ReopenLog { id, reply }).await
    }

    /// Runs a command in a container to its end (CRI `ExecSync`). Without a limit it may take for ever.
    ///
    /// # Errors
    /// [`Error::ExecTimeout`] when it did not end in time: all its processes are gone.
    pub async fn exec_sync(
        &self,
        id: &str,
        command: Vec<String>,
        timeout: Option<Duration>,
    ) -> Result<ExecOutput, Error> {
        let access = self.enter(id).await?;
        session::run(&self.node, access, &command, timeout).await
    }

    /// Runs a command in a container, its streams the caller's (CRI `Exec`).
    ///
    /// # Errors
    /// [`Error::WrongState`] when the container does not run, or the step that failed.
    pub async fn exec(&self, id: &str, command: &[String], tty: bool, streams: Streams) -> Result<Session, Error> {
        let access = self.enter(id).await?;
        session::exec(&self.node, access, command, tty, streams).await
    }

    /// Joins the streams of a container's own process (CRI `Attach`).
    ///
    /// # Errors
    /// [`Error::WrongState`] when the container does not run, or the step that failed.
    pub async fn attach(&self, id: &str, streams: Streams) -> Result<Session, Error> {
        session::attach(self.enter(id).await?, streams).await
    }

    /// Connects to a port on a pod's loopback (CRI `PortForward`).
    ///
    /// # Errors
    /// [`Error::PodNotReady`], or that nobody listens there.
    pub async fn connect(&self, pod: &str, port: u16) -> Result<TcpStream, Error> {
        let view = self.pod(pod)?;
        if !view.ready {
            return Err(Error::PodNotReady { pod: view.id.clone(), reason: view.reason.clone() });
        }
        session::connect(view.netns.clone(), port).await
    }

    async fn enter(&self, id: &str) -> Result<Access, Error> {
        let (id, pod) = self.node.registry.container(id)?;
        pod.ask(|reply| Command::Enter { id, reply }).await
    }

    /// Says whether pods can have a network.
    pub async fn network_status(&self) -> podwright_network::Status {
        self.node.network.status().await
    }

    /// Takes over which addresses the cluster has for this node's pods (CRI `UpdateRuntimeConfig`).
    ///
    /// # Errors
    /// When they are none, or the configured CNI template cannot be used.
    pub async fn set_pod_cidr(&self, text: &str) -> Result<(), Error> {
        self.node.network.set_pod_cidr(text).await.map_err(|error| match error {
            RangeError::Malformed { .. } => Error::invalid("runtime_config.network_config.pod_cidr", chain(&error)),
            other => Error::step("take over the node's pod addresses", other),
        })
    }

    /// What plugins of a CNI network made for a pod, and whether they say that it is still there; nothing for pods of
    /// other networks.
    pub async fn network_details(&self, pod: &PodView) -> Option<Value> {
        let result = match self.node.network.plugins_result(&pod.id) {
            Ok(result) => result?,
            Err(error) => return Some(json!({ "result": chain(&error) })),
        };
        let check = self.node.network.check(&pod.id).await;
        let check = check.map_or_else(|error| chain(&error), |()| "ok".to_owned());
        Some(json!({ "result": result, "check": check }))
    }

    /// Tells what all containers together have written: figures that may be some seconds old, without a wait for new
    /// ones.
    pub fn written(&self) -> Use {
        let subject = |container: &Arc<ContainerView>| Subject {
            id: container.id.clone(),
            directory: self.node.layout.container_writable(&container.pod, &container.id),
            state: container.state.clone(),
        };
        let all: Vec<_> = self.containers().iter().map(subject).collect();
        self.node.usages.total(&all)
    }

    /// Where containers' writable layers are.
    pub fn containers_directory(&self) -> PathBuf {
        self.node.layout.pods()
    }

    /// Removes, at the daemon's end, what it made for all pods, unless there still is one.
    pub async fn close(&self) {
        if self.node.registry.pods().is_empty()
            && let Err(error) = cgroups::clear(&self.node, self.node.layout.default_cgroup_parent()).await
        {
            tracing::warn!(error = %chain(&error), "an empty cgroup is left");
        }
    }

    /// Tells about this node, for people (CRI `Status` with `verbose`).
    pub fn info(&self) -> Value {
        let path = |path: &Path| path.display().to_string();
        json!({
            "root": path(self.node.layout.root()),
            "state": path(self.node.layout.state()),
            "shim": path(&self.node.shim),
            "pods": self.node.registry.pods().len(),
        })
    }
}

/// What is gone already need not be stopped or removed.
fn idempotent(result: Result<(), Error>) -> Result<(), Error> {
    match result {
        Err(Error::PodNotFound { .. } | Error::ContainerNotFound { .. }) => Ok(()),
        other => other,
    }
}
