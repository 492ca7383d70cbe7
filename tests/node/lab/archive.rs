//! Images made byte by byte: layers with what no packer would write, manifests in either format.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tar::{Builder, EntryType, Header};

/// Names content as registries do.
pub(crate) fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

/// A layer under construction. Names are written as given: absolute, with `..`, whatever a hostile packer thinks of.
pub(crate) struct Layer {
    tar: Builder<Vec<u8>>,
}

impl Layer {
    pub(crate) fn new() -> Self {
        Self { tar: Builder::new(Vec::new()) }
    }

    /// A layer of entries that are there already, without the archive's end.
    pub(crate) fn of(entries: Vec<u8>) -> Self {
        Self { tar: Builder::new(entries) }
    }

    /// A layer with a shell: Debian's static busybox.
    pub(crate) fn busybox() -> Self {
        let program = std::fs::read("/bin/busybox").expect("hack/test installs busybox-static");
        let layer =
            Self::new().dir("bin", 0o755).dir("etc", 0o755).dir("tmp", 0o1777).file("bin/busybox", 0o755, &program);
        ["sh", "cat", "ls", "stat", "id", "echo", "sleep", "test", "readlink"]
            .into_iter()
            .fold(layer, |layer, applet| layer.link("bin/busybox", &format!("bin/{applet}")))
    }

    pub(crate) fn dir(self, name: &str, mode: u32) -> Self {
        self.entry(name, EntryType::Directory, "", mode, &[])
    }

    pub(crate) fn file(self, name: &str, mode: u32, content: &[u8]) -> Self {
        self.entry(name, EntryType::Regular, "", mode, content)
    }

    /// A regular file with extended attributes.
    pub(crate) fn file_with(mut self, name: &str, mode: u32, content: &[u8], attributes: &[(&str, &[u8])]) -> Self {
        let keys: Vec<_> = attributes.iter().map(|(key, _)| format!("SCHILY.xattr.{key}")).collect();
        let records = keys.iter().map(String::as_str).zip(attributes.iter().map(|(_, value)| *value));
        self.tar.append_pax_extensions(records).expect("memory takes every write");
        self.file(name, mode, content)
    }

    pub(crate) fn symlink(self, target: &str, name: &str) -> Self {
        self.entry(name, EntryType::Symlink, target, 0o777, &[])
    }

    /// A hard link to a file of this layer or of one below.
    pub(crate) fn link(self, target: &str, name: &str) -> Self {
        self.entry(name, EntryType::Link, target, 0o644, &[])
    }

    pub(crate) fn char_device(mut self, name: &str, major: u32, minor: u32) -> Self {
        let mut header = header(name, EntryType::Char, "", 0o666, 0);
        header.set_device_major(major).expect("a ustar header has device numbers");
        header.set_device_minor(minor).expect("a ustar header has device numbers");
        header.set_cksum();
        self.tar.append(&header, &[][..]).expect("memory takes every write");
        self
    }

    fn entry(mut self, name: &str, kind: EntryType, target: &str, mode: u32, content: &[u8]) -> Self {
        let header = header(name, kind, target, mode, content.len());
        self.tar.append(&header, content).expect("memory takes every write");
        self
    }

    pub(crate) fn into_bytes(self) -> Vec<u8> {
        self.tar.into_inner().expect("memory takes every write")
    }
}

fn header(name: &str, kind: EntryType, target: &str, mode: u32, size: usize) -> Header {
    let mut header = Header::new_ustar();
    let fields = header.as_ustar_mut().expect("made as one");
    fields.name[..name.len()].copy_from_slice(name.as_bytes());
    fields.linkname[..target.len()].copy_from_slice(target.as_bytes());
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(1_700_000_000);
    header.set_size(size as u64);
    header.set_cksum();
    header
}

/// How a layer travels.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Packing {
    Plain,
    Gzip,
    Zstd,
}

/// Whose media types an image has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    Oci,
    Docker,
}

/// A packed image.
pub(crate) struct Image {
    pub(crate) format: Format,
    /// The manifest's bytes.
    pub(crate) manifest: Vec<u8>,
    /// Configuration and layers by digest.
    pub(crate) blobs: BTreeMap<String, Vec<u8>>,
    /// The digest of the configuration, which is the image's id.
    pub(crate) id: String,
    /// The layers' digests as they travel, lowest first.
    pub(crate) layers: Vec<String>,
    /// The digests of the unpacked layers.
    pub(crate) diff_ids: Vec<String>,
}

impl Image {
    /// Packs layers, lowest first, under a configuration (the `config` member of the image configuration).
    pub(crate) fn pack(format: Format, layers: Vec<(Layer, Packing)>, config: &Value) -> Self {
        let (mut blobs, mut digests, mut diff_ids, mut descriptors) = (BTreeMap::new(), vec![], vec![], vec![]);
        for (layer, packing) in layers {
            let tar = layer.into_bytes();
            diff_ids.push(digest(&tar));
            let packed = pack(tar, packing);
            let name = digest(&packed);
            descriptors.push(json!({"mediaType": layer_type(format, packing), "digest": name, "size": packed.len()}));
            digests.push(name.clone());
            blobs.insert(name, packed);
        }
        let platform = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
        let config = json!({"architecture": platform, "os": "linux", "config": config,
            "rootfs": {"type": "layers", "diff_ids": diff_ids}});
        let config = config.to_string().into_bytes();
        let id = digest(&config);
        let config_type = match format {
            Format::Oci => "application/vnd.oci.image.config.v1+json",
            Format::Docker => "application/vnd.docker.container.image.v1+json",
        };
        let manifest = json!({"schemaVersion": 2, "mediaType": manifest_type(format), "layers": descriptors,
            "config": {"mediaType": config_type, "digest": id, "size": config.len()}});
        blobs.insert(id.clone(), config);
        Self { format, manifest: manifest.to_string().into_bytes(), blobs, id, layers: digests, diff_ids }
    }

    /// The manifest's media type.
    pub(crate) fn media_type(&self) -> &'static str {
        manifest_type(self.format)
    }
}

fn manifest_type(format: Format) -> &'static str {
    match format {
        Format::Oci => "application/vnd.oci.image.manifest.v1+json",
        Format::Docker => "application/vnd.docker.distribution.manifest.v2+json",
    }
}

fn layer_type(format: Format, packing: Packing) -> &'static str {
    match (format, packing) {
        (Format::Oci, Packing::Plain) => "application/vnd.oci.image.layer.v1.tar",
        (Format::Oci, Packing::Gzip) => "application/vnd.oci.image.layer.v1.tar+gzip",
        (Format::Oci, Packing::Zstd) => "application/vnd.oci.image.layer.v1.tar+zstd",
        (Format::Docker, Packing::Plain) => "application/vnd.docker.image.rootfs.diff.tar",
        (Format::Docker, Packing::Gzip) => "application/vnd.docker.image.rootfs.diff.tar.gzip",
        (Format::Docker, Packing::Zstd) => panic!("Docker's schema 2 has no zstd layers"),
    }
}

fn pack(tar: Vec<u8>, packing: Packing) -> Vec<u8> {
    match packing {
        Packing::Plain => tar,
        Packing::Gzip => {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            std::io::Write::write_all(&mut encoder, &tar).expect("memory takes every write");
            encoder.finish().expect("memory takes every write")
        }
        Packing::Zstd => zstd::encode_all(tar.as_slice(), 1).expect("memory takes every write"),
    }
}
