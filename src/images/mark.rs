//! The mark of an open store: what tells a clean stop, or a daemon that was killed, from a host that went down.
//!
//! It is a file with the kernel's boot id, made when the store is opened and removed when it is closed. One that is
//! found with another boot id was left by a host that lost its power, or its kernel, while images could be written; it
//! stays until the images have been checked, whatever becomes of the daemon meanwhile. The file is not synced: what is
//! published after it is, and then it is on disk too.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// The mark of one store.
#[derive(Debug)]
pub(crate) struct Mark {
    place: PathBuf,
    boot: Vec<u8>,
    /// Whether the host went down while the store was open, and nobody has looked yet at what that did.
    suspect: AtomicBool,
}

impl Mark {
    /// Marks the store as open.
    pub(crate) fn set(place: PathBuf) -> io::Result<Self> {
        let boot = fs::read(BOOT_ID)?;
        let suspect = match fs::read(&place) {
            Ok(found) => found != boot,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                fs::write(&place, &boot)?;
                false
            }
            Err(error) => return Err(error),
        };
        Ok(Self { place, boot, suspect: suspect.into() })
    }

    /// Tells whether what is on disk may have suffered.
    pub(crate) fn is_suspect(&self) -> bool {
        self.suspect.load(Ordering::Acquire)
    }

    /// Says that what is on disk was checked.
    pub(crate) fn checked(&self) -> io::Result<()> {
        fs::write(&self.place, &self.boot)?;
        self.suspect.store(false, Ordering::Release);
        Ok(())
    }

    /// Takes the mark away: nothing is being written any more.
    pub(crate) fn clear(&self) -> io::Result<()> {
        if self.is_suspect() {
            return Ok(());
        }
        match fs::remove_file(&self.place) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_another_boot_is_a_host_that_went_down() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("mark");
        let set = || Mark::set(place.clone()).unwrap();
        assert!(!set().is_suspect(), "the first time");
        assert!(!set().is_suspect(), "the daemon was killed");
        set().clear().unwrap();
        set().clear().unwrap();
        assert!(!set().is_suspect(), "a clean stop");
        for found in ["another boot\n", ""] {
            fs::write(&place, found).unwrap();
            let mark = set();
            assert!(mark.is_suspect(), "{found:?}");
            mark.clear().unwrap();
            let mark = set();
            assert!(mark.is_suspect(), "a stop is no check");
            mark.checked().unwrap();
            assert!(!mark.is_suspect() && !set().is_suspect());
            mark.clear().unwrap();
        }
    }
}
