//! Manifests and indexes, OCI's and Docker's schema 2, reduced to what is fetched.

use oci_client::manifest::{
    IMAGE_CONFIG_MEDIA_TYPE, IMAGE_DOCKER_CONFIG_MEDIA_TYPE, IMAGE_DOCKER_LAYER_GZIP_MEDIA_TYPE,
    IMAGE_DOCKER_LAYER_TAR_MEDIA_TYPE, IMAGE_LAYER_GZIP_MEDIA_TYPE, IMAGE_LAYER_MEDIA_TYPE,
    IMAGE_MANIFEST_LIST_MEDIA_TYPE, IMAGE_MANIFEST_MEDIA_TYPE, OCI_IMAGE_INDEX_MEDIA_TYPE, OCI_IMAGE_MEDIA_TYPE,
    OciDescriptor, OciImageIndex, OciImageManifest,
};
use oci_spec::image::ImageConfiguration;
use podwright_base::Digest;
use podwright_base::digest::InvalidDigest;
use podwright_registry::Blob;
use serde::Deserialize;

use crate::artifact;
use crate::fetch::Wanted;
use crate::platform::Host;

const LAYER_ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";
const DOCKER_LAYER_ZSTD: &str = "application/vnd.docker.image.rootfs.diff.tar.zstd";
/// overlayfs mounts no more lower layers than this.
const MOST_LAYERS: usize = 500;

/// A document of either kind, parsed and checked.
#[derive(Debug)]
pub(crate) enum Parsed {
    Image {
        config: Blob,
        layers: Vec<Blob>,
    },
    /// What is no image; its type in words, its configuration, and its layers.
    Artifact {
        kind: String,
        config: Blob,
        layers: Vec<Wanted>,
    },
    /// The digest of the entry that this host runs.
    Index {
        chosen: Digest,
    },
}

/// Why an image cannot be used here.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ManifestError {
    /// The JSON is not what its media type says.
    #[error("it does not parse")]
    Parse(#[source] serde_json::Error),
    /// Docker's oldest format has no digests of unpacked layers and its signatures are gone.
    #[error("it is a Docker schema 1 manifest, which is not supported: push the image again with a current tool")]
    Schema1,
    /// Neither manifest nor index.
    #[error("its media type {0:?} is neither a manifest nor an index")]
    MediaType(String),
    /// It can be read as both, and readers would disagree.
    #[error("it has both layers and manifests")]
    Ambiguous,
    /// Nothing in the index runs here.
    #[error("it has no image for linux/{wanted}, only for {offered}")]
    Platform {
        /// This host's architecture.
        wanted: String,
        /// What the index has.
        offered: String,
    },
    /// It is no container image, which is what is wanted here.
    #[error("it holds a {0}, which is no container image: pull it from a registry, to mount it as an image volume")]
    Artifact(String),
    /// A blob of an artifact cannot have its name.
    #[error("the title {title:?} of one of its blobs {problem}")]
    Title {
        /// The name.
        title: String,
        /// Why not.
        problem: &'static str,
    },
    /// Its layers are elsewhere.
    #[error("its layer {digest} is foreign ({media_type}): it is not distributed by registries")]
    ForeignLayer {
        /// The layer.
        digest: String,
        /// Its media type.
        media_type: String,
    },
    /// The layer is no tar.
    #[error("its layer {digest} has the media type {media_type}, which is not supported")]
    LayerType {
        /// The layer.
        digest: String,
        /// Its media type.
        media_type: String,
    },
    /// A digest of another algorithm.
    #[error("one of its digests")]
    Digest(#[from] InvalidDigest),
    /// A negative size.
    #[error("the size of {0} is negative")]
    Size(String),
    /// More than can be mounted.
    #[error("it has {0} layers, more than the {MOST_LAYERS} that can be mounted")]
    TooManyLayers(usize),
    /// Indexes of indexes of indexes.
    #[error("indexes are nested too deep")]
    TooDeep,
    /// The configuration does not parse.
    #[error("its configuration does not parse")]
    Config(#[source] oci_spec::OciSpecError),
    /// Manifest and configuration disagree.
    #[error("it has {layers} layers, but its configuration has {diff_ids} diffIDs")]
    LayerCount {
        /// In the manifest.
        layers: usize,
        /// In the configuration.
        diff_ids: usize,
    },
}

/// Parses a document by its media type: the registry's word, else its own.
pub(crate) fn parse(bytes: &[u8], media_type: Option<&str>, host: &Host) -> Result<Parsed, ManifestError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Shape {
        schema_version: Option<u64>,
        media_type: Option<String>,
        manifests: Option<serde::de::IgnoredAny>,
        layers: Option<serde::de::IgnoredAny>,
    }
    let shape: Shape = serde_json::from_slice(bytes).map_err(ManifestError::Parse)?;
    if shape.schema_version == Some(1) || media_type.is_some_and(|media_type| media_type.contains("manifest.v1")) {
        // The OCI manifest's own media type ends in manifest.v1+json.
        if shape.schema_version == Some(1) || media_type.is_some_and(|media_type| media_type.contains("docker")) {
            return Err(ManifestError::Schema1);
        }
    }
    if shape.manifests.is_some() && shape.layers.is_some() {
        return Err(ManifestError::Ambiguous);
    }
    let stated = shape.media_type.as_deref();
    match media_type.filter(|media_type| is_known(media_type)).or(stated) {
        Some(OCI_IMAGE_INDEX_MEDIA_TYPE | IMAGE_MANIFEST_LIST_MEDIA_TYPE) => index(bytes, host),
        Some(OCI_IMAGE_MEDIA_TYPE | IMAGE_MANIFEST_MEDIA_TYPE) => image(bytes),
        Some(other) => Err(ManifestError::MediaType(other.to_owned())),
        // OCI documents need not state their type.
        None if shape.manifests.is_some() => index(bytes, host),
        None if shape.layers.is_some() => image(bytes),
        None => Err(ManifestError::MediaType(media_type.unwrap_or_default().to_owned())),
    }
}

fn is_known(media_type: &str) -> bool {
    [OCI_IMAGE_INDEX_MEDIA_TYPE, IMAGE_MANIFEST_LIST_MEDIA_TYPE, OCI_IMAGE_MEDIA_TYPE, IMAGE_MANIFEST_MEDIA_TYPE]
        .contains(&media_type)
}

fn index(bytes: &[u8], host: &Host) -> Result<Parsed, ManifestError> {
    let index: OciImageIndex = serde_json::from_slice(bytes).map_err(ManifestError::Parse)?;
    match host.choose(&index.manifests) {
        Some(entry) => Ok(Parsed::Index { chosen: entry.digest.parse()? }),
        None => {
            let offered = index.manifests.iter().filter_map(|entry| entry.platform.as_ref());
            let mut offered: Vec<String> =
                offered.map(|platform| format!("{}/{}", platform.os, platform.architecture)).take(20).collect();
            offered.dedup();
            let offered = if offered.is_empty() { "nothing".to_owned() } else { offered.join(", ") };
            Err(ManifestError::Platform { wanted: host.architecture.to_owned(), offered })
        }
    }
}

fn image(bytes: &[u8]) -> Result<Parsed, ManifestError> {
    let manifest: OciImageManifest = serde_json::from_slice(bytes).map_err(ManifestError::Parse)?;
    if manifest.layers.len() > MOST_LAYERS {
        return Err(ManifestError::TooManyLayers(manifest.layers.len()));
    }
    let config_type = manifest.config.media_type.as_str();
    if ![IMAGE_CONFIG_MEDIA_TYPE, IMAGE_DOCKER_CONFIG_MEDIA_TYPE, ""].contains(&config_type) {
        let (config, layers) = (blob(&manifest.config)?, artifact::layers(&manifest)?);
        let kind = manifest.artifact_type.unwrap_or(manifest.config.media_type);
        return Ok(Parsed::Artifact { kind, config, layers });
    }
    let config = blob(&manifest.config)?;
    let layers = manifest.layers.iter().map(layer).collect::<Result<_, _>>()?;
    Ok(Parsed::Image { config, layers })
}

/// Returns the configuration of a manifest that was checked when its image came.
pub(crate) fn config(manifest: &[u8]) -> Option<Blob> {
    #[derive(Deserialize)]
    struct Config {
        config: OciDescriptor,
    }
    blob(&serde_json::from_slice::<Config>(manifest).ok()?.config).ok()
}

/// Returns the layers of a manifest that was checked when its image came, bottom first.
pub(crate) fn layers(manifest: &[u8]) -> Vec<Blob> {
    #[derive(Deserialize)]
    struct Layers {
        layers: Vec<OciDescriptor>,
    }
    let parsed = serde_json::from_slice::<Layers>(manifest);
    parsed.map(|manifest| manifest.layers.iter().flat_map(blob).collect()).unwrap_or_default()
}

fn layer(descriptor: &OciDescriptor) -> Result<Blob, ManifestError> {
    let (digest, media_type) = (descriptor.digest.clone(), descriptor.media_type.clone());
    match media_type.as_str() {
        layer if is_layer(layer) => blob(descriptor),
        other if other.contains("nondistributable") || other.contains("rootfs.foreign") => {
            Err(ManifestError::ForeignLayer { digest, media_type })
        }
        _ => Err(ManifestError::LayerType { digest, media_type }),
    }
}

/// Tells whether a media type is that of an archive that images have as a layer.
pub(crate) fn is_layer(media_type: &str) -> bool {
    [
        IMAGE_LAYER_MEDIA_TYPE,
        IMAGE_LAYER_GZIP_MEDIA_TYPE,
        LAYER_ZSTD,
        IMAGE_DOCKER_LAYER_TAR_MEDIA_TYPE,
        IMAGE_DOCKER_LAYER_GZIP_MEDIA_TYPE,
        DOCKER_LAYER_ZSTD,
    ]
    .contains(&media_type)
}

pub(crate) fn blob(descriptor: &OciDescriptor) -> Result<Blob, ManifestError> {
    let size = u64::try_from(descriptor.size).map_err(|_| ManifestError::Size(descriptor.digest.clone()))?;
    Ok(Blob { digest: descriptor.digest.parse()?, size })
}

/// Parses a configuration and checks that the host can run it and that it fits its manifest. Returns the diffIDs too.
pub(crate) fn configuration(
    bytes: &[u8],
    layers: usize,
    host: &Host,
) -> Result<(ImageConfiguration, Vec<Digest>), ManifestError> {
    let config = ImageConfiguration::from_reader(bytes).map_err(ManifestError::Config)?;
    let (os, architecture) = (config.os().to_string(), config.architecture().to_string());
    // Some builders leave them empty; what is said is believed.
    let os_fits = os.is_empty() || os == "linux";
    if !os_fits || !architecture.is_empty() && architecture != host.architecture {
        let offered = format!("{os}/{architecture}");
        return Err(ManifestError::Platform { wanted: host.architecture.to_owned(), offered });
    }
    let diff_ids = config.rootfs().diff_ids();
    if diff_ids.len() != layers {
        return Err(ManifestError::LayerCount { layers, diff_ids: diff_ids.len() });
    }
    let diff_ids = diff_ids.iter().map(|diff_id| diff_id.parse()).collect::<Result<_, _>>()?;
    Ok((config, diff_ids))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn parse_value(value: &serde_json::Value, media_type: Option<&str>) -> Result<Parsed, ManifestError> {
        parse(value.to_string().as_bytes(), media_type, &Host::current())
    }

    fn with_layer(media_type: &str) -> serde_json::Value {
        json!({
            "schemaVersion": 2,
            "config": {"mediaType": IMAGE_CONFIG_MEDIA_TYPE, "digest": DIGEST, "size": 2},
            "layers": [{"mediaType": media_type, "digest": DIGEST, "size": 3}],
        })
    }

    #[test]
    fn both_families_parse_with_and_without_their_type() {
        for (layer, stated) in [
            (IMAGE_LAYER_GZIP_MEDIA_TYPE, Some(OCI_IMAGE_MEDIA_TYPE)),
            (LAYER_ZSTD, None),
            (IMAGE_DOCKER_LAYER_GZIP_MEDIA_TYPE, Some(IMAGE_MANIFEST_MEDIA_TYPE)),
            (IMAGE_LAYER_MEDIA_TYPE, Some("application/octet-stream")),
        ] {
            let parsed = parse_value(&with_layer(layer), stated).unwrap();
            assert!(matches!(parsed, Parsed::Image { layers, .. } if layers[0].size == 3), "{layer}");
        }
    }

    #[test]
    fn an_index_names_its_entry_for_this_host() {
        let host = Host::current();
        let entry = |architecture: &str| json!({"mediaType": OCI_IMAGE_MEDIA_TYPE, "digest": DIGEST, "size": 1, "platform": {"os": "linux", "architecture": architecture}});
        let index = json!({"schemaVersion": 2, "manifests": [entry("s390x"), entry(host.architecture)]});
        assert!(matches!(parse_value(&index, None), Ok(Parsed::Index { .. })));
        let other = json!({"schemaVersion": 2, "manifests": [entry("sparc64")]});
        let error = parse_value(&other, Some(IMAGE_MANIFEST_LIST_MEDIA_TYPE)).unwrap_err();
        assert!(error.to_string().contains("linux/sparc64"), "{error}");
    }

    #[test]
    fn an_artifact_is_known_by_its_configuration() {
        let mut chart = with_layer("application/vnd.cncf.helm.chart.content.v1.tar+gzip");
        chart["config"]["mediaType"] = "application/vnd.cncf.helm.config.v1+json".into();
        let kind = |value: &serde_json::Value| match parse_value(value, Some(OCI_IMAGE_MEDIA_TYPE)).unwrap() {
            Parsed::Artifact { kind, layers, .. } if layers.len() == 1 => kind,
            other => panic!("{other:?}"),
        };
        assert_eq!(kind(&chart), "application/vnd.cncf.helm.config.v1+json");
        chart["config"]["mediaType"] = "application/vnd.oci.empty.v1+json".into();
        chart["artifactType"] = "application/vnd.example.model".into();
        assert_eq!(kind(&chart), "application/vnd.example.model");
        // An image may say of what type it is beside being one.
        let mut image = with_layer(IMAGE_LAYER_MEDIA_TYPE);
        image["artifactType"] = "application/vnd.example.model".into();
        assert!(matches!(parse_value(&image, None), Ok(Parsed::Image { .. })));
    }

    #[test]
    fn what_cannot_be_used_is_refused_by_name() {
        let refused = |value: &serde_json::Value, media_type| parse_value(value, media_type).unwrap_err();
        let schema1 = json!({"schemaVersion": 1, "fsLayers": []});
        let schema1_type = Some("application/vnd.docker.distribution.manifest.v1+prettyjws");
        assert!(matches!(refused(&schema1, schema1_type), ManifestError::Schema1));
        assert!(matches!(refused(&schema1, None), ManifestError::Schema1));
        for foreign in [
            "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
            "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
        ] {
            assert!(matches!(refused(&with_layer(foreign), None), ManifestError::ForeignLayer { .. }));
        }
        assert!(matches!(refused(&with_layer("text/plain"), None), ManifestError::LayerType { .. }));
        let both = json!({"schemaVersion": 2, "manifests": [], "layers": []});
        assert!(matches!(refused(&both, Some(OCI_IMAGE_MEDIA_TYPE)), ManifestError::Ambiguous));
        assert!(matches!(refused(&json!({"schemaVersion": 2}), Some("text/html")), ManifestError::MediaType(_)));
        let mut sha512 = with_layer(IMAGE_LAYER_MEDIA_TYPE);
        sha512["layers"][0]["digest"] = "sha512:00".into();
        assert!(matches!(refused(&sha512, None), ManifestError::Digest(_)));
    }

    #[test]
    fn a_configuration_fits_its_manifest_and_this_host() {
        let host = Host::current();
        let config = |architecture: &str| {
            json!({"os": "linux", "architecture": architecture, "rootfs": {"type": "layers", "diff_ids": [DIGEST]}})
                .to_string()
        };
        assert_eq!(configuration(config(host.architecture).as_bytes(), 1, &host).unwrap().1.len(), 1);
        assert!(matches!(
            configuration(config(host.architecture).as_bytes(), 2, &host),
            Err(ManifestError::LayerCount { .. })
        ));
        assert!(matches!(configuration(config("sparc64").as_bytes(), 1, &host), Err(ManifestError::Platform { .. })));
    }
}
