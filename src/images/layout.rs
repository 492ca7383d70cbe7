//! `index.json` of the OCI image layout: what other tools find images by (image specification, "Image Layout").
//!
//! An image has a descriptor for each of its tags, or one without a name. It is made from the records alone, so one that
//! is lost or out of date is made again at the next start.

use std::collections::BTreeMap;

use podwright_base::Digest;
use serde::{Deserialize, Serialize};

use crate::image::Image;

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// What tools of the image specification's kind look for a name in.
const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// What containerd looks for a whole reference in.
const NAME: &str = "io.containerd.image.name";

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Index<'a> {
    schema_version: u32,
    media_type: &'static str,
    manifests: Vec<Descriptor<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor<'a> {
    media_type: String,
    digest: &'a Digest,
    size: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    platform: Option<Platform>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    annotations: BTreeMap<&'static str, &'a str>,
}

#[derive(Clone, Serialize)]
struct Platform {
    architecture: String,
    os: String,
}

/// Makes the index. An image whose manifest `manifest` cannot give is left out: nobody could read it.
pub(crate) fn index<'a>(
    images: impl Iterator<Item = &'a Image>,
    manifest: impl Fn(&Digest) -> Option<Vec<u8>>,
) -> serde_json::Result<Vec<u8>> {
    let mut manifests = Vec::new();
    for image in images {
        let Some(bytes) = manifest(&image.manifest) else { continue };
        let descriptor = |name: Option<&'a String>| Descriptor {
            media_type: media_type(&bytes),
            digest: &image.manifest,
            size: bytes.len(),
            platform: platform(image),
            annotations: name.into_iter().flat_map(|name| [(REF_NAME, name.as_str()), (NAME, name)]).collect(),
        };
        if image.tags.is_empty() {
            manifests.push(descriptor(None));
        }
        manifests.extend(image.tags.iter().map(|tag| descriptor(Some(tag))));
    }
    serde_json::to_vec(&Index { schema_version: 2, media_type: INDEX, manifests })
}

/// An OCI manifest need not state its type.
fn media_type(manifest: &[u8]) -> String {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Typed {
        media_type: Option<String>,
    }
    serde_json::from_slice::<Typed>(manifest).ok().and_then(|typed| typed.media_type).unwrap_or(MANIFEST.to_owned())
}

fn platform(image: &Image) -> Option<Platform> {
    if image.artifact.is_some() {
        return None;
    }
    let (architecture, os) = (image.config.architecture().to_string(), image.config.os().to_string());
    let is_stated = !architecture.is_empty() && !os.is_empty();
    is_stated.then_some(Platform { architecture, os })
}
