//! Stopping what is in a cgroup, and letting it go on. Works on directories of both hierarchies.

use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::{read_file, write_file};

/// The file of a v2 cgroup.
const FREEZE: &str = "cgroup.freeze";
/// The file of a cgroup of v1's freezer.
const STATE: &str = "freezer.state";
/// Between two looks at a v1 state, which cannot be waited for.
const PAUSE: Duration = Duration::from_millis(2);

/// Stops every process in a cgroup and below it, and returns once they stand still.
///
/// # Errors
/// The kernel's, `ENOENT` on v1 where the directory is not the freezer's. `ETIMEDOUT`: a process could not be stopped in
/// that time, being stuck in the kernel for one; then all go on again.
pub fn freeze(dir: &Path, bound: Duration) -> Result<(), Errno> {
    let until = Instant::now() + bound;
    let frozen = match write_file(&dir.join(FREEZE), b"1") {
        Ok(()) => wait_frozen(dir, until),
        Err(Errno::NOENT) => freeze_v1(dir, until),
        Err(errno) => Err(errno),
    };
    if frozen.is_err() {
        // Half a container must not stay frozen; that this may fail too changes nothing about what is told.
        let _ = thaw(dir);
    }
    frozen
}

/// Lets the processes of a cgroup go on. One that is not frozen is no error, nor is one that is gone.
///
/// # Errors
/// The kernel's.
pub fn thaw(dir: &Path) -> Result<(), Errno> {
    match write_file(&dir.join(FREEZE), b"0") {
        Err(Errno::NOENT) => {}
        Err(Errno::NODEV) => return Ok(()),
        result => return result,
    }
    match write_file(&dir.join(STATE), b"THAWED") {
        Err(Errno::NOENT | Errno::NODEV) => Ok(()),
        result => result,
    }
}

/// Tells whether a cgroup stands still, or is about to: what was asked of it, not of one above it.
///
/// # Errors
/// The kernel's. A directory that is missing, or has no freezer, is not frozen.
pub fn is_frozen(dir: &Path) -> Result<bool, Errno> {
    match read_file(&dir.join(FREEZE)) {
        Err(Errno::NOENT | Errno::NODEV) => {}
        asked => return Ok(asked?.starts_with(b"1")),
    }
    match read_file(&dir.join(STATE)) {
        Err(Errno::NOENT | Errno::NODEV) => Ok(false),
        state => Ok(!state?.starts_with(b"THAWED")),
    }
}

/// Waits for the kernel's word that a v2 cgroup stands still: it says so by an event on the file.
fn wait_frozen(dir: &Path, until: Instant) -> Result<(), Errno> {
    let events = rustix::fs::open(dir.join("cgroup.events"), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let mut text = [0; 256];
    loop {
        let length = rustix::io::retry_on_intr(|| rustix::io::pread(&events, &mut text, 0))?;
        if text[..length].split(|byte| *byte == b'\n').any(|line| line == b"frozen 1") {
            return Ok(());
        }
        let left = until.checked_duration_since(Instant::now()).ok_or(Errno::TIMEDOUT)?;
        let left = Timespec::try_from(left).map_err(|_| Errno::INVAL)?;
        match poll(&mut [PollFd::new(&events, PollFlags::PRI)], Some(&left)) {
            Ok(0) => return Err(Errno::TIMEDOUT),
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}

/// v1 can stay in FREEZING for good when a process was forked or woken at the wrong moment; asking again helps it on.
fn freeze_v1(dir: &Path, until: Instant) -> Result<(), Errno> {
    let state = dir.join(STATE);
    loop {
        write_file(&state, b"FROZEN")?;
        if read_file(&state)?.starts_with(b"FROZEN") {
            return Ok(());
        }
        if Instant::now() >= until {
            return Err(Errno::TIMEDOUT);
        }
        std::thread::sleep(PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_cgroup_is_neither_frozen_nor_thawed() {
        let nowhere = Path::new("/sys/fs/cgroup/podwright-no-such-cgroup");
        assert_eq!(is_frozen(nowhere), Ok(false));
        assert_eq!(thaw(nowhere), Ok(()));
        assert_eq!(freeze(nowhere, Duration::ZERO), Err(Errno::NOENT));
    }
}
