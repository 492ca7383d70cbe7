//! Compares a directory with the listing of what was unpacked into it.
//!
//! Both are gone through side by side, in one order, so that memory does not grow with the tree. No link is followed,
//! and nothing but times of access may differ.

use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{Advice, FileType, Mode, OFlags, SeekFrom};
use rustix::io::Errno;

use crate::contents::{ContentHasher, Contents};
use crate::listing::{Entries, Entry, Kind, Listing, order};
use crate::survey;
use crate::tree;
use crate::walk::{self, Spot, Walk};

/// After so many differences the rest is not looked at: the tree is to be made anew.
pub const MOST_DIFFERENCES: usize = 1000;
const BUFFER: usize = 256 << 10;

/// How much of a tree is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// Names, kinds, sizes and all attributes: what the inodes say.
    Metadata,
    /// Likewise, and the bytes of files, read from the disk rather than from the page cache.
    Content,
}

/// Where a tree is not what was unpacked.
#[derive(Debug)]
pub struct Difference {
    /// From the layer's root, which itself is empty.
    pub path: Vec<u8>,
    /// How it differs.
    pub what: What,
}

/// How a name differs.
#[derive(Debug)]
#[non_exhaustive]
pub enum What {
    /// It was unpacked and is gone, with all that was in it.
    Missing,
    /// It was not unpacked and is there; what is in it is not told.
    Extra,
    /// It is there and differs.
    Changed(Vec<Attribute>),
    /// The disk cannot read it.
    Unreadable(io::Error),
}

/// What of a name differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attribute {
    /// What it is; then nothing else is compared.
    Kind,
    /// The permission bits.
    Mode,
    /// User or group.
    Owner,
    /// The time of modification.
    Mtime,
    /// Extended attributes.
    Xattrs,
    /// Where a link leads.
    Target,
    /// The device number.
    Device,
    /// The length of a file.
    Size,
    /// The bytes of a file.
    Contents,
    /// Which names are one inode.
    Links,
}

impl fmt::Display for Attribute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kind => "kind",
            Self::Mode => "mode",
            Self::Owner => "owner",
            Self::Mtime => "mtime",
            Self::Xattrs => "xattrs",
            Self::Target => "target",
            Self::Device => "device",
            Self::Size => "size",
            Self::Contents => "contents",
            Self::Links => "hard links",
        })
    }
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing => f.write_str("missing"),
            Self::Extra => f.write_str("extra"),
            Self::Unreadable(error) => write!(f, "unreadable: {error}"),
            Self::Changed(attributes) => {
                let mut names = attributes.iter();
                if let Some(first) = names.next() {
                    write!(f, "{first}")?;
                }
                names.try_for_each(|name| write!(f, ", {name}"))?;
                f.write_str(" changed")
            }
        }
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "/{}: {}", self.path.escape_ascii(), self.what)
    }
}

impl Listing {
    /// Compares a directory with this listing and returns how it differs, at most [`MOST_DIFFERENCES`].
    ///
    /// Nobody may change the tree meanwhile.
    ///
    /// # Errors
    /// When the directory or the listing cannot be read; a name that the disk cannot read is a difference.
    pub fn compare(self, directory: &Path, depth: Depth) -> io::Result<Vec<Difference>> {
        let mut comparison = Comparison {
            depth,
            groups: HashMap::new(),
            hasher: ContentHasher::new(),
            buffer: Vec::new(),
            block: vec![0; BUFFER],
            differences: Vec::new(),
        };
        comparison.run(self.entries(), Walk::new(directory)?)?;
        Ok(comparison.differences)
    }
}

struct Comparison {
    depth: Depth,
    /// The inode on disk that a group of names was first found to be.
    groups: HashMap<u64, (u64, u64)>,
    hasher: ContentHasher,
    buffer: Vec<u8>,
    block: Vec<u8>,
    differences: Vec<Difference>,
}

impl Comparison {
    fn run(&mut self, mut entries: Entries, mut walk: Walk) -> io::Result<()> {
        let mut listed = entries.next().transpose()?;
        while self.differences.len() < MOST_DIFFERENCES {
            let found = match walk.next() {
                Err(error) if is_damage(&error) => {
                    self.push(walk.path(), What::Unreadable(error));
                    continue;
                }
                found => found?,
            };
            let is_before = |entry: &Entry| found.as_ref().is_none_or(|spot| order(&entry.path, spot.path).is_lt());
            while let Some(entry) = listed.take_if(|entry| is_before(entry)) {
                if self.differences.len() < MOST_DIFFERENCES && !self.is_known_unreadable(&entry.path) {
                    self.push(&entry.path, What::Missing);
                }
                listed = pass(&mut entries, &entry.path)?;
            }
            let Some(spot) = found else { break };
            match listed.take_if(|entry| entry.path == spot.path) {
                None => {
                    self.push(spot.path, What::Extra);
                    walk.skip();
                }
                Some(entry) if self.one(&entry, &spot)? => listed = entries.next().transpose()?,
                Some(entry) => {
                    walk.skip();
                    listed = pass(&mut entries, &entry.path)?;
                }
            }
        }
        Ok(())
    }

    fn push(&mut self, path: &[u8], what: What) {
        self.differences.push(Difference { path: path.to_vec(), what });
    }

    /// A name that could not be looked at, or one in a directory that could not be read, is told of already.
    fn is_known_unreadable(&self, path: &[u8]) -> bool {
        self.differences.iter().rev().any(|difference| {
            matches!(difference.what, What::Unreadable(_))
                && (path == difference.path || is_below(path, &difference.path))
        })
    }

    /// Compares one name and tells whether it is still of its kind.
    fn one(&mut self, entry: &Entry, spot: &Spot<'_>) -> io::Result<bool> {
        if !is_of_kind(entry, spot) {
            self.push(&entry.path, What::Changed(vec![Attribute::Kind]));
            return Ok(false);
        }
        match self.changes(entry, spot) {
            Ok(changes) if changes.is_empty() => {}
            Ok(changes) => self.push(&entry.path, What::Changed(changes)),
            Err(error) if is_damage(&error) => self.push(&entry.path, What::Unreadable(error)),
            Err(error) => return Err(error),
        }
        Ok(true)
    }

    fn changes(&mut self, entry: &Entry, spot: &Spot<'_>) -> io::Result<Vec<Attribute>> {
        let mut changes = Vec::new();
        let mut note = |differs: bool, attribute| {
            if differs {
                changes.push(attribute);
            }
        };
        // Contents are compared last, when all the rest is known.
        let claimed = match entry.kind {
            Kind::File { contents, .. } => Some(contents),
            _ => None,
        };
        let found = survey::describe(spot, claimed)?;
        note(entry.mode != found.mode, Attribute::Mode);
        note((entry.uid, entry.gid) != (found.uid, found.gid), Attribute::Owner);
        note(entry.mtime != found.mtime, Attribute::Mtime);
        note(entry.xattrs != spot.xattrs(&mut self.buffer)?, Attribute::Xattrs);
        let identity = walk::identity(&spot.stat);
        let (names, known) = match entry.group {
            None => (1, None),
            Some(group) => (group.names, self.groups.insert(group.number, identity)),
        };
        let is_directory = entry.kind == Kind::Directory;
        let links = !is_directory && names != walk::links(&spot.stat);
        note(links || known.is_some_and(|known| known != identity), Attribute::Links);
        note(
            entry.kind != found.kind,
            match entry.kind {
                Kind::Symlink { .. } => Attribute::Target,
                Kind::File { .. } => Attribute::Size,
                _ => Attribute::Device,
            },
        );
        if let Kind::File { size, contents } = entry.kind
            && self.depth == Depth::Content
            && entry.kind == found.kind
            && known != Some(identity)
        {
            note(self.read(spot, size)? != contents, Attribute::Contents);
        }
        Ok(changes)
    }

    /// Hashes a file as it is on disk; what is mapped or not written yet cannot be dropped from the cache.
    fn read(&mut self, spot: &Spot<'_>, size: u64) -> io::Result<Contents> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOATIME | OFlags::CLOEXEC;
        let file = File::from(rustix::fs::openat(spot.directory, spot.name, flags, Mode::empty())?);
        rustix::fs::fadvise(&file, 0, None, Advice::DontNeed)?;
        rustix::fs::fadvise(&file, 0, None, Advice::Sequential)?;
        self.hasher.restart();
        let mut at = 0;
        while at < size {
            at = match rustix::fs::seek(&file, SeekFrom::Data(at)) {
                Ok(data) => data,
                // Nothing but a hole is left.
                Err(Errno::NXIO) => break,
                Err(errno) => return Err(errno.into()),
            };
            let end = rustix::fs::seek(&file, SeekFrom::Hole(at))?.min(size);
            while at < end {
                let most = usize::try_from(end - at).map_or(BUFFER, |left| left.min(BUFFER));
                match file.read_at(&mut self.block[..most], at) {
                    Ok(0) => return Err(Errno::IO.into()),
                    Ok(read) => {
                        self.hasher.update(at, &self.block[..read]);
                        at += read as u64;
                    }
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(self.hasher.finish(size))
    }
}

/// Returns the first entry that is not below `path`.
fn pass(entries: &mut Entries, path: &[u8]) -> io::Result<Option<Entry>> {
    loop {
        match entries.next().transpose()? {
            Some(entry) if is_below(&entry.path, path) => {}
            next => return Ok(next),
        }
    }
}

fn is_below(path: &[u8], directory: &[u8]) -> bool {
    directory.is_empty() && !path.is_empty() || path.strip_prefix(directory).is_some_and(|rest| rest.starts_with(b"/"))
}

fn is_of_kind(entry: &Entry, spot: &Spot<'_>) -> bool {
    tree::file_type(&spot.stat)
        == match entry.kind {
            Kind::Directory => FileType::Directory,
            Kind::File { .. } => FileType::RegularFile,
            Kind::Symlink { .. } => FileType::Symlink,
            Kind::Character { .. } => FileType::CharacterDevice,
            Kind::Block { .. } => FileType::BlockDevice,
            Kind::Fifo => FileType::Fifo,
        }
}

/// Tells what the disk, or the file system on it, answers when it is damaged.
fn is_damage(error: &io::Error) -> bool {
    // UCLEAN and BADMSG: structures on the disk, or their checksums, are wrong.
    matches!(Errno::from_io_error(error), Some(Errno::IO | Errno::UCLEAN | Errno::BADMSG))
}
