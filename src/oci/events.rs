//! `events`: what a container uses, once or again and again, and its OOM kills.

mod shape;

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use podwright_launch::{Facts, cgroup};
use podwright_sys::cgroup::{OomWatch, Usage};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use serde_json::{Value, json};

use crate::args::{Events, Globals, print};
use crate::error::Error;
use crate::state::{Container, Status};

/// Does `events`: until the container ends, unless the numbers are wanted once.
pub(crate) fn events(globals: &Globals, args: &Events) -> Result<(), Error> {
    let container = Container::find(&globals.root, &args.id)?;
    let Some(pidfd) = container.pidfd()? else { return Err(container.refuse("watch", Status::Stopped)) };
    let facts = container.facts()?;
    if args.stats {
        return stats(&args.id, &facts);
    }
    follow(args, &facts, &pidfd)
}

fn stats(id: &str, facts: &Facts) -> Result<(), Error> {
    let usage = Usage::read(&facts.cgroup_dirs()).map_err(Error::step("read the usage of", id))?;
    tell("stats", id, Some(shape::stats(&usage)))
}

fn tell(kind: &str, id: &str, data: Option<Value>) -> Result<(), Error> {
    let mut event = json!({ "type": kind, "id": id });
    if let Some(data) = data {
        event["data"] = data;
    }
    print(&format!("{event}\n"))
}

/// Waits for the next numbers' time, an OOM kill, or the end.
fn follow(args: &Events, facts: &Facts, pidfd: &OwnedFd) -> Result<(), Error> {
    let kills = || match facts.memory_events().map(cgroup::oom_kills) {
        // Without the controller there are none, and a cgroup that is gone has no more.
        None | Some(Err(Errno::NOENT | Errno::NODEV)) => Ok(0),
        Some(count) => count.map_err(Error::step("count OOM kills of", &args.id)),
    };
    let watch = match facts.memory_events().map(OomWatch::of) {
        None | Some(Err(Errno::NOENT | Errno::NODEV)) => None,
        Some(watch) => Some(watch.map_err(Error::step("watch for OOM kills of", &args.id))?),
    };
    let mut seen = kills()?;
    let mut next = Instant::now() + args.interval;
    loop {
        let mut waited = vec![PollFd::new(pidfd, PollFlags::IN)];
        waited.extend(watch.as_ref().map(|watch| PollFd::from_borrowed_fd(watch.as_fd(), OomWatch::FLAGS)));
        let left = time(next.saturating_duration_since(Instant::now()));
        match poll(&mut waited, Some(&left)) {
            Err(Errno::INTR) => continue,
            answer => answer.map_err(Error::step("wait for events of", &args.id))?,
        };
        let ended = !waited[0].revents().is_empty();
        if let Some(watch) = &watch {
            watch.rearm().map_err(Error::step("watch for OOM kills of", &args.id))?;
        }
        let now = kills()?;
        for _ in seen..now {
            tell("oom", &args.id, None)?;
        }
        seen = seen.max(now);
        if ended {
            return Ok(());
        }
        if Instant::now() >= next {
            stats(&args.id, facts)?;
            next = Instant::now() + args.interval;
        }
    }
}

fn time(left: Duration) -> Timespec {
    Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() }
}
