//! CNI: whether a configuration is present, which takes the place of the built-in network.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Finds the first CNI configuration of a directory, in the order of names; a missing directory has none.
pub(crate) fn configuration(dir: &Path) -> io::Result<Option<PathBuf>> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_some_and(|end| ["conflist", "conf", "json"].iter().any(|known| end == *known)) {
            files.push(path);
        }
    }
    Ok(files.into_iter().min())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_configuration_by_name_counts() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(configuration(&dir.path().join("missing")).unwrap(), None);
        fs::write(dir.path().join("README"), "").unwrap();
        assert_eq!(configuration(dir.path()).unwrap(), None);
        fs::write(dir.path().join("20-b.conf"), "").unwrap();
        fs::write(dir.path().join("10-a.conflist"), "").unwrap();
        assert_eq!(configuration(dir.path()).unwrap(), Some(dir.path().join("10-a.conflist")));
    }
}
