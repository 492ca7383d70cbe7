//! A client of the CRI that times each call.

use std::collections::BTreeMap;
use std::time::Instant;

use anyhow::Context;
use hyper_util::rt::TokioIo;
use podwright_proto::runtime::v1::image_service_client::ImageServiceClient;
use podwright_proto::runtime::v1::runtime_service_client::RuntimeServiceClient;
use podwright_proto::runtime::v1::*;
use serde::Serialize;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};

/// Which network a pod has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Network {
    /// Its own.
    Pod,
    /// The host's.
    Host,
}

/// Milliseconds that each call of one pod's life took.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub(crate) struct Cycle {
    pub(crate) run: f64,
    pub(crate) create: f64,
    pub(crate) start: f64,
    pub(crate) exec: f64,
    pub(crate) stop: f64,
    pub(crate) remove: f64,
}

impl Cycle {
    /// From the call for a pod to the user's process.
    pub(crate) fn until_started(&self) -> f64 {
        self.run + self.create + self.start
    }

    /// From the call for a pod to its removal, without the exec.
    pub(crate) fn whole(&self) -> f64 {
        self.until_started() + self.stop + self.remove
    }
}

/// A pod with one container that sleeps.
#[derive(Debug, Clone)]
pub(crate) struct Pod {
    pub(crate) sandbox: String,
    pub(crate) container: String,
}

/// One runtime.
pub(crate) struct Client {
    runtime: RuntimeServiceClient<Channel>,
    image: String,
    socket: String,
    count: u32,
}

impl Client {
    /// Connects, for pods without containers.
    pub(crate) async fn open(socket: &str) -> anyhow::Result<Self> {
        let runtime = RuntimeServiceClient::new(channel(socket).await?);
        Ok(Self { runtime, image: String::new(), socket: socket.to_owned(), count: 0 })
    }

    /// Connects, and pulls the image where it is missing.
    pub(crate) async fn connect(socket: &str, image: &str) -> anyhow::Result<Self> {
        let channel = channel(socket).await?;
        let mut images = ImageServiceClient::new(channel.clone());
        let spec = ImageSpec { image: image.to_owned(), ..Default::default() };
        let status = ImageStatusRequest { image: Some(spec.clone()), ..Default::default() };
        if images.image_status(status).await?.into_inner().image.is_none() {
            let pull = PullImageRequest { image: Some(spec), ..Default::default() };
            images.pull_image(pull).await.with_context(|| format!("pull {image}"))?;
        }
        let runtime = RuntimeServiceClient::new(channel);
        Ok(Self { runtime, image: image.to_owned(), socket: socket.to_owned(), count: 0 })
    }

    /// Where the runtime listens.
    pub(crate) fn socket(&self) -> &str {
        &self.socket
    }

    /// Runs a pod from its first call to its last.
    pub(crate) async fn cycle(&mut self, network: Network) -> anyhow::Result<Cycle> {
        let (pod, mut cycle) = self.start(network).await?;
        let clock = Instant::now();
        let exec = ExecSyncRequest { container_id: pod.container.clone(), cmd: vec!["/bin/true".into()], timeout: 10 };
        let exec = self.runtime.exec_sync(exec).await?.into_inner();
        cycle.exec = milliseconds(clock);
        anyhow::ensure!(exec.exit_code == 0, "/bin/true ended with {}", exec.exit_code);
        let clock = Instant::now();
        self.runtime.stop_container(StopContainerRequest { container_id: pod.container.clone(), timeout: 0 }).await?;
        self.runtime.stop_pod_sandbox(StopPodSandboxRequest { pod_sandbox_id: pod.sandbox.clone() }).await?;
        cycle.stop = milliseconds(clock);
        let clock = Instant::now();
        self.remove(pod).await?;
        cycle.remove = milliseconds(clock);
        Ok(cycle)
    }

    /// Runs a pod and its container.
    pub(crate) async fn start(&mut self, network: Network) -> anyhow::Result<(Pod, Cycle)> {
        let config = self.pod_config(network);
        let mut cycle = Cycle::default();
        let sandbox;
        (sandbox, cycle.run) = self.run(config.clone()).await?;
        let clock = Instant::now();
        let create = CreateContainerRequest {
            pod_sandbox_id: sandbox.clone(),
            config: Some(self.container_config(network)),
            sandbox_config: Some(config),
        };
        let container = self.runtime.create_container(create).await?.into_inner().container_id;
        cycle.create = milliseconds(clock);
        let clock = Instant::now();
        self.runtime.start_container(StartContainerRequest { container_id: container.clone() }).await?;
        cycle.start = milliseconds(clock);
        Ok((Pod { sandbox, container }, cycle))
    }

    /// Runs a pod without containers, maybe with a host port; its id, and the milliseconds that this took.
    pub(crate) async fn sandbox(&mut self, network: Network, port: Option<i32>) -> anyhow::Result<(String, f64)> {
        let mut config = self.pod_config(network);
        let mapping = |host_port| PortMapping { host_port, container_port: 80, ..Default::default() };
        config.port_mappings = port.map(mapping).into_iter().collect();
        self.run(config).await
    }

    async fn run(&mut self, config: PodSandboxConfig) -> anyhow::Result<(String, f64)> {
        let run = RunPodSandboxRequest { config: Some(config), ..Default::default() };
        let clock = Instant::now();
        let sandbox = self.runtime.run_pod_sandbox(run).await?.into_inner().pod_sandbox_id;
        Ok((sandbox, milliseconds(clock)))
    }

    /// Removes a pod, whatever runs in it.
    pub(crate) async fn remove(&mut self, pod: Pod) -> anyhow::Result<()> {
        self.runtime.remove_container(RemoveContainerRequest { container_id: pod.container }).await?;
        self.remove_sandbox(pod.sandbox).await
    }

    /// Removes a pod without containers.
    pub(crate) async fn remove_sandbox(&mut self, id: String) -> anyhow::Result<()> {
        self.runtime.stop_pod_sandbox(StopPodSandboxRequest { pod_sandbox_id: id.clone() }).await?;
        self.runtime.remove_pod_sandbox(RemovePodSandboxRequest { pod_sandbox_id: id }).await?;
        Ok(())
    }

    fn pod_config(&mut self, network: Network) -> PodSandboxConfig {
        self.count += 1;
        let name = format!("bench-{}-{}", std::process::id(), self.count);
        let options = NamespaceOption {
            network: mode(network).into(),
            pid: NamespaceMode::Container.into(),
            ..Default::default()
        };
        let security = LinuxSandboxSecurityContext { namespace_options: Some(options), ..Default::default() };
        PodSandboxConfig {
            metadata: Some(PodSandboxMetadata { uid: name.clone(), name, namespace: "bench".into(), attempt: 0 }),
            hostname: if network == Network::Pod { "bench".into() } else { String::new() },
            linux: Some(LinuxPodSandboxConfig { security_context: Some(security), ..Default::default() }),
            ..Default::default()
        }
    }

    fn container_config(&self, network: Network) -> ContainerConfig {
        let options = NamespaceOption {
            network: mode(network).into(),
            pid: NamespaceMode::Container.into(),
            ..Default::default()
        };
        let seccomp = SecurityProfile {
            profile_type: security_profile::ProfileType::RuntimeDefault.into(),
            ..Default::default()
        };
        let security = LinuxContainerSecurityContext {
            namespace_options: Some(options),
            seccomp: Some(seccomp),
            ..Default::default()
        };
        ContainerConfig {
            metadata: Some(ContainerMetadata { name: "sleep".into(), attempt: 0 }),
            image: Some(ImageSpec { image: self.image.clone(), ..Default::default() }),
            command: vec!["/bin/sleep".into(), "100000".into()],
            labels: BTreeMap::new(),
            linux: Some(LinuxContainerConfig { security_context: Some(security), ..Default::default() }),
            ..Default::default()
        }
    }
}

/// Splits `NAME=SOCKET`.
pub(crate) fn named(argument: &str) -> anyhow::Result<(&str, &str)> {
    argument.split_once('=').with_context(|| format!("{argument:?} is not NAME=SOCKET"))
}

/// Connects to a socket that speaks gRPC.
pub(crate) async fn channel(socket: &str) -> anyhow::Result<Channel> {
    let path = socket.to_owned();
    let connector = tower::service_fn(move |_| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    let channel = Endpoint::from_static("http://localhost").connect_with_connector(connector).await;
    channel.with_context(|| format!("connect to {socket}"))
}

/// The process that listens on a socket.
pub(crate) async fn daemon(socket: &str) -> anyhow::Result<u32> {
    let peer = UnixStream::connect(socket).await?.peer_cred()?;
    Ok(peer.pid().context("the socket's owner has no pid")?.cast_unsigned())
}

fn mode(network: Network) -> NamespaceMode {
    match network {
        Network::Pod => NamespaceMode::Pod,
        Network::Host => NamespaceMode::Node,
    }
}

/// What has passed.
pub(crate) fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}
