//! The command line: flags to one command, its outcome to an exit code.

mod client;
mod command;
mod config;
mod cri_log;
mod exec;
mod find;
mod image;
mod interrupt;
mod logs;
mod oci;
mod progress;
mod ps;
mod request;
mod rm;
mod run;
mod serve;
mod table;
mod telemetry;
mod verify;

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;

/// A Kubernetes container runtime: a daemon that serves the CRI, and a small client for machines without another.
#[derive(Debug, Parser)]
#[command(name = "podwright", version)]
struct CommandLine {
    /// Socket of the daemon [default: /run/podwright/podwright.sock]
    #[arg(long, value_name = "SOCKET", global = true)]
    address: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Serve the CRI on a unix socket
    Serve(serve::Serve),
    /// Print the configuration
    #[command(subcommand)]
    Config(config::Config),
    /// Run OCI containers as other tools want it: runc's command line
    #[command(disable_help_flag = true)]
    Oci(oci::Args),
    #[command(flatten)]
    Client(command::Command),
}

/// Where a daemon keeps its files, over what the configuration says.
#[derive(Debug, clap::Args)]
struct Place {
    /// Configuration file [default: /etc/podwright/config.toml, which may be absent]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Directory for images, layers and records
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    /// Directory for sockets, locks and pod files
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
    /// Socket to serve on [default: podwright.sock in the state directory]
    #[arg(long, value_name = "SOCKET")]
    address: Option<PathBuf>,
}

/// Does what the command line says.
pub(crate) fn main() -> ExitCode {
    let line = CommandLine::parse();
    let outcome = match line.command {
        Command::Serve(serve) => serve.run(),
        Command::Config(config) => config.run(),
        Command::Oci(args) => args.exec().map(|never| match never {}),
        Command::Client(command) => return command::execute(line.address, command),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Where stderr is closed, the exit code is all that is left to tell.
            let _ = writeln!(io::stderr(), "podwright: {error:#}");
            ExitCode::FAILURE
        }
    }
}
