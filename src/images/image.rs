//! What Podwright knows of an image, and its record on disk.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use oci_spec::image::ImageConfiguration;
use podwright_base::Digest;
use serde::{Deserialize, Serialize};

use crate::content;

/// The newest record this version writes, and the only one it reads.
const VERSION: u32 = 1;
/// Extension of records that cannot be used.
pub(crate) const ASIDE: &str = "damaged";

/// An image on this node (CRI `Image`).
#[derive(Debug, Clone, PartialEq)]
pub struct Image {
    /// The digest of its configuration, an artifact's of its manifest (CRI `id`).
    pub id: Digest,
    /// Names with a tag, canonical (CRI `repo_tags`).
    pub tags: Vec<String>,
    /// Names with the digest they were pulled by: the index's where there is one (CRI `repo_digests`).
    pub digests: Vec<String>,
    /// Bytes of its unpacked layers on disk (CRI `size`).
    pub size: u64,
    /// What its layers are kept by, bottom first, each once: their diffIDs, or ids of an artifact's blobs. Containers
    /// mount them all; the last may be one that completes the others, which no manifest and no configuration names.
    pub layers: Vec<Digest>,
    /// How its processes are run; an artifact's says nothing.
    pub config: ImageConfiguration,
    /// What kind of artifact it is; absent for an image that containers can be made of.
    pub artifact: Option<Artifact>,
    /// The digest of its manifest for this platform.
    pub manifest: Digest,
    /// When it was last pulled or loaded, in Unix nanoseconds: where two records claim a tag, the younger has it.
    pub(crate) updated: i64,
}

/// What is said of an artifact beside its blobs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Artifact {
    /// Its type: what its manifest says, else the media type of its configuration.
    pub kind: String,
    /// The digest of its configuration, which says nothing to this node.
    pub config: Digest,
}

/// What the record keeps; the configuration is a blob of its own.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    version: u32,
    id: Digest,
    tags: Vec<String>,
    digests: Vec<String>,
    size: u64,
    layers: Vec<Digest>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    artifact: Option<Artifact>,
    manifest: Digest,
    updated: i64,
}

/// Why a record cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RecordError {
    #[error("read it")]
    Read(#[source] io::Error),
    #[error("it is no record")]
    Parse(#[source] serde_json::Error),
    #[error("it has version {0}; this daemon reads version {VERSION}")]
    Version(u32),
    #[error("its name is not that of the image {0} in it")]
    Name(Digest),
    #[error("read the configuration {0}")]
    ConfigRead(Digest, #[source] io::Error),
    #[error("the configuration {0} is missing or damaged")]
    ConfigMissing(Digest),
    #[error("the configuration {0} does not parse")]
    ConfigParse(Digest, #[source] oci_spec::OciSpecError),
    #[error("the layer {0} is missing")]
    Layer(Digest),
}

impl Image {
    /// Makes the image's record: the image exists from the moment on when it is in its place.
    pub(crate) fn record(&self) -> serde_json::Result<Vec<u8>> {
        let record = Record {
            version: VERSION,
            id: self.id.clone(),
            tags: self.tags.clone(),
            digests: self.digests.clone(),
            size: self.size,
            layers: self.layers.clone(),
            artifact: self.artifact.clone(),
            manifest: self.manifest.clone(),
            updated: self.updated,
        };
        serde_json::to_vec(&record)
    }

    /// Returns the documents that its names, its processes and other tools need: manifest, configuration, and what its names with a
    /// digest name, which may be an index.
    pub(crate) fn documents(&self) -> impl Iterator<Item = Digest> + '_ {
        let named = self.digests.iter().filter_map(|name| name.rsplit_once('@')?.1.parse().ok());
        let artifact = self.artifact.iter().map(|artifact| artifact.config.clone());
        [self.id.clone(), self.manifest.clone()].into_iter().chain(artifact).chain(named)
    }

    /// Returns the digest of its configuration, which an artifact has too.
    pub(crate) fn config_digest(&self) -> &Digest {
        self.artifact.as_ref().map_or(&self.id, |artifact| &artifact.config)
    }

    /// Reads a record and its configuration, and makes sure that all layers are there.
    pub(crate) fn read(
        place: &Path,
        content: &content::Content,
        has_layer: impl Fn(&Digest) -> bool,
    ) -> Result<Self, RecordError> {
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }
        let bytes = fs::read(place).map_err(RecordError::Read)?;
        let Version { version } = serde_json::from_slice(&bytes).map_err(RecordError::Parse)?;
        if version != VERSION {
            return Err(RecordError::Version(version));
        }
        let record: Record = serde_json::from_slice(&bytes).map_err(RecordError::Parse)?;
        let id = record.id;
        if place.file_stem().and_then(|stem| stem.to_str()) != Some(id.hex()) {
            return Err(RecordError::Name(id));
        }
        let config = content.get(&id).map_err(|error| RecordError::ConfigRead(id.clone(), error))?;
        let config = config.ok_or_else(|| RecordError::ConfigMissing(id.clone()))?;
        let config = match record.artifact {
            Some(_) => ImageConfiguration::default(),
            None => ImageConfiguration::from_reader(config.as_slice())
                .map_err(|error| RecordError::ConfigParse(id.clone(), error))?,
        };
        if let Some(missing) = record.layers.iter().find(|layer| !has_layer(layer)) {
            return Err(RecordError::Layer(missing.clone()));
        }
        Ok(Self {
            id,
            tags: record.tags,
            digests: record.digests,
            size: record.size,
            layers: record.layers,
            config,
            artifact: record.artifact,
            manifest: record.manifest,
            updated: record.updated,
        })
    }
}

/// Moves a record that cannot be used out of the way, kept for whoever looks into it.
pub(crate) fn quarantine(place: &Path) -> io::Result<PathBuf> {
    let aside = aside(place);
    fs::rename(place, &aside)?;
    Ok(aside)
}

/// Returns where a record is moved that cannot be used.
pub(crate) fn aside(place: &Path) -> PathBuf {
    place.with_extension(format!("json.{ASIDE}"))
}

/// Reads the names that a record still tells that was moved aside: what to pull again.
pub(crate) fn names_of_aside(aside: &Path) -> Vec<String> {
    #[derive(Deserialize)]
    struct Names {
        tags: Vec<String>,
        digests: Vec<String>,
    }
    let names = fs::read(aside).ok().and_then(|bytes| serde_json::from_slice::<Names>(&bytes).ok());
    names.map(|names| names.tags.into_iter().chain(names.digests).collect()).unwrap_or_default()
}
