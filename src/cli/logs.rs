//! `podwright logs`: what a container wrote.

use std::io;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use podwright_proto::runtime::v1::ContainerState;

use super::client::{Client, Patience, said};
use super::cri_log::LogReader;
use super::find;

/// How often a log is looked at.
pub(crate) const INTERVAL: Duration = Duration::from_millis(50);

/// Whose log to show.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Go on until the container ends
    #[arg(short, long)]
    follow: bool,
    /// Id, the beginning of one, or name
    container: String,
}

/// Shows it: what the container wrote to stderr on stderr.
pub(crate) async fn logs(client: &mut Client, args: &Args) -> Result<()> {
    let id = find::container(client, &args.container).await?;
    let status = client.container_status(&id).await.map_err(said)?;
    if status.log_path.is_empty() {
        bail!("container {} has no log", args.container);
    }
    let mut log = Log::new(Path::new(&status.log_path));
    if !args.follow {
        return log.copy();
    }
    let mut patience = Patience::new();
    loop {
        // Asked before the log is read: what a container that has ended wrote is all in it.
        let ended = match patience.bear(client.container_status(&id).await) {
            Ok(status) => status.is_some_and(|status| status.state() == ContainerState::ContainerExited),
            Err(status) if status.code() == tonic::Code::NotFound => true,
            Err(status) => return Err(said(status)),
        };
        log.copy()?;
        if ended {
            return Ok(());
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

/// A log that is copied to this process's own streams.
pub(crate) struct Log {
    reader: LogReader,
    what: String,
}

impl Log {
    /// Makes ready to copy the log at `path`.
    pub(crate) fn new(path: &Path) -> Self {
        Self { reader: LogReader::new(path), what: format!("copy log {}", path.display()) }
    }

    /// Copies what is new.
    pub(crate) fn copy(&mut self) -> Result<()> {
        self.reader.copy(&mut io::stdout().lock(), &mut io::stderr().lock()).with_context(|| self.what.clone())
    }
}
