//! Which directories are on one file system.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Tells whether two directories are on one file system; not when one cannot be looked at.
pub(crate) fn is_same_file_system(one: &Path, other: &Path) -> bool {
    let device = |path: &Path| fs::metadata(path).map(|metadata| metadata.dev()).ok();
    device(one).is_some() && device(one) == device(other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_systems_are_told_apart() {
        assert!(is_same_file_system(Path::new("/proc"), Path::new("/proc/self")));
        assert!(!is_same_file_system(Path::new("/proc"), Path::new("/")));
        assert!(!is_same_file_system(Path::new("/missing"), Path::new("/missing")));
    }
}
