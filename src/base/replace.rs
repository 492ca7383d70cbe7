//! Files that are replaced whole.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::Path;

/// Writes a file beside its place, under its name and `.new`, and renames it into it: a reader, or a daemon started
/// after a crash, sees the old bytes or the new ones. Nothing is synced.
///
/// # Errors
/// When the directory is missing, full or read-only. Nothing is left beside the file then.
pub fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut name = OsString::from(path);
    name.push(".new");
    let temporary = Path::new(&name);
    fs::write(temporary, bytes).and_then(|()| fs::rename(temporary, path)).inspect_err(|_| {
        // The error that matters is the first; a leftover is overwritten by the next write.
        let _ = fs::remove_file(temporary);
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_new_bytes_are_there_whole_and_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.json");
        for bytes in [&b"old"[..], b"n"] {
            replace(&path, bytes).unwrap();
            assert_eq!(fs::read(&path).unwrap(), bytes);
        }
        // A directory in the way: the rename fails, and what was written beside it goes.
        let taken = dir.path().join("taken");
        fs::create_dir_all(taken.join("x")).unwrap();
        replace(&taken, b"x").unwrap_err();
        let mut names: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["a.json", "taken"]);
    }
}
