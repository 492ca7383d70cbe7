//! The daemon's own log: structured events on standard error.

use std::io;

use anyhow::Context;
use podwright_base::config::{Log, LogFormat};
use tracing_subscriber::EnvFilter;

/// Starts logging.
///
/// # Errors
/// When `log.level` is no filter.
pub(crate) fn start(log: &Log) -> anyhow::Result<()> {
    let filter =
        EnvFilter::try_new(&log.level).with_context(|| format!("the configuration: log.level = {:?}", log.level))?;
    let logger = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    match log.format {
        LogFormat::Text => logger.with_ansi(io::IsTerminal::is_terminal(&io::stderr())).init(),
        LogFormat::Json => logger.json().flatten_event(true).init(),
    }
    Ok(())
}
