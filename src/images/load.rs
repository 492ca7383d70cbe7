//! Loads images from archives: OCI layouts (`skopeo copy … oci-archive:`, `buildctl … type=oci`, newer `docker save`)
//! and the older form of `docker save`.

use std::collections::{BTreeMap, HashSet};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use oci_client::manifest::{
    IMAGE_CONFIG_MEDIA_TYPE, IMAGE_DOCKER_LAYER_TAR_MEDIA_TYPE, ImageIndexEntry, OciDescriptor, OciImageIndex,
    OciImageManifest,
};
use podwright_base::Digest;
use podwright_layer::{Bundle, BundleError, Expected, Section, UnpackError};
use podwright_registry::{Blob, Reference, ReferenceError};
use serde::Deserialize;
use tokio::sync::watch;

use crate::complete::{self, CompletionError};
use crate::fetch::{self, StageError};
use crate::image::Image;
use crate::manifest::{self, ManifestError, Parsed};
use crate::platform::Host;
use crate::progress::{LayerReport, LayerState, PullProgress};
use crate::publish::Candidate;
use crate::pull::{self, Puller};
use crate::slots::Obtained;
use crate::snapshot::Staged;
use crate::store::{Store, StoreError};

/// An index may hold an index; how often.
const DEEPEST_INDEX: usize = 4;
/// The whole name, as containerd and Docker write it.
const NAME: &str = "io.containerd.image.name";
/// A name or only a tag, as the specification leaves it open.
const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// Why an archive was not loaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// It cannot be read as an archive.
    #[error("open the archive {}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// It is an archive of something else.
    #[error("{} holds no images: it has neither index.json nor manifest.json", path.display())]
    NoImages {
        /// The file.
        path: PathBuf,
    },
    /// A file that another one names is missing.
    #[error("the archive has no {name}")]
    Missing {
        /// The member.
        name: String,
    },
    /// A member cannot be read.
    #[error("read {name} of the archive")]
    Read {
        /// The member.
        name: String,
        /// Why.
        source: io::Error,
    },
    /// A member is not what it should be.
    #[error("{name} of the archive does not parse")]
    Parse {
        /// The member.
        name: String,
        /// Where.
        source: serde_json::Error,
    },
    /// A blob is not what its name says.
    #[error("the blob {expected} of the archive has the digest {found}")]
    Digest {
        /// Its name.
        expected: Digest,
        /// What it is.
        found: Digest,
    },
    /// A name in the archive is no reference.
    #[error("a name in the archive")]
    Reference(#[from] ReferenceError),
    /// The image cannot be used on this node.
    #[error("the image {image} of the archive")]
    Manifest {
        /// Its manifest's digest, or its configuration's name.
        image: String,
        /// Why.
        source: ManifestError,
    },
    /// One of its layers.
    #[error("unpack the layer {layer} of the archive")]
    Unpack {
        /// The layer's diffID.
        layer: Digest,
        /// Why.
        source: UnpackError,
    },
    /// Its layers together.
    #[error("complete the layers of the image {image} of the archive")]
    Complete {
        /// The image's id.
        image: Digest,
        /// Why.
        source: CompletionError,
    },
    /// The layer's directory cannot be made or finished.
    #[error("prepare the layer {layer}")]
    Stage {
        /// The layer's diffID.
        layer: Digest,
        /// Why.
        source: io::Error,
    },
    /// The node's own disk.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The daemon is going down.
    #[error("loading was broken off")]
    Aborted,
}

/// One image of an archive, ready to be unpacked.
struct Found {
    names: Vec<Reference>,
    /// Names with a digest are only true where the manifest is a registry's.
    name_digest: Option<Digest>,
    manifest: Vec<u8>,
    /// What leads to the manifest.
    index: Option<Vec<u8>>,
    config: Vec<u8>,
    config_digest: Digest,
    /// Members with the layers, and the digests they must have where the archive says.
    layers: Vec<(String, Option<Digest>)>,
}

/// `manifest.json` of `docker save`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

/// Loads all images of an archive, one after the other.
pub(crate) async fn load(
    puller: &Puller,
    path: &Path,
    progress: &watch::Sender<PullProgress>,
) -> Result<Vec<Arc<Image>>, LoadError> {
    let (file, temporary) = (path.to_owned(), puller.store.content().temporary("archive"));
    let (bundle, found) = blocking(move || {
        let bundle = Bundle::open(&file, &temporary)
            .map_err(|error: BundleError| LoadError::Open { path: file.clone(), source: error.into() })?;
        let images = if bundle.has("index.json") && bundle.has("oci-layout") {
            layout(&bundle)?
        } else if bundle.has("manifest.json") {
            saved(&bundle)?
        } else {
            return Err(LoadError::NoImages { path: file });
        };
        Ok((Arc::new(bundle), images))
    })
    .await?;
    let mut images = Vec::new();
    for found in found {
        images.push(one(puller, &bundle, found, progress).await?);
    }
    Ok(images)
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, LoadError> + Send + 'static,
) -> Result<T, LoadError> {
    tokio::task::spawn_blocking(work).await.map_err(|_| LoadError::Aborted)?
}

/// Reads an OCI layout's index.
fn layout(bundle: &Bundle) -> Result<Vec<Found>, LoadError> {
    let host = Host::current();
    let index: OciImageIndex = parse("index.json", &document(bundle, "index.json")?)?;
    let fits =
        |entry: &&ImageIndexEntry| entry.platform.is_none() || host.choose(std::slice::from_ref(entry)).is_some();
    let mut images: Vec<Found> = Vec::new();
    let mut refused = None;
    for entry in &index.manifests {
        if !fits(&entry) {
            refused.get_or_insert(entry);
            continue;
        }
        let found = entry_image(bundle, entry, &host)?;
        // An image with several names has an entry for each.
        match images.iter_mut().find(|known| known.config_digest == found.config_digest) {
            Some(known) => known.names.extend(found.names),
            None => images.push(found),
        }
    }
    match refused.filter(|_| images.is_empty()) {
        Some(entry) => {
            let offered = entry.platform.as_ref().map(ToString::to_string).unwrap_or_default();
            let source = ManifestError::Platform { wanted: host.architecture.to_owned(), offered };
            Err(LoadError::Manifest { image: entry.digest.clone(), source })
        }
        None => Ok(images),
    }
}

fn entry_image(bundle: &Bundle, entry: &ImageIndexEntry, host: &Host) -> Result<Found, LoadError> {
    let refused = |image: &str, source| LoadError::Manifest { image: image.to_owned(), source };
    let top: Digest = entry.digest.parse().map_err(|source| refused(&entry.digest, ManifestError::Digest(source)))?;
    let mut digest = top.clone();
    let mut media_type = Some(entry.media_type.as_str());
    for _ in 0..DEEPEST_INDEX {
        let manifest = blob(bundle, &digest)?;
        match manifest::parse(&manifest, media_type, host).map_err(|source| refused(digest.as_str(), source))? {
            Parsed::Image { config, layers } => {
                let names = names(entry.annotations.as_ref())?;
                return Ok(Found {
                    // Only a name with its digest needs it.
                    index: if names.is_empty() || top == digest { None } else { Some(blob(bundle, &top)?) },
                    names,
                    name_digest: Some(top),
                    manifest,
                    config: blob(bundle, &config.digest)?,
                    config_digest: config.digest,
                    layers: layers.into_iter().map(|layer| (blob_name(&layer.digest), Some(layer.digest))).collect(),
                });
            }
            Parsed::Artifact { kind, .. } => return Err(refused(digest.as_str(), ManifestError::Artifact(kind))),
            Parsed::Index { chosen } => (digest, media_type) = (chosen, None),
        }
    }
    Err(refused(&entry.digest, ManifestError::TooDeep))
}

fn names(annotations: Option<&BTreeMap<String, String>>) -> Result<Vec<Reference>, LoadError> {
    let annotation = |key: &str| annotations.and_then(|annotations| annotations.get(key));
    // A bare tag names no image.
    let ref_name = annotation(REF_NAME).filter(|name| name.contains(['/', ':']));
    Ok(annotation(NAME).or(ref_name).map(|name| podwright_registry::normalize(name)).transpose()?.into_iter().collect())
}

/// Reads `docker save`'s manifest. It has no registry's manifest, so one is made that says the same.
fn saved(bundle: &Bundle) -> Result<Vec<Found>, LoadError> {
    let saved: Vec<Saved> = parse("manifest.json", &document(bundle, "manifest.json")?)?;
    let host = Host::current();
    let mut images = Vec::new();
    for image in saved {
        let config = document(bundle, &image.config)?;
        let refused = |source| LoadError::Manifest { image: image.config.clone(), source };
        let (_, diff_ids) = manifest::configuration(&config, image.layers.len(), &host).map_err(refused)?;
        let config_digest = Digest::of(&config);
        let descriptor = |media_type: &str, digest: &Digest, size: u64| OciDescriptor {
            media_type: media_type.to_owned(),
            digest: digest.to_string(),
            size: i64::try_from(size).unwrap_or(i64::MAX),
            ..OciDescriptor::default()
        };
        let mut layers = Vec::new();
        for (name, diff_id) in image.layers.iter().zip(&diff_ids) {
            let (_, size) = bundle.open_member(name).ok_or_else(|| LoadError::Missing { name: name.clone() })?;
            layers.push(descriptor(IMAGE_DOCKER_LAYER_TAR_MEDIA_TYPE, diff_id, size));
        }
        let manifest = OciImageManifest {
            config: descriptor(IMAGE_CONFIG_MEDIA_TYPE, &config_digest, config.len() as u64),
            layers,
            ..OciImageManifest::default()
        };
        let tags = image.repo_tags.unwrap_or_default();
        images.push(Found {
            names: tags.iter().map(|tag| podwright_registry::normalize(tag)).collect::<Result<_, _>>()?,
            name_digest: None,
            index: None,
            manifest: serde_json::to_vec(&manifest)
                .map_err(|source| LoadError::Parse { name: image.config.clone(), source })?,
            config,
            config_digest,
            layers: image.layers.into_iter().map(|name| (name, None)).collect(),
        });
    }
    Ok(images)
}

/// Unpacks and publishes one image.
async fn one(
    puller: &Puller,
    bundle: &Arc<Bundle>,
    found: Found,
    progress: &watch::Sender<PullProgress>,
) -> Result<Arc<Image>, LoadError> {
    let manifest_digest = Digest::of(&found.manifest);
    let parsed = manifest::configuration(&found.config, found.layers.len(), &Host::current());
    let (config, diff_ids) =
        parsed.map_err(|source| LoadError::Manifest { image: manifest_digest.to_string(), source })?;
    let lease = puller.store.lease(&diff_ids);
    let staged = layers(puller, bundle, &found.layers, &diff_ids, progress).await?;
    let name_digest = found.name_digest;
    let mut digests: Vec<String> = Vec::new();
    for name in &found.names {
        if let Some(digest) = &name_digest {
            let whole = name.with_digest(digest);
            if !digests.contains(&whole) {
                digests.push(whole);
            }
        }
    }
    let image = Image {
        id: found.config_digest,
        tags: found.names.iter().flat_map(pull::tags).collect(),
        digests,
        size: 0,
        layers: diff_ids,
        config,
        artifact: None,
        manifest: manifest_digest,
        updated: pull::now(),
    };
    let mut candidate = Candidate { image, manifest: found.manifest, config: found.config, index: found.index, staged };
    let store = Arc::clone(&puller.store);
    blocking(move || {
        let completing = complete::complete(&store, &mut candidate)
            .map_err(|source| LoadError::Complete { image: candidate.image.id.clone(), source })?;
        let published = store.publish(&candidate);
        drop((lease, completing));
        Ok(published?)
    })
    .await
}

async fn layers(
    puller: &Puller,
    bundle: &Arc<Bundle>,
    members: &[(String, Option<Digest>)],
    diff_ids: &[Digest],
    progress: &watch::Sender<PullProgress>,
) -> Result<Vec<Arc<Staged>>, LoadError> {
    let size = |name: &str| bundle.open_member(name).map_or(0, |(_, size)| size);
    let blobs: Vec<Blob> = members
        .iter()
        .zip(diff_ids)
        .map(|((name, digest), diff_id)| Blob { digest: digest.as_ref().unwrap_or(diff_id).clone(), size: size(name) })
        .collect();
    progress.send_replace(pull::waiting(blobs.iter()));
    let mut seen = HashSet::new();
    let mut all = Vec::new();
    for (index, ((name, digest), diff_id)) in members.iter().zip(diff_ids).enumerate() {
        let report = LayerReport::new(progress, index);
        if !seen.insert(diff_id) {
            report.state(LayerState::Present);
            continue;
        }
        let unpack = async || {
            report.state(LayerState::Unpacking);
            let (section, _) = bundle.open_member(name).ok_or_else(|| LoadError::Missing { name: name.clone() })?;
            let expected = Expected { blob: digest.clone(), diff_id: diff_id.clone() };
            let store = Arc::clone(&puller.store);
            let again = if store.keeps_layer_blobs() { bundle.open_member(name) } else { None };
            blocking(move || {
                let staged = fetch::stage(&store, section, &expected).map_err(|error| match error {
                    StageError::Unpack(source) => LoadError::Unpack { layer: expected.diff_id.clone(), source },
                    StageError::Io(source) => LoadError::Stage { layer: expected.diff_id.clone(), source },
                })?;
                // A blob that the archive does not name may be compressed otherwise than the manifest says.
                if let (Some((section, _)), Some(blob)) = (again, &expected.blob) {
                    keep(&store, section, blob, &staged)
                        .map_err(|source| LoadError::Stage { layer: expected.diff_id.clone(), source })?;
                }
                Ok(staged)
            })
            .await
        };
        match puller.slots.obtain(&puller.store, diff_id, unpack).await? {
            Obtained::Present => report.state(LayerState::Present),
            Obtained::Staged(staged) => {
                report.state(LayerState::Done);
                all.push(staged);
            }
        }
    }
    Ok(all)
}

/// Copies a layer's bytes out of the archive, to be published with the layer.
fn keep(store: &Store, mut section: Section, blob: &Digest, staged: &Staged) -> io::Result<()> {
    let (temporary, part) = (store.content().temporary("blob"), store.content().part(blob));
    let copied = File::create(&temporary)
        .and_then(|mut file| io::copy(&mut section, &mut file))
        .and_then(|_| fs::rename(&temporary, &part));
    match copied {
        Ok(()) => staged.keep(blob.clone(), part),
        // The first error is the one that matters; the next start clears what stays.
        Err(_) => drop(fs::remove_file(&temporary)),
    }
    copied
}

fn document(bundle: &Bundle, name: &str) -> Result<Vec<u8>, LoadError> {
    let read = bundle.read(name).ok_or_else(|| LoadError::Missing { name: name.to_owned() })?;
    read.map_err(|source| LoadError::Read { name: name.to_owned(), source })
}

fn parse<T: for<'a> Deserialize<'a>>(name: &str, bytes: &[u8]) -> Result<T, LoadError> {
    serde_json::from_slice(bytes).map_err(|source| LoadError::Parse { name: name.to_owned(), source })
}

fn blob_name(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

fn blob(bundle: &Bundle, digest: &Digest) -> Result<Vec<u8>, LoadError> {
    let bytes = document(bundle, &blob_name(digest))?;
    let found = Digest::of(&bytes);
    if found == *digest { Ok(bytes) } else { Err(LoadError::Digest { expected: digest.clone(), found }) }
}
