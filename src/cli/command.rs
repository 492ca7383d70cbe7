//! The commands that talk to a daemon over its socket.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;
use podwright_base::Layout;
use podwright_base::paths::{DEFAULT_ROOT, DEFAULT_STATE};

use super::client::Client;
use super::{exec, image, logs, ps, rm, run};

/// Exit code of a command that hands on another program's, for failures of its own.
const OWN_FAILURE: u8 = 125;

/// A command for a running daemon.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Run a container in a pod of its own, show its output, and remove both when it ends
    Run(run::Args),
    /// List pods and their containers
    Ps(ps::Args),
    /// Show what a container wrote
    Logs(logs::Args),
    /// Run a command in a running container
    Exec(exec::Args),
    /// Remove pods and containers
    Rm(rm::Args),
    /// Look after images
    #[command(subcommand)]
    Image(image::Command),
}

impl Command {
    /// Returns the exit code of a failure that is not the container's.
    fn own_failure(&self) -> u8 {
        match self {
            Self::Run(_) | Self::Exec(_) => OWN_FAILURE,
            Self::Ps(_) | Self::Logs(_) | Self::Rm(_) | Self::Image(_) => 1,
        }
    }
}

/// Does a command at the daemon that listens on `address`, else on the default socket; a failure is told in one line on
/// stderr.
pub(super) fn execute(address: Option<PathBuf>, command: Command) -> ExitCode {
    let socket = address.unwrap_or_else(|| Layout::new(DEFAULT_ROOT, DEFAULT_STATE).socket());
    let own_failure = command.own_failure();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    match runtime.map_err(Into::into).and_then(|runtime| runtime.block_on(dispatch(&socket, command))) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            // Whoever closed our stdout (`podwright ps | head -1`) does not want to hear about it.
            if !is_broken_pipe(&error) {
                // Where stderr is closed too, the exit code is all that is left to tell.
                let _ = writeln!(io::stderr(), "podwright: {error:#}");
            }
            ExitCode::from(own_failure)
        }
    }
}

async fn dispatch(socket: &Path, command: Command) -> Result<u8> {
    let mut client = Client::connect(socket).await?;
    match command {
        Command::Run(args) => run::run(&mut client, args).await,
        Command::Ps(args) => ps::ps(&mut client, &args).await.map(|()| 0),
        Command::Logs(args) => logs::logs(&mut client, &args).await.map(|()| 0),
        Command::Exec(args) => exec::exec(&mut client, args).await,
        Command::Rm(args) => rm::rm(&mut client, &args).await.map(|()| 0),
        Command::Image(command) => image::image(&mut client, command).await.map(|()| 0),
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let kind = error.root_cause().downcast_ref::<io::Error>().map(io::Error::kind);
    kind == Some(io::ErrorKind::BrokenPipe)
}

/// Makes an exit code of a container's.
pub(super) fn exit_code(code: i32) -> u8 {
    // What does not fit, which no process can return, must not become success.
    u8::try_from(code).unwrap_or(u8::MAX)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(subcommand)]
        command: Command,
    }

    #[test]
    fn a_command_line_may_hold_flags_of_its_own() {
        for line in
            ["run -e A=1 web -- ls -l", "run -e A=1 web ls -l", "exec web -- ls -l", "exec --timeout 3 web ls -l"]
        {
            let parsed = Line::try_parse_from(format!("podwright {line}").split(' ')).unwrap();
            let shown = format!("{:?}", parsed.command);
            assert!(shown.contains(r#"command: ["ls", "-l"]"#), "{line}: {shown}");
        }
        assert!(Line::try_parse_from(["podwright", "exec", "web"]).is_err());
    }

    #[test]
    fn exit_codes_never_turn_into_success() {
        for (code, want) in [(0, 0), (137, 137), (255, 255), (256, 255), (-1, 255)] {
            assert_eq!(exit_code(code), want);
        }
    }
}
