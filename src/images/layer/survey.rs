//! Writes the listing of a tree that was just unpacked: one walk, names and attributes from the kernel, so that
//! replaced entries, hard links and what the file system left out are told as they are; hashes as remembered from the
//! unpacking, by inode.

use std::collections::{HashMap, HashSet};
use std::io;
use std::path::Path;

use podwright_base::Digest;
use rustix::fs::FileType;

use crate::contents::Contents;
use crate::listing::{Entry, Group, Kind, Link, Origin, Writer};
use crate::tree;
use crate::walk::{self, Spot, Walk};

/// What only the unpacking knows, by inode number.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    /// Of every regular file.
    pub(crate) contents: HashMap<u64, Contents>,
    /// Of directories that no entry names.
    pub(crate) implied: HashMap<u64, Origin>,
    /// Of all that was given extended attributes: to ask the kernel for those of each name would take as long as all
    /// the rest of the walk.
    pub(crate) marked: HashSet<u64>,
    /// A directory was given default access control lists: what is made in it has some of its own.
    pub(crate) bequeaths: bool,
    /// Hard links whose targets are in layers below.
    pub(crate) links: Vec<Link>,
}

/// What the walk has found, for the layer's facts.
#[derive(Debug)]
pub(crate) struct Survey {
    pub(crate) listing: Digest,
    pub(crate) names_root: bool,
    pub(crate) hides_all: bool,
    /// Directories other than the root that are implied.
    pub(crate) implied: u64,
}

/// Walks over a layer's directory and writes its listing.
pub(crate) fn survey(directory: &Path, memory: &Memory, place: &Path) -> io::Result<Survey> {
    let mut writer = Writer::new(place, &memory.links)?;
    let mut walk = Walk::new(directory)?;
    let mut groups: HashMap<u64, u64> = HashMap::new();
    let mut buffer = Vec::new();
    let (mut names_root, mut implied) = (true, 0);
    let (mut ask_all, mut hides_all) = (memory.bequeaths, false);
    while let Some(spot) = walk.next()? {
        let stat = &spot.stat;
        let contents = memory.contents.get(&stat.st_ino).copied();
        let mut entry = describe(&spot, contents)?;
        // The root may have got some from the directory that it was made in, and have passed them on.
        if ask_all || memory.marked.contains(&stat.st_ino) || entry.path.is_empty() {
            entry.xattrs = spot.xattrs(&mut buffer)?;
            if entry.path.is_empty() {
                hides_all = entry.xattrs.iter().any(|(key, _)| key == tree::OPAQUE.as_bytes());
                ask_all |= entry.xattrs.len() > usize::from(hides_all);
            }
        }
        if entry.kind == Kind::Directory {
            entry.origin = memory.implied.get(&stat.st_ino).copied().unwrap_or_default();
            match entry.origin {
                Origin::Named => {}
                _ if entry.path.is_empty() => names_root = false,
                Origin::Implied => implied += 1,
                Origin::Renewed => {}
            }
        } else if stat.st_nlink > 1 {
            let next = groups.len() as u64;
            let number = *groups.entry(stat.st_ino).or_insert(next);
            entry.group = Some(Group { number, names: walk::links(stat) });
        }
        writer.entry(&entry)?;
    }
    Ok(Survey { listing: writer.end()?, names_root, hides_all, implied })
}

/// Describes a name by what the kernel says of it, extended attributes left out. A regular file without known contents
/// is an error.
pub(crate) fn describe(spot: &Spot<'_>, contents: Option<Contents>) -> io::Result<Entry> {
    let stat = &spot.stat;
    let device = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
    let kind = match tree::file_type(stat) {
        FileType::Directory => Kind::Directory,
        FileType::RegularFile => Kind::File {
            size: stat.st_size.cast_unsigned(),
            contents: contents.ok_or_else(|| io::Error::other("a file appeared that was not unpacked"))?,
        },
        FileType::Symlink => Kind::Symlink { target: spot.link()? },
        FileType::CharacterDevice => Kind::Character { major: device.0, minor: device.1 },
        FileType::BlockDevice => Kind::Block { major: device.0, minor: device.1 },
        FileType::Fifo => Kind::Fifo,
        _ => return Err(io::Error::other("a socket appeared that was not unpacked")),
    };
    Ok(Entry {
        path: spot.path.to_vec(),
        kind,
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        mtime: (stat.st_mtime, u32::try_from(stat.st_mtime_nsec).unwrap_or_default()),
        xattrs: Vec::new(),
        group: None,
        origin: Origin::Named,
    })
}
