//! The calls of a kubelet: configurations with what every pod has, and one short method for each RPC.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use k8s_cri::v1::*;
use tonic::{Code, Status};

use super::node::Node;

/// How long anything may take that has no deadline of its own.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A pod sandbox's configuration, with what a kubelet always fills in.
pub(crate) fn pod(node: &Node, name: &str) -> PodSandboxConfig {
    let logs = node.logs().join(name);
    std::fs::create_dir_all(&logs).expect("the pod's log directory");
    PodSandboxConfig {
        metadata: Some(PodSandboxMetadata {
            name: name.to_owned(),
            uid: format!("{name}-uid"),
            namespace: "default".to_owned(),
            attempt: 0,
        }),
        hostname: name.to_owned(),
        log_directory: logs.to_string_lossy().into_owned(),
        linux: Some(LinuxPodSandboxConfig {
            security_context: Some(LinuxSandboxSecurityContext {
                namespace_options: Some(own_processes()),
                ..Default::default()
            }),
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// A container sees its own processes alone, unless the pod says otherwise.
fn own_processes() -> NamespaceOption {
    NamespaceOption { pid: NamespaceMode::Container.into(), ..Default::default() }
}

/// A container's configuration: an image's program with other arguments.
pub(crate) fn container(name: &str, image: &str, command: &[&str]) -> ContainerConfig {
    ContainerConfig {
        metadata: Some(ContainerMetadata { name: name.to_owned(), attempt: 0 }),
        image: Some(ImageSpec { image: image.to_owned(), ..Default::default() }),
        command: command.iter().map(|word| (*word).to_owned()).collect(),
        log_path: format!("{name}.log"),
        linux: Some(LinuxContainerConfig {
            security_context: Some(LinuxContainerSecurityContext {
                namespace_options: Some(own_processes()),
                ..Default::default()
            }),
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// A container that runs a script in busybox's shell.
pub(crate) fn shell(name: &str, script: &str) -> ContainerConfig {
    container(name, &super::node::image("busybox"), &["sh", "-c", script])
}

/// The part of a container's configuration that says how it is confined.
pub(crate) fn security(config: &mut ContainerConfig) -> &mut LinuxContainerSecurityContext {
    config.linux.get_or_insert_default().security_context.get_or_insert_default()
}

/// The part of a container's configuration that says what it may use.
pub(crate) fn resources(config: &mut ContainerConfig) -> &mut LinuxContainerResources {
    config.linux.get_or_insert_default().resources.get_or_insert_default()
}

/// The namespaces of a pod sandbox.
pub(crate) fn namespaces(config: &mut PodSandboxConfig) -> &mut NamespaceOption {
    let linux = config.linux.get_or_insert_default();
    linux.security_context.get_or_insert_default().namespace_options.get_or_insert_default()
}

/// Polls until a condition holds: the CRI of this level has no event that says so.
pub(crate) async fn eventually<T>(what: &str, mut condition: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        if let Some(value) = condition().await {
            return value;
        }
        assert!(tokio::time::Instant::now() < deadline, "did not happen within {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A pod with one container, running.
pub(crate) struct Running {
    pub(crate) pod: String,
    pub(crate) container: String,
}

impl Node {
    pub(crate) async fn pull(&self, image: &str) -> Result<String, Status> {
        self.pull_as(image, None).await
    }

    pub(crate) async fn pull_as(&self, image: &str, auth: Option<AuthConfig>) -> Result<String, Status> {
        let image = Some(ImageSpec { image: image.to_owned(), ..Default::default() });
        let request = PullImageRequest { image, auth, sandbox_config: None };
        Ok(self.images.clone().pull_image(request).await?.into_inner().image_ref)
    }

    pub(crate) async fn image_status(&self, image: &str) -> Option<Image> {
        let image = Some(ImageSpec { image: image.to_owned(), ..Default::default() });
        let request = ImageStatusRequest { image, verbose: false };
        self.images.clone().image_status(request).await.expect("ImageStatus").into_inner().image
    }

    pub(crate) async fn list_images(&self) -> Vec<Image> {
        self.images
            .clone()
            .list_images(ListImagesRequest { filter: None })
            .await
            .expect("ListImages")
            .into_inner()
            .images
    }

    pub(crate) async fn remove_image(&self, image: &str) -> Result<(), Status> {
        let image = Some(ImageSpec { image: image.to_owned(), ..Default::default() });
        self.images.clone().remove_image(RemoveImageRequest { image }).await.map(drop)
    }

    pub(crate) async fn try_run_pod(&self, config: &PodSandboxConfig, handler: &str) -> Result<String, Status> {
        let request = RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: handler.to_owned() };
        Ok(self.runtime.clone().run_pod_sandbox(request).await?.into_inner().pod_sandbox_id)
    }

    pub(crate) async fn run_pod(&self, config: &PodSandboxConfig) -> String {
        self.try_run_pod(config, "").await.expect("RunPodSandbox")
    }

    pub(crate) async fn stop_pod(&self, pod: &str) -> Result<(), Status> {
        let request = StopPodSandboxRequest { pod_sandbox_id: pod.to_owned() };
        self.runtime.clone().stop_pod_sandbox(request).await.map(drop)
    }

    pub(crate) async fn remove_pod(&self, pod: &str) -> Result<(), Status> {
        let request = RemovePodSandboxRequest { pod_sandbox_id: pod.to_owned() };
        self.runtime.clone().remove_pod_sandbox(request).await.map(drop)
    }

    pub(crate) async fn pod_status(&self, pod: &str) -> Result<PodSandboxStatusResponse, Status> {
        let request = PodSandboxStatusRequest { pod_sandbox_id: pod.to_owned(), verbose: true };
        self.runtime.clone().pod_sandbox_status(request).await.map(tonic::Response::into_inner)
    }

    /// A pod's addresses, the first one first.
    pub(crate) async fn pod_ips(&self, pod: &str) -> Vec<IpAddr> {
        let status = self.pod_status(pod).await.expect("PodSandboxStatus").status.expect("a status");
        let network = status.network.expect("a network status");
        let others = network.additional_ips.iter().map(|ip| ip.ip.as_str());
        std::iter::once(network.ip.as_str())
            .chain(others)
            .filter(|ip| !ip.is_empty())
            .map(|ip| ip.parse().expect("an address"))
            .collect()
    }

    pub(crate) async fn list_pods(&self, filter: PodSandboxFilter) -> Vec<PodSandbox> {
        let request = ListPodSandboxRequest { filter: Some(filter) };
        self.runtime.clone().list_pod_sandbox(request).await.expect("ListPodSandbox").into_inner().items
    }

    pub(crate) async fn try_create(
        &self,
        pod: &str,
        config: &ContainerConfig,
        pod_config: &PodSandboxConfig,
    ) -> Result<String, Status> {
        let request = CreateContainerRequest {
            pod_sandbox_id: pod.to_owned(),
            config: Some(config.clone()),
            sandbox_config: Some(pod_config.clone()),
        };
        Ok(self.runtime.clone().create_container(request).await?.into_inner().container_id)
    }

    pub(crate) async fn create(&self, pod: &str, config: &ContainerConfig, pod_config: &PodSandboxConfig) -> String {
        self.try_create(pod, config, pod_config).await.expect("CreateContainer")
    }

    pub(crate) async fn start_container(&self, id: &str) -> Result<(), Status> {
        let request = StartContainerRequest { container_id: id.to_owned() };
        self.runtime.clone().start_container(request).await.map(drop)
    }

    pub(crate) async fn stop_container(&self, id: &str, timeout: i64) -> Result<(), Status> {
        let request = StopContainerRequest { container_id: id.to_owned(), timeout };
        self.runtime.clone().stop_container(request).await.map(drop)
    }

    pub(crate) async fn remove_container(&self, id: &str) -> Result<(), Status> {
        let request = RemoveContainerRequest { container_id: id.to_owned() };
        self.runtime.clone().remove_container(request).await.map(drop)
    }

    pub(crate) async fn try_status(&self, id: &str) -> Result<ContainerStatus, Status> {
        let request = ContainerStatusRequest { container_id: id.to_owned(), verbose: false };
        Ok(self.runtime.clone().container_status(request).await?.into_inner().status.expect("a status"))
    }

    pub(crate) async fn status(&self, id: &str) -> ContainerStatus {
        self.try_status(id).await.expect("ContainerStatus")
    }

    /// The verbose part of a container's status.
    pub(crate) async fn info(&self, id: &str) -> serde_json::Value {
        let request = ContainerStatusRequest { container_id: id.to_owned(), verbose: true };
        let info: HashMap<_, _> =
            self.runtime.clone().container_status(request).await.expect("status").into_inner().info;
        serde_json::from_str(info.get("info").expect("the key info")).expect("a JSON object")
    }

    /// The container's process as the host sees it.
    pub(crate) async fn container_pid(&self, id: &str) -> u64 {
        self.info(id).await["pid"].as_u64().expect("a process id")
    }

    pub(crate) async fn list_containers(&self, filter: ContainerFilter) -> Vec<Container> {
        let request = ListContainersRequest { filter: Some(filter) };
        self.runtime.clone().list_containers(request).await.expect("ListContainers").into_inner().containers
    }

    pub(crate) async fn try_exec(&self, id: &str, command: &[&str], timeout: i64) -> Result<ExecSyncResponse, Status> {
        let cmd = command.iter().map(|word| (*word).to_owned()).collect();
        let request = ExecSyncRequest { container_id: id.to_owned(), cmd, timeout };
        self.runtime.clone().exec_sync(request).await.map(tonic::Response::into_inner)
    }

    /// Runs a script in a container and returns what it printed; it must succeed.
    pub(crate) async fn sh(&self, id: &str, script: &str) -> String {
        let response = self.try_exec(id, &["sh", "-c", script], 30).await.expect("ExecSync");
        let output = String::from_utf8_lossy(&response.stdout).into_owned();
        let errors = String::from_utf8_lossy(&response.stderr);
        assert_eq!(response.exit_code, 0, "{script}: {output}{errors}");
        output
    }

    pub(crate) async fn reopen_log(&self, id: &str) -> Result<(), Status> {
        let request = ReopenContainerLogRequest { container_id: id.to_owned() };
        self.runtime.clone().reopen_container_log(request).await.map(drop)
    }

    /// Waits until a container has ended.
    pub(crate) async fn exited(&self, id: &str) -> ContainerStatus {
        eventually("the container exits", async || {
            let status = self.status(id).await;
            (status.state() == ContainerState::ContainerExited).then_some(status)
        })
        .await
    }

    /// Starts a container in a pod of its own.
    pub(crate) async fn run(&self, config: &ContainerConfig) -> Running {
        let name = config.metadata.as_ref().expect("the container has a name").name.clone();
        self.run_in(&pod(self, &name), config).await
    }

    /// Starts a container in a new pod.
    pub(crate) async fn run_in(&self, pod_config: &PodSandboxConfig, config: &ContainerConfig) -> Running {
        let pod = self.run_pod(pod_config).await;
        let container = self.create(&pod, config, pod_config).await;
        self.start_container(&container).await.expect("StartContainer");
        Running { pod, container }
    }

    /// Runs a script to its end in a pod of its own, removes the pod and returns what the script printed and its status.
    pub(crate) async fn script(&self, config: &ContainerConfig) -> (String, ContainerStatus) {
        let running = self.run(config).await;
        let status = self.exited(&running.container).await;
        let output = super::log::text(&status.log_path, None);
        self.delete(&running.pod).await;
        (output, status)
    }

    /// Stops and removes a pod with all that is in it.
    pub(crate) async fn delete(&self, pod: &str) {
        self.stop_pod(pod).await.expect("StopPodSandbox");
        self.remove_pod(pod).await.expect("RemovePodSandbox");
    }
}

/// Asserts that a call failed with a code and a message that has all the given parts.
#[track_caller]
pub(crate) fn refused<T: std::fmt::Debug>(result: Result<T, Status>, code: Code, parts: &[&str]) {
    let status = result.expect_err("the call is refused");
    assert_eq!(status.code(), code, "{}", status.message());
    for part in parts {
        assert!(status.message().contains(part), "{part:?} is missing in: {}", status.message());
    }
}
