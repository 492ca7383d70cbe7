//! Waiting with a bound.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::error::Error;

/// Waits until the process behind a pidfd has ended.
pub(crate) fn ended(pidfd: &impl AsFd, patience: Duration) -> Result<(), Error> {
    let deadline = Instant::now() + patience;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() };
        match poll(&mut [PollFd::new(pidfd, PollFlags::IN)], Some(&left)) {
            Err(Errno::INTR) => {}
            Ok(0) => return Err(Error::step("wait for the end of", "the container's process")(Errno::TIMEDOUT)),
            answer => return answer.map(drop).map_err(Error::step("wait for", "the container's process")),
        }
    }
}

/// Tries again for as long as the kernel says that something is busy; each try takes its own time.
pub(crate) fn retry(patience: Duration, act: impl Fn() -> Result<(), Errno>) -> Result<(), Errno> {
    let deadline = Instant::now() + patience;
    loop {
        match act() {
            Err(Errno::BUSY) if Instant::now() < deadline => {}
            result => return result,
        }
    }
}
