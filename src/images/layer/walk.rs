//! Goes through a directory tree in the order of listings, without following a link, in memory for one directory's
//! names at each level.
//!
//! Names are in the order of their bytes, a directory's contents follow it. Descriptors of the deepest levels are kept
//! open only: a tree may nest deeper than a process may have descriptors. Farther up, the way back is `..`, and what is
//! found there has to be the directory that was left.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Dir, FileType, Gid, Mode, OFlags, Stat, Uid, XattrFlags};
use rustix::io::Errno;

use crate::tree;

/// Levels whose directories are kept open.
const OPEN_LEVELS: usize = 64;
const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// A walk under way.
pub(crate) struct Walk {
    levels: Vec<Level>,
    /// The last name that was returned, and its path from the root of the tree.
    name: Vec<u8>,
    path: Vec<u8>,
    /// It was a directory, which is to be entered.
    enter: bool,
}

struct Level {
    directory: Option<OwnedFd>,
    identity: (u64, u64),
    /// Names that are left, the next one last.
    names: Vec<Vec<u8>>,
    /// How long the path of this directory is; `None` for the one that holds the root.
    length: Option<usize>,
}

/// What the walk is at.
pub(crate) struct Spot<'a> {
    /// From the root of the tree, which itself is empty.
    pub(crate) path: &'a [u8],
    /// The directory that holds it, and its name there: `.` for the root.
    pub(crate) directory: BorrowedFd<'a>,
    pub(crate) name: &'a [u8],
    pub(crate) stat: Stat,
}

impl Walk {
    /// Begins at a directory.
    pub(crate) fn new(root: &Path) -> io::Result<Self> {
        let directory = rustix::fs::openat(CWD, root, DIRECTORY, Mode::empty())?;
        let identity = identity(&rustix::fs::fstat(&directory)?);
        let root = Level { directory: Some(directory), identity, names: vec![b".".to_vec()], length: None };
        Ok(Self { levels: vec![root], name: Vec::new(), path: Vec::new(), enter: false })
    }

    /// Returns the next name.
    pub(crate) fn next(&mut self) -> io::Result<Option<Spot<'_>>> {
        if std::mem::take(&mut self.enter) {
            self.enter()?;
        }
        self.name = loop {
            match self.levels.last_mut() {
                None => return Ok(None),
                Some(level) => match level.names.pop() {
                    Some(name) => break name,
                    None => self.leave()?,
                },
            }
        };
        let level = self.levels.last().expect("the name is from the last level");
        self.path.truncate(level.length.unwrap_or_default());
        if level.length.is_some() {
            if !self.path.is_empty() {
                self.path.push(b'/');
            }
            self.path.extend_from_slice(&self.name);
        }
        let directory = level.directory.as_ref().expect("the last level is open").as_fd();
        let stat = rustix::fs::statat(directory, self.name.as_slice(), AtFlags::SYMLINK_NOFOLLOW)?;
        self.enter = tree::file_type(&stat) == FileType::Directory;
        Ok(Some(Spot { path: &self.path, directory, name: &self.name, stat }))
    }

    /// Passes over what is in the directory that was returned last.
    pub(crate) fn skip(&mut self) {
        self.enter = false;
    }

    /// Returns what was returned last, or failed.
    pub(crate) fn path(&self) -> &[u8] {
        &self.path
    }

    fn enter(&mut self) -> io::Result<()> {
        let parent = self.levels.last().and_then(|level| level.directory.as_ref()).expect("the last level is open");
        let directory = rustix::fs::openat(parent, self.name.as_slice(), DIRECTORY, Mode::empty())?;
        let identity = identity(&rustix::fs::fstat(&directory)?);
        let mut names = names(&directory)?;
        names.sort_unstable_by(|one, other| other.cmp(one));
        let length = Some(self.path.len());
        self.levels.push(Level { directory: Some(directory), identity, names, length });
        // The first level is the root itself, seen from itself: it has no way back.
        if let Some(far) = self.levels.len().checked_sub(OPEN_LEVELS + 1).filter(|far| *far > 0) {
            self.levels[far].directory = None;
        }
        Ok(())
    }

    fn leave(&mut self) -> io::Result<()> {
        let left = self.levels.pop().and_then(|level| level.directory);
        if let (Some(parent), Some(left)) = (self.levels.last_mut(), left)
            && parent.directory.is_none()
        {
            match reopen(&left, parent.identity) {
                Ok(directory) => parent.directory = Some(directory),
                Err(error) => {
                    // There is no way on.
                    self.levels.clear();
                    return Err(error);
                }
            }
        }
        Ok(())
    }
}

fn reopen(left: &OwnedFd, expected: (u64, u64)) -> io::Result<OwnedFd> {
    let directory = rustix::fs::openat(left, "..", DIRECTORY, Mode::empty())?;
    if identity(&rustix::fs::fstat(&directory)?) == expected {
        Ok(directory)
    } else {
        Err(io::Error::other("a directory was moved while its tree was walked through"))
    }
}

impl Spot<'_> {
    /// Reads a symbolic link.
    pub(crate) fn link(&self) -> io::Result<Vec<u8>> {
        Ok(rustix::fs::readlinkat(self.directory, self.name, Vec::new())?.into_bytes())
    }

    /// Reads the extended attributes, in the order of their names. What the host's security modules put there of
    /// their own accord is no part of a layer.
    pub(crate) fn xattrs(&self, buffer: &mut Vec<u8>) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
        // O_PATH descriptors and links take no flistxattr: the directory's own /proc link stands in for it.
        let mut path = format!("/proc/self/fd/{}/", self.directory.as_raw_fd()).into_bytes();
        path.extend_from_slice(self.name);
        let path = path.as_slice();
        let length = match grown(buffer, |room| rustix::fs::llistxattr(path, room)) {
            Err(Errno::NOTSUP) => return Ok(Vec::new()),
            result => result?,
        };
        if length == 0 {
            return Ok(Vec::new());
        }
        let list = buffer[..length].to_vec();
        let mut xattrs = Vec::new();
        for key in list.split(|byte| *byte == 0).filter(|key| !key.is_empty() && !is_hosts(key)) {
            let length = grown(buffer, |room| rustix::fs::lgetxattr(path, key, room))?;
            xattrs.push((key.to_vec(), buffer[..length].to_vec()));
        }
        xattrs.sort_unstable();
        Ok(xattrs)
    }
}

/// Gives a directory another's owner, mode and extended attributes, but not what overlayfs has marked.
///
/// # Errors
/// When one of them cannot be opened, or the disk refuses.
pub fn copy_attributes(from: &Path, to: &Path) -> io::Result<()> {
    let directory = rustix::fs::openat(CWD, from, DIRECTORY, Mode::empty())?;
    let stat = rustix::fs::fstat(&directory)?;
    let spot = Spot { path: &[], directory: directory.as_fd(), name: b".", stat };
    let to = rustix::fs::openat(CWD, to, DIRECTORY, Mode::empty())?;
    // Changing the owner clears bits of the mode.
    rustix::fs::fchown(&to, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)))?;
    rustix::fs::fchmod(&to, Mode::from_raw_mode(stat.st_mode & 0o7777))?;
    for (key, value) in spot.xattrs(&mut Vec::new())? {
        if !key.starts_with(b"trusted.overlay.") {
            rustix::fs::fsetxattr(&to, key.as_slice(), &value, XattrFlags::empty())?;
        }
    }
    Ok(())
}

/// Labels and keyed hashes that are true on this host only, and change when its policy or keys do.
fn is_hosts(key: &[u8]) -> bool {
    matches!(key, b"security.selinux" | b"security.ima" | b"security.evm") || key.starts_with(b"security.SMACK64")
}

/// Calls with more and more room until the answer fits.
fn grown(buffer: &mut Vec<u8>, mut call: impl FnMut(&mut [u8]) -> Result<usize, Errno>) -> Result<usize, Errno> {
    buffer.resize(buffer.capacity().max(1024), 0);
    loop {
        match call(buffer.as_mut_slice()) {
            // The kernel has no value or list longer than 64 KiB; larger file systems' ones fail otherwise.
            Err(Errno::RANGE) if buffer.len() < 1 << 20 => buffer.resize(buffer.len() * 4, 0),
            result => return result,
        }
    }
}

/// Tells how many names an inode has.
#[allow(clippy::useless_conversion, reason = "it is no u64 on every architecture")]
pub(crate) fn links(stat: &Stat) -> u64 {
    stat.st_nlink.into()
}

pub(crate) fn identity(stat: &Stat) -> (u64, u64) {
    (stat.st_dev, stat.st_ino)
}

fn names(directory: &OwnedFd) -> io::Result<Vec<Vec<u8>>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if !matches!(name, b"." | b"..") {
            names.push(name.to_vec());
        }
    }
    Ok(names)
}
