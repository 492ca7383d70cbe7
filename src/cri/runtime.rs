//! The runtime service: a table of its calls, each answered by a function of its resource's file.

use podwright_core::Runtime;
use podwright_proto::runtime::v1;
use podwright_proto::runtime::v1::runtime_service_server::RuntimeService;
use podwright_streaming::Server;
use tonic::{Request, Response, Status};

use crate::batch::{self, Answers};
use crate::status::{later, reply};
use crate::{containers, convert, pods, streaming};

/// The level of the kubelet's side of the interface, as every runtime names it.
const KUBELET_API: &str = "0.1.0";

type Answer<T> = Result<Response<T>, Status>;

/// Answers the calls of the runtime service.
pub(crate) struct RuntimeApi {
    runtime: Runtime,
    server: Server,
}

impl RuntimeApi {
    /// Serves a runtime.
    pub(crate) fn new(runtime: Runtime, server: Server) -> Self {
        Self { runtime, server }
    }

    async fn status_of_all(&self, verbose: bool) -> v1::StatusResponse {
        let info = verbose.then(|| convert::info("config", &self.runtime.info()));
        let network = self.runtime.network_status().await;
        v1::StatusResponse {
            status: Some(convert::status::conditions(network.ready, network.reason, network.message)),
            info: info.unwrap_or_default(),
            runtime_handlers: convert::status::handlers(),
            features: Some(convert::status::features()),
        }
    }
}

#[tonic::async_trait]
impl RuntimeService for RuntimeApi {
    type StreamPodSandboxesStream = Answers<v1::StreamPodSandboxesResponse>;
    type StreamContainersStream = Answers<v1::StreamContainersResponse>;
    type StreamContainerStatsStream = Answers<v1::StreamContainerStatsResponse>;
    type StreamPodSandboxStatsStream = Answers<v1::StreamPodSandboxStatsResponse>;
    type StreamPodSandboxMetricsStream = Answers<v1::StreamPodSandboxMetricsResponse>;
    type GetContainerEventsStream = Answers<v1::ContainerEventResponse>;

    async fn version(&self, _: Request<v1::VersionRequest>) -> Answer<v1::VersionResponse> {
        reply(Ok(v1::VersionResponse {
            version: KUBELET_API.to_owned(),
            runtime_name: "podwright".to_owned(),
            runtime_version: env!("CARGO_PKG_VERSION").to_owned(),
            runtime_api_version: "v1".to_owned(),
        }))
    }

    async fn status(&self, request: Request<v1::StatusRequest>) -> Answer<v1::StatusResponse> {
        reply(Ok(self.status_of_all(request.into_inner().verbose).await))
    }

    async fn runtime_config(&self, _: Request<v1::RuntimeConfigRequest>) -> Answer<v1::RuntimeConfigResponse> {
        let linux = v1::LinuxRuntimeConfiguration { cgroup_driver: v1::CgroupDriver::Cgroupfs.into() };
        reply(Ok(v1::RuntimeConfigResponse { linux: Some(linux) }))
    }

    async fn update_runtime_config(
        &self,
        request: Request<v1::UpdateRuntimeConfigRequest>,
    ) -> Answer<v1::UpdateRuntimeConfigResponse> {
        let network = request.into_inner().runtime_config.and_then(|config| config.network_config);
        let done = match network.filter(|network| !network.pod_cidr.is_empty()) {
            Some(network) => self.runtime.set_pod_cidr(&network.pod_cidr).await,
            None => Ok(()),
        };
        reply(done.map(|()| v1::UpdateRuntimeConfigResponse {}))
    }

    async fn run_pod_sandbox(&self, request: Request<v1::RunPodSandboxRequest>) -> Answer<v1::RunPodSandboxResponse> {
        reply(pods::run(&self.runtime, request.into_inner()).await)
    }

    async fn stop_pod_sandbox(
        &self,
        request: Request<v1::StopPodSandboxRequest>,
    ) -> Answer<v1::StopPodSandboxResponse> {
        reply(pods::stop(&self.runtime, request.into_inner()).await)
    }

    async fn remove_pod_sandbox(
        &self,
        request: Request<v1::RemovePodSandboxRequest>,
    ) -> Answer<v1::RemovePodSandboxResponse> {
        reply(pods::remove(&self.runtime, request.into_inner()).await)
    }

    async fn pod_sandbox_status(
        &self,
        request: Request<v1::PodSandboxStatusRequest>,
    ) -> Answer<v1::PodSandboxStatusResponse> {
        reply(pods::status(&self.runtime, request.into_inner()).await)
    }

    async fn list_pod_sandbox(
        &self,
        request: Request<v1::ListPodSandboxRequest>,
    ) -> Answer<v1::ListPodSandboxResponse> {
        let items = pods::list(&self.runtime, request.into_inner().filter);
        reply(items.map(|items| v1::ListPodSandboxResponse { items }))
    }

    async fn stream_pod_sandboxes(
        &self,
        request: Request<v1::StreamPodSandboxesRequest>,
    ) -> Answer<Self::StreamPodSandboxesStream> {
        let items = pods::list(&self.runtime, request.into_inner().filter);
        let answer = |pod_sandboxes| v1::StreamPodSandboxesResponse { pod_sandboxes };
        reply(items.map(|items| batch::stream(items, answer)))
    }

    async fn create_container(
        &self,
        request: Request<v1::CreateContainerRequest>,
    ) -> Answer<v1::CreateContainerResponse> {
        reply(containers::create(&self.runtime, request.into_inner()).await)
    }

    async fn start_container(&self, request: Request<v1::StartContainerRequest>) -> Answer<v1::StartContainerResponse> {
        reply(containers::start(&self.runtime, request.into_inner()).await)
    }

    async fn stop_container(&self, request: Request<v1::StopContainerRequest>) -> Answer<v1::StopContainerResponse> {
        reply(containers::stop(&self.runtime, request.into_inner()).await)
    }

    async fn remove_container(
        &self,
        request: Request<v1::RemoveContainerRequest>,
    ) -> Answer<v1::RemoveContainerResponse> {
        reply(containers::remove(&self.runtime, request.into_inner()).await)
    }

    async fn container_status(
        &self,
        request: Request<v1::ContainerStatusRequest>,
    ) -> Answer<v1::ContainerStatusResponse> {
        reply(containers::status(&self.runtime, request.into_inner()).await)
    }

    async fn list_containers(&self, request: Request<v1::ListContainersRequest>) -> Answer<v1::ListContainersResponse> {
        let containers = containers::list(&self.runtime, request.into_inner().filter);
        reply(containers.map(|containers| v1::ListContainersResponse { containers }))
    }

    async fn stream_containers(
        &self,
        request: Request<v1::StreamContainersRequest>,
    ) -> Answer<Self::StreamContainersStream> {
        let items = containers::list(&self.runtime, request.into_inner().filter);
        let answer = |containers| v1::StreamContainersResponse { containers };
        reply(items.map(|items| batch::stream(items, answer)))
    }

    async fn reopen_container_log(
        &self,
        request: Request<v1::ReopenContainerLogRequest>,
    ) -> Answer<v1::ReopenContainerLogResponse> {
        reply(containers::reopen_log(&self.runtime, request.into_inner()).await)
    }

    async fn exec_sync(&self, request: Request<v1::ExecSyncRequest>) -> Answer<v1::ExecSyncResponse> {
        reply(containers::exec_sync(&self.runtime, request.into_inner()).await)
    }

    async fn exec(&self, request: Request<v1::ExecRequest>) -> Answer<v1::ExecResponse> {
        streaming::exec(&self.runtime, &self.server, request.into_inner()).map(Response::new)
    }

    async fn attach(&self, request: Request<v1::AttachRequest>) -> Answer<v1::AttachResponse> {
        streaming::attach(&self.runtime, &self.server, request.into_inner()).map(Response::new)
    }

    async fn port_forward(&self, request: Request<v1::PortForwardRequest>) -> Answer<v1::PortForwardResponse> {
        streaming::port_forward(&self.runtime, &self.server, request.into_inner()).map(Response::new)
    }

    async fn update_container_resources(
        &self,
        _: Request<v1::UpdateContainerResourcesRequest>,
    ) -> Answer<v1::UpdateContainerResourcesResponse> {
        Err(later("UpdateContainerResources", "changes of limits in place are"))
    }

    async fn update_pod_sandbox_resources(
        &self,
        _: Request<v1::UpdatePodSandboxResourcesRequest>,
    ) -> Answer<v1::UpdatePodSandboxResourcesResponse> {
        Err(later("UpdatePodSandboxResources", "changes of limits in place are"))
    }

    async fn container_stats(&self, _: Request<v1::ContainerStatsRequest>) -> Answer<v1::ContainerStatsResponse> {
        Err(later("ContainerStats", "measurements are"))
    }

    async fn list_container_stats(
        &self,
        _: Request<v1::ListContainerStatsRequest>,
    ) -> Answer<v1::ListContainerStatsResponse> {
        Err(later("ListContainerStats", "measurements are"))
    }

    async fn stream_container_stats(
        &self,
        _: Request<v1::StreamContainerStatsRequest>,
    ) -> Answer<Self::StreamContainerStatsStream> {
        Err(later("StreamContainerStats", "measurements are"))
    }

    async fn pod_sandbox_stats(&self, _: Request<v1::PodSandboxStatsRequest>) -> Answer<v1::PodSandboxStatsResponse> {
        Err(later("PodSandboxStats", "measurements are"))
    }

    async fn list_pod_sandbox_stats(
        &self,
        _: Request<v1::ListPodSandboxStatsRequest>,
    ) -> Answer<v1::ListPodSandboxStatsResponse> {
        Err(later("ListPodSandboxStats", "measurements are"))
    }

    async fn stream_pod_sandbox_stats(
        &self,
        _: Request<v1::StreamPodSandboxStatsRequest>,
    ) -> Answer<Self::StreamPodSandboxStatsStream> {
        Err(later("StreamPodSandboxStats", "measurements are"))
    }

    async fn list_metric_descriptors(
        &self,
        _: Request<v1::ListMetricDescriptorsRequest>,
    ) -> Answer<v1::ListMetricDescriptorsResponse> {
        Err(later("ListMetricDescriptors", "metrics are"))
    }

    async fn list_pod_sandbox_metrics(
        &self,
        _: Request<v1::ListPodSandboxMetricsRequest>,
    ) -> Answer<v1::ListPodSandboxMetricsResponse> {
        Err(later("ListPodSandboxMetrics", "metrics are"))
    }

    async fn stream_pod_sandbox_metrics(
        &self,
        _: Request<v1::StreamPodSandboxMetricsRequest>,
    ) -> Answer<Self::StreamPodSandboxMetricsStream> {
        Err(later("StreamPodSandboxMetrics", "metrics are"))
    }

    async fn get_container_events(&self, _: Request<v1::GetEventsRequest>) -> Answer<Self::GetContainerEventsStream> {
        Err(later("GetContainerEvents", "events are"))
    }

    async fn checkpoint_container(
        &self,
        _: Request<v1::CheckpointContainerRequest>,
    ) -> Answer<v1::CheckpointContainerResponse> {
        Err(later("CheckpointContainer", "checkpoints are"))
    }

    async fn checkpoint_pod(&self, _: Request<v1::CheckpointPodRequest>) -> Answer<v1::CheckpointPodResponse> {
        Err(later("CheckpointPod", "checkpoints are"))
    }

    async fn restore_pod(&self, _: Request<v1::RestorePodRequest>) -> Answer<v1::RestorePodResponse> {
        Err(later("RestorePod", "checkpoints are"))
    }
}
