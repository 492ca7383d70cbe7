//! Repair: what verification has found damaged, and only that, is fetched again and put in its place.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use futures_util::{FutureExt, TryFutureExt};
use podwright_base::{Digest, chain};
use podwright_layer::{Depth, Difference, Listing, MendError};
use podwright_registry::Session;

use crate::complete::{self, CompletionError};
use crate::fetch::{self, Fetch, StageError, Wanted};
use crate::image::Image;
use crate::manifest::ManifestError;
use crate::pull::{self, Puller};
use crate::pull_error::PullError;
use crate::snapshot::Staged;
use crate::store::{Store, StoreError};
use crate::verify::{Finding, Part};
use crate::{artifact, durable, manifest};

/// Differences are told a thousand at a time: a tree with more rounds of them is not worth mending.
const MOST_ROUNDS: usize = 100;

/// Why a part of an image was not repaired.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RepairError {
    /// Nothing says where it came from.
    #[error("it came from a file, and no registry is known that has it: load it again")]
    NoRegistry,
    /// No registry gives it.
    #[error("fetch it")]
    Pull(#[source] Box<PullError>),
    /// What was fetched does not say what the image needs.
    #[error("read the manifest {digest}")]
    Manifest {
        /// The manifest.
        digest: Digest,
        /// Why.
        source: Box<ManifestError>,
    },
    /// The manifest, which says where the part comes from, is damaged.
    #[error("the manifest {0}, which says what it is made of, is damaged")]
    NoManifest(Digest),
    /// Neither manifest nor configuration speak of it.
    #[error("nothing says what it is made of: pull the image again")]
    Unknown,
    /// It completes the image's other layers, and cannot be made of them.
    #[error("make it of the other layers")]
    Complete(#[from] CompletionError),
    /// The fresh tree cannot be moved over.
    #[error("put it right")]
    Mend(#[from] MendError),
    /// It cannot be compared.
    #[error("compare it")]
    Compare(#[source] io::Error),
    /// Something else than the fresh tree is still there.
    #[error("it is still damaged: {0}")]
    Persistent(String),
    /// The node's own disk.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// It cannot be put into its place.
    #[error("put it into its place")]
    Place(#[source] io::Error),
    /// The daemon is going down.
    #[error("the repair was broken off")]
    Aborted,
}

/// Repairs one image, whose layers are leased.
pub(crate) struct Repair<'a> {
    pub(crate) puller: &'a Puller,
    pub(crate) image: &'a Image,
}

impl Repair<'_> {
    /// Repairs what was found, each part once, and returns what could not be, with the reason.
    pub(crate) async fn run(&self, findings: &[Finding]) -> Vec<(Part, Digest, RepairError)> {
        let mut parts: Vec<(Part, &Digest)> = Vec::new();
        let mut seen = HashSet::new();
        for finding in findings {
            if seen.insert((finding.part, &finding.digest)) {
                parts.push((finding.part, &finding.digest));
            }
        }
        // The manifest says what the others are.
        parts.sort_by_key(|(part, _)| *part != Part::Manifest);
        let mut failed = Vec::new();
        for (part, digest) in parts {
            if let Err(error) = self.part(part, digest).await {
                failed.push((part, digest.clone(), error));
            }
        }
        failed
    }

    async fn part(&self, part: Part, digest: &Digest) -> Result<(), RepairError> {
        match part {
            Part::Record => Err(RepairError::Unknown),
            Part::Manifest | Part::Index => {
                let fetched = self.ask_registries(|session, reference| {
                    let document = async move { session.manifest(Some(digest)).await };
                    document.map_err(|source| PullError::Registry { reference, source }).boxed()
                });
                self.restore(digest, fetched.await?.bytes.to_vec()).await
            }
            Part::Config => {
                let config = &manifest::config(&self.manifest()?).ok_or(RepairError::Unknown)?;
                let fetched = self.ask_registries(|session, reference| {
                    let bytes = async move { session.blob(config, pull::LONGEST_CONFIG).await };
                    bytes.map_err(|source| PullError::Registry { reference, source }).boxed()
                });
                self.restore(digest, fetched.await?.to_vec()).await
            }
            Part::LayerBlob => self.layer_blob(digest).await,
            Part::Layer => self.layer(digest).await,
        }
    }

    fn manifest(&self) -> Result<Vec<u8>, RepairError> {
        let manifest = self.puller.store.content().get(&self.image.manifest).map_err(RepairError::Place)?;
        manifest.ok_or_else(|| RepairError::NoManifest(self.image.manifest.clone()))
    }

    /// Says where each of the image's layers comes from.
    fn wanted(&self) -> Result<Vec<Wanted>, RepairError> {
        let bytes = self.manifest()?;
        if self.image.artifact.is_some() {
            let refused =
                |error| RepairError::Manifest { digest: self.image.manifest.clone(), source: Box::new(error) };
            let manifest = serde_json::from_slice(&bytes).map_err(|error| refused(ManifestError::Parse(error)))?;
            return artifact::layers(&manifest).map_err(refused);
        }
        let diff_ids = self.image.config.rootfs().diff_ids().iter().flat_map(|diff_id| diff_id.parse());
        let layers = manifest::layers(&bytes).into_iter().zip(diff_ids);
        Ok(layers.map(|(blob, id)| Wanted { blob, id, form: None }).collect())
    }

    /// Asks the registries that the image came from, one after the other.
    async fn ask_registries<'b, T>(
        &self,
        ask: impl Fn(Arc<Session>, String) -> BoxFuture<'b, Result<T, PullError>>,
    ) -> Result<T, RepairError> {
        let mut failed = None;
        for name in self.image.digests.iter().chain(&self.image.tags) {
            let reference = name.clone();
            let answer = match podwright_registry::normalize(name).map(|named| self.puller.session(named, None)) {
                Ok(Ok(session)) => ask(Arc::new(session), reference).await,
                Ok(Err(source)) => Err(PullError::Hosts { reference, source }),
                Err(error) => Err(error.into()),
            };
            match answer {
                Ok(answer) => return Ok(answer),
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        Err(failed.map_or(RepairError::NoRegistry, |error| RepairError::Pull(Box::new(error))))
    }

    async fn restore(&self, digest: &Digest, bytes: Vec<u8>) -> Result<(), RepairError> {
        let (store, digest) = (Arc::clone(&self.puller.store), digest.clone());
        blocking(move || Ok(store.restore(&digest, &bytes)?)).await
    }

    /// Fetches a layer that is not taken from what is kept.
    async fn fetch(&self, wanted: &Wanted) -> Result<Arc<Staged>, RepairError> {
        let puller = self.puller;
        let fetched = self.ask_registries(|session, name| {
            async move { Fetch::new(puller, &session, &name).anew(wanted).await }.boxed()
        });
        fetched.await
    }

    async fn layer_blob(&self, digest: &Digest) -> Result<(), RepairError> {
        let store = Arc::clone(&self.puller.store);
        let place = store.places().blob(digest);
        if !store.keeps_layer_blobs() {
            // It waits for the next collection only.
            return match fs::remove_file(place) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(RepairError::Place(error)),
                _ => Ok(()),
            };
        }
        let wanted = self.wanted()?.into_iter().find(|layer| layer.blob.digest == *digest);
        let staged = self.fetch(&wanted.ok_or(RepairError::Unknown)?).await?;
        blocking(move || {
            let restored = store.restore_layer_blob(&staged);
            discard(staged);
            Ok(restored?)
        })
        .await
    }

    async fn layer(&self, id: &Digest) -> Result<(), RepairError> {
        let store = Arc::clone(&self.puller.store);
        let staged = match self.wanted()?.into_iter().find(|layer| layer.id == *id) {
            None => self.remake(id).await?,
            Some(wanted) => match self.unpack_kept(&wanted).await? {
                Some(staged) => staged,
                None => self.fetch(&wanted).await?,
            },
        };
        blocking(move || {
            let outcome = put_right(&store, &staged);
            discard(staged);
            outcome
        })
        .await
    }

    /// Makes the layer that no registry has, because it completes the others.
    async fn remake(&self, id: &Digest) -> Result<Arc<Staged>, RepairError> {
        // The image's own layers may be fewer: what comes twice is mounted once.
        let diff_ids = self.image.config.rootfs().diff_ids().iter();
        let others = diff_ids.map(|diff_id| diff_id.parse()).collect::<Result<Vec<_>, _>>();
        let others = others.map_err(|_| RepairError::Unknown)?;
        let (store, id) = (Arc::clone(&self.puller.store), id.clone());
        blocking(move || complete::remake(&store, &others, &id)?.ok_or(RepairError::Unknown)).await
    }

    /// Unpacks a layer's blob if it is kept, and whole.
    async fn unpack_kept(&self, wanted: &Wanted) -> Result<Option<Arc<Staged>>, RepairError> {
        let (store, wanted) = (Arc::clone(&self.puller.store), wanted.clone());
        blocking(move || {
            let Ok(blob) = File::open(store.places().blob(&wanted.blob.digest)) else { return Ok(None) };
            match fetch::stage_wanted(&store, blob, &wanted) {
                Ok(staged) => Ok(Some(staged)),
                Err(StageError::Io(error)) => Err(RepairError::Place(error)),
                Err(StageError::Unpack(error)) => {
                    tracing::warn!(error = chain(&error), blob = %wanted.blob.digest, "a kept blob is damaged too");
                    Ok(None)
                }
            }
        })
        .await
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, RepairError> + Send + 'static,
) -> Result<T, RepairError> {
    tokio::task::spawn_blocking(work).await.map_err(|_| RepairError::Aborted)?
}

/// Removes what was not moved over: nobody else knows it.
fn discard(staged: Arc<Staged>) {
    if let Some(staged) = Arc::into_inner(staged) {
        staged.discard();
    }
}

/// Moves what differs from a fresh layer into the damaged one. Fresh data is on disk before it replaces anything.
fn put_right(store: &Store, staged: &Arc<Staged>) -> Result<(), RepairError> {
    let (places, id) = (store.places(), staged.diff_id());
    let layers = [places.layers()];
    durable::sync_data(&layers).map_err(RepairError::Place)?;
    let directory = places.layer(id);
    if !directory.is_dir() {
        store.restore_layer(staged)?;
        return durable::sync_names(&layers).map_err(RepairError::Place);
    }
    // By its own listing nothing is moved but what is damaged. A fresh one differs in the times that no archive gives.
    let own = store.layers().facts(id).and_then(|facts| facts.listing);
    let is_right = match own {
        Some(digest) if Listing::open(&places.layer_listing(id), &digest).is_ok() => {
            mend(staged, &places.layer_listing(id), &digest, &directory)?.is_none()
        }
        _ => false,
    };
    if !is_right {
        let digest = staged.facts().and_then(|facts| facts.listing.clone()).ok_or(RepairError::Unknown)?;
        if let Some(difference) = mend(staged, staged.listing(), &digest, &directory)? {
            return Err(RepairError::Persistent(difference.to_string()));
        }
        store.restore_facts(staged)?;
    }
    durable::sync_data(&layers).map_err(RepairError::Place)
}

/// Puts a tree right by a listing, and returns a difference that stays.
fn mend(
    staged: &Staged,
    listing: &std::path::Path,
    digest: &Digest,
    directory: &std::path::Path,
) -> Result<Option<Difference>, RepairError> {
    let mut last = None;
    for _ in 0..MOST_ROUNDS {
        let opened = Listing::open(listing, digest).map_err(MendError::Listing)?;
        let mut differences = opened.compare(directory, Depth::Content).map_err(RepairError::Compare)?;
        let told: Vec<String> = differences.iter().map(ToString::to_string).collect();
        if differences.is_empty() || last.as_ref() == Some(&told) {
            return Ok(differences.pop());
        }
        match podwright_layer::mend(listing, digest, staged.directory(), directory, &differences) {
            // What was moved over before, and differs again.
            Err(MendError::Name { source, .. }) if source.kind() == io::ErrorKind::NotFound && last.is_some() => {
                return Ok(differences.pop());
            }
            result => result?,
        }
        last = Some(told);
    }
    Err(RepairError::Persistent("more differs than is worth mending: remove the image and pull it again".to_owned()))
}
