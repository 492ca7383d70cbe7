//! Makes images as a registry has them.

use podwright_base::Digest;
pub(crate) use podwright_layer::testing::{Entry, Tar, gzip, zstd};
use serde_json::{Value, json};

use crate::platform::Host;

/// A layer as a registry has it.
#[derive(Clone)]
pub(crate) struct Layer {
    pub(crate) blob: Vec<u8>,
    pub(crate) diff_id: Digest,
    pub(crate) media_type: &'static str,
}

impl Layer {
    pub(crate) fn gzip(tar: Tar) -> Self {
        let tar = tar.end();
        let media_type = "application/vnd.oci.image.layer.v1.tar+gzip";
        Self { blob: gzip(&tar), diff_id: Digest::of(&tar), media_type }
    }

    pub(crate) fn zstd(tar: Tar) -> Self {
        let tar = tar.end();
        Self { blob: zstd(&tar), diff_id: Digest::of(&tar), media_type: "application/vnd.oci.image.layer.v1.tar+zstd" }
    }

    pub(crate) fn plain(tar: Tar) -> Self {
        let tar = tar.end();
        let (diff_id, media_type) = (Digest::of(&tar), "application/vnd.oci.image.layer.v1.tar");
        Self { blob: tar, diff_id, media_type }
    }

    pub(crate) fn digest(&self) -> Digest {
        Digest::of(&self.blob)
    }
}

/// An image as a registry has it.
#[derive(Clone)]
pub(crate) struct TestImage {
    pub(crate) layers: Vec<Layer>,
    pub(crate) config: Vec<u8>,
    pub(crate) manifest: Value,
}

impl TestImage {
    pub(crate) fn new(layers: Vec<Layer>) -> Self {
        let diff_ids: Vec<&str> = layers.iter().map(|layer| layer.diff_id.as_str()).collect();
        let config = json!({
            "os": "linux",
            "architecture": Host::current().architecture,
            "config": {"Env": ["A=b"], "Cmd": ["/bin/true"]},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        let config = config.to_string().into_bytes();
        let descriptors: Vec<Value> = layers
            .iter()
            .map(|layer| json!({"mediaType": layer.media_type, "digest": layer.digest(), "size": layer.blob.len()}))
            .collect();
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": Digest::of(&config), "size": config.len()},
            "layers": descriptors,
        });
        Self { layers, config, manifest }
    }

    /// An image of one small layer, different for each name.
    pub(crate) fn small(name: &str) -> Self {
        Self::new(vec![Layer::gzip(Tar::default().dir("etc").file("etc/name", name))])
    }

    pub(crate) fn id(&self) -> Digest {
        Digest::of(&self.config)
    }

    pub(crate) fn manifest_bytes(&self) -> Vec<u8> {
        self.manifest.to_string().into_bytes()
    }

    pub(crate) fn manifest_digest(&self) -> Digest {
        Digest::of(&self.manifest_bytes())
    }
}
