//! The layer that an image gets on top of its own, where those need something of each other: see
//! [`podwright_layer::complete`]. Most images get none. It is a layer as any other, but no registry has it.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Seek};
use std::path::PathBuf;
use std::sync::Arc;

use podwright_base::Digest;
use podwright_layer::{CompleteError, Expected, Listing, ListingError, Lower, UnpackError};

use crate::fetch::{self, StageError};
use crate::publish::Candidate;
use crate::snapshot::{Facts, Staged};
use crate::store::{Lease, Store};

/// Why an image was not completed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CompletionError {
    /// Its layers do not go together.
    #[error(transparent)]
    Layers(#[from] CompleteError),
    /// A layer is gone, or cannot be read.
    #[error("open the layer {layer}")]
    Layer {
        /// Its diffID.
        layer: Digest,
        /// Why.
        source: io::Error,
    },
    /// The listing of a layer's tree cannot be used.
    #[error("open the listing of the layer {layer}: remove the images with it, and pull them again")]
    Listing {
        /// The layer's diffID.
        layer: Digest,
        /// Why.
        source: Box<ListingError>,
    },
    /// The new layer's archive cannot be kept meanwhile.
    #[error("write {}", path.display())]
    Archive {
        /// Its file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The new layer cannot be unpacked.
    #[error("unpack the layer that completes them")]
    Unpack(#[source] Box<UnpackError>),
    /// The new layer's directory cannot be made or finished.
    #[error("prepare the layer that completes them")]
    Stage(#[source] io::Error),
}

/// Makes an image's layers what is mounted: each once, and the one on top that they need, if they need one. The caller holds a lease on them. What is returned
/// holds the new one until the image is published. When it fails, what is staged for this image alone is gone. Blocks on
/// the disk.
pub(crate) fn complete(store: &Arc<Store>, candidate: &mut Candidate) -> Result<Option<Lease>, CompletionError> {
    let completed = add(store, candidate);
    if completed.is_err() {
        candidate.staged.drain(..).filter_map(Arc::into_inner).for_each(Staged::discard);
    }
    completed
}

fn add(store: &Arc<Store>, candidate: &mut Candidate) -> Result<Option<Lease>, CompletionError> {
    if candidate.image.artifact.is_some() {
        return Ok(None);
    }
    let (layers, staged) = (&mut candidate.image.layers, &mut candidate.staged);
    let (shown, facts) = shown(store, layers, staged)?;
    let archive = archive(store, &shown, &facts, staged)?;
    *layers = each_once(shown);
    staged.retain(|staged| layers.contains(staged.diff_id()));
    let Some((diff_id, archive)) = archive else { return Ok(None) };
    let lease = store.lease(std::slice::from_ref(&diff_id));
    if !store.has_layer(&diff_id) {
        staged.push(unpack(store, &diff_id, archive)?);
    }
    layers.push(diff_id);
    Ok(Some(lease))
}

/// Returns the layers that nothing hides as a whole. overlayfs knows no such mark on a layer's root.
fn shown(
    store: &Store,
    layers: &[Digest],
    staged: &[Arc<Staged>],
) -> Result<(Vec<Digest>, Vec<Facts>), CompletionError> {
    let (mut shown, mut all) = (Vec::new(), Vec::new());
    for layer in layers.iter().rev() {
        let facts = facts(store, layer, staged)?;
        let is_last = facts.hides_all;
        shown.insert(0, layer.clone());
        all.insert(0, facts);
        if is_last {
            break;
        }
    }
    Ok((shown, all))
}

/// Leaves out layers that come again farther up: all that they bring is on top there, and overlayfs takes a directory once.
fn each_once(mut layers: Vec<Digest>) -> Vec<Digest> {
    let mut seen = HashSet::new();
    layers.reverse();
    layers.retain(|layer| seen.insert(layer.clone()));
    layers.reverse();
    layers
}

/// Makes the layer that completes others anew, which are whole; `None` when it is another one. Blocks on the disk.
pub(crate) fn remake(store: &Store, layers: &[Digest], id: &Digest) -> Result<Option<Arc<Staged>>, CompletionError> {
    let (shown, facts) = shown(store, layers, &[])?;
    match archive(store, &shown, &facts, &[])? {
        Some((diff_id, archive)) if diff_id == *id => unpack(store, id, archive).map(Some),
        _ => Ok(None),
    }
}

/// Writes the archive of the layer that others need, into a file without a name.
fn archive(
    store: &Store,
    layers: &[Digest],
    facts: &[Facts],
    staged: &[Arc<Staged>],
) -> Result<Option<(Digest, File)>, CompletionError> {
    let implied = facts.iter().skip(1).any(|facts| facts.implied > 0);
    if !implied && facts.iter().all(|facts| facts.unresolved == 0) {
        return Ok(None);
    }
    let lowers = open(store, layers, facts, staged)?;
    let path = store.content().temporary("completion");
    let failed = |source| CompletionError::Archive { path: path.clone(), source };
    let mut archive = File::options().read(true).write(true).create_new(true).open(&path).map_err(failed)?;
    // Whatever comes, it goes with its descriptor.
    fs::remove_file(&path).map_err(failed)?;
    let Some(diff_id) = podwright_layer::complete(lowers, BufWriter::new(&archive))? else { return Ok(None) };
    archive.rewind().map_err(failed)?;
    Ok(Some((diff_id, archive)))
}

fn unpack(store: &Store, diff_id: &Digest, archive: File) -> Result<Arc<Staged>, CompletionError> {
    let expected = Expected { blob: None, diff_id: diff_id.clone() };
    fetch::stage(store, BufReader::new(archive), &expected).map_err(|error| match error {
        StageError::Unpack(source) => CompletionError::Unpack(source.into()),
        StageError::Io(source) => CompletionError::Stage(source),
    })
}

fn find<'a>(staged: &'a [Arc<Staged>], layer: &Digest) -> Option<&'a Arc<Staged>> {
    staged.iter().find(|staged| staged.diff_id() == layer)
}

fn facts(store: &Store, layer: &Digest, staged: &[Arc<Staged>]) -> Result<Facts, CompletionError> {
    let known = find(staged, layer).and_then(|staged| staged.facts()).cloned();
    let gone = || CompletionError::Layer { layer: layer.clone(), source: io::ErrorKind::NotFound.into() };
    known.or_else(|| store.layers().facts(layer)).ok_or_else(gone)
}

/// Opens directories and listings while none of them gets another name: another pull may publish what they share.
fn open(
    store: &Store,
    layers: &[Digest],
    facts: &[Facts],
    staged: &[Arc<Staged>],
) -> Result<Vec<Lower>, CompletionError> {
    let _publication = store.publication();
    let one = |(layer, facts): (&Digest, &Facts)| {
        let places = store.places();
        let (directory, listing) = match find(staged, layer).filter(|staged| !staged.is_published()) {
            Some(staged) => (staged.directory().to_owned(), staged.listing().to_owned()),
            None => (places.layer(layer), places.layer_listing(layer)),
        };
        let listing = facts.listing.as_ref().map(|digest| Listing::open(&listing, digest)).transpose();
        let listing =
            listing.map_err(|source| CompletionError::Listing { layer: layer.clone(), source: Box::new(source) })?;
        Lower::open(&directory, listing).map_err(|source| CompletionError::Layer { layer: layer.clone(), source })
    };
    layers.iter().zip(facts).map(one).collect()
}
