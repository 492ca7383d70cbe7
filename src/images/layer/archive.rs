//! The members of a tar stream, read one after the other in bounded memory.
//!
//! Headers are laid out by the `tar` crate; the walk is ours, because its own reads GNU long names and PAX headers of
//! any size into memory and loses records behind binary values. Where readers disagree, this one sides with Go's
//! `archive/tar`, which every other container engine reads layers with: links, directories and nodes have no data,
//! global PAX headers are passed over, a GNU long name wins over a PAX path.

use std::io::{self, Read};

use tar::{EntryType, GnuExtSparseHeader, Header};

use crate::pax::{self, PaxError, Records};
use crate::sparse::{BadMap, Extent, Lines, Map};

const BLOCK: u64 = 512;
/// Bound on a long name, a PAX header and a sparse map. Go's reader has the same.
const LONGEST_EXTENSION: u64 = 1 << 20;
/// Bound on the extents of an old GNU sparse file: 21 to a block.
const MOST_EXTENTS: usize = 1 << 16;

/// One file, directory, link or node of the archive.
#[derive(Debug)]
pub(crate) struct Member {
    pub(crate) path: Vec<u8>,
    pub(crate) kind: Kind,
    /// Permission bits, setuid, setgid and sticky included.
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Seconds since 1970 and nanoseconds.
    pub(crate) mtime: (i64, u32),
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// What a member is.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Bytes follow; without a map, all of them in a row.
    File {
        size: u64,
        sparse: Option<Map>,
    },
    Directory,
    HardLink {
        target: Vec<u8>,
    },
    Symlink {
        target: Vec<u8>,
    },
    Character {
        major: u32,
        minor: u32,
    },
    Block {
        major: u32,
        minor: u32,
    },
    Fifo,
}

/// Why the stream is no tar archive that can be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ArchiveError {
    /// The stream below failed: decompression, or the transfer.
    #[error("read the archive at byte {position}")]
    Read { position: u64, source: io::Error },
    #[error("the archive ends inside a member at byte {position}")]
    Truncated { position: u64 },
    #[error("the header at byte {position} has a wrong checksum")]
    Checksum { position: u64 },
    #[error("the header at byte {position}: the field {field} is no number, or too large")]
    Number { position: u64, field: &'static str },
    #[error("the extension at byte {position} is {size} bytes long, more than {LONGEST_EXTENSION}")]
    ExtensionTooLong { position: u64, size: u64 },
    #[error("the PAX header at byte {position}")]
    Pax { position: u64, source: PaxError },
    #[error("the sparse file at byte {position}")]
    Sparse { position: u64, source: BadMap },
    #[error("the member {name:?} has the type {kind:?}, which no layer may have")]
    Kind { name: String, kind: char },
    #[error("extensions at byte {position} belong to no member")]
    Dangling { position: u64 },
}

/// Walks over a tar stream.
pub(crate) struct Members<R> {
    source: R,
    position: u64,
    /// Bytes of the current member that were not read yet, and the padding behind them.
    data: u64,
    padding: u64,
}

/// What extensions said about the member to come.
#[derive(Default)]
struct Extensions {
    name: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    pax: Option<Records>,
}

impl<R: Read> Members<R> {
    pub(crate) fn new(source: R) -> Self {
        Self { source, position: 0, data: 0, padding: 0 }
    }

    /// Returns the next member, `None` behind the last. What is unread of the current one is passed over.
    pub(crate) fn next(&mut self) -> Result<Option<Member>, ArchiveError> {
        let mut extensions = Extensions::default();
        let mut any = false;
        loop {
            self.skip()?;
            let Some(header) = self.header()? else {
                return if any { Err(ArchiveError::Dangling { position: self.position }) } else { Ok(None) };
            };
            let position = self.position - BLOCK;
            let size = number(&header.as_old().size, position, "size")?;
            match header.entry_type() {
                EntryType::GNULongName => extensions.name = Some(self.name(size)?),
                EntryType::GNULongLink => extensions.link = Some(self.name(size)?),
                EntryType::XHeader => {
                    let data = self.extension(size)?;
                    extensions.pax = Some(pax::parse(&data).map_err(|source| ArchiveError::Pax { position, source })?);
                }
                EntryType::XGlobalHeader => {
                    self.extension(size)?;
                    continue;
                }
                _ => return self.member(&header, size, position, extensions).map(Some),
            }
            any = true;
        }
    }

    /// Where in the stream the current member's data begins, until some of it is read.
    pub(crate) fn position(&self) -> u64 {
        self.position
    }

    fn member(
        &mut self,
        header: &Header,
        mut size: u64,
        position: u64,
        extensions: Extensions,
    ) -> Result<Member, ArchiveError> {
        let mut pax = extensions.pax.unwrap_or_default();
        if let Some(known) = pax.size {
            size = known;
        }
        let path = extensions
            .name
            .or(pax.sparse.name.take())
            .or(pax.path.take())
            .unwrap_or_else(|| header.path_bytes().into_owned());
        let link = extensions
            .link
            .or(pax.link.take())
            .unwrap_or_else(|| header.link_name_bytes().unwrap_or_default().into_owned());
        let old = header.as_old();
        let field = |known: Option<u64>, bytes: &[u8], name| match known {
            Some(value) => small(value, position, name),
            None => small(number(bytes, position, name)?, position, name),
        };
        let (uid, gid) = (field(pax.uid, &old.uid, "uid")?, field(pax.gid, &old.gid, "gid")?);
        let mode = field(None, &old.mode, "mode")? & 0o7777;
        let mtime = match pax.mtime {
            Some(mtime) => mtime,
            // In base 256 it may be negative; the cast brings the sign back.
            None => (number(&old.mtime, position, "mtime")?.cast_signed(), 0),
        };
        let xattrs = std::mem::take(&mut pax.xattrs);
        let kind = self.kind(header, &path, link, size, &pax, position)?;
        Ok(Member { path, kind, mode, uid, gid, mtime, xattrs })
    }

    fn kind(
        &mut self,
        header: &Header,
        path: &[u8],
        link: Vec<u8>,
        size: u64,
        pax: &Records,
        position: u64,
    ) -> Result<Kind, ArchiveError> {
        Ok(match header.entry_type() {
            // Archives from before ustar mark directories by the slash alone.
            EntryType::Regular if header.as_old().linkflag == [0] && path.ends_with(b"/") => Kind::Directory,
            EntryType::Regular | EntryType::Continuous => self.file(size, pax, position)?,
            EntryType::GNUSparse => self.gnu_sparse(header, size, position)?,
            EntryType::Directory => Kind::Directory,
            EntryType::Link => Kind::HardLink { target: link },
            EntryType::Symlink => Kind::Symlink { target: link },
            EntryType::Fifo => Kind::Fifo,
            node @ (EntryType::Char | EntryType::Block) => {
                let (major, minor) = device(header, position)?;
                if node == EntryType::Char { Kind::Character { major, minor } } else { Kind::Block { major, minor } }
            }
            other => {
                let name = String::from_utf8_lossy(path).into_owned();
                return Err(ArchiveError::Kind { name, kind: char::from(other.as_byte()) });
            }
        })
    }

    fn file(&mut self, size: u64, pax: &Records, position: u64) -> Result<Kind, ArchiveError> {
        self.expect(size, position)?;
        let bad = |source| ArchiveError::Sparse { position, source };
        let sparse = &pax.sparse;
        if (sparse.major, sparse.minor) == (Some(1), Some(0)) {
            let extents = self.line_map(position)?;
            let map = Map::new(extents, sparse.real_size.ok_or(bad(BadMap))?, self.data).map_err(bad)?;
            return Ok(Kind::File { size: self.data, sparse: Some(map) });
        }
        let map = match sparse.real_size {
            Some(real_size) => Some(Map::new(sparse.map.clone(), real_size, size).map_err(bad)?),
            None => None,
        };
        Ok(Kind::File { size, sparse: map })
    }

    /// Format 1.0: the map is the head of the data, in whole blocks.
    fn line_map(&mut self, position: u64) -> Result<Vec<Extent>, ArchiveError> {
        let bad = |source| ArchiveError::Sparse { position, source };
        let mut lines = Lines::default();
        for _ in 0..LONGEST_EXTENSION / BLOCK {
            let mut block = [0; BLOCK as usize];
            if self.data < BLOCK {
                return Err(bad(BadMap));
            }
            self.fill(&mut block)?;
            self.data -= BLOCK;
            if let Some(extents) = lines.push(&block).map_err(bad)? {
                return Ok(extents);
            }
        }
        Err(ArchiveError::ExtensionTooLong { position, size: LONGEST_EXTENSION })
    }

    /// The old GNU format: four extents in the header, more in blocks behind it.
    fn gnu_sparse(&mut self, header: &Header, size: u64, position: u64) -> Result<Kind, ArchiveError> {
        let bad = || ArchiveError::Sparse { position, source: BadMap };
        let gnu = header.as_gnu().ok_or_else(bad)?;
        let mut extents = Vec::new();
        let mut take = |runs: &[tar::GnuSparseHeader]| {
            for run in runs.iter().filter(|run| !run.is_empty()) {
                let offset = number(&run.offset, position, "offset")?;
                extents.push(Extent { offset, length: number(&run.numbytes, position, "numbytes")? });
            }
            if extents.len() > MOST_EXTENTS { Err(bad()) } else { Ok(()) }
        };
        take(&gnu.sparse)?;
        let mut more = gnu.is_extended();
        while more {
            let mut block = GnuExtSparseHeader::new();
            self.fill(block.as_mut_bytes())?;
            take(block.sparse())?;
            more = block.is_extended();
        }
        let real_size = number(&gnu.realsize, position, "realsize")?;
        self.expect(size, position)?;
        let map = Map::new(extents, real_size, size).map_err(|source| ArchiveError::Sparse { position, source })?;
        Ok(Kind::File { size, sparse: Some(map) })
    }

    fn expect(&mut self, size: u64, position: u64) -> Result<(), ArchiveError> {
        // No stream is that long; the bound keeps every later sum in range.
        if size > u64::MAX / 4 {
            return Err(ArchiveError::Number { position, field: "size" });
        }
        self.data = size;
        self.padding = size.next_multiple_of(BLOCK) - size;
        Ok(())
    }

    fn name(&mut self, size: u64) -> Result<Vec<u8>, ArchiveError> {
        let mut name = self.extension(size)?;
        if let Some(end) = name.iter().position(|byte| *byte == 0) {
            name.truncate(end);
        }
        Ok(name)
    }

    fn extension(&mut self, size: u64) -> Result<Vec<u8>, ArchiveError> {
        let position = self.position;
        if size > LONGEST_EXTENSION {
            return Err(ArchiveError::ExtensionTooLong { position, size });
        }
        self.expect(size, position)?;
        let mut data = vec![0; usize::try_from(size).unwrap_or_default()];
        self.fill(&mut data)?;
        self.data = 0;
        Ok(data)
    }

    /// Reads a header; `None` at the end of the archive: a block of zeros, or the stream's end.
    fn header(&mut self) -> Result<Option<Header>, ArchiveError> {
        let mut header = Header::new_old();
        let position = self.position;
        let mut filled = 0;
        while filled < header.as_bytes().len() {
            match self.source.read(&mut header.as_mut_bytes()[filled..]) {
                Ok(0) if filled == 0 => return Ok(None),
                Ok(0) => return Err(ArchiveError::Truncated { position }),
                Ok(read) => filled += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(ArchiveError::Read { position, source }),
            }
        }
        self.position += BLOCK;
        if header.as_bytes().iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let bytes = header.as_bytes();
        let others = || bytes[..148].iter().chain(&[b' '; 8]).chain(&bytes[156..]);
        let unsigned: u64 = others().map(|byte| u64::from(*byte)).sum();
        // Old tars summed signed characters.
        let signed: i64 = others().map(|byte| i64::from(byte.cast_signed())).sum();
        let stated = number(&header.as_old().cksum, position, "checksum")?;
        if stated != unsigned && stated != signed.cast_unsigned() {
            return Err(ArchiveError::Checksum { position });
        }
        Ok(Some(header))
    }

    fn skip(&mut self) -> Result<(), ArchiveError> {
        let left = self.data + self.padding;
        let skipped = io::copy(&mut (&mut self.source).take(left), &mut io::sink())
            .map_err(|source| ArchiveError::Read { position: self.position, source })?;
        self.position += skipped;
        let (data, _) = (std::mem::take(&mut self.data), std::mem::take(&mut self.padding));
        // The padding behind the very last member may be missing, as Go's reader allows.
        if skipped < data { Err(ArchiveError::Truncated { position: self.position }) } else { Ok(()) }
    }

    fn fill(&mut self, buffer: &mut [u8]) -> Result<(), ArchiveError> {
        let position = self.position;
        self.source.read_exact(buffer).map_err(|source| match source.kind() {
            io::ErrorKind::UnexpectedEof => ArchiveError::Truncated { position },
            _ => ArchiveError::Read { position, source },
        })?;
        self.position += buffer.len() as u64;
        Ok(())
    }
}

/// Reads the current member's data; at its end there is nothing more to read.
impl<R: Read> Read for Members<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.data).unwrap_or(usize::MAX).min(buffer.len());
        if most == 0 {
            return Ok(0);
        }
        let read = self.source.read(&mut buffer[..most])?;
        if read == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the archive ends inside a file"));
        }
        self.data -= read as u64;
        self.position += read as u64;
        Ok(read)
    }
}

fn device(header: &Header, position: u64) -> Result<(u32, u32), ArchiveError> {
    let (major, minor) = match (header.as_ustar(), header.as_gnu()) {
        (Some(ustar), _) => (&ustar.dev_major, &ustar.dev_minor),
        (_, Some(gnu)) => (&gnu.dev_major, &gnu.dev_minor),
        _ => return Ok((0, 0)),
    };
    let field = |bytes, name| small(number(bytes, position, name)?, position, name);
    Ok((field(major, "devmajor")?, field(minor, "devminor")?))
}

fn small(value: u64, position: u64, field: &'static str) -> Result<u32, ArchiveError> {
    u32::try_from(value).map_err(|_| ArchiveError::Number { position, field })
}

/// Reads a header's number: octal digits among blanks and NULs (none at all is 0), or base 256 in two's complement.
fn number(field: &[u8], position: u64, name: &'static str) -> Result<u64, ArchiveError> {
    let bad = || ArchiveError::Number { position, field: name };
    let (&first, rest) = field.split_first().ok_or_else(bad)?;
    if first & 0x80 != 0 {
        // Sign-extend the first byte's low seven bits.
        let start = i64::from((first << 1).cast_signed() >> 1);
        let value = rest.iter().try_fold(start, |value, byte| Some(value.checked_mul(256)? | i64::from(*byte)));
        return value.map(i64::cast_unsigned).ok_or_else(bad);
    }
    let blank = |byte: &u8| *byte == b' ' || *byte == 0;
    let start = field.iter().position(|byte| !blank(byte)).unwrap_or(field.len());
    let digits = &field[start..];
    let digits = &digits[..digits.iter().position(blank).unwrap_or(digits.len())];
    digits.iter().try_fold(0_u64, |value, byte| match byte {
        b'0'..=b'7' => value.checked_mul(8).map(|value| value + u64::from(byte - b'0')).ok_or_else(bad),
        _ => Err(bad()),
    })
}
