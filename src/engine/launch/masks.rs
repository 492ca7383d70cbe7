//! Paths that a container must not read, or not write.

use std::os::fd::OwnedFd;

use podwright_sys::mount::{Change, change};
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::MountAttrFlags;

use crate::failure::{Failure, Named};
use crate::fscontext::FsContext;
use crate::inroot::Root;
use crate::{mounts, sources};

/// Covers paths: a directory with an empty read-only file system, anything else with /dev/null. A missing one is left.
pub(crate) fn mask(root: Root<'_>, paths: &[String]) -> Result<(), Failure> {
    let mut covers = Covers::default();
    for path in paths {
        let place = match root.open(path, OFlags::PATH) {
            Err(Errno::NOENT | Errno::NOTDIR) => continue,
            place => place.in_child("open masked path", path)?,
        };
        let stat = rustix::fs::fstat(&place).in_child("look at masked path", path)?;
        let directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        let cover = if directory { covers.directory() } else { covers.file() };
        let cover = cover.in_child("make mask", path)?;
        mounts::attach_at(&cover, &place).in_child("mask path", path)?;
    }
    Ok(())
}

/// What paths are covered with; the first of each kind is made, the rest are clones of it.
#[derive(Default)]
struct Covers {
    directory: Option<OwnedFd>,
    file: Option<OwnedFd>,
}

impl Covers {
    fn directory(&mut self) -> Result<OwnedFd, Errno> {
        if let Some(first) = &self.directory {
            return sources::clone_place(first, false);
        }
        let context = FsContext::open("tmpfs")?;
        context.set_string("nr_inodes", "1")?;
        let tmpfs = context.mount(MountAttrFlags::MOUNT_ATTR_RDONLY)?;
        // Refers to the same mount, which can be cloned once it is attached.
        self.directory = Some(rustix::io::fcntl_dupfd_cloexec(&tmpfs, 3)?);
        Ok(tmpfs)
    }

    fn file(&mut self) -> Result<OwnedFd, Errno> {
        let null = match self.file.take() {
            Some(null) => null,
            // The host's, by the old root: an image's /dev/null may be anything.
            None => rustix::fs::open("/dev/null", OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?,
        };
        let clone = sources::clone_place(&null, false);
        self.file = Some(null);
        clone
    }
}

/// Covers paths with read-only copies of themselves and of all below. A missing one is left.
pub(crate) fn make_read_only(root: Root<'_>, paths: &[String]) -> Result<(), Failure> {
    for path in paths {
        let place = match root.open(path, OFlags::PATH) {
            Err(Errno::NOENT | Errno::NOTDIR) => continue,
            place => place.in_child("open read-only path", path)?,
        };
        let copy = sources::clone_place(&place, true).in_child("clone read-only path", path)?;
        let read_only = Change { set: MountAttrFlags::MOUNT_ATTR_RDONLY, recursive: true, ..Change::default() };
        change(&copy, read_only).in_child("make read-only", path)?;
        mounts::attach_at(&copy, &place).in_child("attach read-only path", path)?;
    }
    Ok(())
}
