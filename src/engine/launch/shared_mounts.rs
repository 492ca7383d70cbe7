//! The pod's own mount namespace: a holder of the tmpfs that its containers share as /dev/shm.
//!
//! A detached mount cannot be cloned before 6.15, and the host's namespace must not show it. So it is the root, and the
//! only mount, of a namespace that nothing but a descriptor refers to; each container clones it from there.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::CWD;
use rustix::mount::{MountAttrFlags, MountPropagationFlags, OpenTreeFlags};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::failure::{Failure, Named};
use crate::fscontext::FsContext;
use crate::procfs::Procfs;
use crate::rootfs;

/// Bytes of a tmpfs that nothing is meant to be written to.
const SMALLEST: u64 = 4096;

/// The pod's mount namespace, and the host's that the shim is in.
#[derive(Debug)]
pub(crate) struct SharedMounts {
    pod: OwnedFd,
    host: OwnedFd,
}

impl SharedMounts {
    /// Makes the namespace, with a tmpfs of `size` bytes as its root. The caller ends in the host's namespace again, at
    /// its root directory.
    pub(crate) fn make(size: u64) -> Result<Self, Failure> {
        let host = open_namespace().in_shim("open the mount namespace", "")?;
        // unshare copies the host's mounts for the moment until the pivot drops them.
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).in_shim("unshare the mount namespace", "")?;
        let pod = fill(size);
        // However that went, the shim must not stay: its paths are the host's.
        move_into_link_name_space(host.as_fd(), Some(LinkNameSpaceType::Mount))
            .in_shim("return to the mount namespace", "")?;
        Ok(Self { pod: pod?, host })
    }

    /// Moves the calling process into the pod's namespace, whose root holds nothing but the shared files.
    pub(crate) fn enter(&self) -> Result<(), rustix::io::Errno> {
        move_into_link_name_space(self.pod.as_fd(), Some(LinkNameSpaceType::Mount))
    }

    /// Clones the shared tmpfs as a detached mount. The calling process takes a turn through the pod's namespace and ends
    /// in the host's, at its root directory.
    pub(crate) fn clone_shm(&self) -> Result<OwnedFd, Failure> {
        self.enter().in_child("enter the pod's mount namespace", "/dev/shm")?;
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let tree = rustix::mount::open_tree(CWD, "/", flags).in_child("clone the pod's shared memory", "/dev/shm");
        move_into_link_name_space(self.host.as_fd(), Some(LinkNameSpaceType::Mount))
            .in_child("return to the mount namespace", "")?;
        tree
    }

    /// What a forked process needs to keep.
    pub(crate) fn descriptors(&self) -> [BorrowedFd<'_>; 2] {
        [self.pod.as_fd(), self.host.as_fd()]
    }
}

/// In the new namespace: replaces its root by a new tmpfs and drops the rest.
fn fill(size: u64) -> Result<OwnedFd, Failure> {
    // While there is a /proc to name it by.
    let namespace = open_namespace().in_shim("open the pod's mount namespace", "")?;
    // Without this the unmount below would reach the host, where its mounts are shared.
    rootfs::propagate(MountPropagationFlags::PRIVATE).in_shim("make mounts private", "/")?;
    let context = FsContext::open("tmpfs").in_shim("open file system", "tmpfs")?;
    context.set_string("source", "shm").in_shim("set tmpfs option", "source")?;
    // To tmpfs, 0 is no limit.
    context.set_string("size", &size.max(SMALLEST).to_string()).in_shim("set tmpfs option", "size")?;
    // World-writable and sticky, as /dev/shm is on any system.
    context.set_string("mode", "1777").in_shim("set tmpfs option", "mode")?;
    let attributes =
        MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let tmpfs = context.mount(attributes).in_shim("mount tmpfs", "/dev/shm")?;
    rootfs::cover_root(&tmpfs).in_shim("attach tmpfs", "/dev/shm")?;
    rootfs::pivot(&tmpfs).in_shim("pivot_root", "/dev/shm")?;
    Ok(namespace)
}

fn open_namespace() -> Result<OwnedFd, rustix::io::Errno> {
    Procfs::open()?.namespace("mnt")
}
