//! What a directory tree takes on disk.

use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// `st_blocks` counts in this unit on every file system (`stat(3type)`).
const BLOCK: u64 = 512;

/// Space and files taken.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Use {
    /// Bytes, holes left out.
    pub(crate) bytes: u64,
    /// Files, directories, links and nodes.
    pub(crate) inodes: u64,
}

impl Use {
    /// Counts a tree. Blocks. What vanishes meanwhile or cannot be read is not counted: containers go on writing.
    pub(crate) fn of(directory: &Path) -> Self {
        let mut total = Self::default();
        let mut unread = vec![directory.to_owned()];
        while let Some(directory) = unread.pop() {
            for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
                // Not following links, as `DirEntry::metadata` does not.
                let Ok(metadata) = entry.metadata() else { continue };
                total.add(&metadata);
                if metadata.is_dir() {
                    unread.push(entry.path());
                }
            }
        }
        total
    }

    fn add(&mut self, metadata: &Metadata) {
        self.inodes += 1;
        // A file with several names is shared out among them.
        let names = if metadata.is_dir() { 1 } else { metadata.nlink().max(1) };
        self.bytes += metadata.blocks() * BLOCK / names;
    }
}

/// Tells whether two directories are on one file system; not when one cannot be looked at.
pub(crate) fn is_same_file_system(one: &Path, other: &Path) -> bool {
    let device = |path: &Path| fs::metadata(path).map(|metadata| metadata.dev()).ok();
    device(one).is_some() && device(one) == device(other)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_tree_is_counted_without_what_its_links_name() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(Use::of(root.path()), Use::default());
        let directory = root.path().join("a/b");
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join("file"), vec![1_u8; 1 << 20]).unwrap();
        fs::hard_link(directory.join("file"), root.path().join("again")).unwrap();
        symlink("/usr", directory.join("link")).unwrap();
        let counted = Use::of(root.path());
        assert_eq!(counted.inodes, 5);
        assert!((1 << 20..2 << 20).contains(&counted.bytes), "{counted:?}");
        assert_eq!(Use::of(&root.path().join("missing")), Use::default());
    }

    #[test]
    fn file_systems_are_told_apart() {
        assert!(is_same_file_system(Path::new("/proc"), Path::new("/proc/self")));
        assert!(!is_same_file_system(Path::new("/proc"), Path::new("/")));
        assert!(!is_same_file_system(Path::new("/missing"), Path::new("/missing")));
    }
}
