//! What a layer takes on disk, counted as layers are unpacked so that nobody has to walk trees for it.

use serde::{Deserialize, Serialize};

/// File systems hand out space in blocks of this size.
const BLOCK: u64 = 4096;

/// What a layer takes on disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Amount {
    /// Bytes, in whole blocks.
    pub bytes: u64,
    /// Files, directories, links and nodes.
    pub inodes: u64,
}

impl Amount {
    /// Counts a file whose data is `size` bytes long, holes left out.
    pub fn add_file(&mut self, size: u64) {
        self.inodes += 1;
        self.bytes = self.bytes.saturating_add(size.div_ceil(BLOCK).saturating_mul(BLOCK));
    }

    /// Counts directories.
    pub fn add_directories(&mut self, count: u64) {
        self.inodes += count;
        self.bytes = self.bytes.saturating_add(count.saturating_mul(BLOCK));
    }

    /// Adds another layer's.
    pub fn add(&mut self, other: Self) {
        self.inodes += other.inodes;
        self.bytes = self.bytes.saturating_add(other.bytes);
    }
}
