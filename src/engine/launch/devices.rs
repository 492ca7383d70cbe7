//! Device nodes and symbolic links in the container's /dev.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::path::Path;

use podwright_plan::wire::{Device, DeviceKind, Symlink};
use rustix::fs::{AtFlags, CWD, Dev, FileType, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;

use crate::failure::{Failure, Named};
use crate::inroot::{Kind, Root};
use crate::{mounts, sources};

/// Makes one device node.
pub(crate) fn make(root: Root<'_>, device: &Device) -> Result<(), Failure> {
    let path = Path::new(&device.path);
    let (directory, name) = root.parent_of(path).in_child("make device directory", &device.path)?;
    let kind = match device.kind() {
        DeviceKind::DeviceChar => FileType::CharacterDevice,
        DeviceKind::DeviceBlock => FileType::BlockDevice,
        DeviceKind::DeviceFifo => FileType::Fifo,
    };
    let number = rustix::fs::makedev(device.major, device.minor);
    let mode = Mode::from_raw_mode(device.mode & 0o7777);
    let node = Node { kind, number, mode };
    match node.make(&directory, name) {
        Ok(()) => {
            let owner = (Some(Uid::from_raw(device.uid)), Some(Gid::from_raw(device.gid)));
            rustix::fs::chownat(&directory, name, owner.0, owner.1, AtFlags::SYMLINK_NOFOLLOW)
                .in_child("set device owner", &device.path)
        }
        // In a user namespace that does not own the file system; the host has a node that can be shown instead.
        Err(Errno::PERM) => node.bind(root, device),
        Err(errno) => Err(Failure::launch("make device", &device.path, errno)),
    }
}

/// Makes one symbolic link.
pub(crate) fn link(root: Root<'_>, link: &Symlink) -> Result<(), Failure> {
    let path = Path::new(&link.path);
    let (directory, name) = root.parent_of(path).in_child("make link directory", &link.path)?;
    replacing(&directory, name, || rustix::fs::symlinkat(&*link.target, &directory, name))
        .in_child("make symbolic link", &link.path)
}

struct Node {
    kind: FileType,
    number: Dev,
    mode: Mode,
}

impl Node {
    fn make(&self, directory: &OwnedFd, name: &OsStr) -> Result<(), Errno> {
        replacing(directory, name, || rustix::fs::mknodat(directory, name, self.kind, self.mode, self.number))
    }

    fn bind(&self, root: Root<'_>, device: &Device) -> Result<(), Failure> {
        let refused = || Failure::launch("make device", &device.path, Errno::PERM);
        // The process's own root is still the host's tree.
        let host =
            rustix::fs::openat(CWD, &*device.path, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
                .map_err(|_| refused())?;
        let stat = rustix::fs::fstat(&host).map_err(|_| refused())?;
        if FileType::from_raw_mode(stat.st_mode) != self.kind || stat.st_rdev != self.number {
            return Err(refused());
        }
        let tree = sources::clone_place(&host, false).in_child("clone device", &device.path)?;
        let place = root.ensure(&device.path, Kind::File).in_child("make device target", &device.path)?;
        mounts::attach_at(&tree, &place).in_child("attach device", &device.path)
    }
}

/// Makes a name, in place of what an image has there. A directory is not replaced.
fn replacing(directory: &OwnedFd, name: &OsStr, make: impl Fn() -> Result<(), Errno>) -> Result<(), Errno> {
    match make() {
        Err(Errno::EXIST) => {
            rustix::fs::unlinkat(directory, name, AtFlags::empty())?;
            make()
        }
        result => result,
    }
}
