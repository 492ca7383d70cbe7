//! Measures a CRI runtime through its socket, the same way whichever runtime it is, beside what the kernel alone
//! charges for a pod and a container on this machine.
//!
//! ```text
//! podwright-bench [--rounds N] --image REF NAME=SOCKET [NAME=SOCKET …]
//! ```
//! Runtimes take turns, round by round, so that what else the machine does strikes all alike. One table on standard
//! output, everything as JSON with `--json FILE`.

mod client;
mod floor;
mod memory;
mod stats;

use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::Parser;
use serde::Serialize;

use client::{Client, Cycle, Network};
use memory::Memory;
use stats::{Series, table};

/// Measure CRI runtimes side by side.
#[derive(Debug, Parser)]
struct Arguments {
    /// Pods that are run, one after the other, for each runtime and kind of network
    #[arg(long, default_value_t = 40)]
    rounds: usize,
    /// Pods alive at once while memory is measured; 0 leaves that out
    #[arg(long, default_value_t = 20)]
    pods: usize,
    /// An image that every runtime has or can pull, with /bin/true and /bin/sleep in it
    #[arg(long)]
    image: String,
    /// A directory with a static /bin/true in it: the floor's root file system; unset: no floor is measured
    #[arg(long)]
    floor: Option<PathBuf>,
    /// Writes all results there too
    #[arg(long)]
    json: Option<PathBuf>,
    /// What to call each runtime, and its socket
    #[arg(required = true, value_name = "NAME=SOCKET")]
    runtimes: Vec<String>,
}

/// All that one run has found.
#[derive(Debug, Default, Serialize)]
struct Report {
    kernel_floor: Option<Series>,
    runtimes: Vec<Runtime>,
}

/// What was found of one runtime.
#[derive(Debug, Default, Serialize)]
struct Runtime {
    name: String,
    pod_network: Vec<Cycle>,
    host_network: Vec<Cycle>,
    memory: Option<Memory>,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    // The floor forks, which takes a process that has no other thread yet.
    let kernel_floor = arguments.floor.as_deref().map(|root| floor::measure(root, arguments.rounds)).transpose()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let runtimes = runtime.block_on(measure(&arguments))?;
    let report = Report { kernel_floor, runtimes };
    if let Some(path) = &arguments.json {
        std::fs::write(path, serde_json::to_vec_pretty(&report)?)
            .with_context(|| format!("write {}", path.display()))?;
    }
    std::io::stdout().write_all(table(&report).as_bytes())?;
    Ok(())
}

async fn measure(arguments: &Arguments) -> anyhow::Result<Vec<Runtime>> {
    let mut measured = Vec::new();
    for argument in &arguments.runtimes {
        let Some((name, socket)) = argument.split_once('=') else { bail!("{argument:?} is not NAME=SOCKET") };
        let mut client = Client::connect(socket, &arguments.image).await.with_context(|| format!("use {name}"))?;
        // What is loaded once (binaries, profiles, caches) is not what a pod costs.
        client.cycle(Network::Pod).await?;
        measured.push((client, Runtime { name: name.to_owned(), ..Runtime::default() }));
    }
    for _ in 0..arguments.rounds {
        for (client, found) in &mut measured {
            found.pod_network.push(client.cycle(Network::Pod).await?);
            found.host_network.push(client.cycle(Network::Host).await?);
        }
    }
    if arguments.pods > 0 {
        for (client, found) in &mut measured {
            found.memory = Some(memory::measure(client, arguments.pods).await?);
        }
    }
    Ok(measured.into_iter().map(|(_, found)| found).collect())
}
