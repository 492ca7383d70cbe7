//! The kernel's own /proc, by a handle that was looked at.
//!
//! What is written below /proc decides over labels, kernel parameters and OOM scores. A path there would go wherever
//! the mount table says: to a file of a container that found a way to mount over it, so that a label is "set" and is not,
//! or to another file of the real procfs, so that a label's text ends in `sysrq-trigger`. Here the root is known for a
//! procfs by its type and inode, and no look-up below it crosses a mount, takes a magic link or leaves it.

use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// `PROC_SUPER_MAGIC`; `f_type` is of another type on each architecture.
const PROC_MAGIC: u64 = 0x9fa0;
/// `PROC_ROOT_INO`: no other file of a procfs has this inode number.
const ROOT_INODE: u64 = 1;
/// `NSFS_MAGIC`.
const NSFS_MAGIC: u64 = 0x6e73_6673;

/// The root of a procfs.
#[derive(Debug)]
pub(crate) struct Procfs(OwnedFd);

impl Procfs {
    /// Opens the host's, which must be at the calling process's /proc: before it has changed its root.
    ///
    /// # Errors
    /// The kernel's; `ENODEV` when something else is there.
    pub(crate) fn open() -> Result<Self, Errno> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let root = rustix::fs::open("/proc", flags, Mode::empty())?;
        if is_procfs(&root)? && rustix::fs::fstat(&root)?.st_ino == ROOT_INODE {
            Ok(Self(root))
        } else {
            Err(Errno::NODEV)
        }
    }

    /// Writes a file in one call; `path` is below the root, such as `self/oom_score_adj`.
    ///
    /// # Errors
    /// The kernel's; `EXDEV` when something is mounted on the way, `EIO` when only a part was taken.
    pub(crate) fn write(&self, path: impl AsRef<Path>, value: &[u8]) -> Result<(), Errno> {
        let file = self.look_up(path.as_ref(), OFlags::WRONLY)?;
        let written = rustix::io::retry_on_intr(|| rustix::io::write(&file, value))?;
        if written == value.len() { Ok(()) } else { Err(Errno::IO) }
    }

    /// Opens one of the calling process's namespaces, such as `net`.
    ///
    /// # Errors
    /// The kernel's; `ENODEV` when that is no namespace.
    pub(crate) fn namespace(&self, kind: &str) -> Result<OwnedFd, Errno> {
        let directory = self.look_up(Path::new("self/ns"), OFlags::PATH | OFlags::DIRECTORY)?;
        // The last step is a magic link, the one place where following one is meant.
        let namespace = rustix::fs::openat(&directory, kind, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        if magic_of(&namespace)? == NSFS_MAGIC { Ok(namespace) } else { Err(Errno::NODEV) }
    }

    /// Opens a file; `path` is as that of [`Procfs::write`].
    ///
    /// # Errors
    /// The kernel's; `EXDEV` when something is mounted on the way.
    pub(crate) fn look_up(&self, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
        // `self` is an ordinary link to a number.
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
        rustix::fs::openat2(&self.0, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve)
    }
}

/// Tells whether a file is on a procfs.
pub(crate) fn is_procfs(file: &OwnedFd) -> Result<bool, Errno> {
    Ok(magic_of(file)? == PROC_MAGIC)
}

#[allow(clippy::unnecessary_cast, clippy::cast_sign_loss)] // the field's type is another on each architecture
fn magic_of(file: &OwnedFd) -> Result<u64, Errno> {
    Ok(rustix::fs::fstatfs(file)?.f_type as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::mount::{MountFlags, MountPropagationFlags};

    fn read_comm() -> String {
        std::fs::read_to_string("/proc/thread-self/comm").unwrap()
    }

    #[test]
    fn the_kernels_files_are_written() {
        let thread = std::thread::spawn(|| {
            let procfs = Procfs::open().unwrap();
            procfs.write("thread-self/comm", b"renamed").unwrap();
            assert_eq!(read_comm(), "renamed\n");
            assert!(is_procfs(&procfs.0).unwrap());
            assert_eq!(procfs.write("self/fd/0", b"x").unwrap_err(), Errno::LOOP, "a magic link");
            assert_eq!(procfs.write("../etc/x", b"x").unwrap_err(), Errno::XDEV);
            procfs.namespace("net").unwrap();
        });
        thread.join().unwrap();
    }

    /// What a container would do that can mount in the writer's namespace.
    #[test]
    fn what_is_mounted_over_it_is_not_written() {
        let dir = tempfile::tempdir().unwrap();
        let trap = dir.path().join("trap");
        std::fs::write(&trap, "").unwrap();
        let thread = std::thread::spawn(move || {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
            crate::rootfs::propagate(MountPropagationFlags::PRIVATE).unwrap();
            let name = read_comm();
            rustix::mount::mount_bind(&trap, "/proc/thread-self/comm").unwrap();
            let procfs = Procfs::open().unwrap();
            assert_eq!(procfs.write("thread-self/comm", b"label").unwrap_err(), Errno::XDEV);
            assert_eq!(std::fs::read_to_string(&trap).unwrap(), "");
            rustix::mount::unmount("/proc/thread-self/comm", rustix::mount::UnmountFlags::DETACH).unwrap();
            assert_eq!(read_comm(), name);

            rustix::mount::mount("x", "/proc", "tmpfs", MountFlags::empty(), None).unwrap();
            assert_eq!(Procfs::open().unwrap_err(), Errno::NODEV);
            rustix::mount::unmount("/proc", rustix::mount::UnmountFlags::DETACH).unwrap();
            // A procfs, but not its root.
            rustix::mount::mount_bind("/proc/sys", "/proc").unwrap();
            assert_eq!(Procfs::open().unwrap_err(), Errno::NODEV);
        });
        thread.join().unwrap();
    }
}
