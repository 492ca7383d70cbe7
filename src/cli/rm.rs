//! `podwright rm`: pods and containers go away.

use std::io::{self, Write};

use anyhow::{Context, Result, bail};
use podwright_proto::runtime::v1::{
    Container, ContainerState, ListContainersRequest, ListPodSandboxRequest, PodSandbox, RemoveContainerRequest,
    RemovePodSandboxRequest, StopContainerRequest, StopPodSandboxRequest,
};

use super::client::{Client, said};
use super::find::{Candidate, pick};

/// Seconds that a running container gets to end by itself.
const GRACE: i64 = 10;

/// What to remove.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Stop what is running first
    #[arg(short, long)]
    force: bool,
    /// Ids, the beginnings of some, or names
    #[arg(required = true, value_name = "POD|CONTAINER")]
    words: Vec<String>,
}

/// Removes all that can be removed, and tells of the rest.
pub(crate) async fn rm(client: &mut Client, args: &Args) -> Result<()> {
    let mut failures = Vec::new();
    for word in &args.words {
        match remove(client, word, args.force).await {
            Ok(id) => writeln!(io::stdout(), "{id}")?,
            Err(error) => failures.push(format!("{error:#}")),
        }
    }
    if failures.is_empty() { Ok(()) } else { bail!("{}", failures.join("; ")) }
}

async fn remove(client: &mut Client, word: &str, force: bool) -> Result<String> {
    let pods =
        client.runtime.list_pod_sandbox(ListPodSandboxRequest::default()).await.map_err(said)?.into_inner().items;
    let containers =
        client.runtime.list_containers(ListContainersRequest::default()).await.map_err(said)?.into_inner().containers;
    let target = choose(&pods, &containers, word, force)?;
    match &target {
        Target::Pod(id) => remove_pod(client, id).await.with_context(|| format!("remove pod {word}"))?,
        Target::Container(id) => {
            let what = || format!("remove container {word}");
            let stop = StopContainerRequest { container_id: id.clone(), timeout: GRACE };
            client.runtime.stop_container(stop).await.map_err(said).with_context(what)?;
            let remove = RemoveContainerRequest { container_id: id.clone() };
            client.runtime.remove_container(remove).await.map_err(said).with_context(what)?;
        }
    }
    let (Target::Pod(id) | Target::Container(id)) = target;
    Ok(id)
}

/// Stops a pod and removes it with all that is in it.
pub(crate) async fn remove_pod(client: &mut Client, id: &str) -> Result<()> {
    let stop = StopPodSandboxRequest { pod_sandbox_id: id.to_owned() };
    client.runtime.stop_pod_sandbox(stop).await.map_err(said)?;
    let remove = RemovePodSandboxRequest { pod_sandbox_id: id.to_owned() };
    client.runtime.remove_pod_sandbox(remove).await.map_err(said)?;
    Ok(())
}

#[derive(Debug, PartialEq, Eq)]
enum Target {
    Pod(String),
    Container(String),
}

/// Decides what a word means. A pod goes before a container of the same name, which is most likely the one in it.
fn choose(pods: &[PodSandbox], containers: &[Container], word: &str, force: bool) -> Result<Target> {
    let running = |container: &&Container| container.state() == ContainerState::ContainerRunning;
    let in_pod = |id: &str| containers.iter().filter(running).any(|container| container.pod_sandbox_id == id);
    let pod_candidates: Vec<_> = pods
        .iter()
        .map(|pod| Candidate {
            id: pod.id.clone(),
            name: pod.metadata.as_ref().map(|metadata| metadata.name.clone()).unwrap_or_default(),
            live: in_pod(&pod.id),
        })
        .collect();
    if let Some(pod) = pick(&pod_candidates, word, "pods")? {
        if pod.live && !force {
            bail!("pod {word} has running containers: add -f to stop them first");
        }
        return Ok(Target::Pod(pod.id.clone()));
    }
    let candidates: Vec<_> = containers.iter().map(Candidate::from).collect();
    match pick(&candidates, word, "containers")? {
        Some(container) if container.live && !force => {
            bail!("container {word} is running: add -f to stop it first")
        }
        Some(container) => Ok(Target::Container(container.id.clone())),
        None => bail!("there is no pod or container {word:?}: `podwright ps -a` lists them"),
    }
}

#[cfg(test)]
mod tests {
    use podwright_proto::runtime::v1::{ContainerMetadata, PodSandboxMetadata};

    use super::*;

    fn pod(id: &str, name: &str) -> PodSandbox {
        let metadata = Some(PodSandboxMetadata { name: name.into(), ..Default::default() });
        PodSandbox { id: id.into(), metadata, ..Default::default() }
    }

    fn container(id: &str, pod: &str, name: &str, state: ContainerState) -> Container {
        Container {
            id: id.into(),
            pod_sandbox_id: pod.into(),
            metadata: Some(ContainerMetadata { name: name.into(), attempt: 0 }),
            state: state.into(),
            ..Default::default()
        }
    }

    #[test]
    fn what_runs_is_only_removed_by_force() {
        let pods = [pod("p1", "web"), pod("p2", "job")];
        let containers = [
            container("c1", "p1", "web", ContainerState::ContainerRunning),
            container("c2", "p2", "step", ContainerState::ContainerExited),
        ];
        let choose = |word, force| choose(&pods, &containers, word, force).map_err(|error| error.to_string());
        assert!(choose("web", false).unwrap_err().contains("running containers"));
        assert_eq!(choose("web", true), Ok(Target::Pod("p1".into())));
        assert_eq!(choose("job", false), Ok(Target::Pod("p2".into())));
        assert!(choose("c1", false).unwrap_err().contains("is running"));
        assert_eq!(choose("c1", true), Ok(Target::Container("c1".into())));
        assert_eq!(choose("step", false), Ok(Target::Container("c2".into())));
        assert!(choose("nothing", true).unwrap_err().contains("no pod or container"));
    }
}
