//! Verification: is what is on disk of an image what was pulled?
//!
//! Documents and kept blobs are compared with their digests, layers' trees with the listings that were written when they
//! were unpacked.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::fs::File;
use std::io;
use std::path::Path;

use podwright_base::{Digest, chain};
use podwright_layer::{Depth, Listing};

use crate::image::Image;
use crate::manifest;
use crate::store::Store;

/// A part of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Part {
    /// What the node knows of it.
    Record,
    /// Its manifest for this platform.
    Manifest,
    /// An index that one of its names has the digest of.
    Index,
    /// Its configuration.
    Config,
    /// A layer's blob that is kept.
    LayerBlob,
    /// A layer's directory.
    Layer,
}

/// Where an image is not what was pulled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The part of it.
    pub part: Part,
    /// The part's own digest: of a layer its diffID, of a record the image's id.
    pub digest: Digest,
    /// A path in a layer's tree, escaped; absent: the part as a whole.
    pub path: Option<String>,
    /// How it differs.
    pub what: String,
}

/// Why an image could not be verified.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VerifyError {
    /// The disk, beyond what is damage.
    #[error("compare the layer {layer} with its listing")]
    Compare {
        /// The layer's diffID.
        layer: Digest,
        /// Why.
        source: io::Error,
    },
    /// The daemon is going down.
    #[error("the verification was broken off")]
    Aborted,
}

/// How much is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Effort {
    /// Documents and listings.
    Digests,
    /// Likewise, and trees as far as inodes tell.
    Metadata,
    /// Everything.
    Content,
}

/// What was found of layers already: images share them.
#[derive(Debug, Default)]
pub struct Verified(pub(crate) HashMap<Digest, Vec<Finding>>);

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Record => "record",
            Self::Manifest => "manifest",
            Self::Index => "index",
            Self::Config => "configuration",
            Self::LayerBlob => "layer blob",
            Self::Layer => "layer",
        })
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.part, self.digest)?;
        self.path.as_ref().map_or(Ok(()), |path| write!(f, " {path}"))?;
        write!(f, ": {}", self.what)
    }
}

impl Finding {
    fn whole(part: Part, digest: &Digest, what: impl Into<String>) -> Self {
        Self { part, digest: digest.clone(), path: None, what: what.into() }
    }
}

/// Looks for damage to an image. Its layers are leased by the caller. Blocks on the disk.
pub(crate) fn check(
    store: &Store,
    image: &Image,
    effort: Effort,
    known: &mut Verified,
) -> Result<Vec<Finding>, VerifyError> {
    let mut findings = Vec::new();
    let mut seen = HashSet::new();
    for digest in image.documents().filter(|digest| seen.insert(digest.clone())) {
        let part = match &digest {
            digest if *digest == image.manifest => Part::Manifest,
            digest if *digest == *image.config_digest() => Part::Config,
            _ => Part::Index,
        };
        findings.extend(blob(&store.places().blob(&digest), part, &digest));
    }
    if effort == Effort::Content {
        let manifest = store.content().get(&image.manifest).ok().flatten().unwrap_or_default();
        for digest in manifest::layers(&manifest).into_iter().map(|layer| layer.digest) {
            let place = store.places().blob(&digest);
            if place.exists() && seen.insert(digest.clone()) {
                findings.extend(blob(&place, Part::LayerBlob, &digest));
            }
        }
    }
    let mut seen = HashSet::new();
    for id in image.layers.iter().filter(|id| seen.insert(*id)) {
        let found = match known.0.get(id) {
            Some(found) => found.clone(),
            None => layer(store, id, effort)?,
        };
        known.0.insert(id.clone(), found.clone());
        findings.extend(found);
    }
    Ok(findings)
}

fn blob(place: &Path, part: Part, digest: &Digest) -> Option<Finding> {
    let what = match File::open(place).and_then(Digest::of_reader) {
        Ok(found) if found == *digest => return None,
        Ok(found) => format!("its digest is {found}"),
        Err(error) if error.kind() == io::ErrorKind::NotFound => "missing".to_owned(),
        Err(error) => format!("unreadable: {error}"),
    };
    Some(Finding::whole(part, digest, what))
}

fn layer(store: &Store, id: &Digest, effort: Effort) -> Result<Vec<Finding>, VerifyError> {
    let whole = |what: &str| Ok(vec![Finding::whole(Part::Layer, id, what)]);
    let directory = store.places().layer(id);
    let Some(facts) = store.layers().facts(id) else {
        return whole(if directory.is_dir() { "its facts are missing or damaged" } else { "missing" });
    };
    let Some(digest) = facts.listing else { return whole("it was unpacked without a listing") };
    let listing = match Listing::open(&store.places().layer_listing(id), &digest) {
        Ok(listing) => listing,
        Err(error) => return whole(&format!("its listing: {}", chain(&error))),
    };
    let depth = match effort {
        Effort::Digests => return Ok(Vec::new()),
        Effort::Metadata => Depth::Metadata,
        Effort::Content => Depth::Content,
    };
    let compared = listing.compare(&directory, depth);
    let differences = compared.map_err(|source| VerifyError::Compare { layer: id.clone(), source })?;
    let finding = |difference: podwright_layer::Difference| Finding {
        part: Part::Layer,
        digest: id.clone(),
        path: Some(format!("/{}", difference.path.escape_ascii())),
        what: difference.what.to_string(),
    };
    Ok(differences.into_iter().map(finding).collect())
}
