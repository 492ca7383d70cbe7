//! The calls on containers.

use std::collections::BTreeMap;
use std::time::Duration;

use podwright_core::view::ContainerView;
use podwright_core::{Error, Runtime};
use podwright_proto::runtime::v1;
use serde_json::Value;
use tracing::{Span, instrument};

use crate::convert;
use crate::filter::ContainerFilter;
use crate::parse;
use crate::parse::field::{Field, not_empty, texts};

/// The longest time that is told apart from "for ever": a clock cannot add every number of seconds that a request holds.
const LONGEST: u64 = 365 * 24 * 60 * 60;

#[instrument(name = "CreateContainer", skip_all, fields(pod.id = request.pod_sandbox_id, container.name, container.id))]
pub(crate) async fn create(
    runtime: &Runtime,
    request: v1::CreateContainerRequest,
) -> Result<v1::CreateContainerResponse, Error> {
    let (pod, config) = parse::container::create(request)?;
    let span = Span::current();
    span.record("container.name", &config.metadata.name);
    let id = runtime.create_container(&pod, config).await?;
    span.record("container.id", id.as_str());
    Ok(v1::CreateContainerResponse { container_id: id.into() })
}

#[instrument(name = "StartContainer", skip_all, fields(container.id = request.container_id))]
pub(crate) async fn start(
    runtime: &Runtime,
    request: v1::StartContainerRequest,
) -> Result<v1::StartContainerResponse, Error> {
    runtime.start_container(&id(request.container_id)?).await?;
    Ok(v1::StartContainerResponse {})
}

#[instrument(name = "StopContainer", skip_all, fields(container.id = request.container_id, timeout = request.timeout))]
pub(crate) async fn stop(
    runtime: &Runtime,
    request: v1::StopContainerRequest,
) -> Result<v1::StopContainerResponse, Error> {
    let grace = seconds(request.timeout)?;
    runtime.stop_container(&id(request.container_id)?, grace).await?;
    Ok(v1::StopContainerResponse {})
}

#[instrument(name = "RemoveContainer", skip_all, fields(container.id = request.container_id))]
pub(crate) async fn remove(
    runtime: &Runtime,
    request: v1::RemoveContainerRequest,
) -> Result<v1::RemoveContainerResponse, Error> {
    runtime.remove_container(&id(request.container_id)?).await?;
    Ok(v1::RemoveContainerResponse {})
}

pub(crate) async fn status(
    runtime: &Runtime,
    request: v1::ContainerStatusRequest,
) -> Result<v1::ContainerStatusResponse, Error> {
    let container = runtime.container(&id(request.container_id)?)?;
    let info = if request.verbose { details(&container).await? } else { BTreeMap::new() };
    Ok(v1::ContainerStatusResponse { status: Some(convert::container::status(&container)), info })
}

/// Lists the containers that pass a filter.
pub(crate) fn list(runtime: &Runtime, filter: Option<v1::ContainerFilter>) -> Result<Vec<v1::Container>, Error> {
    let filter = ContainerFilter::parse(filter)?;
    let containers = runtime.containers();
    let fitting = containers.iter().filter(|container| filter.fits(container));
    Ok(fitting.map(|container| convert::container::item(container)).collect())
}

#[instrument(name = "ReopenContainerLog", skip_all, fields(container.id = request.container_id))]
pub(crate) async fn reopen_log(
    runtime: &Runtime,
    request: v1::ReopenContainerLogRequest,
) -> Result<v1::ReopenContainerLogResponse, Error> {
    runtime.reopen_log(&id(request.container_id)?).await?;
    Ok(v1::ReopenContainerLogResponse {})
}

#[instrument(name = "ExecSync", skip_all, fields(container.id = request.container_id))]
pub(crate) async fn exec_sync(runtime: &Runtime, request: v1::ExecSyncRequest) -> Result<v1::ExecSyncResponse, Error> {
    let field = Field::root("cmd");
    let command = texts(request.cmd, field)?;
    if command.first().is_none_or(String::is_empty) {
        return Err(field.invalid("names no program"));
    }
    let limit = Some(seconds(request.timeout)?).filter(|limit| !limit.is_zero());
    let output = runtime.exec_sync(&id(request.container_id)?, command, limit).await?;
    Ok(convert::container::exec_output(output))
}

/// An empty id would be the beginning of every id.
fn id(id: String) -> Result<String, Error> {
    not_empty(id, Field::root("container_id"))
}

fn seconds(timeout: i64) -> Result<Duration, Error> {
    match u64::try_from(timeout) {
        Ok(seconds) => Ok(Duration::from_secs(seconds.min(LONGEST))),
        Err(_) => Err(Field::root("timeout").invalid(format!("{timeout} is negative"))),
    }
}

async fn details(container: &ContainerView) -> Result<BTreeMap<String, String>, Error> {
    let path = &container.bundle_config;
    let step = || format!("read {}", path.display());
    let text = tokio::fs::read(path).await.map_err(|error| Error::step(step(), error))?;
    let runtime_spec: Value = serde_json::from_slice(&text).map_err(|error| Error::step(step(), error))?;
    Ok(convert::info("info", &convert::container::details(container, runtime_spec)))
}
