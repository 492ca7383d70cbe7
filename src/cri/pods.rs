//! The calls on pod sandboxes.

use podwright_core::{Error, Runtime};
use podwright_proto::runtime::v1;
use tracing::{Span, instrument};

use crate::convert;
use crate::filter::PodFilter;
use crate::parse;
use crate::parse::field::{Field, not_empty};

#[instrument(name = "RunPodSandbox", skip_all, fields(pod.name, pod.namespace, pod.id))]
pub(crate) async fn run(
    runtime: &Runtime,
    request: v1::RunPodSandboxRequest,
) -> Result<v1::RunPodSandboxResponse, Error> {
    let config = parse::pod::run_pod(request)?;
    let span = Span::current();
    span.record("pod.name", &config.metadata.name);
    span.record("pod.namespace", &config.metadata.namespace);
    let id = runtime.run_pod(config).await?;
    span.record("pod.id", id.as_str());
    Ok(v1::RunPodSandboxResponse { pod_sandbox_id: id.into() })
}

#[instrument(name = "StopPodSandbox", skip_all, fields(pod.id = request.pod_sandbox_id))]
pub(crate) async fn stop(
    runtime: &Runtime,
    request: v1::StopPodSandboxRequest,
) -> Result<v1::StopPodSandboxResponse, Error> {
    runtime.stop_pod(&id(request.pod_sandbox_id)?).await?;
    Ok(v1::StopPodSandboxResponse {})
}

#[instrument(name = "RemovePodSandbox", skip_all, fields(pod.id = request.pod_sandbox_id))]
pub(crate) async fn remove(
    runtime: &Runtime,
    request: v1::RemovePodSandboxRequest,
) -> Result<v1::RemovePodSandboxResponse, Error> {
    runtime.remove_pod(&id(request.pod_sandbox_id)?).await?;
    Ok(v1::RemovePodSandboxResponse {})
}

pub(crate) async fn status(
    runtime: &Runtime,
    request: v1::PodSandboxStatusRequest,
) -> Result<v1::PodSandboxStatusResponse, Error> {
    // Taken before the look: what is told was true then or later.
    let timestamp = convert::now();
    let pod = runtime.pod(&id(request.pod_sandbox_id)?)?;
    let info = match request.verbose {
        true => {
            let network = runtime.network_details(&pod).await;
            Some(convert::info("info", &convert::pod::details(&pod, network)))
        }
        false => None,
    };
    Ok(v1::PodSandboxStatusResponse {
        status: Some(convert::pod::status(&pod)),
        info: info.unwrap_or_default(),
        containers_statuses: convert::pod::containers(&pod),
        timestamp,
    })
}

/// Lists the pods that pass a filter.
pub(crate) fn list(runtime: &Runtime, filter: Option<v1::PodSandboxFilter>) -> Result<Vec<v1::PodSandbox>, Error> {
    let filter = PodFilter::parse(filter)?;
    let pods = runtime.pods();
    Ok(pods.iter().filter(|pod| filter.fits(pod)).map(|pod| convert::pod::item(pod)).collect())
}

/// An empty id would be the beginning of every id.
fn id(id: String) -> Result<String, Error> {
    not_empty(id, Field::root("pod_sandbox_id"))
}
