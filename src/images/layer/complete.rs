//! What an image needs above its layers, because each of them was unpacked without looking at those below.
//!
//! A directory that a layer has only implied looks like the default one, and hides what it is like in a layer below;
//! a hard link to a file of a layer below was left out. Both come into one more layer: a tar archive with just these
//! directories, links and what they lead to. The same layers make the same archive, so the layer can be shared,
//! leased, listed and verified as any other.

use std::collections::{BTreeMap, HashMap};
use std::io::{self, Write};

use podwright_base::Digest;
use rustix::fs::FileType;

use crate::compose;
use crate::hashed::Hashed;
use crate::listing::{Link, Origin};
use crate::merged::{Lower, Merged, Names, Place, Sight, names};
use crate::walk;

/// Why an image cannot be completed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CompleteError {
    /// A hard link leads to what is in none of the layers.
    #[error("the hard link {path:?} leads to {target:?}, which is neither in its layer nor in those below")]
    LinkMissing {
        /// The link.
        path: String,
        /// Its target.
        target: String,
    },
    /// A hard link leads to a directory.
    #[error("the hard link {path:?} leads to the directory {target:?}")]
    LinkDirectory {
        /// The link.
        path: String,
        /// Its target.
        target: String,
    },
    /// A layer cannot be read, or the archive cannot be written.
    #[error("compare the layers")]
    Io(#[from] io::Error),
}

/// Writes the archive of the layer that an image needs on top of all its own, given bottom first, and returns its
/// diffID. Writes nothing and returns `None` when it needs none.
///
/// # Errors
/// When a hard link leads nowhere, a layer cannot be read, or the archive cannot be written.
pub fn complete(layers: Vec<Lower>, archive: impl Write) -> Result<Option<Digest>, CompleteError> {
    let merged = Merged::new(layers)?;
    let mut additions = Additions { merged: &merged, places: BTreeMap::new(), linked: HashMap::new() };
    additions.links()?;
    additions.other_names()?;
    additions.directories()?;
    additions.parents()?;
    if additions.places.is_empty() {
        return Ok(None);
    }
    let mut archive = Hashed::new(archive);
    compose::write(&mut archive, &additions.places)?;
    Ok(Some(archive.digest()))
}

struct Additions<'a> {
    merged: &'a Merged,
    /// What comes into the layer, and what in the layers it is to be like.
    places: BTreeMap<Names, Place>,
    /// Hard links that layers could not make, and what they are, by name and rising layer.
    linked: HashMap<Names, Vec<(usize, Place)>>,
}

impl Additions<'_> {
    fn links(&mut self) -> Result<(), CompleteError> {
        for (layer, links) in self.merged.links.iter().enumerate() {
            for link in links {
                let place = self.target(layer, link)?;
                let name = names(&link.path);
                if let Sight::Absent = self.merged.find(layer + 1..self.merged.all().end, &name)? {
                    // It takes the place of a directory whose contents came from below.
                    self.places.retain(|known, _| !known.starts_with(&name));
                    self.places.insert(name.clone(), place.clone());
                }
                self.linked.entry(name).or_default().push((layer, place));
            }
        }
        Ok(())
    }

    /// Finds what a layer's hard link leads to, as it was when the layer came on top of those below.
    fn target(&self, layer: usize, link: &Link) -> Result<Place, CompleteError> {
        let shown = |path: &[u8]| String::from_utf8_lossy(&path[..path.len().min(1000)]).into_owned();
        let missing = || CompleteError::LinkMissing { path: shown(&link.path), target: shown(&link.target) };
        let path = self.merged.real(0..layer + 1, &link.target)?.ok_or_else(missing)?;
        let place = match self.linked_before(layer, &path)? {
            Some(place) => place,
            None => match self.merged.find(0..layer, &path)? {
                Sight::Here(place) => place,
                Sight::Absent | Sight::Hidden => return Err(missing()),
            },
        };
        if place.kind() == FileType::Directory {
            return Err(CompleteError::LinkDirectory { path: shown(&link.path), target: shown(&link.target) });
        }
        Ok(place)
    }

    /// Finds a link of a layer below that was left out, too.
    fn linked_before(&self, layer: usize, path: &Names) -> io::Result<Option<Place>> {
        let Some((from, place)) = self.linked.get(path).and_then(|linked| linked.last()) else { return Ok(None) };
        let is_seen = matches!(self.merged.find(from + 1..layer, path)?, Sight::Absent);
        Ok(is_seen.then(|| place.clone()))
    }

    /// The names that the links' targets have already: they become names of the same inode.
    fn other_names(&mut self) -> io::Result<()> {
        let places: Vec<Place> = self.places.values().cloned().collect();
        for place in places {
            for name in self.merged.names_of(&place) {
                let taken = (1..=name.len()).any(|length| self.places.contains_key(&name[..length]));
                if !taken
                    && let Sight::Here(found) = self.merged.find(self.merged.all(), &name)?
                    && walk::identity(&found.stat) == walk::identity(&place.stat)
                {
                    self.places.insert(name, found);
                }
            }
        }
        Ok(())
    }

    /// The directories that look like the default, and are not.
    fn directories(&mut self) -> io::Result<()> {
        // Below the bottom layer nothing is left to be like.
        for origins in self.merged.origins.iter().skip(1) {
            for (path, origin) in origins {
                let is_hidden = (1..=path.len()).any(|length| {
                    self.places.get(&path[..length]).is_some_and(|place| place.kind() != FileType::Directory)
                });
                if *origin == Origin::Implied
                    && !is_hidden
                    && let Some(attributes) = self.merged.attributes(path)?
                    && attributes.inherited
                {
                    self.places.insert(path.clone(), attributes.of);
                }
            }
        }
        Ok(())
    }

    /// The directories on the way: this layer must not imply them again.
    fn parents(&mut self) -> io::Result<()> {
        let paths: Vec<Names> = self.places.keys().cloned().collect();
        for path in paths {
            for length in 1..path.len() {
                if !self.places.contains_key(&path[..length])
                    && let Some(attributes) = self.merged.attributes(&path[..length])?
                {
                    self.places.insert(path[..length].to_vec(), attributes.of);
                }
            }
        }
        Ok(())
    }
}
