//! `podwright ps`: pods and their containers.

use std::collections::BTreeMap;
use std::io::{self, Write};

use anyhow::Result;
use podwright_proto::runtime::v1::{
    Container, ContainerState, ListContainersRequest, ListPodSandboxRequest, PodSandbox, PodSandboxState,
    PodSandboxStatusRequest,
};

use super::client::{Client, said};
use super::table::{Table, age, short};

/// What to list.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Also what has ended
    #[arg(short, long)]
    all: bool,
}

/// Lists.
pub(crate) async fn ps(client: &mut Client, args: &Args) -> Result<()> {
    let pods =
        client.runtime.list_pod_sandbox(ListPodSandboxRequest::default()).await.map_err(said)?.into_inner().items;
    let containers =
        client.runtime.list_containers(ListContainersRequest::default()).await.map_err(said)?.into_inner().containers;
    let mut of_pod = BTreeMap::<&str, Vec<&Container>>::new();
    for container in &containers {
        of_pod.entry(&container.pod_sandbox_id).or_default().push(container);
    }

    let mut table = Table::new(&["ID", "NAME", "STATE", "AGE", "IMAGE OR ADDRESS"]);
    for pod in pods.iter().filter(|pod| args.all || pod.state() == PodSandboxState::SandboxReady) {
        let Some(addresses) = addresses(client, &pod.id).await? else { continue };
        table.row([short(&pod.id), pod_name(pod), pod_state(pod).to_owned(), age(pod.created_at), addresses]);
        for container in of_pod.get(pod.id.as_str()).into_iter().flatten() {
            if args.all || container.state() == ContainerState::ContainerRunning {
                let Some(state) = container_state(client, container).await? else { continue };
                let name = container.metadata.as_ref().map(|metadata| metadata.name.as_str()).unwrap_or_default();
                let image = container.image.as_ref().map(|image| image_name(&image.image, &image.user_specified_image));
                let id = short(&container.id);
                table.row([id, format!("  {name}"), state, age(container.created_at), image.unwrap_or_default()]);
            }
        }
    }
    Ok(write!(io::stdout(), "{table}")?)
}

/// Asks for a pod's addresses; `None`: the pod has gone since the list was made.
async fn addresses(client: &mut Client, id: &str) -> Result<Option<String>> {
    let request = PodSandboxStatusRequest { pod_sandbox_id: id.to_owned(), verbose: false };
    let status = match client.runtime.pod_sandbox_status(request).await {
        Ok(answer) => answer.into_inner().status,
        Err(status) if status.code() == tonic::Code::NotFound => return Ok(None),
        Err(status) => return Err(said(status)),
    };
    let network = status.and_then(|status| status.network).unwrap_or_default();
    let more = network.additional_ips.into_iter().map(|address| address.ip);
    Ok(Some([network.ip].into_iter().chain(more).filter(|ip| !ip.is_empty()).collect::<Vec<_>>().join(" ")))
}

/// Tells a container's state; `None`: it has gone since the list was made.
async fn container_state(client: &mut Client, container: &Container) -> Result<Option<String>> {
    let word = match container.state() {
        ContainerState::ContainerCreated => "created",
        ContainerState::ContainerRunning => "running",
        ContainerState::ContainerUnknown => "unknown",
        ContainerState::ContainerExited => {
            return match client.container_status(&container.id).await {
                Ok(status) => Ok(Some(format!("{} ({})", status.reason, status.exit_code))),
                Err(status) if status.code() == tonic::Code::NotFound => Ok(None),
                Err(status) => Err(said(status)),
            };
        }
    };
    Ok(Some(word.to_owned()))
}

fn pod_name(pod: &PodSandbox) -> String {
    pod.metadata.as_ref().map(|metadata| format!("{}/{}", metadata.namespace, metadata.name)).unwrap_or_default()
}

fn pod_state(pod: &PodSandbox) -> &'static str {
    match pod.state() {
        PodSandboxState::SandboxReady => "ready",
        PodSandboxState::SandboxNotready => "not ready",
    }
}

/// Chooses the name that a person knows; an id is shortened.
fn image_name(image: &str, given: &str) -> String {
    match given {
        "" if image.starts_with("sha256:") => short(image),
        "" => image.to_owned(),
        given => given.to_owned(),
    }
}
