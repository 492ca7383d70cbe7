//! One daemon per directory: an advisory lock that the kernel drops with its holder.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

/// How long a lock may outlive its holder: a daemon that is killed while it starts a process leaves its files open in the
/// child, until that executes its own program.
const HEIRS: Duration = Duration::from_secs(5);
/// How long to wait before another try.
const PAUSE: Duration = Duration::from_millis(10);

/// Held for the daemon's life.
#[derive(Debug)]
pub struct DaemonLock {
    _file: File,
}

/// Why the lock was not taken.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// The lock file cannot be opened or written.
    #[error("open the lock file {}", path.display())]
    Open {
        /// The lock file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Another daemon has it.
    #[error(
        "{} is in use by another daemon (pid {holder}): stop it, or choose other directories by --root and --state",
        path.parent().unwrap_or(path).display()
    )]
    Held {
        /// The lock file.
        path: PathBuf,
        /// What the holder wrote of itself.
        holder: String,
    },
}

impl DaemonLock {
    /// Takes the lock, or says who has it.
    ///
    /// # Errors
    /// [`LockError::Held`] while another process holds it.
    pub fn take(path: &Path) -> Result<Self, LockError> {
        let failed = |source| LockError::Open { path: path.to_owned(), source };
        let mut file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).map_err(failed)?;
        let deadline = Instant::now() + HEIRS;
        loop {
            match file.try_lock() {
                Ok(()) => break,
                Err(TryLockError::WouldBlock) => {}
                Err(TryLockError::Error(source)) => return Err(failed(source)),
            }
            let mut holder = String::new();
            file.rewind().and_then(|()| file.read_to_string(&mut holder)).map_err(failed)?;
            let holder = holder.trim();
            if Instant::now() >= deadline || Path::new("/proc").join(holder).exists() {
                return Err(LockError::Held { path: path.to_owned(), holder: holder.to_owned() });
            }
            thread::sleep(PAUSE);
        }
        file.set_len(0).map_err(failed)?;
        file.rewind().map_err(failed)?;
        writeln!(file, "{}", std::process::id()).map_err(failed)?;
        Ok(Self { _file: file })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_taker_learns_the_holder() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("daemon.lock");
        let first = DaemonLock::take(&path).unwrap();
        match DaemonLock::take(&path) {
            Err(LockError::Held { holder, .. }) => assert_eq!(holder, std::process::id().to_string()),
            other => panic!("{other:?}"),
        }
        drop(first);
        DaemonLock::take(&path).unwrap();
    }

    #[test]
    fn a_lock_that_outlives_its_holder_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("daemon.lock");
        let first = DaemonLock::take(&path).unwrap();
        // No process has this id: the kernel's limit is 4194304.
        std::fs::write(&path, "4194305\n").unwrap();
        let taker = thread::spawn(move || DaemonLock::take(&path));
        drop(first);
        taker.join().unwrap().unwrap();
    }
}
