//! The podwright command: the daemon, and the small client for machines without another.

mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main()
}
