//! Ctrl-C and SIGTERM, as something to wait for.

use anyhow::{Context, Result};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Both signals, which from now on do not end this process.
pub(crate) struct Interrupts {
    int: Signal,
    term: Signal,
}

impl Interrupts {
    /// Takes the signals over.
    pub(crate) fn install() -> Result<Self> {
        let take = |kind| signal(kind).context("cannot handle signals");
        Ok(Self { int: take(SignalKind::interrupt())?, term: take(SignalKind::terminate())? })
    }

    /// Waits for the next signal and returns the exit code that programs ended by it have.
    pub(crate) async fn next(&mut self) -> u8 {
        tokio::select! {
            _ = self.int.recv() => 128 + 2,
            _ = self.term.recv() => 128 + 15,
        }
    }
}
