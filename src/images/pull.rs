//! The pull: resolve, fetch and unpack the layers side by side, publish.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use oci_spec::image::ImageConfiguration;
use podwright_base::Digest;
use podwright_base::config::Registry as Config;
use podwright_registry::{Blob, Credentials, Document, HostsError, Reference, RegistryError, Session, Transport};
use tokio::sync::watch;

use crate::complete;
use crate::fetch::{Fetch, Wanted};
use crate::image::{Artifact, Image};
use crate::manifest::{self, ManifestError, Parsed};
use crate::part::Parts;
use crate::platform::Host;
use crate::progress::{LayerProgress, LayerState, PullProgress};
use crate::publish::Candidate;
use crate::pull_error::PullError;
use crate::slots::Slots;
use crate::store::Store;
use crate::trust::{Trust, TrustError};

/// Bound on an image's configuration; real ones are a few kilobytes.
pub(crate) const LONGEST_CONFIG: usize = 8 << 20;
/// An index may hold an index; how often.
const DEEPEST_INDEX: usize = 4;

/// What a pull works with.
#[derive(Clone)]
pub(crate) struct Puller {
    pub(crate) store: Arc<Store>,
    pub(crate) slots: Arc<Slots>,
    pub(crate) parts: Arc<Parts>,
    pub(crate) transport: Arc<Transport>,
    pub(crate) config_path: PathBuf,
    pub(crate) trust: Trust,
    pub(crate) concurrency: usize,
}

impl Puller {
    pub(crate) fn new(store: Arc<Store>, config: &Config) -> Self {
        Self {
            store,
            slots: Arc::default(),
            parts: Arc::default(),
            transport: Arc::new(Transport::new(config)),
            config_path: config.config_path.clone(),
            trust: Trust::new(config.signature_policy.clone()),
            concurrency: config.max_concurrent_layers.max(1),
        }
    }

    /// Pulls one image. Dropped at any point, it leaves nothing behind but the parts of large blobs.
    pub(crate) async fn pull(
        self,
        reference: Reference,
        credentials: Option<Credentials>,
        progress: watch::Sender<PullProgress>,
    ) -> Result<Arc<Image>, PullError> {
        let name = reference.to_string();
        let session = self.session(reference.clone(), credentials);
        let session = Arc::new(session.map_err(|source| PullError::Hosts { reference: name.clone(), source })?);
        let one = One { puller: &self, session, reference, name, progress };
        one.run().await
    }
}

impl Puller {
    /// Begins a conversation with an image's registry and its mirrors.
    pub(crate) fn session(
        &self,
        reference: Reference,
        credentials: Option<Credentials>,
    ) -> Result<Session, HostsError> {
        let endpoints = podwright_registry::endpoints(&self.config_path, reference.registry())?;
        Ok(Session::new(Arc::clone(&self.transport), reference, credentials, endpoints))
    }
}

/// What a pull is of.
struct What {
    id: Digest,
    /// The configuration as it is.
    document: Vec<u8>,
    config: ImageConfiguration,
    artifact: Option<Artifact>,
    layers: Vec<Wanted>,
}

/// One pull.
struct One<'a> {
    puller: &'a Puller,
    session: Arc<Session>,
    reference: Reference,
    name: String,
    progress: watch::Sender<PullProgress>,
}

impl One<'_> {
    async fn run(&self) -> Result<Arc<Image>, PullError> {
        let host = Host::current();
        let case = self.puller.trust.open(&self.reference).map_err(|source| self.trust(source))?;
        let top = self.session.manifest(self.reference.digest()).await.map_err(|source| self.registry(source))?;
        let named = top.digest.clone();
        let top_bytes = top.bytes.clone();
        let (document, parsed) = self.resolve(top, &host).await?;
        let judged = case.judge(&self.session, &named, &document.digest).await;
        judged.map_err(|source| self.trust(source))?;
        let what = self.what(parsed, &document, &host).await?;
        let layers: Vec<Digest> = what.layers.iter().map(|layer| layer.id.clone()).collect();
        // From here on, what is there of the image stays.
        let lease = self.puller.store.lease(&layers);
        let fetch = Fetch::new(self.puller, &self.session, &self.name);
        let staged = fetch.layers(&what.layers, &self.progress).await?;
        let mut candidate = Candidate {
            image: Image {
                id: what.id,
                tags: tags(&self.reference),
                digests: vec![self.reference.with_digest(&named)],
                size: 0,
                layers,
                config: what.config,
                artifact: what.artifact,
                manifest: document.digest,
                updated: now(),
            },
            manifest: document.bytes.to_vec(),
            config: what.document,
            index: (top_bytes != document.bytes).then(|| top_bytes.to_vec()),
            staged,
        };
        let store = Arc::clone(&self.puller.store);
        let published = tokio::task::spawn_blocking(move || {
            let completing = complete::complete(&store, &mut candidate)?;
            let published = store.publish(&candidate);
            drop((lease, completing));
            Ok(published)
        });
        let published = published.await.map_err(|_| PullError::Aborted { reference: self.name.clone() })?;
        let published = published.map_err(|source| PullError::Complete { reference: self.name.clone(), source })?;
        let image = published.map_err(|source| PullError::Store { reference: self.name.clone(), source })?;
        let (fetched_bytes, resumed_bytes) = (fetch.fetched.into_inner(), fetch.resumed.into_inner());
        tracing::info!(image = %self.name, id = %image.id, layers = what.layers.len(), fetched_bytes, resumed_bytes, "pulled");
        Ok(image)
    }

    /// Finds out what a manifest stands for.
    async fn what(&self, parsed: Parsed, document: &Document, host: &Host) -> Result<What, PullError> {
        let (config, blobs) = match parsed {
            Parsed::Image { config, layers } => (config, layers),
            Parsed::Artifact { kind, config, layers } => {
                let bytes = self.config(&config).await?;
                return Ok(What {
                    id: document.digest.clone(),
                    document: bytes,
                    config: ImageConfiguration::default(),
                    artifact: Some(Artifact { kind, config: config.digest }),
                    layers,
                });
            }
            Parsed::Index { .. } => return Err(self.manifest(&document.digest, ManifestError::TooDeep)),
        };
        let bytes = self.config(&config).await?;
        let parsed = manifest::configuration(&bytes, blobs.len(), host);
        let (configuration, diff_ids) = parsed.map_err(|source| self.manifest(&config.digest, source))?;
        let wanted = |(blob, id)| Wanted { blob, id, form: None };
        Ok(What {
            id: config.digest,
            document: bytes,
            config: configuration,
            artifact: None,
            layers: blobs.into_iter().zip(diff_ids).map(wanted).collect(),
        })
    }

    async fn config(&self, config: &Blob) -> Result<Vec<u8>, PullError> {
        let bytes = self.session.blob(config, LONGEST_CONFIG).await.map_err(|source| self.registry(source))?;
        Ok(bytes.to_vec())
    }

    /// Goes from an index to the manifest for this host.
    async fn resolve(&self, top: Document, host: &Host) -> Result<(Document, Parsed), PullError> {
        let mut document = top;
        for _ in 0..DEEPEST_INDEX {
            let parsed = manifest::parse(&document.bytes, document.media_type.as_deref(), host);
            match parsed.map_err(|source| self.manifest(&document.digest, source))? {
                Parsed::Index { chosen } => {
                    let next = self.session.manifest(Some(&chosen)).await;
                    document = next.map_err(|source| self.registry(source))?;
                }
                parsed => return Ok((document, parsed)),
            }
        }
        Err(self.manifest(&document.digest, ManifestError::TooDeep))
    }

    fn registry(&self, source: RegistryError) -> PullError {
        PullError::Registry { reference: self.name.clone(), source }
    }

    fn trust(&self, source: TrustError) -> PullError {
        PullError::Trust { reference: self.name.clone(), source }
    }

    fn manifest(&self, digest: &Digest, source: ManifestError) -> PullError {
        PullError::Manifest { reference: self.name.clone(), digest: digest.clone(), source }
    }
}

/// A reference that pins a digest says nothing about its tag.
pub(crate) fn tags(reference: &Reference) -> Vec<String> {
    if reference.digest().is_some() { Vec::new() } else { vec![reference.to_string()] }
}

pub(crate) fn waiting<'a>(blobs: impl Iterator<Item = &'a Blob>) -> PullProgress {
    let layer = |blob: &Blob| LayerProgress {
        digest: blob.digest.clone(),
        total: blob.size,
        done: 0,
        state: LayerState::Waiting,
    };
    PullProgress { layers: blobs.map(layer).collect() }
}

/// Unix nanoseconds.
pub(crate) fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}
