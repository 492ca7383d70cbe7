//! A record: data in a versioned envelope, written beside its place and renamed into it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// The newest envelope this version writes, and the only one it reads.
const VERSION: u32 = 1;

#[derive(Serialize)]
struct Outgoing<'a, T> {
    version: u32,
    data: &'a T,
}

#[derive(Deserialize)]
struct Version {
    version: u32,
}

#[derive(Deserialize)]
struct Incoming<T> {
    data: T,
}

/// Why a record was not written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The data has no JSON form.
    #[error("encode the record {}", path.display())]
    Encode {
        /// The record.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
    /// The file system refused.
    #[error("write the record {}", path.display())]
    Io {
        /// The record.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Why a record was not read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The file system refused.
    #[error("read the record {}", path.display())]
    Io {
        /// The record.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The bytes are no record: cut short, or not ours.
    #[error("the record {} is damaged", path.display())]
    Damaged {
        /// The record.
        path: PathBuf,
        /// Where.
        source: serde_json::Error,
    },
    /// A newer daemon wrote it.
    #[error("the record {} has version {found}; this daemon reads version {VERSION}", path.display())]
    Version {
        /// The record.
        path: PathBuf,
        /// Its version.
        found: u32,
    },
}

/// Writes a record atomically: a reader, or a daemon started after a crash, sees the old one or the new one.
///
/// # Errors
/// When the directory is missing, full or read-only. Nothing is left beside the record then.
pub fn write<T: Serialize>(path: &Path, data: &T) -> Result<(), WriteError> {
    let bytes = serde_json::to_vec(&Outgoing { version: VERSION, data })
        .map_err(|source| WriteError::Encode { path: path.to_owned(), source })?;
    podwright_base::replace(path, &bytes).map_err(|source| WriteError::Io { path: path.to_owned(), source })
}

/// Reads a record, `None` when there is none.
///
/// # Errors
/// When the file cannot be read or is no record of this version.
pub fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, ReadError> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(ReadError::Io { path: path.to_owned(), source }),
    };
    let damaged = |source| ReadError::Damaged { path: path.to_owned(), source };
    let Version { version } = serde_json::from_slice(&bytes).map_err(damaged)?;
    if version != VERSION {
        return Err(ReadError::Version { path: path.to_owned(), found: version });
    }
    let Incoming { data } = serde_json::from_slice(&bytes).map_err(damaged)?;
    Ok(Some(data))
}

/// Removes a record; one that is not there is fine.
///
/// # Errors
/// When the file system refuses.
pub fn remove(path: &Path) -> Result<(), WriteError> {
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(WriteError::Io { path: path.to_owned(), source })
        }
        _ => Ok(()),
    }
}

/// Moves a record that cannot be read out of the way, keeping it for whoever looks into it. Returns its new place.
///
/// # Errors
/// When the file system refuses.
pub fn quarantine(path: &Path) -> Result<PathBuf, WriteError> {
    let place = path.with_extension("json.damaged");
    fs::rename(path, &place).map_err(|source| WriteError::Io { path: path.to_owned(), source })?;
    Ok(place)
}

/// Whether a record was moved out of the way before.
pub fn is_quarantined(path: &Path) -> bool {
    path.with_extension("json.damaged").exists()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_record_comes_back_and_goes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("record.json");
        assert_eq!(read::<String>(&path).unwrap(), None);
        write(&path, &"one").unwrap();
        write(&path, &"two").unwrap();
        assert_eq!(read::<String>(&path).unwrap().as_deref(), Some("two"));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left beside it");
        remove(&path).unwrap();
        remove(&path).unwrap();
        assert_eq!(read::<String>(&path).unwrap(), None);
    }

    #[test]
    fn a_newer_version_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("record.json");
        fs::write(&path, br#"{"version":9,"data":{"shape":"unknown"}}"#).unwrap();
        assert!(matches!(read::<String>(&path), Err(ReadError::Version { found: 9, .. })));
    }

    #[test]
    fn a_failed_write_leaves_the_old_record() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("gone/record.json");
        assert!(matches!(write(&path, &"x"), Err(WriteError::Io { .. })));
    }

    proptest! {
        #[test]
        fn damaged_records_are_errors_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("record.json");
            fs::write(&path, &bytes).unwrap();
            prop_assert!(read::<u64>(&path).is_err());
            prop_assert!(!is_quarantined(&path));
            let place = quarantine(&path).unwrap();
            prop_assert!(is_quarantined(&path));
            prop_assert_eq!(fs::read(place).unwrap(), bytes);
        }

        #[test]
        fn a_record_cut_short_is_damaged(cut in 0_usize..30) {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("record.json");
            write(&path, &"some text of the record").unwrap();
            let whole = fs::read(&path).unwrap();
            fs::write(&path, &whole[..cut]).unwrap();
            let damaged = matches!(read::<String>(&path), Err(ReadError::Damaged { .. }));
            prop_assert!(damaged);
        }
    }
}
