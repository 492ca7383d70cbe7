//! The per-pod shim: parent of a pod's containers, owner of their output, logs and exit codes.
//!
//! One thread and one loop ([`shim`]). A daemon that may die at any moment speaks to it over a unix socket
//! ([`connection`], [`operations`]); containers ([`container`], by the rules in [`lifecycle`]) and execs ([`exec`]) are
//! its children ([`reap`]); what containers print goes from [`output`] through [`lines`] into a [`logfile`] ([`logging`]),
//! and to the [`clients`] that [`attach`] brought, each by its [`sink`]; what those say goes into a container's [`input`].
//!
//! It is started as `podwright-shim --pod ID` with a listening unix socket as its stdin, and ends by `Shutdown`, or by
//! itself when nobody has given it a pod.

mod attach;
mod cgroups;
mod clients;
mod clock;
mod connection;
mod container;
mod exec;
mod input;
mod lifecycle;
mod lines;
mod logfile;
mod logging;
mod operations;
mod output;
mod poll;
mod process;
mod reap;
mod rotation;
mod shim;
mod shutdown;
mod sink;
mod words;

use std::io::Write;
use std::process::ExitCode;

use crate::shim::{Chain, Shim};
use crate::words::say;

/// Exit code of a wrong command line, as shells have it.
const USAGE: u8 = 2;

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    match (arguments.next().as_deref(), arguments.next(), arguments.next()) {
        (Some("--version"), None, None) => version(),
        (Some("--pod"), Some(pod), None) => serve(pod),
        _ => {
            say(format_args!("usage: podwright-shim --pod ID (with a listening unix socket as stdin) | --version"));
            ExitCode::from(USAGE)
        }
    }
}

fn version() -> ExitCode {
    let (package, major, minor) = (env!("CARGO_PKG_VERSION"), podwright_plan::MAJOR, podwright_plan::MINOR);
    match writeln!(std::io::stdout(), "podwright-shim {package} protocol {major}.{minor}") {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn serve(pod: String) -> ExitCode {
    let (listener, children) = match process::prepare() {
        Ok(prepared) => prepared,
        Err(error) => {
            say(format_args!("{}", Chain(&error)));
            return ExitCode::FAILURE;
        }
    };
    match Shim::new(pod, listener, children).and_then(Shim::run) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(format_args!("{}", Chain(&error)));
            ExitCode::FAILURE
        }
    }
}
