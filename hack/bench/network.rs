//! Networks: what a pod's costs, as the difference that it makes to `RunPodSandbox`, among how many pods.

use std::fmt::Write;
use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use crate::chain::Chain;
use crate::client::{self, Client, Network};
use crate::stats::{Series, cell, head};

/// Host ports begin there.
const FIRST_PORT: i32 = 20_000;

/// Measure RunPodSandbox among more and more pods
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Numbers of pods, ascending, at which is measured
    #[arg(long, value_delimiter = ',', default_value = "10,100,500")]
    at: Vec<usize>,
    /// The last so many pods before each of these numbers are those that count
    #[arg(long, default_value_t = 10)]
    rounds: usize,
    /// Gives each pod a host port
    #[arg(long)]
    host_ports: bool,
    /// A .conflist file whose plugins are measured by themselves, too. Runtimes must not run out of its addresses
    #[arg(long, requires = "plugins")]
    conflist: Option<PathBuf>,
    /// The directory of the plugins
    #[arg(long)]
    plugins: Option<PathBuf>,
    /// What to call each runtime, and its socket
    #[arg(required = true, value_name = "NAME=SOCKET")]
    runtimes: Vec<String>,
}

/// Milliseconds at one number of pods.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Step {
    pods: usize,
    /// By runtime: the pod's network, and the host's.
    runtimes: Vec<(Vec<f64>, Vec<f64>)>,
    /// The plugins alone.
    plugins: Vec<f64>,
}

/// All that one run has found.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    names: Vec<String>,
    steps: Vec<Step>,
}

struct Runtime {
    client: Client,
    pods: Vec<String>,
    /// The next pod's host port, where pods have some; runtimes on one host need different ones.
    port: Option<i32>,
}

impl Runtime {
    async fn grow(&mut self) -> anyhow::Result<f64> {
        let (pod, time) = self.client.sandbox(Network::Pod, self.port).await?;
        self.pods.push(pod);
        self.port = self.port.map(|port| port + 1);
        Ok(time)
    }
}

/// Measures the runtimes, and removes all pods.
pub(crate) async fn measure(arguments: &Arguments) -> anyhow::Result<Report> {
    let (mut names, mut runtimes) = (Vec::new(), Vec::new());
    let most = i32::try_from(arguments.at.iter().max().copied().unwrap_or_default())?;
    let mut first_port = FIRST_PORT;
    for argument in &arguments.runtimes {
        let (name, socket) = client::named(argument)?;
        names.push(name.to_owned());
        let port = arguments.host_ports.then_some(first_port);
        runtimes.push(Runtime { client: Client::open(socket).await?, pods: Vec::new(), port });
        first_port += most;
    }
    let plugins = arguments.conflist.as_deref().zip(arguments.plugins.as_deref());
    let mut chain = plugins.map(|(conflist, directory)| Chain::read(conflist, directory)).transpose()?;
    let chain_port = arguments.host_ports.then_some(first_port);
    let mut steps = Vec::new();
    let mut outcome = Ok(());
    for &pods in &arguments.at {
        let step = measure_step(&mut runtimes, &mut chain, chain_port, (pods, arguments.rounds)).await;
        outcome = step.map(|step| steps.push(step));
        if outcome.is_err() {
            break;
        }
    }
    for runtime in &mut runtimes {
        for pod in std::mem::take(&mut runtime.pods) {
            runtime.client.remove_sandbox(pod).await?;
        }
    }
    outcome.map(|()| Report { names, steps })
}

async fn measure_step(
    runtimes: &mut [Runtime],
    chain: &mut Option<Chain>,
    chain_port: Option<i32>,
    (pods, rounds): (usize, usize),
) -> anyhow::Result<Step> {
    let mut step = Step { pods, ..Step::default() };
    for runtime in runtimes.iter_mut() {
        while runtime.pods.len() + rounds < pods {
            runtime.grow().await?;
        }
        step.runtimes.push((Vec::new(), Vec::new()));
    }
    for _ in 0..rounds {
        for (runtime, (pod, host)) in runtimes.iter_mut().zip(&mut step.runtimes) {
            pod.push(runtime.grow().await?);
            let (sandbox, time) = runtime.client.sandbox(Network::Host, None).await?;
            host.push(time);
            runtime.client.remove_sandbox(sandbox).await?;
        }
        if let Some(chain) = chain {
            step.plugins.push(chain.cycle(chain_port)?);
        }
    }
    Ok(step)
}

/// Draws a Markdown table: medians, with the 90th percentile in brackets.
pub(crate) fn table(report: &Report) -> String {
    let mut names: Vec<&str> = report.names.iter().map(String::as_str).collect();
    names.push("the plugins alone");
    let mut text = head("RunPodSandbox, ms, p50 (p90)", &names);
    for step in &report.steps {
        for is_pod in [true, false] {
            let name = if is_pod { "pod network" } else { "host network" };
            let _ = write!(text, "| {name}, at {} pods |", step.pods);
            for (pod, host) in &step.runtimes {
                let _ = write!(text, " {} |", cell(&Series::new(if is_pod { pod } else { host }.clone())));
            }
            let plugins = if is_pod { &step.plugins[..] } else { &[] };
            let plugins = if plugins.is_empty() { "–".to_owned() } else { cell(&Series::new(plugins.to_vec())) };
            let _ = writeln!(text, " {plugins} |");
        }
    }
    text
}
