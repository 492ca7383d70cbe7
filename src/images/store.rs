//! Images and layers of this node: who has which name, who holds which layer, and what may go.
//!
//! Two locks. `publication` is held while records, blobs and final names change on disk, so that removal never sees
//! half a publication. `state` is held for moments only; a layer is looked for, or retired, under it, so a lease taken
//! before looking is never too late. Order: `publication`, then `state`.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use podwright_base::{Digest, chain};

use crate::content::Content;
use crate::image::{self, Image};
use crate::mark::Mark;
use crate::places::Places;
use crate::snapshot::{self, Layers};
use crate::verify::{self, Effort, Finding, Part, Verified};

/// Digits of an image id from which on a prefix names it.
const SHORTEST_PREFIX: usize = 12;

/// A step on the node's own disk failed.
#[derive(Debug, thiserror::Error)]
#[error("{step} {}", path.display())]
pub struct StoreError {
    step: &'static str,
    path: PathBuf,
    source: io::Error,
}

/// Holds layers until dropped: they stay although their image is removed.
#[derive(Debug)]
pub struct Lease {
    store: Arc<Store>,
    layers: Vec<Digest>,
}

#[derive(Debug)]
pub(crate) struct Store {
    places: Places,
    layers: Layers,
    content: Content,
    keep_layer_blobs: bool,
    mark: Mark,
    publication: Mutex<()>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) images: BTreeMap<Digest, Arc<Image>>,
    leases: HashMap<Digest, usize>,
    /// Whether all leases from before a restart are known again: until then no unnamed layer may go.
    pub(crate) settled: bool,
}

pub(crate) fn at<T>(step: &'static str, path: impl Into<PathBuf>, result: io::Result<T>) -> Result<T, StoreError> {
    result.map_err(|source| StoreError { step, path: path.into(), source })
}

impl Store {
    /// Makes directories, clears what a killed daemon left half done, and reads the records.
    pub(crate) fn open(places: Places, keep_layer_blobs: bool) -> Result<Self, StoreError> {
        places.create().map_err(|(path, source)| StoreError { step: "make", path, source })?;
        let (layers, content) = (Layers::new(places.clone()), Content::new(places.clone()));
        at("clear", places.ingest(), content.sweep())?;
        at("clear", places.layers(), layers.sweep())?;
        let mut images = Vec::new();
        for entry in at("list", places.images(), fs::read_dir(places.images()))? {
            let path = at("list", places.images(), entry)?.path();
            if path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            match Image::read(&path, &content, |layer| layers.amount(layer).is_some()) {
                Ok(image) => images.push(image),
                Err(error) => {
                    let aside = at("move aside", &path, image::quarantine(&path))?;
                    let error: &dyn std::error::Error = &error;
                    tracing::warn!(error, path = %aside.display(), "an image record is damaged: pull its image again");
                }
            }
        }
        let images = settle_names(images);
        let state = Mutex::new(State { images, ..State::default() });
        let mark = at("mark", places.mark(), Mark::set(places.mark()))?;
        let publication = Mutex::new(());
        let store = Self { places, layers, content, keep_layer_blobs, mark, publication, state };
        store.restore_index()?;
        if store.is_suspect() {
            store.look_for_damage();
        }
        Ok(store)
    }

    /// Says what a power cut has done, as far as digests tell.
    fn look_for_damage(&self) {
        let mut known = Verified::default();
        for image in self.list() {
            match verify::check(self, &image, Effort::Digests, &mut known) {
                Ok(found) => found.iter().for_each(|finding| {
                    tracing::warn!(image.id = %image.id, %finding, "an image was damaged when the host went down");
                }),
                Err(error) => tracing::warn!(image.id = %image.id, error = chain(&error), "it cannot be verified"),
            }
        }
    }

    /// Tells whether the host went down while the store was open, and the store was not checked since.
    pub(crate) fn is_suspect(&self) -> bool {
        self.mark.is_suspect()
    }

    /// Says that the store was checked.
    pub(crate) fn checked(&self) -> Result<(), StoreError> {
        at("mark", self.places.mark(), self.mark.checked())
    }

    /// Says that nothing is being written any more.
    pub(crate) fn close(&self) -> Result<(), StoreError> {
        at("remove", self.places.mark(), self.mark.clear())
    }

    /// Returns the records that starts have moved aside, with what can be done about them.
    pub(crate) fn set_aside(&self) -> Result<Vec<Finding>, StoreError> {
        let mut found = Vec::new();
        for entry in at("list", self.places.images(), fs::read_dir(self.places.images()))? {
            let path = at("list", self.places.images(), entry)?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let hex = name.strip_suffix(image::ASIDE).and_then(|name| name.strip_suffix(".json."));
            let Some(Ok(digest)) = hex.map(|hex| format!("sha256:{hex}").parse()) else { continue };
            let names = image::names_of_aside(&path).join(" or ");
            let which = if names.is_empty() { "its image".to_owned() } else { names };
            let what = format!("moved to {} when the daemon started: pull {which} again", path.display());
            found.push(Finding { part: Part::Record, digest, path: None, what });
        }
        Ok(found)
    }

    /// Looks for a whole layer; one that the caller has leased stays.
    pub(crate) fn has_layer(&self, diff_id: &Digest) -> bool {
        let _state = self.state();
        self.layers.amount(diff_id).is_some()
    }

    pub(crate) fn layers(&self) -> &Layers {
        &self.layers
    }

    pub(crate) fn content(&self) -> &Content {
        &self.content
    }

    /// Tells whether layers' blobs are kept once they are unpacked.
    pub(crate) fn keeps_layer_blobs(&self) -> bool {
        self.keep_layer_blobs
    }

    pub(crate) fn places(&self) -> &Places {
        &self.places
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        // Nothing below panics between two writes to the state, so a poisoned one is whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn publication(&self) -> MutexGuard<'_, ()> {
        self.publication.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn list(&self) -> Vec<Arc<Image>> {
        self.state().images.values().cloned().collect()
    }

    pub(crate) fn find(&self, name: &str) -> Option<Arc<Image>> {
        self.state().find(name)
    }

    pub(crate) fn hold(self: &Arc<Self>, name: &str) -> Option<(Arc<Image>, Lease)> {
        let mut state = self.state();
        let image = state.find(name)?;
        let layers = image.layers.clone();
        state.lease(&layers);
        drop(state);
        Some((image, Lease { store: Arc::clone(self), layers }))
    }

    pub(crate) fn lease(self: &Arc<Self>, layers: &[Digest]) -> Lease {
        self.state().lease(layers);
        Lease { store: Arc::clone(self), layers: layers.to_vec() }
    }
}

impl State {
    fn lease(&mut self, layers: &[Digest]) {
        for layer in layers {
            *self.leases.entry(layer.clone()).or_default() += 1;
        }
    }

    pub(crate) fn is_free(&self, layer: &Digest) -> bool {
        self.settled
            && !self.leases.contains_key(layer)
            && !self.images.values().any(|image| image.layers.contains(layer))
    }

    fn find(&self, name: &str) -> Option<Arc<Image>> {
        if let Ok(id) = name.parse::<Digest>() {
            return self.images.get(&id).cloned();
        }
        if let Ok(id) = format!("sha256:{name}").parse::<Digest>() {
            return self.images.get(&id).cloned();
        }
        let by_name = podwright_registry::normalize(name).ok().and_then(|reference| {
            self.images.values().find(|image| match reference.digest() {
                // The tag beside a digest says nothing.
                Some(digest) => {
                    image.digests.contains(&reference.with_digest(digest))
                        || image.manifest == *digest && image.is_named(&reference.name())
                }
                None => image.tags.contains(&reference.to_string()),
            })
        });
        by_name.cloned().or_else(|| self.find_prefix(name.strip_prefix("sha256:").unwrap_or(name)))
    }

    fn find_prefix(&self, prefix: &str) -> Option<Arc<Image>> {
        if prefix.len() < SHORTEST_PREFIX {
            return None;
        }
        let mut fits = self.images.values().filter(|image| image.id.hex().starts_with(prefix));
        match (fits.next(), fits.next()) {
            (Some(image), None) => Some(Arc::clone(image)),
            _ => None,
        }
    }
}

impl Image {
    fn is_named(&self, name: &str) -> bool {
        let of_name = |whole: &String, mark| whole.strip_prefix(name).is_some_and(|rest| rest.starts_with(mark));
        self.tags.iter().any(|tag| of_name(tag, ':')) || self.digests.iter().any(|digest| of_name(digest, '@'))
    }
}

/// Gives each tag to the youngest image that claims it.
fn settle_names(mut images: Vec<Image>) -> BTreeMap<Digest, Arc<Image>> {
    images.sort_by_key(|image| std::cmp::Reverse(image.updated));
    let mut taken = HashSet::new();
    for image in &mut images {
        image.tags.retain(|tag| taken.insert(tag.clone()));
    }
    images.into_iter().map(|image| (image.id.clone(), Arc::new(image))).collect()
}

impl Drop for Lease {
    fn drop(&mut self) {
        let freed: Vec<Digest> = {
            let mut state = self.store.state();
            for layer in &self.layers {
                if let Some(count) = state.leases.get_mut(layer) {
                    *count -= 1;
                    if *count == 0 {
                        state.leases.remove(layer);
                    }
                }
            }
            self.layers.iter().filter(|layer| state.is_free(layer)).cloned().collect()
        };
        if freed.is_empty() {
            return;
        }
        let store = Arc::clone(&self.store);
        snapshot::in_background(move || {
            if let Err(error) = store.sweep(&freed) {
                // Nobody is left to return it to; the next collection tries again.
                let error: &dyn std::error::Error = &error;
                tracing::warn!(error, "a layer that nobody needs stays until the next collection");
            }
        });
    }
}
