//! Measures CRI runtimes through their sockets, the same way whichever runtime it is.
//!
//! ```text
//! podwright-bench pods --image REF NAME=SOCKET…    pods: time and memory, beside what the kernel alone takes
//! podwright-bench network NAME=SOCKET…             networks: RunPodSandbox among more and more pods
//! podwright-bench image DIRECTORY                  makes a large image
//! podwright-bench pull --image REF NAME=SOCKET…    cold pulls: wall and processor time
//! ```
//! Runtimes take turns, round by round, so that what else the machine does strikes all alike. One table on standard
//! output, everything as JSON with `--json FILE`.

mod chain;
mod client;
mod cpu;
mod floor;
mod image;
mod memory;
mod network;
mod pods;
mod pull;
mod seeded;
mod stats;

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{Parser, Subcommand};
use serde::Serialize;

/// Measure CRI runtimes side by side.
#[derive(Debug, Parser)]
struct Arguments {
    /// Writes all results there too
    #[arg(long, global = true)]
    json: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Pods(pods::Arguments),
    Network(network::Arguments),
    Image(image::Arguments),
    Pull(pull::Arguments),
}

fn main() -> anyhow::Result<()> {
    let Arguments { json, command } = Arguments::parse();
    match command {
        Command::Pods(arguments) => {
            // The floor forks, which takes a process that has no other thread yet.
            let kernel_floor = pods::floor(&arguments)?;
            let runtimes = block_on(pods::measure(&arguments))?;
            let report = pods::Report { kernel_floor, runtimes };
            show(json.as_deref(), &report, &stats::pods(&report))
        }
        Command::Network(arguments) => {
            let report = block_on(network::measure(&arguments))?;
            show(json.as_deref(), &report, &network::table(&report))
        }
        Command::Image(arguments) => image::make(&arguments),
        Command::Pull(arguments) => {
            let report = block_on(pull::measure(&arguments))?;
            show(json.as_deref(), &report, &stats::pulls(&report))
        }
    }
}

fn block_on<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work)
}

fn show(json: Option<&Path>, report: &impl Serialize, table: &str) -> anyhow::Result<()> {
    if let Some(path) = json {
        std::fs::write(path, serde_json::to_vec_pretty(report)?)
            .with_context(|| format!("write {}", path.display()))?;
    }
    Ok(std::io::stdout().write_all(table.as_bytes())?)
}
