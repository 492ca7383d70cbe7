//! Layer directories: being unpacked, whole, being removed.
//!
//! ```text
//!   stage ──► .new-<n>-<hex> ──(unpacked, synced)──► publish ──► <hex> ──► retire ──► .old-<n>-<hex> ──► removed
//!                   └──(failed, given up)──► removed
//! ```
//! A layer has its final name only after its data is on disk, so what is there under a final name is whole, whatever
//! happened to the host. Facts beside it (`<hex>.json`) are renamed into place first: a directory without them is
//! none. Names that begin with a dot are cleared when the daemon starts.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use podwright_base::Digest;
use podwright_layer::Amount;
use tokio::sync::mpsc;

use crate::places::Places;

/// Handles the directory that holds all layers.
#[derive(Debug)]
pub(crate) struct Layers {
    places: Places,
    counter: AtomicU64,
}

/// A layer that is unpacked, or being unpacked, and has no final name. Goes from disk with its last owner, unless
/// published.
#[derive(Debug)]
pub(crate) struct Staged {
    diff_id: Digest,
    directory: PathBuf,
    facts: PathBuf,
    amount: OnceLock<Amount>,
    kept: OnceLock<(Digest, PathBuf)>,
    published: AtomicBool,
    /// Dropped when the layer has found its owner, or is gone from disk.
    witness: Mutex<Option<Witness>>,
}

/// Whoever has the other end knows when nothing is being written or removed any more.
pub(crate) type Witness = mpsc::Sender<()>;

impl Layers {
    pub(crate) fn new(places: Places) -> Self {
        Self { places, counter: AtomicU64::new(0) }
    }

    /// Clears what is no whole layer, left by a daemon that was killed. Nothing may be staged yet.
    pub(crate) fn sweep(&self) -> io::Result<()> {
        for entry in fs::read_dir(self.places.layers())? {
            let path = entry?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let whole = name.strip_suffix(".json").unwrap_or(name);
            let keep = format!("sha256:{whole}").parse().is_ok_and(|diff_id| self.amount(&diff_id).is_some());
            if !keep {
                podwright_layer::remove_path(&path)?;
            }
        }
        Ok(())
    }

    /// Returns all whole layers.
    pub(crate) fn list(&self) -> io::Result<Vec<Digest>> {
        let mut layers = Vec::new();
        for entry in fs::read_dir(self.places.layers())? {
            let name = entry?.file_name();
            if let Some(Ok(diff_id)) = name.to_str().map(|name| format!("sha256:{name}").parse()) {
                layers.push(diff_id);
            }
        }
        Ok(layers)
    }

    /// Returns what a layer takes on disk, `None` when there is no such whole layer.
    pub(crate) fn amount(&self, diff_id: &Digest) -> Option<Amount> {
        if !self.places.layer(diff_id).is_dir() {
            return None;
        }
        serde_json::from_slice(&fs::read(self.places.layer_facts(diff_id)).ok()?).ok()
    }

    /// Makes an empty directory to unpack a layer into: 0755 and root's, unless the layer says otherwise.
    pub(crate) fn stage(&self, diff_id: &Digest) -> io::Result<Staged> {
        let number = self.counter.fetch_add(1, Ordering::Relaxed);
        let staged = Staged {
            diff_id: diff_id.clone(),
            directory: self.places.new_layer(number, diff_id),
            facts: self.places.new_layer_facts(number, diff_id),
            amount: OnceLock::new(),
            kept: OnceLock::new(),
            published: AtomicBool::new(false),
            witness: Mutex::new(None),
        };
        DirBuilder::new().mode(0o700).create(&staged.directory)?;
        // The umask has no say in it.
        let mode = <fs::Permissions as std::os::unix::fs::PermissionsExt>::from_mode(0o755);
        fs::set_permissions(&staged.directory, mode)?;
        Ok(staged)
    }

    /// Gives a staged and synced layer its final name. One that another pull has published meanwhile stays.
    pub(crate) fn publish(&self, staged: &Staged) -> io::Result<()> {
        if staged.published.load(Ordering::Acquire) || self.amount(&staged.diff_id).is_some() {
            return Ok(());
        }
        let place = self.places.layer(&staged.diff_id);
        fs::rename(&staged.facts, self.places.layer_facts(&staged.diff_id))?;
        fs::rename(&staged.directory, place)?;
        staged.published.store(true, Ordering::Release);
        Ok(())
    }

    /// Takes a layer's final name away and returns where its files are; quick, unlike their removal.
    pub(crate) fn retire(&self, diff_id: &Digest) -> io::Result<PathBuf> {
        let place = self.places.old_layer(self.counter.fetch_add(1, Ordering::Relaxed), diff_id);
        fs::rename(self.places.layer(diff_id), &place)?;
        match fs::remove_file(self.places.layer_facts(diff_id)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(place),
        }
    }
}

impl Staged {
    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    pub(crate) fn diff_id(&self) -> &Digest {
        &self.diff_id
    }

    /// Writes down what the layer takes, before the sync.
    pub(crate) fn finish(&self, amount: Amount) -> io::Result<()> {
        fs::write(&self.facts, serde_json::to_vec(&amount)?)?;
        self.amount.get_or_init(|| amount);
        Ok(())
    }

    /// Returns what the layer takes, nothing before it is finished.
    pub(crate) fn amount(&self) -> Amount {
        self.amount.get().copied().unwrap_or_default()
    }

    /// Has the layer's blob published with it, from the file `bytes`, which stays where it is until then.
    pub(crate) fn keep(&self, blob: Digest, bytes: PathBuf) {
        self.kept.get_or_init(|| (blob, bytes));
    }

    /// Returns the blob that is to be published with the layer.
    pub(crate) fn kept(&self) -> Option<&(Digest, PathBuf)> {
        self.kept.get()
    }

    /// Has its removal witnessed, should it be given up before [`Staged::reached_owner`].
    pub(crate) fn witness(&self, witness: Witness) {
        *self.witness.lock().unwrap_or_else(PoisonError::into_inner) = Some(witness);
    }

    /// Has reached whoever publishes or discards it.
    pub(crate) fn reached_owner(&self) {
        self.witness.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    /// Removes it here and now.
    pub(crate) fn discard(mut self) {
        *self.published.get_mut() = true;
        remove(&self.directory, &self.facts);
    }
}

fn remove(directory: &Path, facts: &Path) {
    let removed = podwright_layer::remove_path(directory).and_then(|()| podwright_layer::remove_path(facts));
    if let Err(error) = removed {
        // Nobody is left to return it to; the next start tries again.
        tracing::warn!(path = %directory.display(), %error, "a half-unpacked layer stays until the next start");
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        if *self.published.get_mut() {
            return;
        }
        let (directory, facts) = (std::mem::take(&mut self.directory), std::mem::take(&mut self.facts));
        let witness = self.witness.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        in_background(move || {
            remove(&directory, &facts);
            drop(witness);
        });
    }
}

/// Runs file system work where it blocks no task: on tokio's blocking threads, or right here outside a runtime.
pub(crate) fn in_background(work: impl FnOnce() + Send + 'static) {
    match tokio::runtime::Handle::try_current() {
        Ok(runtime) => drop(runtime.spawn_blocking(work)),
        Err(_) => work(),
    }
}
