//! The face of the crate.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use podwright_base::config::Registry;
use podwright_base::{Digest, Layout};
use podwright_layer::{Located, ReadFileError};
use podwright_registry::Credentials;
use tokio::sync::watch;

use crate::collect::Collected;
use crate::image::Image;
use crate::join::Joint;
use crate::load::{self, LoadError};
use crate::pinned::Pinned;
use crate::places::Places;
use crate::progress::PullProgress;
use crate::pull::Puller;
use crate::pull_error::PullError;
use crate::store::{Lease, Store, StoreError};
use crate::usage::Usage;

/// The images of this node. Clones are the same.
#[derive(Clone)]
pub struct Images {
    inner: Arc<Inner>,
}

struct Inner {
    puller: Puller,
    joint: Joint,
    pinned: Pinned,
}

impl std::fmt::Debug for Images {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Images").field("layers", &self.store().places().layers()).finish_non_exhaustive()
    }
}

impl Images {
    /// Opens the node's images: makes directories, clears what a killed daemon left half done, reads the records and
    /// moves damaged ones aside. Blocks on the disk.
    ///
    /// # Errors
    /// When a directory cannot be made, read or cleared.
    pub fn open(layout: &Layout, config: &Registry) -> Result<Self, StoreError> {
        let store = Arc::new(Store::open(Places::new(layout), config.keep_layer_blobs)?);
        let (puller, pinned) = (Puller::new(store, config), Pinned::new(&config.pinned_images));
        Ok(Self { inner: Arc::new(Inner { puller, joint: Joint::default(), pinned }) })
    }

    pub(crate) fn puller(&self) -> &Puller {
        &self.inner.puller
    }

    pub(crate) fn store(&self) -> &Arc<Store> {
        &self.inner.puller.store
    }

    /// Pulls an image by its reference (CRI `PullImage`).
    ///
    /// Identical pulls that run at the same time are one. When all callers have dropped their futures, it is given up
    /// and leaves nothing behind.
    ///
    /// # Errors
    /// See [`PullError::class`].
    pub async fn pull(
        &self,
        reference: &str,
        credentials: Option<Credentials>,
        progress: &watch::Sender<PullProgress>,
    ) -> Result<Arc<Image>, PullError> {
        let reference = podwright_registry::normalize(reference)?;
        let credentials = credentials.filter(|credentials| *credentials != Credentials::default());
        if let Some(credentials) = &credentials {
            credentials.basic()?;
        }
        let key = (reference.to_string(), credentials.clone());
        let puller = self.inner.puller.clone();
        self.inner.joint.run(key, progress, |steps| puller.pull(reference, credentials, steps)).await
    }

    /// Loads the images of an OCI layout or `docker save` archive, plain or compressed.
    ///
    /// # Errors
    /// When the file is neither, or one of its images cannot be used; images before that one are loaded.
    pub async fn load(
        &self,
        archive: &Path,
        progress: &watch::Sender<PullProgress>,
    ) -> Result<Vec<Arc<Image>>, LoadError> {
        load::load(&self.inner.puller, archive, progress).await
    }

    /// Finds an image by a tag, a digest reference, its id, or a unique prefix of it of at least 12 digits.
    pub fn find(&self, name_or_id: &str) -> Option<Arc<Image>> {
        self.store().find(name_or_id)
    }

    /// Finds an image and holds its layers at once, so that no removal comes between.
    pub fn hold(&self, name_or_id: &str) -> Option<(Arc<Image>, Lease)> {
        self.store().hold(name_or_id)
    }

    /// Returns all images.
    pub fn list(&self) -> Vec<Arc<Image>> {
        self.store().list()
    }

    /// Tells whether the kubelet's garbage collection has to leave an image alone (CRI `Image.pinned`).
    pub fn is_pinned(&self, image: &Image) -> bool {
        self.inner.pinned.fits(image)
    }

    /// Removes an image with all its names, by any of them (CRI `RemoveImage`). Returns `false` when there is none.
    ///
    /// Layers that are leased stay until the lease ends.
    ///
    /// # Errors
    /// When the disk refuses.
    pub async fn remove(&self, name_or_id: &str) -> Result<bool, StoreError> {
        let (store, name) = (Arc::clone(self.store()), name_or_id.to_owned());
        match tokio::task::spawn_blocking(move || store.remove(&name)).await {
            Ok(removed) => removed,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                // The runtime is going down and has not begun it.
                Err(_) => Ok(false),
            },
        }
    }

    /// Holds an image's layers until the lease is dropped.
    pub fn lease(&self, image: &Image) -> Lease {
        self.store().lease(&image.layers)
    }

    /// Holds layers, whether or not an image names them: for containers found again after a restart.
    pub fn lease_layers(&self, diff_ids: &[Digest]) -> Lease {
        self.store().lease(diff_ids)
    }

    /// Removes layers and blobs that no image and no lease needs. Blocks on the disk.
    ///
    /// To be called once when the leases of all containers from before a restart are taken again: until then no layer
    /// is removed, and from then on layers also go with their image or their last lease.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn collect(&self) -> Result<Collected, StoreError> {
        self.store().collect()
    }

    /// Says that nothing is being written any more, so that the next start need not suspect a power cut. Blocks on the
    /// disk.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn close(&self) -> Result<(), StoreError> {
        self.store().close()
    }

    /// Returns the directory of a layer, for mounting.
    pub fn layer_path(&self, diff_id: &Digest) -> PathBuf {
        self.store().places().layer(diff_id)
    }

    /// Gives a directory the mode, owner and extended attributes of the root of the given layers, bottom first, as the
    /// topmost of them says that names it: overlayfs shows those of the writable directory. Blocks on the disk.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn copy_root(&self, layers: &[Digest], directory: &Path) -> io::Result<()> {
        let store = self.store();
        let names_root = |layer: &&Digest| store.layers().facts(layer).is_some_and(|facts| facts.names_root);
        match layers.iter().rev().find(names_root) {
            Some(layer) => podwright_layer::copy_attributes(&self.layer_path(layer), directory),
            None => Ok(()),
        }
    }

    /// Reads a file of an image, as a container would see it; `None` when there is none. Blocks on the disk.
    ///
    /// # Errors
    /// When it is no regular file, longer than `limit`, or a layer is gone.
    pub fn read_file(&self, image: &Image, path: &str, limit: usize) -> Result<Option<Vec<u8>>, ReadFileError> {
        podwright_layer::read_file(&self.layer_paths(image), path, limit)
    }

    /// Finds what is at a path of an image, in the directories of its layers; `None` when nothing is there. Blocks on the
    /// disk.
    ///
    /// # Errors
    /// When it is neither a directory nor a regular file, or a layer is gone.
    pub fn locate(&self, image: &Image, path: &str) -> Result<Option<Located>, ReadFileError> {
        podwright_layer::locate(&self.layer_paths(image), path)
    }

    fn layer_paths(&self, image: &Image) -> Vec<PathBuf> {
        image.layers.iter().rev().map(|layer| self.layer_path(layer)).collect()
    }

    /// Adds up what all images take on disk (CRI `ImageFsInfo`).
    pub fn usage(&self) -> Usage {
        self.store().usage()
    }
}
