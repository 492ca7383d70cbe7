//! The engine as an OCI runtime: `create`, `start`, `kill`, `delete` and the rest of runc's command line, so that podman,
//! containerd and Docker can drive it.
//!
//! One short-lived process with one thread a command. What has to outlive it is in a container's state directory
//! ([`state`]) and in the container's own process, which waits there for its start.

mod args;
mod console;
mod create;
mod delete;
mod driver;
mod error;
mod events;
mod exec;
mod features;
mod foreground;
mod freezer;
mod kill;
mod limits;
mod list;
mod log;
mod net_devices;
mod own_binary;
mod ps;
mod run;
mod spec;
mod start;
mod state;
mod update;
mod wait;

use std::process::ExitCode;

use crate::args::{Command, Line};
use crate::error::Error;
use crate::log::Log;

fn main() -> ExitCode {
    let line = match args::parse(std::env::args_os()) {
        Ok(line) => line,
        Err(error) => {
            Log::default().error(&podwright_base::chain(&error));
            return ExitCode::FAILURE;
        }
    };
    let log = Log::new(&line.globals);
    let failure = line.command.failure();
    match dispatch(line) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            log.error(&podwright_base::chain(&error));
            ExitCode::from(failure)
        }
    }
}

/// Does a command; the code is the container's own where it was waited for, else 0.
fn dispatch(line: Line) -> Result<u8, Error> {
    let globals = &line.globals;
    match line.command {
        Command::Create(args) => create::create(globals, &args).map(|()| 0),
        Command::Run(args) => run::run(globals, &args),
        Command::Start(id) => start::start(globals, &id).map(|()| 0),
        Command::State(id) => list::state(globals, &id).map(|()| 0),
        Command::List(args) => list::list(globals, &args).map(|()| 0),
        Command::Kill(args) => kill::kill(globals, &args).map(|()| 0),
        Command::Exec(args) => exec::exec(globals, &args),
        Command::Pause(id) => freezer::pause(globals, &id).map(|()| 0),
        Command::Resume(id) => freezer::resume(globals, &id).map(|()| 0),
        Command::Update(args) => update::update(globals, &args).map(|()| 0),
        Command::Events(args) => events::events(globals, &args).map(|()| 0),
        Command::Ps(args) => ps::ps(globals, &args).map(|()| 0),
        Command::Delete(args) => delete::delete(globals, &args).map(|()| 0),
        Command::Spec(args) => spec::spec(&args).map(|()| 0),
        Command::Features => features::features().map(|()| 0),
        Command::Help => args::help().map(|()| 0),
        Command::Version => args::version().map(|()| 0),
    }
}
