//! `podwright run`: one container in a pod of its own, from pull to removal.

use std::fs::{self, DirBuilder};
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, anyhow, bail};
use podwright_base::PodId;
use podwright_proto::runtime::v1::{
    ContainerState, ContainerStatus, CreateContainerRequest, ListPodSandboxRequest, PodSandboxFilter,
    PodSandboxStatusRequest, RunPodSandboxRequest, StartContainerRequest, StopContainerRequest,
};

use super::client::{Client, Patience, said};
use super::command::exit_code;
use super::image;
use super::interrupt::Interrupts;
use super::logs::{INTERVAL, Log};
use super::request::Flags;
use super::rm::remove_pod;

/// Marks the pods of this command, each with a value of its own: how they are found again whatever happened.
const LABEL: &str = "io.podwright.run";
/// Seconds that the container gets to end after the first Ctrl-C; the second kills it.
const GRACE: i64 = 10;

/// What to run, and how.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Name of the pod and of the container
    #[arg(long)]
    name: Option<String>,
    #[command(flatten)]
    flags: Flags,
    /// Leave the pod, the container and its log
    #[arg(long)]
    keep: bool,
    /// Tell on stderr the pod's address and how long the start took
    #[arg(long)]
    timing: bool,
    /// The image's name or id
    image: String,
    /// Arguments in place of the image's own
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
    command: Vec<String>,
}

/// Runs it, and returns the container's exit code.
pub(crate) async fn run(client: &mut Client, args: Args) -> Result<u8> {
    let mut interrupts = Interrupts::install()?;
    let image = tokio::select! {
        image = image::ensure(client, &args.image) => image?,
        code = interrupts.next() => return Ok(code),
    };
    let run = Run::new(args)?;
    let mut starter = client.clone();
    // A creation that is cut off goes on in the daemon; the clean-up below finds what it made by its label.
    let (outcome, keep) = tokio::select! {
        started = run.start(&mut starter, &image) => match started {
            Ok(container) => (run.attend(client, &container, &mut interrupts).await, run.args.keep),
            Err(error) => (Err(error), false),
        },
        code = interrupts.next() => (Ok(code), false),
    };
    if keep {
        return outcome;
    }
    match (outcome, run.clean(client).await) {
        (Ok(code), Ok(())) => Ok(code),
        (Err(error), Ok(())) | (Ok(_), Err(error)) => Err(error),
        (Err(error), Err(left)) => Err(anyhow!("{error:#}; and then: {left:#}")),
    }
}

/// One run of the command.
struct Run {
    args: Args,
    name: String,
    mark: String,
    logs: PathBuf,
}

impl Run {
    fn new(args: Args) -> Result<Self> {
        let mark = PodId::random().to_string();
        let name = args.name.clone().unwrap_or_else(|| format!("{}-{}", base_name(&args.image), &mark[..6]));
        if name.is_empty() || name.contains('/') {
            bail!("--name: {name:?} is no name");
        }
        let logs = std::env::temp_dir().join(format!("podwright-run-{}", &mark[..12]));
        // The container's output is its owner's alone.
        DirBuilder::new().mode(0o700).create(&logs).with_context(|| format!("make directory {}", logs.display()))?;
        Ok(Self { args, name, mark, logs })
    }

    /// Makes the pod and the container, and returns the container's id once its program runs.
    async fn start(&self, client: &mut Client, image: &str) -> Result<String> {
        let (flags, name) = (&self.args.flags, &self.name);
        let pod_config = flags.pod(name, &self.mark[..32], &self.logs, (LABEL, &self.mark));
        let config = flags.container(name, image, &self.args.image, &self.args.command);
        let mut timing = Timing::begin();
        let request = RunPodSandboxRequest { config: Some(pod_config.clone()), runtime_handler: String::new() };
        let answer = client.runtime.run_pod_sandbox(request).await.map_err(said).context("make the pod")?;
        let pod = answer.into_inner().pod_sandbox_id;
        timing.lap("RunPodSandbox");
        let request = CreateContainerRequest {
            pod_sandbox_id: pod.clone(),
            config: Some(config),
            sandbox_config: Some(pod_config),
        };
        let answer = client.runtime.create_container(request).await.map_err(said).context("make the container")?;
        let container = answer.into_inner().container_id;
        timing.lap("CreateContainer");
        let request = StartContainerRequest { container_id: container.clone() };
        client.runtime.start_container(request).await.map_err(said).context("start the container")?;
        timing.lap("StartContainer");
        if self.args.timing {
            let started_at = client.container_status(&container).await.map_err(said)?.started_at;
            timing.tell(&pod_address(client, &pod).await?, started_at)?;
        }
        if self.args.keep {
            writeln!(io::stderr(), "pod {pod}\ncontainer {container}")?;
        }
        Ok(container)
    }

    /// Copies the log until the container has ended, and returns its exit code.
    async fn attend(&self, client: &mut Client, container: &str, interrupts: &mut Interrupts) -> Result<u8> {
        let mut log = Log::new(&self.logs.join(format!("{}.log", self.name)));
        let mut grace = GRACE;
        let mut patience = Patience::new();
        loop {
            // Asked before the log is read: what a container that has ended wrote is all in it.
            let status = patience.bear(client.container_status(container).await);
            let status = status.map_err(said).context("wait for the container")?;
            let ended = status.filter(|status| status.state() == ContainerState::ContainerExited);
            log.copy()?;
            if let Some(status) = ended {
                return explained(&status);
            }
            tokio::select! {
                () = tokio::time::sleep(INTERVAL) => {}
                _ = interrupts.next() => {
                    let request = StopContainerRequest { container_id: container.to_owned(), timeout: grace };
                    grace = 0;
                    // Answered only when the container has ended, which the loop sees by itself, as it does the
                    // log. A failure shows by the container running on; the next Ctrl-C tries again.
                    let mut runtime = client.runtime.clone();
                    tokio::spawn(async move { runtime.stop_container(request).await });
                }
            }
        }
    }

    /// Removes the pod, and the log after it.
    async fn clean(&self, client: &mut Client) -> Result<()> {
        let filter =
            PodSandboxFilter { label_selector: [(LABEL.to_owned(), self.mark.clone())].into(), ..Default::default() };
        let request = ListPodSandboxRequest { filter: Some(filter) };
        let pods = client.runtime.list_pod_sandbox(request).await.map_err(said).context("find the pod to remove")?;
        for pod in pods.into_inner().items {
            remove_pod(client, &pod.id).await.with_context(|| format!("remove pod {}", pod.id))?;
        }
        fs::remove_dir_all(&self.logs).with_context(|| format!("remove directory {}", self.logs.display()))
    }
}

/// Returns the exit code; says why where the container's own output cannot.
fn explained(status: &ContainerStatus) -> Result<u8> {
    let own_words = matches!(status.reason.as_str(), "Completed" | "Error");
    if !own_words {
        let message = Some(&status.message).filter(|text| !text.is_empty()).map(|text| format!(": {text}"));
        writeln!(io::stderr(), "podwright: {}{}", status.reason, message.unwrap_or_default())?;
    }
    Ok(exit_code(status.exit_code))
}

async fn pod_address(client: &mut Client, pod: &str) -> Result<String> {
    let request = PodSandboxStatusRequest { pod_sandbox_id: pod.to_owned(), verbose: false };
    let answer = client.runtime.pod_sandbox_status(request).await.map_err(said)?.into_inner();
    let ip = answer.status.and_then(|status| status.network).map(|network| network.ip).unwrap_or_default();
    Ok(if ip.is_empty() { "none, on the host's network".to_owned() } else { ip })
}

/// Makes a name of an image's: the last part, without tag and digest.
fn base_name(image: &str) -> &str {
    let whole = image.split('@').next().unwrap_or(image);
    let last = whole.rsplit('/').next().unwrap_or(whole);
    match last.split(':').next() {
        // An id tells nothing, but for its digits.
        None | Some("" | "sha256") => "run",
        Some(name) => name,
    }
}

/// How long each step took.
struct Timing {
    began: SystemTime,
    last: Instant,
    laps: Vec<(&'static str, Duration)>,
}

impl Timing {
    fn begin() -> Self {
        Self { began: SystemTime::now(), last: Instant::now(), laps: Vec::new() }
    }

    fn lap(&mut self, step: &'static str) {
        let now = Instant::now();
        self.laps.push((step, now - self.last));
        self.last = now;
    }

    fn tell(&self, address: &str, started_at: i64) -> io::Result<()> {
        let ms = |duration: Duration| format!("{:.1} ms", duration.as_secs_f64() * 1e3);
        let began = self.began.duration_since(UNIX_EPOCH).unwrap_or_default();
        // Both clocks are this machine's.
        let started = Duration::from_nanos(u64::try_from(started_at).unwrap_or_default()).saturating_sub(began);
        let laps = self.laps.iter().map(|(step, took)| format!("{step} {}", ms(*took))).collect::<Vec<_>>().join(", ");
        let mut stderr = io::stderr().lock();
        writeln!(stderr, "pod address: {address}")?;
        writeln!(stderr, "process started {} after the call of RunPodSandbox ({laps})", ms(started))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_lend_their_names() {
        for (image, want) in [
            ("nginx", "nginx"),
            ("registry.example:5000/a/web:1.2", "web"),
            ("web@sha256:abc", "web"),
            ("sha256:abc", "run"),
            (":1", "run"),
        ] {
            assert_eq!(base_name(image), want, "{image}");
        }
    }
}
