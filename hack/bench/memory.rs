//! What memory a runtime takes: the proportional set size (PSS) of its processes, read from `/proc`.

use std::fs;
use std::path::Path;

use anyhow::Context;
use serde::Serialize;

use crate::client::{Client, Network, daemon};

/// Commands, as the kernel cuts their names, that runtimes leave running for a pod.
const OWN: [&str; 4] = ["podwright-shim", "containerd-shim", "conmon", "pause"];

/// Memory at a number of pods, in KiB.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Memory {
    /// Pods alive at once.
    pub(crate) pods: usize,
    /// PSS of the process that listens on the socket.
    pub(crate) daemon: u64,
    /// PSS of the runtime's own processes beside it (shims, monitors, pause), per pod.
    pub(crate) per_pod: u64,
    /// By how much `MemAvailable` fell, per pod; what the container itself takes is in it.
    pub(crate) available_drop: u64,
}

/// Runs pods, measures, removes them.
pub(crate) async fn measure(client: &mut Client, pods: usize) -> anyhow::Result<Memory> {
    let daemon = daemon(client.socket()).await?;
    let before = available()?;
    let known = processes();
    let mut running = Vec::new();
    for _ in 0..pods {
        running.push(client.start(Network::Pod).await?.0);
    }
    let after = available()?;
    let own = processes().into_iter().filter(|pid| !known.contains(pid) && OWN.contains(&command(*pid).as_str()));
    let shims: u64 = own.filter_map(|pid| pss(Path::new("/proc").join(pid.to_string()).as_path()).ok()).sum();
    let memory = Memory {
        pods,
        daemon: pss(Path::new("/proc").join(daemon.to_string()).as_path())?,
        per_pod: shims / pods as u64,
        available_drop: before.saturating_sub(after) / pods as u64,
    };
    for pod in running {
        client.remove(pod).await?;
    }
    Ok(memory)
}

/// All processes of this host.
pub(crate) fn processes() -> Vec<u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

fn command(pid: u32) -> String {
    fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim().to_owned()
}

fn pss(process: &Path) -> anyhow::Result<u64> {
    field(&process.join("smaps_rollup"), "Pss:")
}

fn available() -> anyhow::Result<u64> {
    field(Path::new("/proc/meminfo"), "MemAvailable:")
}

/// Reads a line of the kernel's `Name: N kB` form.
fn field(path: &Path, name: &str) -> anyhow::Result<u64> {
    let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    let value = text.lines().find_map(|line| line.strip_prefix(name));
    let value = value.and_then(|value| value.split_ascii_whitespace().next());
    value.with_context(|| format!("{} has no {name}", path.display()))?.parse().context("a number of KiB")
}
