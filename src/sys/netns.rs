//! Network namespaces: pinned by bind mounts, and entered by a thread of their own.
//!
//! A pin is what `ip netns` makes: a file in `/run/netns` with the namespace's nsfs inode mounted on it, so that the
//! namespace has a name and outlives its processes.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns};
use rustix::fs::{FlockOperation, flock};

/// How long another program may hold the lock of the pins' directory.
const LOCK_LIMIT: Duration = Duration::from_secs(10);
/// How often a held lock is tried.
const LOCK_INTERVAL: Duration = Duration::from_millis(5);

/// Why a pin was not made or removed.
#[derive(Debug, thiserror::Error)]
pub enum PinError {
    /// The directory of pins cannot be made.
    #[error("make the directory {}", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The directory of pins cannot be locked.
    #[error("lock the directory {}", path.display())]
    Lock {
        /// The directory.
        path: PathBuf,
        /// Why; timed out when another program holds the lock.
        source: io::Error,
    },
    /// The directory cannot be made a shared mount.
    #[error("make {} a shared mount", path.display())]
    Share {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: Errno,
    },
    /// The file that the namespace is mounted on cannot be made.
    #[error("make the file {}", path.display())]
    File {
        /// The pin.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The namespace cannot be told from the one that is pinned.
    #[error("compare the network namespace pinned at {}", path.display())]
    Compare {
        /// The pin.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The namespace cannot be mounted.
    #[error("mount the network namespace on {}", path.display())]
    Mount {
        /// The pin.
        path: PathBuf,
        /// Why.
        source: Errno,
    },
    /// The pin cannot be unmounted.
    #[error("unmount the network namespace pin {}", path.display())]
    Unmount {
        /// The pin.
        path: PathBuf,
        /// Why.
        source: Errno,
    },
    /// The file below the pin cannot be removed.
    #[error("remove the file {}", path.display())]
    Remove {
        /// The pin.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Why a closure was not run in a namespace.
#[derive(Debug, thiserror::Error)]
pub enum EnterError {
    /// There is no thread to be had.
    #[error("start a thread for the network namespace")]
    Thread(#[source] io::Error),
    /// The kernel refused `setns`.
    #[error("enter the network namespace")]
    Setns(#[source] Errno),
}

/// Makes the directory of pins, mode 0755, as a shared mount of its own.
///
/// Shared, because a pin made here must go from every mount namespace when it is unmounted here: a copy that stays
/// behind in the mount namespace of some service keeps a network namespace and its devices alive.
///
/// # Errors
/// When the directory cannot be made, locked (against `ip netns`, which does the same) or mounted.
pub fn prepare_dir(dir: &Path) -> Result<(), PinError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(dir)
        .map_err(|source| PinError::Directory { path: dir.to_owned(), source })?;
    let _lock = lock_dir(dir)?;
    let share = || mount(None::<&str>, dir, None::<&str>, MsFlags::MS_SHARED | MsFlags::MS_REC, None::<&str>);
    let failed = |source| PinError::Share { path: dir.to_owned(), source };
    match share() {
        // Not a mount point yet: only a mount has a propagation.
        Err(Errno::EINVAL) => {
            let bind = MsFlags::MS_BIND | MsFlags::MS_REC;
            mount(Some(dir), dir, None::<&str>, bind, None::<&str>).map_err(failed)?;
            share().map_err(failed)
        }
        result => result.map_err(failed),
    }
}

/// Locks the directory of pins until the returned file is dropped, as `ip netns` does.
///
/// # Errors
/// When it cannot be opened, or another program has held the lock for 10 seconds.
pub fn lock_dir(dir: &Path) -> Result<File, PinError> {
    let failed = |source| PinError::Lock { path: dir.to_owned(), source };
    let file = File::open(dir).map_err(failed)?;
    let deadline = Instant::now() + LOCK_LIMIT;
    loop {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(file),
            Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < deadline => thread::sleep(LOCK_INTERVAL),
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(failed(io::ErrorKind::TimedOut.into())),
            Err(error) => return Err(failed(error.into())),
        }
    }
}

/// Pins a network namespace at a path; a path that pins it already is left, one that pins another is replaced.
///
/// # Errors
/// When the file cannot be made or the kernel refuses the mount.
pub fn pin(netns: BorrowedFd<'_>, path: &Path) -> Result<(), PinError> {
    if path.exists() {
        if same(netns, path).map_err(|source| PinError::Compare { path: path.to_owned(), source })? {
            return Ok(());
        }
        unpin(path)?;
    }
    // Mode 0, as `ip netns` has it: the file below the mount is for nobody to read.
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o000)
        .open(path)
        .map_err(|source| PinError::File { path: path.to_owned(), source })?;
    let source = PathBuf::from(format!("/proc/self/fd/{}", netns.as_raw_fd()));
    mount(Some(&source), path, None::<&str>, MsFlags::MS_BIND, None::<&str>).map_err(|error| {
        // The error that matters is the mount's; the empty file is taken by the next attempt or the sweep.
        let _ = fs::remove_file(path);
        PinError::Mount { path: path.to_owned(), source: error }
    })
}

/// Removes a pin, however many mounts lie on it; one that is not there is fine.
///
/// # Errors
/// When the kernel refuses to unmount or to remove the file.
pub fn unpin(path: &Path) -> Result<(), PinError> {
    loop {
        // Detached: a process that has the pin open must not keep the name.
        match umount2(path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            Ok(()) => {}
            Err(Errno::EINVAL) => break,
            Err(Errno::ENOENT) => return Ok(()),
            Err(source) => return Err(PinError::Unmount { path: path.to_owned(), source }),
        }
    }
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(PinError::Remove { path: path.to_owned(), source })
        }
        _ => Ok(()),
    }
}

/// Runs a closure inside a network namespace, on a thread that ends with it: no other thread ever changes namespace.
///
/// The thread shares the process's files, so a socket that the closure opens and returns stays in the namespace.
///
/// # Errors
/// When no thread can be started or the kernel refuses the namespace.
pub fn within<T: Send>(netns: BorrowedFd<'_>, work: impl FnOnce() -> T + Send) -> Result<T, EnterError> {
    thread::scope(|scope| {
        let thread = thread::Builder::new()
            .name("netns".to_owned())
            .spawn_scoped(scope, || {
                setns(netns, CloneFlags::CLONE_NEWNET).map_err(EnterError::Setns)?;
                Ok(work())
            })
            .map_err(EnterError::Thread)?;
        match thread.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

/// Opens a pin for [`within`].
///
/// # Errors
/// When the path cannot be opened.
pub fn open(path: &Path) -> io::Result<OwnedFd> {
    Ok(File::open(path)?.into())
}

/// Tells whether a path is the same nsfs inode as an open namespace.
fn same(netns: BorrowedFd<'_>, path: &Path) -> io::Result<bool> {
    let ours = rustix::fs::fstat(netns)?;
    let pinned = fs::metadata(path)?;
    Ok((ours.st_dev, ours.st_ino) == (pinned.dev(), pinned.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    /// Makes a network namespace that lives as long as its descriptor.
    fn fresh() -> OwnedFd {
        thread::spawn(|| {
            nix::sched::unshare(CloneFlags::CLONE_NEWNET).unwrap();
            open(Path::new("/proc/thread-self/ns/net")).unwrap()
        })
        .join()
        .unwrap()
    }

    /// A directory for pins in the system's directory for temporary files, unmounted and removed in the end.
    struct Pins(PathBuf);

    impl Pins {
        fn new(name: &str) -> Self {
            let dir = std::env::temp_dir().join(format!("podwright-{name}-{}", std::process::id()));
            prepare_dir(&dir).unwrap();
            Self(dir)
        }
    }

    impl Drop for Pins {
        fn drop(&mut self) {
            umount2(&self.0, MntFlags::MNT_DETACH).unwrap();
            fs::remove_dir(&self.0).unwrap();
        }
    }

    fn mounts_below(dir: &Path) -> Vec<String> {
        let text = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
        text.lines().filter(|line| line.contains(dir.to_str().unwrap())).map(str::to_owned).collect()
    }

    #[test]
    fn a_pin_is_made_once_replaced_and_removed() {
        let pins = Pins::new("pin");
        let path = pins.0.join("one");
        let (first, second) = (fresh(), fresh());
        pin(first.as_fd(), &path).unwrap();
        pin(first.as_fd(), &path).unwrap();
        assert!(same(first.as_fd(), &path).unwrap());
        assert_eq!(mounts_below(&path).len(), 1);
        pin(second.as_fd(), &path).unwrap();
        assert!(same(second.as_fd(), &path).unwrap());
        unpin(&path).unwrap();
        unpin(&path).unwrap();
        assert!(!path.exists());
        assert_eq!(mounts_below(&path), Vec::<String>::new());
    }

    #[test]
    fn a_leftover_file_is_used_and_a_directory_prepared_twice_is_mounted_once() {
        let pins = Pins::new("twice");
        prepare_dir(&pins.0).unwrap();
        assert_eq!(mounts_below(&pins.0).len(), 1);
        let path = pins.0.join("left");
        fs::write(&path, "").unwrap();
        let netns = fresh();
        pin(netns.as_fd(), &path).unwrap();
        assert!(same(netns.as_fd(), &path).unwrap());
        unpin(&path).unwrap();
    }

    #[test]
    fn only_the_threads_inside_see_the_namespace() {
        let netns = fresh();
        let here = fs::read_link("/proc/thread-self/ns/net").unwrap();
        let there = within(netns.as_fd(), || fs::read_link("/proc/thread-self/ns/net").unwrap()).unwrap();
        assert_ne!(here, there);
        assert_eq!(fs::read_link("/proc/thread-self/ns/net").unwrap(), here);
    }

    #[test]
    fn what_is_no_namespace_is_refused() {
        let file = File::open("/dev/null").unwrap();
        assert!(matches!(within(file.as_fd(), || ()), Err(EnterError::Setns(Errno::EINVAL))));
    }
}
