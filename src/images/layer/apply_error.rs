//! What can be wrong with a layer and its entries.

use std::io;

use crate::archive::ArchiveError;
use crate::tree::ParentError;

/// Why a layer could not be applied.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ApplyError {
    /// The stream is no usable archive.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// The stream broke off inside an entry's data.
    #[error("read the data of entry {entry:?}")]
    Data { entry: String, source: io::Error },
    /// One entry cannot be applied.
    #[error("entry {entry:?}")]
    Entry { entry: String, source: EntryError },
    /// The layer's directory itself.
    #[error("open the layer's directory")]
    Root(#[source] io::Error),
}

/// What is wrong with an entry.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EntryError {
    #[error("its path leads out of the layer")]
    Outside,
    #[error("its path has a NUL byte")]
    Nul,
    #[error("the root of a layer can only be a directory")]
    Root,
    #[error("it is no valid whiteout")]
    Whiteout,
    #[error("the attribute {0:?} is the overlay file system's own: no layer may bring it")]
    ReservedXattr(String),
    #[error("the hard link's target {0:?} leads out of the layer")]
    LinkOutside(String),
    #[error("the hard link's target {0:?} is neither in this layer nor in one below")]
    LinkMissing(String),
    #[error("{0}")]
    Parent(ParentError),
    #[error("{step}")]
    Io { step: &'static str, source: io::Error },
}

impl ApplyError {
    /// Tells whether the stream is at fault: then its digest may be wrong, which is the better error.
    pub(crate) fn is_stream(&self) -> bool {
        matches!(self, Self::Archive(_) | Self::Data { .. })
    }
}

/// Whose fault it is that an entry was not applied.
pub(crate) enum Fault {
    Data(io::Error),
    Entry(EntryError),
}

impl From<EntryError> for Fault {
    fn from(error: EntryError) -> Self {
        Self::Entry(error)
    }
}

/// Names the step that failed.
pub(crate) fn step<T, E: Into<io::Error>>(step: &'static str, result: Result<T, E>) -> Result<T, EntryError> {
    result.map_err(|source| EntryError::Io { step, source: source.into() })
}
