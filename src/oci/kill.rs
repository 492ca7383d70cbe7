//! `kill`: sends a signal to a container's process.

use std::str::FromStr;

use nix::sys::signal::Signal;
use rustix::io::Errno;

use crate::args::{Globals, Kill};
use crate::error::Error;
use crate::state::{Container, Status};

/// The first real-time signal that programs may use: the C library has taken two.
const SIGRTMIN: i32 = 34;
/// The last signal.
const SIGRTMAX: i32 = 64;

/// Does `kill`.
pub(crate) fn kill(globals: &Globals, args: &Kill) -> Result<(), Error> {
    let container = Container::find(&globals.root, &args.id)?;
    if args.all && args.signal == Signal::SIGKILL as i32 {
        return kill_all(&container);
    }
    let Some(pidfd) = container.pidfd()? else { return Err(container.refuse("kill", Status::Stopped)) };
    match podwright_sys::signalling::send(std::os::fd::AsFd::as_fd(&pidfd), args.signal) {
        Err(Errno::SRCH) => return Err(container.refuse("kill", Status::Stopped)),
        sent => sent.map_err(Error::step("send a signal to process", container.record.pid))?,
    }
    // What stands still on v1 does not even die.
    if args.signal == Signal::SIGKILL as i32 { thaw(&container) } else { Ok(()) }
}

fn thaw(container: &Container) -> Result<(), Error> {
    let facts = container.facts()?;
    let Some(dir) = facts.kill_dir() else { return Ok(()) };
    podwright_launch::cgroup::thaw(dir).map_err(Error::step("thaw cgroup", dir.display()))
}

/// Kills every process in the container's cgroup.
pub(crate) fn kill_all(container: &Container) -> Result<(), Error> {
    let facts = container.facts()?;
    let Some(dir) = facts.kill_dir() else { return Ok(()) };
    podwright_launch::cgroup::kill(dir).map_err(Error::step("kill cgroup", dir.display()))
}

/// Reads a signal: a number, a name, or a name without its SIG.
pub(crate) fn signal(word: &str) -> Result<i32, Error> {
    let unknown = || Error::argument("signal", word, "is no signal");
    if let Ok(number) = word.parse::<i32>() {
        return if (1..=SIGRTMAX).contains(&number) { Ok(number) } else { Err(unknown()) };
    }
    let upper = word.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let offset = |text: &str| if text.is_empty() { Some(0) } else { text.parse::<i32>().ok() };
    let number = if let Some(above) = name.strip_prefix("RTMIN") {
        offset(above).map(|above| SIGRTMIN + above)
    } else if let Some(below) = name.strip_prefix("RTMAX") {
        offset(below).map(|below| SIGRTMAX + below)
    } else {
        Signal::from_str(&format!("SIG{name}")).ok().map(|signal| signal as i32)
    };
    number.filter(|number| (1..=SIGRTMAX).contains(number)).ok_or_else(unknown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_names_and_numbers() {
        for (word, number) in
            [("9", 9), ("KILL", 9), ("SIGKILL", 9), ("sigterm", 15), ("RTMIN+3", 37), ("SIGRTMAX-1", 63)]
        {
            assert_eq!(signal(word).unwrap(), number, "{word}");
        }
        for bad in ["0", "65", "-1", "FLY", "", "RTMIN+99"] {
            assert!(signal(bad).is_err(), "{bad}");
        }
    }
}
