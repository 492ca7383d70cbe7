//! Layers: a blob's byte stream becomes a directory that overlayfs takes as a lower one.
//!
//! ```text
//!   bytes ──► unpack (digests, decompression) ──► archive (tar; pax, sparse) ──► apply ──► tree (openat2)
//!   an artifact's blob ──► artifact (an archive of it alone, unless it is one) ──► apply
//!   a file ──► bundle (the members of an image archive, each readable on its own)
//!   the finished directory ─► survey (walk) ──► listing (record) ──► compare (walk again, later) ──► mend
//!   directories and listings of an image's layers ─► complete (merged) ─► compose: one more layer's archive
//!   directories of several layers ──► view (what overlayfs would show, without a mount)
//! ```
//! Each layer directory stands alone: it is unpacked without looking at the layers below it, so that layers come in
//! any order, side by side, and are shared by every image that names them. What an image's layers need of each other
//! comes into one more layer on top of them.

mod amount;
mod apply;
mod apply_error;
mod apply_file;
mod apply_link;
mod archive;
mod artifact;
mod bundle;
mod compare;
mod complete;
mod compose;
mod contents;
mod gzip;
mod hashed;
mod listing;
mod mend;
mod merged;
mod pax;
mod record;
mod sparse;
mod survey;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
mod tree;
mod unpack;
mod view;
mod walk;

pub use amount::Amount;
pub use artifact::{Form, unpack_artifact};
pub use bundle::{Bundle, BundleError, Section};
pub use compare::{Attribute, Depth, Difference, MOST_DIFFERENCES, What};
pub use complete::{CompleteError, complete};
pub use contents::Contents;
pub use listing::{Entries, Entry, Group, Kind, Link, Listing, ListingError, Origin, order};
pub use mend::{MendError, mend};
pub use merged::Lower;
pub use tree::remove_path;
pub use unpack::{ApplyFailure, Expected, UnpackError, Unpacked, decompress, is_compressed, unpack};
pub use view::{Located, ReadFileError, locate, read_file};
pub use walk::copy_attributes;

#[cfg(test)]
mod tests;
