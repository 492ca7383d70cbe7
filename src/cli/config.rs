//! `podwright config`: the configuration as text.

use std::io::Write;

use clap::Subcommand;

/// Print configuration.
#[derive(Debug, Subcommand)]
pub(crate) enum Config {
    /// Print the configuration file with every key, its default and what it means.
    Default,
}

impl Config {
    /// Prints it.
    pub(crate) fn run(&self) -> anyhow::Result<()> {
        match self {
            Self::Default => {
                std::io::stdout().write_all(podwright_base::config_file::DOCUMENTED.as_bytes())?;
                Ok(())
            }
        }
    }
}
