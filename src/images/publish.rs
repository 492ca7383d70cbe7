//! Publication: an image appears whole, or not at all, whenever the power goes.
//!
//! ```text
//!   layers, kept blobs ─┐
//!   documents           ├─ under temporary names ──► one sync ──► names, in this order ──► one sync of the last name
//!   records             │
//!   index.json ─────────┘
//! ```
//! Only a record makes an image, and it comes after all that it names. Records of images that lose a tag come after the
//! one that takes it: for a moment a tag is claimed twice, and the younger record has it.

use std::collections::{BTreeMap, HashSet};
use std::fs::{self, File};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use podwright_base::Digest;
use podwright_layer::Amount;

use crate::durable;
use crate::image::{self, Image};
use crate::layout;
use crate::snapshot::Staged;
use crate::store::{Store, StoreError, at};

/// A pulled or loaded image that has no record yet.
pub(crate) struct Candidate {
    pub(crate) image: Image,
    pub(crate) manifest: Vec<u8>,
    pub(crate) config: Vec<u8>,
    /// What the image's digest names, where that is an index.
    pub(crate) index: Option<Vec<u8>>,
    pub(crate) staged: Vec<Arc<Staged>>,
}

impl Candidate {
    fn documents(&self) -> impl Iterator<Item = (Digest, &[u8])> {
        let manifest = (self.image.manifest.clone(), self.manifest.as_slice());
        let config = self.image.config_digest();
        let config = (config.clone(), self.config.as_slice());
        let index = self.index.as_deref().map(|index| (Digest::of(index), index));
        [manifest, config].into_iter().chain(index)
    }
}

impl Store {
    /// Publishes an image. Returns it merged with what the node knew of it already.
    pub(crate) fn publish(&self, candidate: &Candidate) -> Result<Arc<Image>, StoreError> {
        let _publication = self.publication();
        let mut images = self.state().images.clone();
        let known = images.get(&candidate.image.id).cloned();
        let image = Arc::new(self.merged(candidate, known.as_deref()));
        let mut commit = Commit { store: self, renames: Vec::new() };
        for (digest, bytes) in candidate.documents() {
            commit.document(&digest, bytes)?;
        }
        // Pulled again, an image is most often the one that is there.
        if let Some(known) = known.filter(|known| known.is_same(&image))
            && candidate.staged.is_empty()
            && commit.renames.is_empty()
        {
            return Ok(known);
        }
        images.insert(image.id.clone(), Arc::clone(&image));
        commit.record(&image)?;
        for other in take_tags(&mut images, &image) {
            commit.record(&other)?;
        }
        let index = self.index(&images, |digest| (*digest == image.manifest).then(|| candidate.manifest.clone()))?;
        commit.write("index", &index, self.places().index())?;
        commit.finish(&candidate.staged)?;
        self.state().images = images;
        Ok(image)
    }

    /// Puts a document into its place that was damaged.
    pub(crate) fn restore(&self, digest: &Digest, bytes: &[u8]) -> Result<(), StoreError> {
        let _publication = self.publication();
        let mut commit = Commit { store: self, renames: Vec::new() };
        commit.document(digest, bytes)?;
        commit.finish(&[])
    }

    /// Puts a layer's directory, listing and facts into their places, where no directory is.
    pub(crate) fn restore_layer(&self, staged: &Staged) -> Result<(), StoreError> {
        let _publication = self.publication();
        at("publish the layer", staged.directory(), self.layers().publish(staged))
    }

    /// Puts a layer's listing and facts into their places, where the directory is.
    pub(crate) fn restore_facts(&self, staged: &Staged) -> Result<(), StoreError> {
        let _publication = self.publication();
        at("publish the listing of", staged.directory(), self.layers().publish_facts(staged))
    }

    /// Puts a layer's blob into its place that was damaged.
    pub(crate) fn restore_layer_blob(&self, staged: &Staged) -> Result<(), StoreError> {
        let Some((digest, bytes)) = staged.kept() else { return Ok(()) };
        let (place, blobs) = (self.places().blob(digest), self.places().blobs());
        at("sync", &place, File::open(bytes).and_then(|file| file.sync_all()))?;
        let _publication = self.publication();
        publish_blob(bytes, place)?;
        at("sync", &blobs, durable::sync_names(&[&blobs]))
    }

    fn merged(&self, candidate: &Candidate, known: Option<&Image>) -> Image {
        let mut image = candidate.image.clone();
        if let Some(known) = known {
            merge(&mut image.tags, &known.tags);
            merge(&mut image.digests, &known.digests);
        }
        let mut amount = Amount::default();
        for layer in image.layers.iter().collect::<HashSet<_>>() {
            let staged = || candidate.staged.iter().find(|staged| staged.diff_id() == layer).map(|new| new.amount());
            amount.add(self.layers().amount(layer).or_else(staged).unwrap_or_default());
        }
        image.size = amount.bytes;
        image
    }

    /// Makes `index.json` of images; manifests that are not in their places yet are given.
    fn index(
        &self,
        images: &BTreeMap<Digest, Arc<Image>>,
        given: impl Fn(&Digest) -> Option<Vec<u8>>,
    ) -> Result<Vec<u8>, StoreError> {
        let manifest = |digest: &Digest| given(digest).or_else(|| self.content().get(digest).ok().flatten());
        let index = layout::index(images.values().map(Arc::as_ref), manifest);
        at("describe the images in", self.places().index(), index.map_err(io::Error::from))
    }

    /// Writes `index.json` anew unless it is as it should be. It is made of the records: no one depends on it.
    pub(crate) fn restore_index(&self) -> Result<(), StoreError> {
        let images = self.state().images.clone();
        let (place, index) = (self.places().index(), self.index(&images, |_| None)?);
        if fs::read(&place).is_ok_and(|found| found == index) {
            return Ok(());
        }
        let temporary = at("write", &place, self.content().stage("index", &index))?;
        at("write", &place, fs::rename(&temporary, &place))
    }
}

/// Files that are written under temporary names and get their own all together; until then they go when it is dropped.
struct Commit<'a> {
    store: &'a Store,
    /// From, to.
    renames: Vec<(PathBuf, PathBuf)>,
}

impl Commit<'_> {
    fn write(&mut self, name: &str, bytes: &[u8], place: PathBuf) -> Result<(), StoreError> {
        let temporary = at("write", &place, self.store.content().stage(name, bytes))?;
        self.renames.push((temporary, place));
        Ok(())
    }

    /// Writes a document unless it is there; one that is damaged is replaced.
    fn document(&mut self, digest: &Digest, bytes: &[u8]) -> Result<(), StoreError> {
        let place = self.store.places().blob(digest);
        if fs::read(&place).is_ok_and(|found| found == bytes) {
            return Ok(());
        }
        self.write(digest.hex(), bytes, place)
    }

    fn record(&mut self, image: &Image) -> Result<(), StoreError> {
        let place = self.store.places().record(&image.id);
        // One that a start has moved aside is made good by this.
        let _ = fs::remove_file(image::aside(&place));
        let record = at("describe the image in", &place, image.record().map_err(io::Error::from))?;
        self.write(image.id.hex(), &record, place)
    }

    /// Syncs what was written, then gives all names.
    fn finish(mut self, staged: &[Arc<Staged>]) -> Result<(), StoreError> {
        let places = self.store.places();
        let (blobs, images) = (places.blobs(), places.images());
        let directories = [places.layers(), &blobs, images];
        if staged.is_empty() {
            // A few small files: the host's other data need not be written for them.
            for (temporary, place) in &self.renames {
                at("sync", place, File::open(temporary).and_then(|file| file.sync_all()))?;
            }
        } else {
            at("sync the file system of", places.layers(), durable::sync_data(&directories))?;
        }
        for staged in staged {
            at("publish the layer", staged.directory(), self.store.layers().publish(staged))?;
            if let Some((digest, bytes)) = staged.kept() {
                publish_blob(bytes, places.blob(digest))?;
            }
        }
        for (temporary, place) in std::mem::take(&mut self.renames) {
            at("publish", &place, fs::rename(&temporary, &place))?;
        }
        at("sync", images, durable::sync_names(&directories))
    }
}

/// Gives the bytes of a layer their name. They are gone when another image with the same layer has published them.
fn publish_blob(bytes: &PathBuf, place: PathBuf) -> Result<(), StoreError> {
    match fs::rename(bytes, &place) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => at("publish", place, result),
    }
}

impl Drop for Commit<'_> {
    fn drop(&mut self) {
        for (temporary, _) in &self.renames {
            // What stays is cleared at the next start.
            let _ = fs::remove_file(temporary);
        }
    }
}

fn merge(names: &mut Vec<String>, known: &[String]) {
    for name in known {
        if !names.contains(name) {
            names.push(name.clone());
        }
    }
}

/// Takes an image's tags from all others and returns those that lost one.
fn take_tags(images: &mut BTreeMap<Digest, Arc<Image>>, owner: &Image) -> Vec<Arc<Image>> {
    let mut changed = Vec::new();
    for image in images.values_mut().filter(|image| image.id != owner.id) {
        if image.tags.iter().any(|tag| owner.tags.contains(tag)) {
            let mut copy = Image::clone(image);
            copy.tags.retain(|tag| !owner.tags.contains(tag));
            *image = Arc::new(copy);
            changed.push(Arc::clone(image));
        }
    }
    changed
}

impl Image {
    /// Tells whether it is the same image with the same names, however they are ordered and whenever it was pulled.
    fn is_same(&self, other: &Self) -> bool {
        let all =
            |names: &[String], of: &[String]| names.len() == of.len() && names.iter().all(|name| of.contains(name));
        all(&self.tags, &other.tags)
            && all(&self.digests, &other.digests)
            && self.manifest == other.manifest
            && self.layers == other.layers
    }
}
