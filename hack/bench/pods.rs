//! Pods: how long each call of their lives takes, and what memory they take.

use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use serde::Serialize;

use crate::client::{self, Client, Cycle, Network};
use crate::memory::{self, Memory};
use crate::stats::Series;

/// Measure pods, beside what the kernel alone takes for one
#[derive(Debug, Args)]
pub(crate) struct Arguments {
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
    /// What to call each runtime, and its socket
    #[arg(required = true, value_name = "NAME=SOCKET")]
    runtimes: Vec<String>,
}

/// All that one run has found.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Report {
    pub(crate) kernel_floor: Option<Series>,
    pub(crate) runtimes: Vec<Runtime>,
}

/// What was found of one runtime.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Runtime {
    pub(crate) name: String,
    pub(crate) pod_network: Vec<Cycle>,
    pub(crate) host_network: Vec<Cycle>,
    pub(crate) memory: Option<Memory>,
}

/// Measures the kernel's part, where that is asked for. Forks: the process may have no other thread yet.
pub(crate) fn floor(arguments: &Arguments) -> anyhow::Result<Option<Series>> {
    arguments.floor.as_deref().map(|root| crate::floor::measure(root, arguments.rounds)).transpose()
}

/// Measures the runtimes.
pub(crate) async fn measure(arguments: &Arguments) -> anyhow::Result<Vec<Runtime>> {
    let mut measured = Vec::new();
    for argument in &arguments.runtimes {
        let (name, socket) = client::named(argument)?;
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
