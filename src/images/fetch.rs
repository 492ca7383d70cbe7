//! The layers of a pull: side by side, each fetched and unpacked once, whoever else needs it.

use std::collections::HashSet;
use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use podwright_base::Digest;
use podwright_layer::{Expected, Form, UnpackError, Unpacked};
use podwright_registry::{Blob, Piece, Reader, Session, Stop};
use tokio::sync::{Semaphore, mpsc, watch};

use crate::part::{Feed, Part};
use crate::progress::{LayerReport, LayerState, PullProgress};
use crate::pull::{Puller, waiting};
use crate::pull_error::PullError;
use crate::slots::Obtained;
use crate::snapshot::{Staged, Witness};
use crate::store::Store;

/// Pieces of a layer that wait for the unpacker: some hundred kilobytes at what a connection reads at once.
const PIECES: usize = 16;

/// What brings the layers of one image.
pub(crate) struct Fetch<'a> {
    pub(crate) puller: &'a Puller,
    pub(crate) session: &'a Arc<Session>,
    /// The image, for errors.
    pub(crate) name: &'a str,
    /// Bytes that came from registries.
    pub(crate) fetched: AtomicU64,
    /// Bytes that had come before, with a pull that did not end.
    pub(crate) resumed: AtomicU64,
}

/// A layer that is to be had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// Where it comes from.
    pub(crate) blob: Blob,
    /// What it is kept by: its diffID, or the id of an artifact's blob in its form.
    pub(crate) id: Digest,
    /// What becomes of an artifact's blob; absent: it is an image's layer.
    pub(crate) form: Option<Form>,
}

impl<'a> Fetch<'a> {
    pub(crate) fn new(puller: &'a Puller, session: &'a Arc<Session>, name: &'a str) -> Self {
        Self { puller, session, name, fetched: AtomicU64::new(0), resumed: AtomicU64::new(0) }
    }

    /// Brings all layers, each once, some at a time. The first failure stops the others, and is told when they have
    /// stopped.
    pub(crate) async fn layers(
        &self,
        wanted: &[Wanted],
        progress: &watch::Sender<PullProgress>,
    ) -> Result<Vec<Arc<Staged>>, PullError> {
        progress.send_replace(waiting(wanted.iter().map(|layer| &layer.blob)));
        let permits = Semaphore::new(self.puller.concurrency);
        let (busy, mut idle) = mpsc::channel(1);
        let mut seen = HashSet::new();
        let each = wanted.iter().enumerate().map(|(index, layer)| {
            let is_first = seen.insert(&layer.id);
            let report = LayerReport::new(progress, index);
            let (permits, busy) = (&permits, busy.clone());
            async move {
                if is_first {
                    return self.layer(layer, permits, &report, &busy).await;
                }
                report.state(LayerState::Present);
                Ok(None)
            }
        });
        let mut running: FuturesUnordered<_> = each.collect();
        let mut all = Vec::new();
        let failed = loop {
            match running.next().await {
                None => break None,
                Some(Ok(staged)) => all.extend(staged),
                Some(Err(error)) => break Some(error),
            }
        };
        drop((running, busy));
        let Some(error) = failed else { return Ok(all) };
        idle.recv().await;
        let discarded =
            tokio::task::spawn_blocking(move || all.into_iter().filter_map(Arc::into_inner).for_each(Staged::discard));
        if discarded.await.is_err() {
            return Err(self.aborted());
        }
        Err(error)
    }

    async fn layer(
        &self,
        wanted: &Wanted,
        permits: &Semaphore,
        report: &LayerReport<'_>,
        busy: &Witness,
    ) -> Result<Option<Arc<Staged>>, PullError> {
        let fetch = async || {
            // The semaphore is never closed.
            let _permit = permits.acquire().await;
            self.fetch(wanted, report, busy).await
        };
        match self.puller.slots.obtain(&self.puller.store, &wanted.id, fetch).await? {
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

    /// Fetches and unpacks one layer, from where its part ends. When what a part holds turns out to be damaged, all of
    /// the layer is fetched.
    async fn fetch(&self, wanted: &Wanted, report: &LayerReport<'_>, busy: &Witness) -> Result<Arc<Staged>, PullError> {
        let blob = &wanted.blob;
        loop {
            report.state(LayerState::Downloading);
            let place = self.puller.store.content().part(&blob.digest);
            let always = self.puller.store.keeps_layer_blobs();
            let part = self.puller.parts.take(blob, place, always).await;
            let part = part.map_err(|source| self.staging(blob, StageError::Io(source)))?;
            let resumed = part.resumed();
            match self.transfer(wanted, part, report, busy).await {
                Err(PullError::Unpack { source, .. }) if resumed > 0 => {
                    let error: &dyn std::error::Error = &source;
                    tracing::warn!(error, layer = %blob.digest, resumed, "a part was damaged: all of the layer is fetched");
                }
                result => return result,
            }
        }
    }

    /// Fetches a layer, whether it is there or not.
    pub(crate) async fn anew(&self, wanted: &Wanted) -> Result<Arc<Staged>, PullError> {
        let progress = watch::Sender::new(PullProgress::default());
        let (busy, _idle) = mpsc::channel(1);
        self.fetch(wanted, &LayerReport::new(&progress, 0), &busy).await
    }

    /// Streams a blob into a thread that unpacks it.
    async fn transfer(
        &self,
        wanted: &Wanted,
        part: Part,
        report: &LayerReport<'_>,
        busy: &Witness,
    ) -> Result<Arc<Staged>, PullError> {
        let (sink, receiver) = mpsc::channel::<Piece>(PIECES);
        let (blob, expected) = (&wanted.blob, wanted.clone());
        let (store, busy, resumed) = (Arc::clone(&self.puller.store), busy.clone(), part.resumed());
        let unpacking = tokio::task::spawn_blocking(move || {
            let staged = unpack(&store, Feed::new(part, receiver), &expected)?;
            staged.witness(busy);
            Ok(staged)
        });
        let came = AtomicU64::new(resumed);
        let told = |bytes| {
            came.store(bytes, Ordering::Relaxed);
            report.done(bytes);
        };
        let reader = Reader { sink, progress: &told };
        let fetched = self.session.stream(blob, resumed, &reader).await;
        self.fetched.fetch_add(came.load(Ordering::Relaxed) - resumed, Ordering::Relaxed);
        self.resumed.fetch_add(resumed, Ordering::Relaxed);
        drop(reader);
        if fetched.is_ok() {
            report.state(LayerState::Unpacking);
        }
        let unpacked = unpacking.await.map_err(|_| self.aborted())?;
        if let Ok(staged) = &unpacked {
            staged.reached_owner();
        }
        match fetched {
            // The unpacker saw only that the stream ended.
            Err(Stop::Registry(source)) => Err(PullError::Registry { reference: self.name.to_owned(), source }),
            Ok(()) | Err(Stop::Refused) => unpacked.map_err(|error| self.staging(blob, error)),
        }
    }

    fn staging(&self, blob: &Blob, error: StageError) -> PullError {
        let (reference, layer) = (self.name.to_owned(), blob.digest.clone());
        match error {
            StageError::Unpack(source) => PullError::Unpack { reference, layer, source },
            StageError::Io(source) => PullError::Stage { reference, layer, source },
        }
    }

    fn aborted(&self) -> PullError {
        PullError::Aborted { reference: self.name.to_owned() }
    }
}

/// Unpacks what comes. The part stays when the transfer was given up: then the rest may come later. Or it becomes the
/// blob that is kept beside the layer.
fn unpack(store: &Store, mut feed: Feed, wanted: &Wanted) -> Result<Arc<Staged>, StageError> {
    let staged = stage_wanted(store, &mut feed, wanted);
    let blob = &wanted.blob.digest;
    let (part, given_up) = feed.into_part();
    match &staged {
        Ok(staged) if store.keeps_layer_blobs() => staged.keep(blob.clone(), store.content().part(blob)),
        Err(_) if given_up && !part.is_empty() => {}
        _ => part.remove(),
    }
    staged
}

/// Unpacks a blob into what it is wanted for.
pub(crate) fn stage_wanted(store: &Store, blob: impl Read, wanted: &Wanted) -> Result<Arc<Staged>, StageError> {
    let digest = &wanted.blob.digest;
    match &wanted.form {
        None => stage(store, blob, &Expected { blob: Some(digest.clone()), diff_id: wanted.id.clone() }),
        Some(form) => staged(store, &wanted.id, |layer| {
            podwright_layer::unpack_artifact(blob, digest, form, layer.directory(), layer.listing())
        }),
    }
}

/// Why a layer was not staged.
pub(crate) enum StageError {
    Unpack(UnpackError),
    Io(io::Error),
}

/// Unpacks a stream into a staged layer; a failed one is removed before this returns.
pub(crate) fn stage(store: &Store, blob: impl Read, expected: &Expected) -> Result<Arc<Staged>, StageError> {
    staged(store, &expected.diff_id, |layer| {
        podwright_layer::unpack(blob, expected, layer.directory(), layer.listing())
    })
}

fn staged(
    store: &Store,
    id: &Digest,
    unpack: impl FnOnce(&Staged) -> Result<Unpacked, UnpackError>,
) -> Result<Arc<Staged>, StageError> {
    let staged = store.layers().stage(id).map_err(StageError::Io)?;
    let unpacked = unpack(&staged).map_err(StageError::Unpack);
    match unpacked.and_then(|unpacked| staged.finish(unpacked).map_err(StageError::Io)) {
        Ok(()) => Ok(Arc::new(staged)),
        Err(error) => {
            staged.discard();
            Err(error)
        }
    }
}
