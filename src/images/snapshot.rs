//! Layer directories: being unpacked, whole, being removed.
//!
//! ```text
//!   stage ──► .new-<n>-<hex> ──(unpacked, synced)──► publish ──► <hex> ──► retire ──► .old-<n>-<hex> ──► removed
//!                   └──(failed, given up)──► removed
//! ```
//! A layer has its final name only after its data is on disk, so what is there under a final name is whole, whatever
//! happened to the host. The listing (`<hex>.tree`) and the facts (`<hex>.json`) beside it are renamed into place
//! first: a directory without facts is none. Names that begin with a dot are cleared when the daemon starts.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use podwright_base::Digest;
use podwright_layer::{Amount, Unpacked};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use crate::places::Places;

/// What is known of a whole layer without looking into it. Older versions wrote the amount only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Facts {
    #[serde(flatten)]
    pub(crate) amount: Amount,
    /// The digest of its listing; a layer without one cannot be verified.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) listing: Option<Digest>,
    /// Whether it names its root, whose attributes are then the layer's to say.
    #[serde(default)]
    pub(crate) names_root: bool,
    /// Whether it hides all that is in layers below.
    #[serde(default)]
    pub(crate) hides_all: bool,
    /// How many of its directories take their attributes from layers below; the listing says which.
    #[serde(default)]
    pub(crate) implied: u64,
    /// How many of its hard links have targets in layers below; the listing says which.
    #[serde(default)]
    pub(crate) unresolved: u64,
}

impl From<Unpacked> for Facts {
    fn from(unpacked: Unpacked) -> Self {
        let Unpacked { amount, listing, names_root, hides_all, implied, unresolved } = unpacked;
        Self { amount, listing: Some(listing), names_root, hides_all, implied, unresolved }
    }
}

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
    listing: PathBuf,
    /// Set when it is whole.
    known: OnceLock<Facts>,
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
            let whole = name.strip_suffix(".json").or(name.strip_suffix(".tree")).unwrap_or(name);
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
        self.facts(diff_id).map(|facts| facts.amount)
    }

    /// Returns what is known of a layer, `None` when there is no such whole layer.
    pub(crate) fn facts(&self, diff_id: &Digest) -> Option<Facts> {
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
            listing: self.places.new_layer_listing(number, diff_id),
            known: OnceLock::new(),
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
        self.publish_facts(staged)?;
        fs::rename(&staged.directory, self.places.layer(&staged.diff_id))?;
        staged.published.store(true, Ordering::Release);
        Ok(())
    }

    /// Gives what is known of a staged layer its final names: for the directory that is there.
    pub(crate) fn publish_facts(&self, staged: &Staged) -> io::Result<()> {
        fs::rename(&staged.listing, self.places.layer_listing(&staged.diff_id))?;
        fs::rename(&staged.facts, self.places.layer_facts(&staged.diff_id))
    }

    /// Takes a layer's final name away and returns where its files are; quick, unlike their removal.
    pub(crate) fn retire(&self, diff_id: &Digest) -> io::Result<PathBuf> {
        let place = self.places.old_layer(self.counter.fetch_add(1, Ordering::Relaxed), diff_id);
        fs::rename(self.places.layer(diff_id), &place)?;
        podwright_layer::remove_path(&self.places.layer_facts(diff_id))?;
        podwright_layer::remove_path(&self.places.layer_listing(diff_id))?;
        Ok(place)
    }
}

impl Staged {
    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    pub(crate) fn diff_id(&self) -> &Digest {
        &self.diff_id
    }

    /// Where the layer's listing is to be written.
    pub(crate) fn listing(&self) -> &Path {
        &self.listing
    }

    /// Writes down what the layer has turned out to be, before the sync.
    pub(crate) fn finish(&self, unpacked: Unpacked) -> io::Result<()> {
        let facts = Facts::from(unpacked);
        fs::write(&self.facts, serde_json::to_vec(&facts)?)?;
        self.known.get_or_init(|| facts);
        Ok(())
    }

    /// Returns what is known of the layer, once it is finished.
    pub(crate) fn facts(&self) -> Option<&Facts> {
        self.known.get()
    }

    /// Tells whether its files have the final names; to be asked while nobody publishes.
    pub(crate) fn is_published(&self) -> bool {
        self.published.load(Ordering::Acquire)
    }

    /// Returns what the layer takes, nothing before it is finished.
    pub(crate) fn amount(&self) -> Amount {
        self.known.get().map(|facts| facts.amount).unwrap_or_default()
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
        remove(&[&self.directory, &self.facts, &self.listing]);
    }
}

fn remove(paths: &[&Path]) {
    for path in paths {
        if let Err(error) = podwright_layer::remove_path(path) {
            // Nobody is left to return it to; the next start tries again.
            tracing::warn!(path = %path.display(), %error, "a half-unpacked layer stays until the next start");
        }
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        if *self.published.get_mut() {
            return;
        }
        let paths = [&mut self.directory, &mut self.facts, &mut self.listing].map(std::mem::take);
        let witness = self.witness.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        in_background(move || {
            remove(&paths.each_ref().map(PathBuf::as_path));
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
