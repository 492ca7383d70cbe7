//! Removal of images, and of layers and blobs that nobody needs any more.
//!
//! Nothing is taken away that a pull under way relies on: what it found is leased, what it brings has temporary names
//! until its record is published, and names are given and taken under one lock.

use std::collections::HashSet;
use std::fs;

use podwright_base::Digest;
use podwright_layer::Amount;

use crate::durable;
use crate::manifest;
use crate::store::{Store, StoreError, at};
use crate::usage::Usage;

/// What [`crate::Images::collect`] has removed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Collected {
    /// Layers.
    pub layers: usize,
    /// Manifests, indexes, configurations, layers' blobs, and parts of blobs whose pull nobody tries again.
    pub blobs: usize,
}

impl Store {
    /// Removes an image with all its names; its layers go with the last lease.
    pub(crate) fn remove(&self, name: &str) -> Result<bool, StoreError> {
        let publication = self.publication();
        let Some(image) = self.find(name) else { return Ok(false) };
        let place = self.places().record(&image.id);
        at("remove the image record", &place, fs::remove_file(&place))?;
        // The record must not come back after a power cut that finds its layers gone.
        at("sync", self.places().images(), durable::sync_names(&[self.places().images()]))?;
        self.state().images.remove(&image.id);
        self.restore_index()?;
        drop(publication);
        self.sweep(&image.layers)?;
        self.sweep_blobs()?;
        Ok(true)
    }

    /// Removes all that no image and no lease needs. From the first call on, layers also go with their last lease.
    pub(crate) fn collect(&self) -> Result<Collected, StoreError> {
        self.state().settled = true;
        let layers = at("list", self.places().layers(), self.layers().list())?;
        Ok(Collected { layers: self.sweep(&layers)?, blobs: self.sweep_blobs()? })
    }

    /// Removes those of the layers that nobody needs.
    pub(crate) fn sweep(&self, layers: &[Digest]) -> Result<usize, StoreError> {
        let mut retired = Vec::new();
        {
            let _publication = self.publication();
            let state = self.state();
            for layer in layers.iter().filter(|layer| state.is_free(layer)) {
                if self.layers().amount(layer).is_some() {
                    retired.push(at("remove the layer", self.places().layer(layer), self.layers().retire(layer))?);
                }
            }
        }
        for path in &retired {
            at("remove", path, podwright_layer::remove_path(path))?;
        }
        Ok(retired.len())
    }

    fn sweep_blobs(&self) -> Result<usize, StoreError> {
        let _publication = self.publication();
        let images = self.list();
        let mut needed: HashSet<Digest> = images.iter().flat_map(|image| image.documents()).collect();
        if self.keeps_layer_blobs() {
            for image in &images {
                // A manifest that cannot be read cannot say which blobs its image has: they may be all there is of it.
                let Some(manifest) = self.content().get(&image.manifest).ok().flatten() else { return Ok(0) };
                needed.extend(manifest::layers(&manifest).into_iter().map(|blob| blob.digest));
            }
        }
        let mut removed = 0;
        for (digest, _) in at("list", self.places().blobs(), self.content().list())? {
            if !needed.contains(&digest) {
                at("remove the blob", self.places().blob(&digest), self.content().remove(&digest))?;
                removed += 1;
            }
        }
        // A removal may be for want of room.
        Ok(removed + at("clear", self.places().ingest(), self.content().sweep_parts())?)
    }

    /// Adds up what layers and blobs take.
    pub(crate) fn usage(&self) -> Usage {
        let mut amount = Amount::default();
        // ImageFsInfo never fails: what cannot be listed counts as nothing.
        for layer in self.layers().list().unwrap_or_default() {
            amount.add(self.layers().amount(&layer).unwrap_or_default());
        }
        let blobs = self.content().list().unwrap_or_default().into_iter().map(|(_, length)| length);
        for length in blobs.chain(self.content().ingest().unwrap_or_default()) {
            amount.add_file(length);
        }
        Usage { bytes: amount.bytes, inodes: amount.inodes, mountpoint: self.places().layers().to_owned() }
    }
}
