//! The pull: resolve, fetch and unpack the layers side by side, publish.

use std::collections::HashSet;
use std::error::Error;
use std::io::{self, Read};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::{Buf, Bytes};
use futures_util::future::try_join_all;
use podwright_base::Digest;
use podwright_base::config::Registry as Config;
use podwright_layer::{Expected, UnpackError};
use podwright_registry::{
    Blob, Credentials, CredentialsError, Document, HostsError, Piece, Reference, ReferenceError, RegistryError,
    Session, Stop, Transport,
};
use tokio::sync::{Semaphore, mpsc, watch};

use crate::image::Image;
use crate::manifest::{self, ManifestError, Parsed};
use crate::platform::Host;
use crate::progress::{LayerProgress, LayerReport, LayerState, PullProgress};
use crate::slots::{Obtained, Slots};
use crate::snapshot::Staged;
use crate::store::{Candidate, Store, StoreError};

/// Bound on an image's configuration; real ones are a few kilobytes.
const LONGEST_CONFIG: usize = 8 << 20;
/// An index may hold an index; how often.
const DEEPEST_INDEX: usize = 4;
/// Pieces of a layer that wait for the unpacker: some hundred kilobytes at what a connection reads at once.
const PIECES: usize = 16;

/// Why an image was not pulled; [`PullError::class`] sorts it for the CRI.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PullError {
    /// The name is no reference.
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    /// The request's credentials are malformed.
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    /// The registry's configuration on this node.
    #[error("pull {reference}: find its registry")]
    Hosts {
        /// The image.
        reference: String,
        /// Why.
        source: HostsError,
    },
    /// The registry.
    #[error("pull {reference}")]
    Registry {
        /// The image.
        reference: String,
        /// Why.
        source: RegistryError,
    },
    /// What it is.
    #[error("pull {reference}: the image {digest}")]
    Manifest {
        /// The image.
        reference: String,
        /// The document's digest.
        digest: Digest,
        /// What is wrong with it.
        source: ManifestError,
    },
    /// One of its layers.
    #[error("pull {reference}: unpack the layer {layer}")]
    Unpack {
        /// The image.
        reference: String,
        /// The blob's digest.
        layer: Digest,
        /// Why.
        source: UnpackError,
    },
    /// The layer's directory cannot be made or finished.
    #[error("pull {reference}: prepare the layer {layer}")]
    Stage {
        /// The image.
        reference: String,
        /// The blob's digest.
        layer: Digest,
        /// Why.
        source: io::Error,
    },
    /// The node's own disk.
    #[error("pull {reference}")]
    Store {
        /// The image.
        reference: String,
        /// Why.
        source: StoreError,
    },
    /// The pull ended without a result: the daemon is going down.
    #[error("pull {reference}: it was broken off")]
    Aborted {
        /// The image.
        reference: String,
    },
    /// The outcome of the identical pull that this one has joined.
    #[error(transparent)]
    Joined(Arc<PullError>),
}

/// What kind of failure a [`PullError`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PullClass {
    /// The name, or the credentials, are malformed.
    Invalid,
    /// The registry has no such image.
    NotFound,
    /// The registry refuses this puller.
    Unauthorized,
    /// No registry could be reached, or it kept failing (CRI `RegistryUnavailable`).
    Unavailable,
    /// What came is not what was named.
    Mismatch,
    /// This node cannot use such an image.
    Unsupported,
    /// The disk or a quota is full.
    StorageFull,
    /// Anything else.
    Internal,
}

impl PullError {
    /// Tells what kind of failure this is.
    pub fn class(&self) -> PullClass {
        if is_storage_full(self) {
            return PullClass::StorageFull;
        }
        match self {
            Self::Reference(_) | Self::Credentials(_) => PullClass::Invalid,
            Self::Registry { source, .. } => match source.decisive() {
                RegistryError::NotFound { .. } => PullClass::NotFound,
                RegistryError::Denied { .. } => PullClass::Unauthorized,
                RegistryError::Auth { .. } if !source.is_transient() => PullClass::Unauthorized,
                RegistryError::Digest { .. } | RegistryError::Length { .. } => PullClass::Mismatch,
                RegistryError::TooLong { .. } => PullClass::Unsupported,
                RegistryError::Request { .. } => PullClass::Unavailable,
                _ if source.is_transient() => PullClass::Unavailable,
                _ => PullClass::Internal,
            },
            Self::Manifest { .. } => PullClass::Unsupported,
            Self::Unpack { source: UnpackError::Digest { .. } | UnpackError::DiffId { .. }, .. } => PullClass::Mismatch,
            Self::Unpack { .. } => PullClass::Unsupported,
            Self::Joined(error) => error.class(),
            Self::Hosts { .. } | Self::Stage { .. } | Self::Store { .. } | Self::Aborted { .. } => PullClass::Internal,
        }
    }
}

/// Looks through the causes for a full disk.
fn is_storage_full(error: &(dyn Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<io::Error>()
            && matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
        {
            return true;
        }
        cause = error.source();
    }
    false
}

/// What a pull works with.
#[derive(Clone)]
pub(crate) struct Puller {
    pub(crate) store: Arc<Store>,
    pub(crate) slots: Arc<Slots>,
    pub(crate) transport: Arc<Transport>,
    pub(crate) config_path: PathBuf,
    pub(crate) concurrency: usize,
}

impl Puller {
    pub(crate) fn new(store: Arc<Store>, config: &Config) -> Self {
        Self {
            store,
            slots: Arc::default(),
            transport: Arc::new(Transport::new(config)),
            config_path: config.config_path.clone(),
            concurrency: config.max_concurrent_layers.max(1),
        }
    }

    /// Pulls one image. Dropped at any point, it leaves nothing behind.
    pub(crate) async fn pull(
        self,
        reference: Reference,
        credentials: Option<Credentials>,
        progress: watch::Sender<PullProgress>,
    ) -> Result<Arc<Image>, PullError> {
        let name = reference.to_string();
        let endpoints = podwright_registry::endpoints(&self.config_path, reference.registry())
            .map_err(|source| PullError::Hosts { reference: name.clone(), source })?;
        let session = Session::new(Arc::clone(&self.transport), reference.clone(), credentials, endpoints);
        let one = One { puller: &self, session, reference, name, progress };
        one.run().await
    }
}

/// One pull.
struct One<'a> {
    puller: &'a Puller,
    session: Session,
    reference: Reference,
    name: String,
    progress: watch::Sender<PullProgress>,
}

impl One<'_> {
    async fn run(&self) -> Result<Arc<Image>, PullError> {
        let host = Host::current();
        let top = self.session.manifest(self.reference.digest()).await.map_err(|source| self.registry(source))?;
        let name_digest = self.reference.with_digest(&top.digest);
        let (document, config, layers) = self.resolve(top, &host).await?;
        let bytes = self.session.blob(&config, LONGEST_CONFIG).await.map_err(|source| self.registry(source))?;
        let parsed = manifest::configuration(&bytes, layers.len(), &host);
        let (configuration, diff_ids) = parsed.map_err(|source| self.manifest(&config.digest, source))?;
        // From here on, what is there of the image stays.
        let lease = self.puller.store.lease(&diff_ids);
        let staged = self.layers(&layers, &diff_ids).await?;
        let candidate = Candidate {
            image: Image {
                id: config.digest,
                tags: tags(&self.reference),
                digests: vec![name_digest],
                size: 0,
                layers: diff_ids,
                config: configuration,
                manifest: document.digest,
                pinned: false,
                updated: now(),
            },
            manifest: document.bytes.to_vec(),
            config: bytes.to_vec(),
            staged,
        };
        let store = Arc::clone(&self.puller.store);
        let published = tokio::task::spawn_blocking(move || {
            let published = store.publish(&candidate);
            drop(lease);
            published
        });
        let published = published.await.map_err(|_| PullError::Aborted { reference: self.name.clone() })?;
        published.map_err(|source| PullError::Store { reference: self.name.clone(), source })
    }

    /// Goes from an index to the manifest for this host.
    async fn resolve(&self, top: Document, host: &Host) -> Result<(Document, Blob, Vec<Blob>), PullError> {
        let mut document = top;
        for _ in 0..DEEPEST_INDEX {
            let parsed = manifest::parse(&document.bytes, document.media_type.as_deref(), host);
            match parsed.map_err(|source| self.manifest(&document.digest, source))? {
                Parsed::Image { config, layers } => return Ok((document, config, layers)),
                Parsed::Index { chosen } => {
                    let next = self.session.manifest(Some(&chosen)).await;
                    document = next.map_err(|source| self.registry(source))?;
                }
            }
        }
        Err(self.manifest(&document.digest, ManifestError::TooDeep))
    }

    /// Brings all layers, each once, some at a time; the first failure stops the others.
    async fn layers(&self, blobs: &[Blob], diff_ids: &[Digest]) -> Result<Vec<Arc<Staged>>, PullError> {
        self.progress.send_replace(waiting(blobs));
        let permits = Semaphore::new(self.puller.concurrency);
        let mut seen = HashSet::new();
        let each = blobs.iter().zip(diff_ids).enumerate().map(|(index, (blob, diff_id))| {
            let is_first = seen.insert(diff_id);
            let report = LayerReport::new(&self.progress, index);
            let permits = &permits;
            async move {
                if !is_first {
                    report.state(LayerState::Present);
                    return Ok(None);
                }
                self.layer(blob, diff_id, permits, &report).await
            }
        });
        Ok(try_join_all(each).await?.into_iter().flatten().collect())
    }

    async fn layer(
        &self,
        blob: &Blob,
        diff_id: &Digest,
        permits: &Semaphore,
        report: &LayerReport<'_>,
    ) -> Result<Option<Arc<Staged>>, PullError> {
        let fetch = async || {
            // The semaphore is never closed.
            let _permit = permits.acquire().await;
            report.state(LayerState::Downloading);
            self.fetch(blob, diff_id, report).await
        };
        match self.puller.slots.obtain(&self.puller.store, diff_id, fetch).await? {
            Obtained::Present => {
                report.state(LayerState::Present);
                Ok(None)
            }
            Obtained::Staged(staged) => {
                report.state(LayerState::Done);
                Ok(Some(staged))
            }
        }
    }

    /// Streams a blob into a thread that unpacks it.
    async fn fetch(&self, blob: &Blob, diff_id: &Digest, report: &LayerReport<'_>) -> Result<Arc<Staged>, PullError> {
        let (sender, receiver) = mpsc::channel(PIECES);
        let expected = Expected { blob: Some(blob.digest.clone()), diff_id: diff_id.clone() };
        let store = Arc::clone(&self.puller.store);
        let unpacking = tokio::task::spawn_blocking(move || stage(&store, Pieces::new(receiver), &expected));
        let fetched = self.session.stream(blob, sender, &|bytes| report.done(bytes)).await;
        if fetched.is_ok() {
            report.state(LayerState::Unpacking);
        }
        let unpacked = unpacking.await.map_err(|_| PullError::Aborted { reference: self.name.clone() })?;
        match fetched {
            // The unpacker saw only that the stream ended.
            Err(Stop::Registry(source)) => Err(self.registry(source)),
            Ok(()) | Err(Stop::Refused) => unpacked.map_err(|error| self.staging(blob, error)),
        }
    }

    fn staging(&self, blob: &Blob, error: StageError) -> PullError {
        let (reference, layer) = (self.name.clone(), blob.digest.clone());
        match error {
            StageError::Unpack(source) => PullError::Unpack { reference, layer, source },
            StageError::Io(source) => PullError::Stage { reference, layer, source },
        }
    }

    fn registry(&self, source: RegistryError) -> PullError {
        PullError::Registry { reference: self.name.clone(), source }
    }

    fn manifest(&self, digest: &Digest, source: ManifestError) -> PullError {
        PullError::Manifest { reference: self.name.clone(), digest: digest.clone(), source }
    }
}

/// A reference that pins a digest says nothing about its tag.
pub(crate) fn tags(reference: &Reference) -> Vec<String> {
    if reference.digest().is_some() { Vec::new() } else { vec![reference.to_string()] }
}

pub(crate) fn waiting(blobs: &[Blob]) -> PullProgress {
    let layer = |blob: &Blob| LayerProgress {
        digest: blob.digest.clone(),
        total: blob.size,
        done: 0,
        state: LayerState::Waiting,
    };
    PullProgress { layers: blobs.iter().map(layer).collect() }
}

/// Unix nanoseconds.
pub(crate) fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

/// Why a layer was not staged.
pub(crate) enum StageError {
    Unpack(UnpackError),
    Io(io::Error),
}

/// Unpacks a stream into a staged layer; a failed one is removed before this returns.
pub(crate) fn stage(store: &Store, blob: impl Read, expected: &Expected) -> Result<Arc<Staged>, StageError> {
    let staged = store.layers().stage(&expected.diff_id).map_err(StageError::Io)?;
    let unpacked = podwright_layer::unpack(blob, expected, staged.directory()).map_err(StageError::Unpack);
    match unpacked.and_then(|amount| staged.finish(amount).map_err(StageError::Io)) {
        Ok(()) => Ok(Arc::new(staged)),
        Err(error) => {
            staged.discard();
            Err(error)
        }
    }
}

/// Reads from the channel that the transfer fills.
struct Pieces {
    receiver: mpsc::Receiver<Piece>,
    current: Bytes,
    ended: bool,
}

impl Pieces {
    fn new(receiver: mpsc::Receiver<Piece>) -> Self {
        Self { receiver, current: Bytes::new(), ended: false }
    }
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() && !self.ended {
            match self.receiver.blocking_recv() {
                Some(Piece::Bytes(bytes)) => self.current = bytes,
                Some(Piece::End) => self.ended = true,
                None => return Err(io::Error::other("the transfer was given up")),
            }
        }
        let length = self.current.len().min(buffer.len());
        self.current.copy_to_slice(&mut buffer[..length]);
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_found_among_the_causes() {
        let full = PullError::Stage {
            reference: "x".to_owned(),
            layer: Digest::of(b""),
            source: io::Error::from(io::ErrorKind::StorageFull),
        };
        assert_eq!(PullError::Joined(Arc::new(full)).class(), PullClass::StorageFull);
    }
}
