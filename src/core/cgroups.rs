//! Clearing control groups: whatever runs in them is killed, then the directories go.

use std::path::PathBuf;
use std::time::Duration;

use podwright_compile::CgroupPath;
use podwright_sys::cgroup;
use tokio::time::sleep;

use crate::error::{Error, Failures};
use crate::node::Node;

/// How often, and how long between, a directory is tried whose processes are still dying.
const TRIES: u32 = 40;
const PAUSE: Duration = Duration::from_millis(25);

/// Kills what is in a cgroup and removes it from every hierarchy. A missing one is fine.
///
/// # Errors
/// Every directory that could not be removed.
pub(crate) async fn clear(node: &Node, path: String) -> Result<(), Error> {
    let mut failures = Failures::default();
    let cgroup = parse(&path)?;
    if let Some(dir) = node.facts.cgroup.kill_directory(&cgroup) {
        failures.note(format!("kill the processes of {}", dir.display()), on_thread(dir, cgroup::kill).await);
    }
    for dir in node.facts.cgroup.directories(&cgroup) {
        failures.note(format!("remove {}", dir.display()), remove(dir).await);
    }
    failures.into_result(format!("cgroup {path}"))
}

/// Reads a cgroup's path, which the daemon itself has put together.
///
/// # Errors
/// When it is none: a record was tampered with.
pub(crate) fn parse(path: &str) -> Result<CgroupPath, Error> {
    path.parse().map_err(|source| Error::step(format!("use the cgroup {path:?}"), source))
}

async fn remove(dir: PathBuf) -> std::io::Result<()> {
    let mut tries = 0;
    loop {
        tries += 1;
        match on_thread(dir.clone(), cgroup::remove).await {
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::BUSY.raw_os_error()) && tries < TRIES => {
                sleep(PAUSE).await;
            }
            other => return other,
        }
    }
}

/// Runs a call on the cgroup file system where it may block.
async fn on_thread(dir: PathBuf, call: fn(&std::path::Path) -> Result<(), rustix::io::Errno>) -> std::io::Result<()> {
    match tokio::task::spawn_blocking(move || call(&dir)).await {
        Ok(result) => result.map_err(Into::into),
        Err(error) => Err(std::io::Error::other(error)),
    }
}
