//! Blobs kept by digest as in an OCI image layout: manifests, indexes and configurations.

use std::fs::{self, Metadata};
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use podwright_base::Digest;

use crate::places::Places;

/// Extension of files with the bytes of a blob that have come so far.
const PART: &str = "part";
/// How long a part waits for its pull to be tried again.
const LONGEST_WAIT: Duration = Duration::from_secs(24 * 60 * 60);

/// The blob directory and where its blobs are written first.
#[derive(Debug)]
pub(crate) struct Content {
    places: Places,
    counter: AtomicU64,
}

impl Content {
    pub(crate) fn new(places: Places) -> Self {
        Self { places, counter: AtomicU64::new(0) }
    }

    /// Clears what was being written when the daemon was killed; parts of blobs stay, unless they are old.
    pub(crate) fn sweep(&self) -> io::Result<()> {
        for entry in fs::read_dir(self.places.ingest())? {
            let entry = entry?;
            let is_part = entry.path().extension().is_some_and(|extension| extension == PART);
            if !is_part || is_old(&entry.metadata()?) {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }

    /// Returns where the part of a blob is.
    pub(crate) fn part(&self, blob: &Digest) -> PathBuf {
        self.places.ingest().join(format!("{}.{PART}", blob.hex()))
    }

    /// Writes bytes to a place of their own in the ingest directory, not synced.
    pub(crate) fn stage(&self, name: &str, bytes: &[u8]) -> io::Result<PathBuf> {
        let temporary = self.temporary(name);
        if let Err(error) = fs::write(&temporary, bytes) {
            // The first error is the one that matters; the next start clears what stays.
            let _ = fs::remove_file(&temporary);
            return Err(error);
        }
        Ok(temporary)
    }

    /// Reads a blob and checks it against its name; `None` when it is missing or damaged.
    pub(crate) fn get(&self, digest: &Digest) -> io::Result<Option<Vec<u8>>> {
        match fs::read(self.places.blob(digest)) {
            Ok(bytes) => Ok((Digest::of(&bytes) == *digest).then_some(bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Removes parts that are old, and returns how many.
    pub(crate) fn sweep_parts(&self) -> io::Result<usize> {
        let mut removed = 0;
        for entry in fs::read_dir(self.places.ingest())? {
            let entry = entry?;
            let is_part = entry.path().extension().is_some_and(|extension| extension == PART);
            // What is being written may be gone again by now.
            if is_part && entry.metadata().is_ok_and(|metadata| is_old(&metadata)) {
                fs::remove_file(entry.path())?;
                removed += 1;
            }
        }
        Ok(removed)
    }

    /// Returns the lengths of what is being written, and of parts.
    pub(crate) fn ingest(&self) -> io::Result<Vec<u64>> {
        let entries = fs::read_dir(self.places.ingest())?;
        Ok(entries.filter_map(|entry| Some(entry.ok()?.metadata().ok()?.len())).collect())
    }

    /// Returns all blobs and their lengths.
    pub(crate) fn list(&self) -> io::Result<Vec<(Digest, u64)>> {
        let mut blobs = Vec::new();
        for entry in fs::read_dir(self.places.blobs())? {
            let entry = entry?;
            if let Some(Ok(digest)) = entry.file_name().to_str().map(|name| format!("sha256:{name}").parse()) {
                blobs.push((digest, entry.metadata()?.len()));
            }
        }
        Ok(blobs)
    }

    pub(crate) fn remove(&self, digest: &Digest) -> io::Result<()> {
        match fs::remove_file(self.places.blob(digest)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Returns a path in the ingest directory that nobody else uses.
    pub(crate) fn temporary(&self, name: &str) -> PathBuf {
        self.places.ingest().join(format!("{}-{name}", self.counter.fetch_add(1, Ordering::Relaxed)))
    }
}

/// Tells whether nobody has added to a part for so long that its pull will not be tried again.
fn is_old(metadata: &Metadata) -> bool {
    metadata.modified().ok().and_then(|modified| modified.elapsed().ok()).is_some_and(|age| age > LONGEST_WAIT)
}
