//! `podwright oci`: becomes the OCI runtime beside this program.

use std::convert::Infallible;
use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, Result};

const BINARY: &str = "podwright-oci";

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// What podwright-oci is to do: see `podwright oci --help`
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<OsString>,
}

impl Args {
    /// Executes it; returns only when that cannot be done.
    pub(super) fn exec(&self) -> Result<Infallible> {
        let own = std::env::current_exe().context("find this program's own file")?;
        let binary = own.with_file_name(BINARY);
        let error = Command::new(&binary).args(&self.args).exec();
        Err(error).with_context(|| format!("execute {}: install it there", binary.display()))
    }
}
