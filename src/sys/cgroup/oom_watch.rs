//! Waiting for the OOM killer to come to a cgroup.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::event::{EventfdFlags, PollFlags, eventfd};
use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;

use super::write_file;

/// A descriptor that is to be polled. That it is ready says that the count of OOM kills may have grown: read it by
/// [`oom_kills`](super::oom_kills).
#[derive(Debug)]
pub struct OomWatch {
    descriptor: OwnedFd,
    /// Of v2: every read takes the event away.
    is_file: bool,
}

impl OomWatch {
    /// What to poll it for.
    pub const FLAGS: PollFlags = PollFlags::IN.union(PollFlags::PRI).union(PollFlags::ERR);

    /// Watches a cgroup by its `memory.events` (v2) or `memory.oom_control` (v1).
    ///
    /// # Errors
    /// The kernel's, `ENOENT` among them once the cgroup is gone.
    pub fn of(file: &Path) -> Result<Self, Errno> {
        let counts = open(file, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        if file.file_name().is_none_or(|name| name != "memory.oom_control") {
            let watch = Self { descriptor: counts, is_file: true };
            watch.rearm()?;
            return Ok(watch);
        }
        let events = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        // The kernel looks the second one up and does not keep it (Documentation/admin-guide/cgroup-v1/memory.rst, 10).
        let control = format!("{} {}", events.as_raw_fd(), counts.as_raw_fd());
        write_file(&file.with_file_name("cgroup.event_control"), control.as_bytes())?;
        Ok(Self { descriptor: events, is_file: false })
    }

    /// Takes an event away, so that the next one is waited for. Do it before the count is read.
    ///
    /// # Errors
    /// The kernel's. A cgroup that is gone is no error.
    pub fn rearm(&self) -> Result<(), Errno> {
        let mut text = [0; 256];
        let read = match self.is_file {
            true => rustix::io::pread(&self.descriptor, &mut text, 0),
            false => rustix::io::read(&self.descriptor, &mut text[..8]),
        };
        match read {
            Err(Errno::AGAIN | Errno::INTR | Errno::NODEV) => Ok(()),
            read => read.map(drop),
        }
    }
}

impl AsFd for OomWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}
