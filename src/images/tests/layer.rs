//! Makes layers and images, hostile ones too.

use std::io::Write;

use podwright_base::Digest;
use serde_json::{Value, json};
use tar::{EntryType, Header};

use crate::platform::Host;
use crate::unpack::digest;

/// Writes a PAX record; the length counts itself.
pub(crate) fn pax_record(key: &str, value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length.to_string().len() + rest != length {
        length += 1;
    }
    let mut bytes = format!("{length} {key}=").into_bytes();
    bytes.extend_from_slice(value);
    bytes.push(b'\n');
    bytes
}

/// A tar archive in the making. Names are written as they are, however bad.
#[derive(Clone, Default)]
pub(crate) struct Tar {
    bytes: Vec<u8>,
}

/// One entry's header, before its data.
pub(crate) struct Entry {
    pub(crate) header: Header,
}

impl Entry {
    pub(crate) fn new(kind: EntryType, path: &str) -> Self {
        let mut header = Header::new_gnu();
        header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
        header.set_entry_type(kind);
        header.set_mode(if kind == EntryType::Directory { 0o755 } else { 0o644 });
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_000_000_000);
        header.set_size(0);
        Self { header }
    }

    pub(crate) fn link(mut self, target: &str) -> Self {
        self.header.as_old_mut().linkname[..target.len()].copy_from_slice(target.as_bytes());
        self
    }

    pub(crate) fn mode(mut self, mode: u32) -> Self {
        self.header.set_mode(mode);
        self
    }

    pub(crate) fn owner(mut self, uid: u64, gid: u64) -> Self {
        self.header.set_uid(uid);
        self.header.set_gid(gid);
        self
    }

    pub(crate) fn device(mut self, major: u32, minor: u32) -> Self {
        self.header.set_device_major(major).unwrap();
        self.header.set_device_minor(minor).unwrap();
        self
    }

    pub(crate) fn mtime(mut self, mtime: u64) -> Self {
        self.header.set_mtime(mtime);
        self
    }
}

impl Tar {
    pub(crate) fn entry(mut self, entry: Entry, data: &[u8]) -> Self {
        let mut header = entry.header;
        header.set_size(data.len() as u64);
        self.raw(header, data);
        self
    }

    /// Appends a header as it is, its size included.
    pub(crate) fn raw(&mut self, mut header: Header, data: &[u8]) {
        header.set_cksum();
        self.bytes.extend_from_slice(header.as_bytes());
        self.blocks(data);
    }

    pub(crate) fn blocks(&mut self, data: &[u8]) {
        self.bytes.extend_from_slice(data);
        self.bytes.resize(self.bytes.len().next_multiple_of(512), 0);
    }

    pub(crate) fn dir(self, path: &str) -> Self {
        self.entry(Entry::new(EntryType::Directory, path), b"")
    }

    pub(crate) fn file(self, path: &str, data: impl AsRef<[u8]>) -> Self {
        self.entry(Entry::new(EntryType::Regular, path), data.as_ref())
    }

    pub(crate) fn symlink(self, path: &str, target: &str) -> Self {
        self.entry(Entry::new(EntryType::Symlink, path).link(target), b"")
    }

    pub(crate) fn hard_link(self, path: &str, target: &str) -> Self {
        self.entry(Entry::new(EntryType::Link, path).link(target), b"")
    }

    /// Puts an extended header before the next entry.
    pub(crate) fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let data: Vec<u8> = records.iter().flat_map(|(key, value)| pax_record(key, value)).collect();
        self.entry(Entry::new(EntryType::XHeader, "PaxHeader"), &data)
    }

    pub(crate) fn end(mut self) -> Vec<u8> {
        self.bytes.extend_from_slice(&[0; 1024]);
        self.bytes
    }

    /// What is there so far, without the end.
    pub(crate) fn cut(self) -> Vec<u8> {
        self.bytes
    }
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

pub(crate) fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 1).unwrap()
}

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
        Self { blob: gzip(&tar), diff_id: digest(&tar), media_type }
    }

    pub(crate) fn zstd(tar: Tar) -> Self {
        let tar = tar.end();
        Self { blob: zstd(&tar), diff_id: digest(&tar), media_type: "application/vnd.oci.image.layer.v1.tar+zstd" }
    }

    pub(crate) fn plain(tar: Tar) -> Self {
        let tar = tar.end();
        let (diff_id, media_type) = (digest(&tar), "application/vnd.oci.image.layer.v1.tar");
        Self { blob: tar, diff_id, media_type }
    }

    pub(crate) fn digest(&self) -> Digest {
        digest(&self.blob)
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
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest(&config), "size": config.len()},
            "layers": descriptors,
        });
        Self { layers, config, manifest }
    }

    /// An image of one small layer, different for each name.
    pub(crate) fn small(name: &str) -> Self {
        Self::new(vec![Layer::gzip(Tar::default().dir("etc").file("etc/name", name))])
    }

    pub(crate) fn id(&self) -> Digest {
        digest(&self.config)
    }

    pub(crate) fn manifest_bytes(&self) -> Vec<u8> {
        self.manifest.to_string().into_bytes()
    }

    pub(crate) fn manifest_digest(&self) -> Digest {
        digest(&self.manifest_bytes())
    }
}
