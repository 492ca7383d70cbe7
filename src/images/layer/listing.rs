//! The listing of a layer's tree: what was unpacked, by which the tree can be verified later.
//!
//! A file `PODWRIGHT TREE 1\n`, then a zstd stream of records: first the hard links whose targets the layer does not
//! have, then one record for each name of the tree, in the order of [`order`], then a record that tells how many came.
//! Numbers are LEB128, strings have their length before them. A path is written as what it shares with the last one,
//! and the rest. Names and attributes are any bytes.

use std::cmp::Ordering;
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Seek, Write};
use std::path::Path;

use podwright_base::Digest;

use crate::contents::Contents;
use crate::hashed::Hashed;
use crate::record;

const MAGIC: &[u8] = b"PODWRIGHT TREE 1\n";
const BUFFER: usize = 64 << 10;
/// zstd's fastest: hashes do not compress, names and owners compress well at any level.
const LEVEL: i32 = 1;

/// A name of a layer's tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// From the layer's root, which itself is empty.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: Kind,
    /// Permission bits, setuid, setgid and sticky included.
    pub mode: u32,
    /// The owner, not shifted for any user namespace.
    pub uid: u32,
    /// The group, likewise.
    pub gid: u32,
    /// Seconds since 1970 and nanoseconds.
    pub mtime: (i64, u32),
    /// Extended attributes by their whole names, overlayfs's own among them, in the order of their names.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Names of one inode have the same number, counted from 0, and how many they are.
    pub group: Option<Group>,
    /// How a directory came about.
    pub origin: Origin,
}

/// The names of one inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Group {
    /// Which inode of the layer it is.
    pub number: u64,
    /// How many names it has.
    pub names: u64,
}

/// What a name is of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A directory.
    Directory,
    /// A regular file.
    File {
        /// Bytes, holes included.
        size: u64,
        /// The hash of them.
        contents: Contents,
    },
    /// A symbolic link.
    Symlink {
        /// Where it leads.
        target: Vec<u8>,
    },
    /// A character device; 0:0 is overlayfs's whiteout.
    Character {
        /// Its major number.
        major: u32,
        /// Its minor number.
        minor: u32,
    },
    /// A block device.
    Block {
        /// Its major number.
        major: u32,
        /// Its minor number.
        minor: u32,
    },
    /// A named pipe.
    Fifo,
}

/// How a directory of a layer came about.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Origin {
    /// An entry of the archive names it (and whatever is no directory).
    #[default]
    Named,
    /// It is on the way to an entry only: its attributes are the defaults, and those of a directory below count.
    Implied,
    /// Likewise, but the layer has removed what was below, so that the defaults count.
    Renewed,
}

/// A hard link whose target is in a layer below.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// The new name, from the layer's root.
    pub path: Vec<u8>,
    /// The name of what it is to be, as the archive has it.
    pub target: Vec<u8>,
}

/// Why a listing cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ListingError {
    /// It cannot be read.
    #[error("read it")]
    Read(#[source] io::Error),
    /// It is not the one that was written.
    #[error("its digest is {found}, not {expected}")]
    Digest {
        /// What was written down beside it.
        expected: Digest,
        /// What it is.
        found: Digest,
    },
    /// It is of another version, or no listing.
    #[error("it is no listing of version 1")]
    Version,
}

/// Orders paths as listings do: name by name, a directory before what is in it.
pub fn order(one: &[u8], other: &[u8]) -> Ordering {
    // `/` comes before every other byte of a name.
    let rank = |byte: &u8| if *byte == b'/' { 0 } else { u16::from(*byte) + 1 };
    one.iter().map(rank).cmp(other.iter().map(rank))
}

/// A listing on disk, whole and of this version.
#[derive(Debug)]
pub struct Listing {
    reader: Entries,
    links: Vec<Link>,
}

impl Listing {
    /// Opens a listing and checks its digest.
    ///
    /// # Errors
    /// When it cannot be read, is damaged, or another version wrote it.
    pub fn open(path: &Path, digest: &Digest) -> Result<Self, ListingError> {
        let mut file = File::open(path).map_err(ListingError::Read)?;
        let mut hashed = Hashed::new(&mut file);
        io::copy(&mut hashed, &mut io::sink()).map_err(ListingError::Read)?;
        let found = hashed.digest();
        if found != *digest {
            return Err(ListingError::Digest { expected: digest.clone(), found });
        }
        file.rewind().map_err(ListingError::Read)?;
        Self::read(BufReader::with_capacity(BUFFER, file))
    }

    fn read(mut file: BufReader<File>) -> Result<Self, ListingError> {
        let mut magic = [0; MAGIC.len()];
        match file.read_exact(&mut magic) {
            Ok(()) if magic == MAGIC => {}
            Ok(()) => return Err(ListingError::Version),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Err(ListingError::Version),
            Err(error) => return Err(ListingError::Read(error)),
        }
        let stream = zstd::stream::read::Decoder::with_buffer(file).map_err(ListingError::Read)?;
        let mut stream = BufReader::with_capacity(BUFFER, stream);
        let links = record::read_links(&mut stream).map_err(ListingError::Read)?;
        Ok(Self { reader: Entries { stream, last: Vec::new(), count: 0, ended: false }, links })
    }

    /// Returns the hard links whose targets are in layers below, in the order of the archive.
    pub fn links(&self) -> &[Link] {
        &self.links
    }

    /// Returns all names of the tree, in the order of [`order`]: the root first.
    pub fn entries(self) -> Entries {
        self.reader
    }
}

/// Reads the names of a listing.
pub struct Entries {
    stream: BufReader<zstd::stream::read::Decoder<'static, BufReader<File>>>,
    last: Vec<u8>,
    count: u64,
    ended: bool,
}

impl std::fmt::Debug for Entries {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Entries").field("count", &self.count).finish_non_exhaustive()
    }
}

impl Iterator for Entries {
    type Item = io::Result<Entry>;

    fn next(&mut self) -> Option<io::Result<Entry>> {
        if self.ended {
            return None;
        }
        let entry = record::read_entry(&mut self.stream, &mut self.last, self.count);
        match entry {
            Ok(Some(_)) => self.count += 1,
            Ok(None) | Err(_) => self.ended = true,
        }
        entry.transpose()
    }
}

/// Writes a listing.
pub(crate) struct Writer {
    stream: zstd::stream::write::Encoder<'static, Hashed<BufWriter<File>>>,
    record: Vec<u8>,
    last: Vec<u8>,
    count: u64,
}

impl Writer {
    pub(crate) fn new(place: &Path, links: &[Link]) -> io::Result<Self> {
        let mut file = Hashed::new(BufWriter::new(File::create_new(place)?));
        file.write_all(MAGIC)?;
        let stream = zstd::stream::write::Encoder::new(file, LEVEL)?;
        let mut writer = Self { stream, record: Vec::new(), last: Vec::new(), count: 0 };
        record::write_links(&mut writer.record, links);
        Ok(writer)
    }

    pub(crate) fn entry(&mut self, entry: &Entry) -> io::Result<()> {
        record::write_entry(&mut self.record, &self.last, entry);
        self.count += 1;
        self.last.clear();
        self.last.extend_from_slice(&entry.path);
        // The compressor is not called for each name.
        if self.record.len() < BUFFER { Ok(()) } else { self.pass_on() }
    }

    fn pass_on(&mut self) -> io::Result<()> {
        self.stream.write_all(&self.record)?;
        self.record.clear();
        Ok(())
    }

    /// Ends the listing and returns the file's digest.
    pub(crate) fn end(mut self) -> io::Result<Digest> {
        record::write_end(&mut self.record, self.count);
        self.pass_on()?;
        let mut file = self.stream.finish()?;
        file.flush()?;
        Ok(file.digest())
    }
}
