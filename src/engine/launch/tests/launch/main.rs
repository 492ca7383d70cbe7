//! The launch half against the kernel, as root: real pods, containers and execs.
//!
//! The code under test forks, so it wants a process with one thread, as the shim is. Each case therefore runs in a process
//! of its own, which this program starts with the case's name; a case fails by its panic. `cargo test` passes a filter,
//! `cargo nextest` asks for a list: both are understood.

// A test program without the harness is to clippy no test.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod attributes;
mod containers;
mod device_rules;
mod execs;
mod fixture;
mod groups;
mod listeners;
mod paths;
mod pods;
mod volumes;

use std::process::{Command, ExitCode};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A name and what runs under it.
type Case = (&'static str, fn());

/// In the environment of a case's own process: its name.
const CASE: &str = "PODWRIGHT_LAUNCH_CASE";

fn main() -> ExitCode {
    let cases: Vec<Case> = [
        pods::CASES,
        containers::CASES,
        attributes::CASES,
        listeners::CASES,
        paths::CASES,
        volumes::CASES,
        groups::CASES,
        device_rules::CASES,
        execs::CASES,
    ]
    .concat();
    if let Ok(name) = std::env::var(CASE) {
        let (_, run) = cases.iter().find(|(case, _)| *case == name).expect("the name is of a case");
        run();
        return ExitCode::SUCCESS;
    }
    let args: Vec<String> = std::env::args().skip(1).collect();
    // nextest says `--format terse`, which is no filter.
    let of_option = |at: usize| at > 0 && args[at - 1] == "--format";
    let filter = args.iter().enumerate().find(|(at, arg)| !arg.starts_with('-') && !of_option(*at)).map(|(_, arg)| arg);
    let exact = args.iter().any(|arg| arg == "--exact");
    let wanted = |name: &str| filter.is_none_or(|filter| if exact { name == filter } else { name.contains(&**filter) });
    let chosen: Vec<&str> = cases.iter().map(|(name, _)| *name).filter(|name| wanted(name)).collect();
    if args.iter().any(|arg| arg == "--list") {
        // `--ignored` asks for the ignored ones alone: there are none.
        let none = args.iter().any(|arg| arg == "--ignored");
        chosen.iter().filter(|_| !none).for_each(|name| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    run_all(&chosen)
}

fn run_all(chosen: &[&str]) -> ExitCode {
    let next = AtomicUsize::new(0);
    let failed = Mutex::new(Vec::new());
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    println!("\nrunning {} tests", chosen.len());
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                while let Some(name) = chosen.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let passed = run_one(name);
                    println!("test {name} ... {}", if passed { "ok" } else { "FAILED" });
                    if !passed {
                        failed.lock().expect("no worker panics while it holds the list").push(*name);
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().expect("no worker panics while it holds the list");
    println!("\ntest result: {} passed; {} failed: {failed:?}\n", chosen.len() - failed.len(), failed.len());
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn run_one(name: &str) -> bool {
    let program = std::env::current_exe().expect("the path of this program is known");
    let mut case = Command::new(program).env(CASE, name).spawn().expect("a case's process starts");
    let id = case.id();
    let passed = case.wait().expect("a case's process ends").success();
    // The process itself was in the pod's cgroup: its end was needed to remove what must be empty now.
    let clean = fixture::sweep(id, passed);
    passed && clean
}
