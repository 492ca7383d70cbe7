//! Paths that a container must not read, or not write.
//!
//! Nothing is looked at by one path and covered by another: a place is opened once, and what is mounted goes over that very
//! descriptor. Below the container's own /proc a place must be on a procfs: whoever can move directories in the root while
//! it is made could otherwise have the mask cover something else and keep the file.

use std::os::fd::OwnedFd;
use std::path::{Component, Path};

use podwright_plan::wire::ContainerPlan;
use podwright_sys::mount::{Change, change};
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::MountAttrFlags;

use crate::failure::{Failure, Named};
use crate::fscontext::FsContext;
use crate::inroot::Root;
use crate::{mounts, procfs, sources};

/// The host's, by the old root: an image's may be anything.
const NULL: &str = "/dev/null";

/// The paths of a plan, in its root.
pub(crate) struct Masks<'a> {
    pub(crate) root: Root<'a>,
    pub(crate) plan: &'a ContainerPlan,
}

impl Masks<'_> {
    /// Covers paths: a directory with an empty read-only file system, anything else with /dev/null. A missing one is left.
    pub(crate) fn mask(&self) -> Result<(), Failure> {
        let mut covers = Covers { label: &self.plan.mount_label, directory: None, file: None };
        let paths = &self.plan.masked_paths;
        for (index, path) in paths.iter().enumerate() {
            // A second cover would only be one more mount.
            let Some(place) = self.place(path, "open masked path")?.filter(|_| !paths[..index].contains(path)) else {
                continue;
            };
            let stat = rustix::fs::fstat(&place).in_child("look at masked path", path)?;
            let directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
            let cover = if directory { covers.directory() } else { covers.file() }?;
            mounts::attach_at(&cover, &place).in_child("mask path", path)?;
        }
        Ok(())
    }

    /// Covers paths with read-only copies of themselves and of all below. A missing one is left.
    pub(crate) fn make_read_only(&self) -> Result<(), Failure> {
        for path in &self.plan.readonly_paths {
            let Some(place) = self.place(path, "open read-only path")? else { continue };
            let copy = sources::clone_place(&place, true).in_child("clone read-only path", path)?;
            let read_only = Change { set: MountAttrFlags::MOUNT_ATTR_RDONLY, recursive: true, ..Change::default() };
            change(&copy, read_only).in_child("make read-only", path)?;
            mounts::attach_at(&copy, &place).in_child("attach read-only path", path)?;
        }
        Ok(())
    }

    /// Opens what a path leads to, `None` when there is nothing.
    fn place(&self, path: &str, step: &str) -> Result<Option<OwnedFd>, Failure> {
        let place = match self.root.open(path, OFlags::PATH) {
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
            place => place.in_child(step, path)?,
        };
        if self.is_of_procfs(path) && !procfs::is_procfs(&place).in_child(step, path)? {
            return Err(Failure::launch(step, path, Errno::XDEV).with_detail("it is not on the container's procfs"));
        }
        Ok(Some(place))
    }

    /// Whether a path is below a procfs of the plan, and not one that the plan mounts something else at or above.
    fn is_of_procfs(&self, path: &str) -> bool {
        let below = |mount: &str| Path::new(path).starts_with(mount);
        let plain = Path::new(path).components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
        let last = self.plan.mounts.iter().rev().find(|mount| below(&mount.target));
        plain && last.is_some_and(mounts::is_proc)
    }
}

/// What paths are covered with; the first of each kind is made, the rest are clones of it.
struct Covers<'a> {
    label: &'a str,
    directory: Option<OwnedFd>,
    file: Option<OwnedFd>,
}

impl Covers<'_> {
    fn directory(&mut self) -> Result<OwnedFd, Failure> {
        if let Some(first) = &self.directory {
            return sources::clone_place(first, false).in_child("clone mask", "");
        }
        let context = FsContext::open("tmpfs").in_child("open file system", "tmpfs")?;
        context.set_string("nr_inodes", "1").in_child("set tmpfs option", "nr_inodes")?;
        if !self.label.is_empty() {
            context
                .set_string("context", self.label)
                .map_err(|errno| context.refused("set tmpfs option", "context", errno))?;
        }
        let tmpfs = context.mount(MountAttrFlags::MOUNT_ATTR_RDONLY).in_child("mount tmpfs", "mask")?;
        // Refers to the same mount, which can be cloned once it is attached.
        self.directory = Some(rustix::io::fcntl_dupfd_cloexec(&tmpfs, 3).in_child("copy mask", "")?);
        Ok(tmpfs)
    }

    fn file(&mut self) -> Result<OwnedFd, Failure> {
        let null = match self.file.take() {
            Some(null) => null,
            None => open_null()?,
        };
        let clone = sources::clone_place(&null, false).in_child("clone mask", NULL);
        self.file = Some(null);
        clone
    }
}

/// Opens the real one: any other file in its place would be readable and writable where nothing must be.
fn open_null() -> Result<OwnedFd, Failure> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let null = rustix::fs::open(NULL, flags, Mode::empty()).in_child("open the host's", NULL)?;
    let stat = rustix::fs::fstat(&null).in_child("look at the host's", NULL)?;
    let character = FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice;
    if character && stat.st_rdev == rustix::fs::makedev(1, 3) {
        Ok(null)
    } else {
        Err(Failure::launch("open the host's", NULL, Errno::NODEV).with_detail("it is not character device 1:3"))
    }
}
