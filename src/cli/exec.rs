//! `podwright exec`: a command in a running container.

use std::io::{self, Write};

use anyhow::Result;
use podwright_proto::runtime::v1::ExecSyncRequest;

use super::client::{Client, said};
use super::command::exit_code;
use super::find;

/// What to run, and where.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Kill the command after so many seconds; 0: never
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    timeout: u32,
    /// Id, the beginning of one, or name
    container: String,
    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

/// Runs it, shows what it wrote once it has ended, and returns its exit code.
pub(crate) async fn exec(client: &mut Client, args: Args) -> Result<u8> {
    let container_id = find::container(client, &args.container).await?;
    let request = ExecSyncRequest { container_id, cmd: args.command, timeout: args.timeout.into() };
    let answer = client.runtime.exec_sync(request).await.map_err(said)?.into_inner();
    io::stdout().write_all(&answer.stdout)?;
    io::stdout().flush()?;
    io::stderr().write_all(&answer.stderr)?;
    Ok(exit_code(answer.exit_code))
}
