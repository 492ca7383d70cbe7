//! What is inside the directories that images own: `content/`, `layers/` and `images/` of the layout.
//!
//! ```text
//! content/oci-layout, content/index.json             an OCI image layout, for other tools
//! content/blobs/sha256/<hex>                         manifests, indexes and configurations; layers' where they are kept
//! content/ingest/                                    what is being written
//! layers/<diffID hex>/ and layers/<diffID hex>.json  a whole layer and its facts: either both are there or it is none
//! layers/<diffID hex>.tree                           the listing of its tree, whose digest is among the facts
//! layers/.new-<n>-<diffID hex>/, .json, .tree        being unpacked
//! layers/.old-<n>-<diffID hex>/                      being removed
//! images/<image id hex>.json                         image records
//! images.open                                        there while all this may be written
//! ```

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use podwright_base::{Digest, Layout};

/// Prefix of layers that are being unpacked.
pub(crate) const NEW: &str = ".new-";
/// Prefix of layers that are being removed.
pub(crate) const OLD: &str = ".old-";

/// Paths of everything that images keep.
#[derive(Debug, Clone)]
pub(crate) struct Places {
    content: PathBuf,
    layers: PathBuf,
    images: PathBuf,
    mark: PathBuf,
}

impl Places {
    pub(crate) fn new(layout: &Layout) -> Self {
        Self { content: layout.content(), layers: layout.layers(), images: layout.images(), mark: layout.images_mark() }
    }

    /// Makes the directories that are missing. No other user may walk into them: layers hold setuid programs.
    pub(crate) fn create(&self) -> Result<(), (PathBuf, io::Error)> {
        for dir in [self.blobs(), self.ingest(), self.layers.clone(), self.images.clone()] {
            DirBuilder::new().recursive(true).mode(0o700).create(&dir).map_err(|error| (dir, error))?;
        }
        let marker = self.content.join("oci-layout");
        if !marker.exists() {
            fs::write(&marker, br#"{"imageLayoutVersion":"1.0.0"}"#).map_err(|error| (marker, error))?;
        }
        Ok(())
    }

    pub(crate) fn blobs(&self) -> PathBuf {
        self.content.join("blobs/sha256")
    }

    pub(crate) fn blob(&self, digest: &Digest) -> PathBuf {
        self.blobs().join(digest.hex())
    }

    pub(crate) fn index(&self) -> PathBuf {
        self.content.join("index.json")
    }

    pub(crate) fn ingest(&self) -> PathBuf {
        self.content.join("ingest")
    }

    pub(crate) fn layers(&self) -> &Path {
        &self.layers
    }

    pub(crate) fn layer(&self, diff_id: &Digest) -> PathBuf {
        self.layers.join(diff_id.hex())
    }

    pub(crate) fn layer_facts(&self, diff_id: &Digest) -> PathBuf {
        self.layers.join(format!("{}.json", diff_id.hex()))
    }

    pub(crate) fn layer_listing(&self, diff_id: &Digest) -> PathBuf {
        self.layers.join(format!("{}.tree", diff_id.hex()))
    }

    pub(crate) fn new_layer(&self, number: u64, diff_id: &Digest) -> PathBuf {
        self.layers.join(format!("{NEW}{number}-{}", diff_id.hex()))
    }

    pub(crate) fn new_layer_facts(&self, number: u64, diff_id: &Digest) -> PathBuf {
        self.layers.join(format!("{NEW}{number}-{}.json", diff_id.hex()))
    }

    pub(crate) fn new_layer_listing(&self, number: u64, diff_id: &Digest) -> PathBuf {
        self.layers.join(format!("{NEW}{number}-{}.tree", diff_id.hex()))
    }

    pub(crate) fn old_layer(&self, number: u64, diff_id: &Digest) -> PathBuf {
        self.layers.join(format!("{OLD}{number}-{}", diff_id.hex()))
    }

    pub(crate) fn images(&self) -> &Path {
        &self.images
    }

    pub(crate) fn mark(&self) -> PathBuf {
        self.mark.clone()
    }

    pub(crate) fn record(&self, image: &Digest) -> PathBuf {
        self.images.join(format!("{}.json", image.hex()))
    }
}
