//! Blobs of artifacts that are no images: files with a name, and archives that no configuration has a diffID of.
//!
//! A file comes to its layer as the one entry of an archive, so that it is made, counted and checked as any layer's.

use std::io::{self, Cursor, Read};
use std::path::Path;

use podwright_base::Digest;
use tar::{EntryType, Header};

use crate::unpack::{UnpackError, Unpacked, apply_stream, decompress};

/// Tar's unit.
const BLOCK: u64 = 512;
/// What an archive ends with.
const END: u64 = 2 * BLOCK;

/// How a blob becomes a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Form {
    /// As the archive that it is, compressed or not.
    Archive,
    /// As one file: root's, readable by all, of 1970.
    File {
        /// Its path below the layer's root.
        name: String,
        /// Its length in bytes.
        size: u64,
    },
}

/// Unpacks an artifact's blob into an empty directory, checks its digest and writes the listing of the directory.
///
/// The directory holds unverified files until this returns; the caller throws it and the listing away on any error.
///
/// # Errors
/// When the stream breaks, cannot be unpacked, or is not the expected one.
pub fn unpack_artifact(
    blob: impl Read,
    expected: &Digest,
    form: &Form,
    directory: &Path,
    listing: &Path,
) -> Result<Unpacked, UnpackError> {
    let (applied, _) = apply_stream(blob, Some(expected), directory, |raw| match form {
        Form::Archive => decompress(raw),
        Form::File { name, size } => Ok(Box::new(archive_of(raw, name, *size)?)),
    })?;
    applied.list(directory, listing)
}

/// A blob that is shorter than its manifest says is filled up, one that is longer is cut: its digest tells.
fn archive_of<R: Read>(blob: R, name: &str, size: u64) -> io::Result<impl Read + use<R>> {
    let fill = size.next_multiple_of(BLOCK) - size + END;
    Ok(Cursor::new(head(name, size)?).chain(blob.take(size)).chain(io::repeat(0).take(fill)))
}

/// The headers before a file's bytes: its name, of any length, and the rest.
fn head(name: &str, size: u64) -> io::Result<Vec<u8>> {
    let mut name = name.as_bytes().to_vec();
    name.push(0);
    let mut long = Header::new_gnu();
    long.set_path("././@LongLink")?;
    long.set_entry_type(EntryType::GNULongName);
    long.set_size(name.len() as u64);
    long.set_cksum();
    let mut file = Header::new_gnu();
    file.set_entry_type(EntryType::Regular);
    file.set_mode(0o644);
    file.set_uid(0);
    file.set_gid(0);
    file.set_mtime(0);
    file.set_size(size);
    file.set_cksum();
    name.resize(name.len().next_multiple_of(BLOCK as usize), 0);
    Ok([long.as_bytes(), name.as_slice(), file.as_bytes()].concat())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::MetadataExt;

    use super::*;
    use crate::testing::Tar;

    fn unpack(bytes: &[u8], expected: &Digest, form: &Form, dir: &Path) -> Result<Unpacked, UnpackError> {
        let tree = dir.join("tree");
        fs::create_dir(&tree).unwrap();
        unpack_artifact(bytes, expected, form, &tree, &dir.join("listing"))
    }

    fn file(name: &str, size: u64) -> Form {
        Form::File { name: name.to_owned(), size }
    }

    #[test]
    fn a_file_has_its_name_and_its_bytes() {
        let long = format!("{0}/{0}/weights.bin", "d".repeat(200));
        for (name, bytes) in [("a", vec![]), ("dir/b.json", vec![7; 512]), (long.as_str(), vec![9; 1_000_001])] {
            let dir = tempfile::tempdir().unwrap();
            let digest = Digest::of(&bytes);
            let amount = unpack(&bytes, &digest, &file(name, bytes.len() as u64), dir.path()).unwrap().amount;
            assert!(fs::read(dir.path().join("tree").join(name)).unwrap() == bytes, "{name}");
            let found = fs::metadata(dir.path().join("tree").join(name)).unwrap();
            assert_eq!((found.mode() & 0o7777, found.uid(), found.gid(), found.mtime()), (0o644, 0, 0, 0));
            assert_eq!(fs::read_dir(dir.path().join("tree")).unwrap().count(), 1);
            assert!(amount.bytes >= bytes.len() as u64);
        }
    }

    #[test]
    fn bytes_that_are_not_the_blobs_are_told_by_its_digest() {
        for (bytes, size) in [("wrong", 5), ("short", 9), ("longer than it says", 5)] {
            let dir = tempfile::tempdir().unwrap();
            let error = unpack(bytes.as_bytes(), &Digest::of(b"right"), &file("x", size), dir.path());
            assert!(matches!(error, Err(UnpackError::Digest { .. })), "{bytes}: {error:?}");
        }
    }

    #[test]
    fn an_archive_is_unpacked() {
        let dir = tempfile::tempdir().unwrap();
        let tar = Tar::default().file("docs/readme", "text").end();
        unpack(&tar, &Digest::of(&tar), &Form::Archive, dir.path()).unwrap();
        assert_eq!(fs::read_to_string(dir.path().join("tree/docs/readme")).unwrap(), "text");
        let dir = tempfile::tempdir().unwrap();
        let error = unpack(b"no archive", &Digest::of(b"no archive"), &Form::Archive, dir.path());
        assert!(matches!(error, Err(UnpackError::Apply(_))), "{error:?}");
    }
}
