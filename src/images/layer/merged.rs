//! Layers of an image as one tree: which layer a name comes from, and which layers say what a directory is like.
//!
//! Single names are opened only, never through a link, so nothing leads out.

use std::collections::HashMap;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::rc::Rc;

use rustix::fs::{CWD, FileType, Mode, OFlags, Stat};

use crate::listing::{Kind, Link, Listing, Origin};
use crate::tree;
use crate::walk::Spot;

/// As the kernel: more links than this are a loop.
const MOST_LINKS: usize = 40;

/// A layer of an image, to be completed with it.
#[derive(Debug)]
pub struct Lower {
    root: Rc<OwnedFd>,
    listing: Option<Listing>,
}

impl Lower {
    /// Opens a layer's directory. Without a listing, all its directories count as named.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn open(directory: &Path, listing: Option<Listing>) -> io::Result<Self> {
        let root = Rc::new(open_directory(CWD, directory.as_os_str().as_encoded_bytes())?);
        Ok(Self { root, listing })
    }
}

/// A name of the merged tree, in the layer that it comes from.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    pub(crate) layer: usize,
    pub(crate) path: Names,
    pub(crate) stat: Stat,
    directory: Rc<OwnedFd>,
}

/// A path as its names: such paths are in the order of listings.
pub(crate) type Names = Vec<Vec<u8>>;

pub(crate) fn names(path: &[u8]) -> Names {
    path.split(|byte| *byte == b'/').filter(|name| !matches!(*name, b"" | b".")).map(<[u8]>::to_vec).collect()
}

/// What some of an image's layers say of a name.
pub(crate) enum Sight {
    /// Nothing: it is up to the layers below them.
    Absent,
    /// That it is not there, whatever is below.
    Hidden,
    Here(Place),
}

/// What a directory of the merged tree is like.
pub(crate) struct Attributes {
    pub(crate) of: Place,
    /// They come from below the topmost layer that has the directory.
    pub(crate) inherited: bool,
}

struct Part {
    layer: usize,
    fd: Rc<OwnedFd>,
}

/// All layers of an image, bottom first.
pub(crate) struct Merged {
    roots: Vec<Rc<OwnedFd>>,
    /// Of each layer, the directories that no entry names.
    pub(crate) origins: Vec<HashMap<Names, Origin>>,
    /// Of each layer, the hard links whose targets are below it.
    pub(crate) links: Vec<Vec<Link>>,
    /// Of each layer, the names of inodes that have several.
    groups: Vec<HashMap<u64, Vec<Names>>>,
}

impl Place {
    /// Looks at it as a walk does.
    pub(crate) fn spot(&self) -> Spot<'_> {
        let name = self.path.last().map_or(&b"."[..], Vec::as_slice);
        Spot { path: name, directory: self.directory.as_fd(), name, stat: self.stat }
    }

    pub(crate) fn kind(&self) -> FileType {
        tree::file_type(&self.stat)
    }

    /// Opens a regular file.
    pub(crate) fn open(&self) -> io::Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        Ok(rustix::fs::openat(&self.directory, self.spot().name, flags, Mode::empty())?)
    }
}

impl Merged {
    /// Reads what the listings of the layers say beyond what is on disk.
    pub(crate) fn new(layers: Vec<Lower>) -> io::Result<Self> {
        let has_links =
            layers.iter().any(|layer| layer.listing.as_ref().is_some_and(|listing| !listing.links().is_empty()));
        let mut merged = Self { roots: Vec::new(), origins: Vec::new(), links: Vec::new(), groups: Vec::new() };
        for layer in layers {
            let (mut origins, mut links, mut groups) = (HashMap::new(), Vec::new(), HashMap::new());
            if let Some(listing) = layer.listing {
                links = listing.links().to_vec();
                for entry in listing.entries() {
                    let entry = entry?;
                    if entry.kind == Kind::Directory && entry.origin != Origin::Named && !entry.path.is_empty() {
                        origins.insert(names(&entry.path), entry.origin);
                    }
                    if has_links && let Some(group) = entry.group {
                        groups.entry(group.number).or_insert_with(Vec::new).push(names(&entry.path));
                    }
                }
            }
            merged.roots.push(layer.root);
            merged.origins.push(origins);
            merged.links.push(links);
            merged.groups.push(groups);
        }
        Ok(merged)
    }

    /// Returns the range of all layers.
    pub(crate) fn all(&self) -> Range<usize> {
        0..self.roots.len()
    }

    /// Returns all names that a place's inode has in its layer.
    pub(crate) fn names_of(&self, place: &Place) -> Vec<Names> {
        let mut groups = self.groups[place.layer].values();
        groups.find(|group| group.contains(&place.path)).cloned().unwrap_or_else(|| vec![place.path.clone()])
    }

    /// Finds a name in some of the layers. A link at its end is not followed, and there is none on the way.
    pub(crate) fn find(&self, range: Range<usize>, path: &[Vec<u8>]) -> io::Result<Sight> {
        let Some((name, parents)) = path.split_last() else { return Ok(Sight::Hidden) };
        let (parts, closed) = self.parts(range, parents)?;
        for part in parts {
            match tree::stat(&part.fd, name)? {
                None => {}
                Some(stat) if tree::is_whiteout(&stat) => return Ok(Sight::Hidden),
                Some(stat) => {
                    let (layer, path) = (part.layer, path.to_vec());
                    return Ok(Sight::Here(Place { layer, path, stat, directory: part.fd }));
                }
            }
        }
        Ok(if closed { Sight::Hidden } else { Sight::Absent })
    }

    /// Returns the directories, topmost first, whose contents are those of a directory of the merged tree, and
    /// whether those of layers below the range are hidden.
    fn parts(&self, range: Range<usize>, path: &[Vec<u8>]) -> io::Result<(Vec<Part>, bool)> {
        let mut parts: Vec<Part> = range.rev().map(|layer| Part { layer, fd: Rc::clone(&self.roots[layer]) }).collect();
        let mut closed = false;
        for name in path {
            let mut next = Vec::new();
            for part in parts {
                let Some(stat) = tree::stat(&part.fd, name)? else { continue };
                if tree::file_type(&stat) != FileType::Directory {
                    closed = true;
                    break;
                }
                let fd = Rc::new(open_directory(part.fd.as_fd(), name)?);
                closed |= tree::is_opaque(fd.as_fd())?;
                next.push(Part { layer: part.layer, fd });
                if closed {
                    break;
                }
            }
            parts = next;
        }
        Ok((parts, closed))
    }

    /// Tells which layer's entry says what a directory is like; `None` where the defaults do, or where it is hidden.
    ///
    /// An opaque mark on the directory hides what is in it below, not what it is like. Where a layer has removed and
    /// made it anew, the defaults are right.
    pub(crate) fn attributes(&self, path: &[Vec<u8>]) -> io::Result<Option<Attributes>> {
        let Some((name, parents)) = path.split_last() else { return Ok(None) };
        let mut inherited = false;
        for part in self.parts(self.all(), parents)?.0 {
            let Some(stat) = tree::stat(&part.fd, name)? else { continue };
            if tree::file_type(&stat) != FileType::Directory {
                break;
            }
            match self.origins[part.layer].get(path) {
                None => {
                    let of = Place { layer: part.layer, path: path.to_vec(), stat, directory: part.fd };
                    return Ok(Some(Attributes { of, inherited }));
                }
                Some(Origin::Renewed) => break,
                Some(_) => inherited = true,
            }
        }
        Ok(None)
    }

    /// Follows the links on the way to a name, that at its end not; `None` when they lead nowhere.
    pub(crate) fn real(&self, range: Range<usize>, path: &[u8]) -> io::Result<Option<Names>> {
        let mut left = names(path);
        let Some(last) = left.pop() else { return Ok(None) };
        left.reverse();
        let (mut way, mut links) = (Names::new(), 0);
        while let Some(name) = left.pop() {
            if name == b".." {
                way.pop();
                continue;
            }
            way.push(name);
            match self.find(range.clone(), &way)? {
                Sight::Here(place) if place.kind() == FileType::Directory => {}
                Sight::Here(place) if place.kind() == FileType::Symlink && links < MOST_LINKS => {
                    links += 1;
                    way.pop();
                    let target = place.spot().link()?;
                    if target.starts_with(b"/") {
                        way.clear();
                    }
                    left.extend(names(&target).into_iter().rev());
                }
                _ => return Ok(None),
            }
        }
        way.push(last);
        Ok(Some(way))
    }
}

fn open_directory(parent: std::os::fd::BorrowedFd<'_>, name: &[u8]) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(parent, name, flags, Mode::empty())?)
}
