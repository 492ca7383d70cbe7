//! A tar file that holds images: its members by name, each readable on its own.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use crate::archive::{ArchiveError, Kind, Members};
use crate::unpack;

/// Links of `docker save` archives lead from layer to layer; more than this are a loop.
const MOST_LINKS: usize = 16;
/// Bound on JSON members.
const LONGEST_DOCUMENT: u64 = 8 << 20;

/// An open archive.
#[derive(Debug)]
pub struct Bundle {
    file: Arc<File>,
    members: HashMap<Vec<u8>, Entry>,
}

#[derive(Debug)]
enum Entry {
    File { offset: u64, size: u64 },
    Link(Vec<u8>),
}

/// Why an archive was not opened.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct BundleError(#[from] Cause);

#[derive(Debug, thiserror::Error)]
enum Cause {
    #[error("read it")]
    Read(#[source] io::Error),
    #[error("decompress it to {}", .0.display())]
    Decompress(std::path::PathBuf, #[source] io::Error),
    #[error("it is no tar archive")]
    Archive(#[from] ArchiveError),
}

impl Bundle {
    /// Opens an archive; a compressed one is first decompressed to `temporary`, which is unlinked at once.
    ///
    /// # Errors
    /// When it cannot be read, decompressed, or is no tar archive.
    pub fn open(path: &Path, temporary: &Path) -> Result<Self, BundleError> {
        Ok(Self::index(path, temporary)?)
    }

    fn index(path: &Path, temporary: &Path) -> Result<Self, Cause> {
        let mut file = File::open(path).map_err(Cause::Read)?;
        let mut head = [0; 4];
        let read = file.read(&mut head).map_err(Cause::Read)?;
        file.seek(SeekFrom::Start(0)).map_err(Cause::Read)?;
        if unpack::is_compressed(&head[..read]) {
            file = decompress(file, temporary).map_err(|error| Cause::Decompress(temporary.to_owned(), error))?;
        }
        let mut members = HashMap::new();
        let mut archive = Members::new(BufReader::with_capacity(64 << 10, &file));
        while let Some(member) = archive.next()? {
            let entry = match member.kind {
                Kind::File { size, sparse: None } => Entry::File { offset: archive.position(), size },
                Kind::Symlink { target } => Entry::Link(join(&member.path, &target)),
                Kind::HardLink { target } => Entry::Link(clean(&target)),
                _ => continue,
            };
            members.insert(clean(&member.path), entry);
        }
        Ok(Self { file: Arc::new(file), members })
    }

    /// Returns a member's bytes as a stream and their number; links inside the archive are followed.
    pub fn open_member(&self, name: &str) -> Option<(Section, u64)> {
        let mut name = clean(name.as_bytes());
        for _ in 0..MOST_LINKS {
            match self.members.get(&name)? {
                Entry::File { offset, size } => {
                    return Some((Section { file: Arc::clone(&self.file), offset: *offset, left: *size }, *size));
                }
                Entry::Link(target) => name.clone_from(target),
            }
        }
        None
    }

    /// Tells whether there is such a member.
    pub fn has(&self, name: &str) -> bool {
        self.open_member(name).is_some()
    }

    /// Reads a whole document; `None` when there is none.
    pub fn read(&self, name: &str) -> Option<io::Result<Vec<u8>>> {
        let (mut section, size) = self.open_member(name)?;
        if size > LONGEST_DOCUMENT {
            return Some(Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("{name} is {size} bytes long"))));
        }
        let mut bytes = Vec::new();
        Some(section.read_to_end(&mut bytes).map(|_| bytes))
    }
}

fn decompress(file: File, temporary: &Path) -> io::Result<File> {
    let mut plain = File::options().read(true).write(true).create_new(true).open(temporary)?;
    std::fs::remove_file(temporary)?;
    io::copy(&mut unpack::decompress(file)?, &mut plain)?;
    plain.seek(SeekFrom::Start(0))?;
    Ok(plain)
}

/// Drops leading slashes and dots, so that `./index.json` is `index.json`.
fn clean(path: &[u8]) -> Vec<u8> {
    join(b"", path)
}

/// Resolves a link's target beside the link.
fn join(link: &[u8], target: &[u8]) -> Vec<u8> {
    let directory = link.iter().rposition(|byte| *byte == b'/').map_or(&b""[..], |slash| &link[..slash]);
    let mut names: Vec<&[u8]> = Vec::new();
    for name in directory.split(|byte| *byte == b'/').chain(target.split(|byte| *byte == b'/')) {
        match name {
            b"" | b"." => {}
            b".." => drop(names.pop()),
            name => names.push(name),
        }
    }
    names.join(&b'/')
}

/// A stretch of a shared file.
#[derive(Debug)]
pub struct Section {
    file: Arc<File>,
    offset: u64,
    left: u64,
}

impl Read for Section {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let read = self.file.read_at(&mut buffer[..most], self.offset)?;
        if read == 0 && most > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.offset += read as u64;
        self.left -= read as u64;
        Ok(read)
    }
}
