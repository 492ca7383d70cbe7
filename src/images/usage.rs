//! What images take on disk.

use std::path::PathBuf;

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
