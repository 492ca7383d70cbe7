//! What images take on disk, counted as layers are unpacked so that nobody has to walk trees for it.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// File systems hand out space in blocks of this size.
const BLOCK: u64 = 4096;

/// What a layer takes on disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Amount {
    pub(crate) bytes: u64,
    pub(crate) inodes: u64,
}

impl Amount {
    /// Counts a file whose data is `size` bytes long, holes left out.
    pub(crate) fn add_file(&mut self, size: u64) {
        self.inodes += 1;
        self.bytes = self.bytes.saturating_add(size.div_ceil(BLOCK).saturating_mul(BLOCK));
    }

    pub(crate) fn add_directories(&mut self, count: u64) {
        self.inodes += count;
        self.bytes = self.bytes.saturating_add(count.saturating_mul(BLOCK));
    }

    pub(crate) fn add(&mut self, other: Self) {
        self.inodes += other.inodes;
        self.bytes = self.bytes.saturating_add(other.bytes);
    }
}

/// What all images together take on disk (CRI `ImageFsInfo`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Usage {
    /// Bytes, in whole blocks.
    pub bytes: u64,
    /// Files, directories, links and nodes.
    pub inodes: u64,
    /// A directory on the file system that holds the images.
    pub mountpoint: PathBuf,
}
