//! Puts a damaged tree right by a fresh one of the same layer.
//!
//! Only names that differ are moved over, so that the layer's directory, and the directories in it, stay the ones that
//! running containers have mounted. All names of an inode go together. A name changes its directory's time: those of
//! all directories that were written to are set as they are listed.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use podwright_base::Digest;
use rustix::fs::{AtFlags, Gid, Mode, Timespec, Timestamps, Uid};

use crate::compare::{Attribute, Difference, What};
use crate::listing::{Entry, Kind, Listing, ListingError};
use crate::tree::{self, Tree};
use crate::walk::Spot;

/// Why a tree was not put right.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MendError {
    /// The listing.
    #[error("the listing of the layer")]
    Listing(#[from] ListingError),
    /// The listing, on its way.
    #[error("read the listing of the layer")]
    Read(#[source] io::Error),
    /// One of the two directories.
    #[error("open the directory {path}")]
    Open {
        /// Which.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// A name of the tree.
    #[error("{step} /{path}")]
    Name {
        /// What was tried.
        step: &'static str,
        /// From the layer's root.
        path: String,
        /// Why.
        source: io::Error,
    },
}

/// Moves what differs from `fresh` into `damaged`. Both are directories of one layer on one file system; `fresh` is just
/// unpacked, and its listing is the given one. Names that were moved are gone from it.
///
/// # Errors
/// When the disk refuses; what was moved by then is right.
pub fn mend(
    listing: &Path,
    digest: &Digest,
    fresh: &Path,
    damaged: &Path,
    differences: &[Difference],
) -> Result<(), MendError> {
    let plan = Plan::make(|| Listing::open(listing, digest), differences)?;
    let open =
        |path: &Path| Tree::open(path).map_err(|source| MendError::Open { path: path.display().to_string(), source });
    let (fresh, damaged) = (open(fresh)?, open(damaged)?);
    for path in &plan.removals {
        at("remove", path, in_parent(&damaged, path).and_then(|(parent, name)| tree::remove(parent.as_fd(), name)))?;
    }
    for path in &plan.moves {
        at("restore", path, move_name(&fresh, &damaged, path))?;
    }
    for entry in &plan.directories {
        at("set the attributes of", &entry.path, set_attributes(&damaged, entry))?;
    }
    Ok(())
}

/// What is to be done, in this order.
#[derive(Default)]
struct Plan {
    /// Names that are not listed, or are of another kind than listed.
    removals: Vec<Vec<u8>>,
    /// Names that come from the fresh tree; directories with all that is in them.
    moves: Vec<Vec<u8>>,
    /// Directories whose attributes are to be set.
    directories: Vec<Entry>,
}

impl Plan {
    fn make(open: impl Fn() -> Result<Listing, ListingError>, differences: &[Difference]) -> Result<Self, MendError> {
        let by_path: HashMap<&[u8], &What> =
            differences.iter().map(|difference| (difference.path.as_slice(), &difference.what)).collect();
        let (mut moves, mut groups, mut touched) = (BTreeSet::new(), HashSet::new(), HashSet::new());
        let mut moved_directory = None;
        for entry in open()?.entries() {
            let entry = entry.map_err(MendError::Read)?;
            let is_inside = is_below(&entry.path, moved_directory.as_deref());
            let is_directory = entry.kind == Kind::Directory;
            match by_path.get(entry.path.as_slice()) {
                _ if is_inside => {}
                None => continue,
                Some(_) if entry.path.is_empty() => drop(touched.insert(Vec::new())),
                Some(What::Changed(changes)) if is_directory && !changes.contains(&Attribute::Kind) => {
                    touched.insert(entry.path.clone());
                }
                Some(_) => {
                    moves.insert(entry.path.clone());
                    moved_directory = is_directory.then(|| entry.path.clone());
                }
            }
            groups.extend(entry.group.filter(|_| is_inside || moves.contains(&entry.path)).map(|group| group.number));
        }
        let mut plan = Self::default();
        for difference in differences {
            let is_in_the_way = match &difference.what {
                What::Extra | What::Unreadable(_) => true,
                What::Changed(changes) => changes.contains(&Attribute::Kind),
                What::Missing => false,
            };
            if is_in_the_way && !difference.path.is_empty() {
                plan.removals.push(difference.path.clone());
            }
        }
        plan.complete(open()?, moves, &groups, touched)
    }

    /// Adds the other names of inodes that are moved, and the directories that are written to.
    fn complete(
        mut self,
        listing: Listing,
        moves: BTreeSet<Vec<u8>>,
        groups: &HashSet<u64>,
        mut touched: HashSet<Vec<u8>>,
    ) -> Result<Self, MendError> {
        touched.extend(self.removals.iter().chain(&moves).map(|path| parent(path).to_vec()));
        let mut moved_directory = None;
        // A directory comes before what is in it, but what is in it may belong to an inode that is moved.
        let mut directories = Vec::new();
        for entry in listing.entries() {
            let entry = entry.map_err(MendError::Read)?;
            if is_below(&entry.path, moved_directory.as_deref()) {
                continue;
            }
            if moves.contains(&entry.path) {
                moved_directory = (entry.kind == Kind::Directory).then(|| entry.path.clone());
                self.moves.push(entry.path);
            } else if entry.kind == Kind::Directory {
                directories.push(entry);
            } else if entry.group.is_some_and(|group| groups.contains(&group.number)) {
                touched.insert(parent(&entry.path).to_vec());
                self.moves.push(entry.path);
            }
        }
        self.directories = directories.into_iter().filter(|entry| touched.contains(&entry.path)).collect();
        Ok(self)
    }
}

fn is_below(path: &[u8], directory: Option<&[u8]>) -> bool {
    directory.and_then(|directory| path.strip_prefix(directory)).is_some_and(|rest| rest.starts_with(b"/"))
}

fn parent(path: &[u8]) -> &[u8] {
    path.iter().rposition(|byte| *byte == b'/').map_or(&[], |slash| &path[..slash])
}

fn at<T>(step: &'static str, path: &[u8], result: io::Result<T>) -> Result<T, MendError> {
    result.map_err(|source| MendError::Name { step, path: path.escape_ascii().to_string(), source })
}

/// Opens the directory that holds a name.
fn in_parent<'a>(tree: &Tree, path: &'a [u8]) -> io::Result<(OwnedFd, &'a [u8])> {
    let mut names: Vec<&[u8]> = path.split(|byte| *byte == b'/').collect();
    let name = names.pop().unwrap_or_default();
    Ok((tree.directory(&names)?, name))
}

fn move_name(from: &Tree, to: &Tree, path: &[u8]) -> io::Result<()> {
    let ((from, name), (to, _)) = (in_parent(from, path)?, in_parent(to, path)?);
    Ok(rustix::fs::renameat(&from, name, &to, name)?)
}

fn set_attributes(tree: &Tree, entry: &Entry) -> io::Result<()> {
    let names: Vec<&[u8]> = entry.path.split(|byte| *byte == b'/').filter(|name| !name.is_empty()).collect();
    let directory = tree.directory(&names)?;
    let stat = rustix::fs::fstat(&directory)?;
    let spot = Spot { path: &entry.path, directory: directory.as_fd(), name: b".", stat };
    let (uid, gid) = (Uid::from_raw(entry.uid), Gid::from_raw(entry.gid));
    rustix::fs::chownat(&directory, ".", Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
    rustix::fs::chmodat(&directory, ".", Mode::from_raw_mode(entry.mode), AtFlags::empty())?;
    let found = spot.xattrs(&mut Vec::new())?;
    for (key, _) in found.iter().filter(|(key, _)| !entry.xattrs.iter().any(|(listed, _)| listed == key)) {
        tree::remove_xattr(directory.as_fd(), b".", key)?;
    }
    for (key, value) in entry.xattrs.iter().filter(|xattr| !found.contains(xattr)) {
        tree::set_xattr(directory.as_fd(), b".", std::os::unix::ffi::OsStrExt::from_bytes(key), value)?;
    }
    let (tv_sec, nanos) = entry.mtime;
    let time = Timespec { tv_sec, tv_nsec: nanos.into() };
    Ok(rustix::fs::utimensat(
        &directory,
        ".",
        &Timestamps { last_access: time, last_modification: time },
        AtFlags::SYMLINK_NOFOLLOW,
    )?)
}
