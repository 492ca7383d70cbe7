//! Makes a large image from a seed, as an OCI image layout: many small files and some large ones in eight layers, about
//! a gibibyte unpacked and a third of that compressed.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;
use flate2::{Compression, GzBuilder, write::GzEncoder};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};

use crate::seeded::{Content, Numbers, fill};

/// How a thousandth of the image is shared out among its layers, bottom first.
const LAYERS: [u64; 8] = [75, 245, 115, 290, 40, 150, 80, 5];
/// Of a layer, in a hundred bytes, those in large files.
const LARGE: u64 = 65;
const DATE: &str = "2023-11-14T22:13:20Z";
const SECONDS: u64 = 1_700_000_000;

/// Make a large image to pull
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Bytes of the image unpacked, in MiB
    #[arg(long, default_value_t = 1008)]
    size: u64,
    /// The directory for the OCI image layout; it must not exist
    layout: PathBuf,
}

/// A blob in the layout.
struct Blob {
    digest: String,
    size: u64,
}

/// Makes the image and says what it has become.
pub(crate) fn make(arguments: &Arguments) -> anyhow::Result<()> {
    let layout = &arguments.layout;
    let blobs = layout.join("blobs/sha256");
    fs::create_dir(layout).and_then(|()| fs::create_dir_all(&blobs)).with_context(|| at("make", layout))?;
    let (blobs, size) = (blobs.as_path(), arguments.size);
    let layers: anyhow::Result<Vec<(Blob, String)>> = std::thread::scope(|scope| {
        let threads: Vec<_> =
            (0..LAYERS.len()).map(|index| scope.spawn(move || make_layer(blobs, index, size))).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().map_err(|_| anyhow::anyhow!("a layer's thread ended"))?)
            .collect()
    });
    let layers = layers?;
    let diff_ids: Vec<&String> = layers.iter().map(|(_, diff_id)| diff_id).collect();
    let config = json!({
        "created": DATE, "architecture": architecture(), "os": "linux", "config": {},
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
    });
    let config = document(blobs, &config)?;
    let described = layers.iter().map(|(blob, _)| describe("layer.v1.tar+gzip", blob));
    let manifest = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": describe("config.v1+json", &config), "layers": described.collect::<Vec<_>>(),
    });
    let mut manifest = describe("manifest.v1+json", &document(blobs, &manifest)?);
    manifest["annotations"] = json!({ "org.opencontainers.image.ref.name": "latest" });
    let index = json!({ "schemaVersion": 2, "manifests": [manifest] });
    write(&layout.join("index.json"), &serde_json::to_vec(&index)?)?;
    write(&layout.join("oci-layout"), br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    let compressed: u64 = layers.iter().map(|(blob, _)| blob.size).sum();
    writeln!(io::stdout(), "{}: {} layers, {compressed} bytes compressed", layout.display(), layers.len())?;
    Ok(())
}

fn at(step: &str, path: &Path) -> String {
    format!("{step} {}", path.display())
}

fn write(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    fs::write(path, bytes).with_context(|| at("write", path))
}

fn document(blobs: &Path, document: &Value) -> anyhow::Result<Blob> {
    let bytes = serde_json::to_vec(document)?;
    let hex = hex::encode(Sha256::digest(&bytes));
    write(&blobs.join(&hex), &bytes)?;
    Ok(Blob { digest: format!("sha256:{hex}"), size: bytes.len() as u64 })
}

fn describe(kind: &str, blob: &Blob) -> Value {
    json!({ "mediaType": format!("application/vnd.oci.image.{kind}"), "digest": blob.digest, "size": blob.size })
}

fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// Writes one layer; returns its blob and its diffID.
fn make_layer(blobs: &Path, index: usize, megabytes: u64) -> anyhow::Result<(Blob, String)> {
    let making = blobs.join(format!("making-{index}"));
    let file = File::create_new(&making).with_context(|| at("make", &making))?;
    let compressed = Hashed::new(BufWriter::new(file));
    let encoder: GzEncoder<_> = GzBuilder::new().write(compressed, Compression::new(6));
    let mut layer = Layer {
        tar: Builder::new(Hashed::new(encoder)),
        numbers: Numbers::new(index as u64 + 1),
        bytes: Vec::new(),
        files: 0,
    };
    let budget = megabytes * 1024 * 1024 * LAYERS[index] / 1000;
    layer.fill(index, budget).with_context(|| at("write", &making))?;
    let plain = layer.tar.into_inner()?;
    let diff_id = format!("sha256:{}", hex::encode(plain.hash.finalize()));
    let mut compressed = plain.inner.finish()?;
    compressed.flush()?;
    let hex = hex::encode(compressed.hash.finalize());
    fs::rename(&making, blobs.join(&hex)).with_context(|| at("rename", &making))?;
    Ok((Blob { digest: format!("sha256:{hex}"), size: compressed.length }, diff_id))
}

/// A layer that is being written.
struct Layer<W: Write> {
    tar: Builder<W>,
    numbers: Numbers,
    bytes: Vec<u8>,
    files: u64,
}

impl<W: Write> Layer<W> {
    /// Directories of one to sixty files, one file in twenty a link, until the budget is spent.
    fn fill(&mut self, index: usize, budget: u64) -> io::Result<()> {
        let (mut large, mut small) = (budget * LARGE / 100, budget * (100 - LARGE) / 100);
        let mut directory = 0;
        while small > 0 {
            directory += 1;
            let path = format!("usr/share/l{index}/d{}/d{directory}", directory / 40);
            self.entry(EntryType::Directory, &format!("{path}/"), 0o755, b"")?;
            for name in 0..=self.numbers.below(60) {
                let (name, length) = (format!("{path}/file-{name}.txt"), self.small().min(small));
                self.file(&name, length)?;
                small -= length;
                if self.numbers.below(20) == 0 {
                    let mut header = self.header(EntryType::Symlink, 0o777, 0);
                    self.tar.append_link(&mut header, format!("{name}.link"), "../target")?;
                }
            }
        }
        while large > 0 {
            self.files += 1;
            let length = (4 << 20) + self.numbers.magnitude(64 << 20);
            self.file(&format!("usr/lib/l{index}-{}.so", self.files), length.min(large))?;
            large -= length.min(large);
        }
        Ok(())
    }

    /// A size as those of a distribution's packages.
    fn small(&mut self) -> u64 {
        // A bell over the powers of two, in steps of a twelve-hundredth: its middle is 2 KiB, nine in ten are below 24.
        let bell: u64 = (0..8).map(|_| self.numbers.below(4096)).sum();
        let (power, rest) = (bell.saturating_sub(3150) / 1200, bell.saturating_sub(3150) % 1200);
        (1 << power) + ((rest << power) / 1200)
    }

    fn file(&mut self, path: &str, length: u64) -> io::Result<()> {
        let content = match self.numbers.below(100) {
            0..10 => Content::Packed,
            10..50 => Content::Program,
            _ => Content::Text,
        };
        let mut bytes = std::mem::take(&mut self.bytes);
        fill(&mut bytes, usize::try_from(length).map_err(io::Error::other)?, content, &mut self.numbers);
        let mode = if content == Content::Program { 0o755 } else { 0o644 };
        self.entry(EntryType::Regular, path, mode, &bytes)?;
        self.bytes = bytes;
        Ok(())
    }

    fn entry(&mut self, kind: EntryType, path: &str, mode: u32, bytes: &[u8]) -> io::Result<()> {
        let mut header = self.header(kind, mode, bytes.len() as u64);
        self.tar.append_data(&mut header, path, bytes)
    }

    fn header(&mut self, kind: EntryType, mode: u32, size: u64) -> Header {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        // A user of its own has one file in sixteen.
        header.set_uid(if self.numbers.below(16) == 0 { 1000 } else { 0 });
        header.set_gid(0);
        header.set_mtime(SECONDS + self.numbers.below(1 << 20));
        header.set_size(size);
        header
    }
}

/// Hashes and counts what passes through.
struct Hashed<W> {
    inner: W,
    hash: Sha256,
    length: u64,
}

impl<W> Hashed<W> {
    fn new(inner: W) -> Self {
        Self { inner, hash: Sha256::new(), length: 0 }
    }
}

impl<W: Write> Write for Hashed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.hash.update(&bytes[..written]);
        self.length += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_bytes_come_each_time() {
        let dir = tempfile::tempdir().unwrap();
        let mut indexes = Vec::new();
        for name in ["one", "two"] {
            let layout = dir.path().join(name);
            make(&Arguments { size: 2, layout: layout.clone() }).unwrap();
            assert_eq!(fs::read_dir(layout.join("blobs/sha256")).unwrap().count(), LAYERS.len() + 2);
            indexes.push(fs::read(layout.join("index.json")).unwrap());
        }
        assert_eq!(indexes[0], indexes[1]);
    }
}
