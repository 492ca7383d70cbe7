//! `mount_setattr(2)`: what a mount allows and where its events go.

use std::os::fd::{AsFd, AsRawFd};

use rustix::io::Errno;
use rustix::mount::{MountAttrFlags, MountPropagationFlags};

use crate::answer;

/// A change of a mount's attributes. The default changes nothing.
#[derive(Debug, Clone, Copy)]
pub struct Change {
    /// Attributes to set.
    pub set: MountAttrFlags,
    /// Attributes to clear first; `MOUNT_ATTR__ATIME` must be among them when an atime attribute is set.
    pub clear: MountAttrFlags,
    /// The new propagation type (one of `SHARED`, `DOWNSTREAM`, `PRIVATE`), or empty to leave it.
    pub propagation: MountPropagationFlags,
    /// Applies to every mount of the tree, all or none.
    pub recursive: bool,
}

impl Default for Change {
    fn default() -> Self {
        Self {
            set: MountAttrFlags::empty(),
            clear: MountAttrFlags::empty(),
            propagation: MountPropagationFlags::empty(),
            recursive: false,
        }
    }
}

impl Change {
    /// Whether it would change nothing.
    pub fn is_empty(&self) -> bool {
        self.set.is_empty() && self.clear.is_empty() && self.propagation.is_empty()
    }
}

/// `struct mount_attr`.
#[repr(C)]
struct MountAttr {
    attr_set: u64,
    attr_clr: u64,
    propagation: u64,
    userns_fd: u64,
}

/// Changes the mount that `mount` refers to: a detached one, or the one a path descriptor was opened at the root of.
///
/// # Errors
/// The kernel's: `EINVAL` when the descriptor is not at a mount's root.
pub fn change(mount: impl AsFd, change: Change) -> Result<(), Errno> {
    let attr = MountAttr {
        attr_set: u64::from(change.set.bits()),
        attr_clr: u64::from(change.clear.bits()),
        propagation: u64::from(change.propagation.bits()),
        userns_fd: 0,
    };
    let flags = libc::AT_EMPTY_PATH | if change.recursive { libc::AT_RECURSIVE } else { 0 };
    let fd = mount.as_fd().as_raw_fd();
    // SAFETY: the empty path is a constant with its NUL; `attr` lives across the call and has the size that is passed,
    // that of the first version of the structure (Linux 5.12).
    answer(unsafe {
        libc::syscall(libc::SYS_mount_setattr, fd, c"".as_ptr(), flags, &raw const attr, size_of::<MountAttr>())
    })?;
    Ok(())
}
