//! Hard links: to what this layer has, and to what only the layers below can have.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::AtFlags;
use rustix::io::Errno;

use crate::apply::{Applier, split};
use crate::apply_error::{ApplyError, EntryError, step};
use crate::listing::Link;
use crate::tree;

impl Applier<'_> {
    pub(crate) fn hard_link(&mut self, parent: &OwnedFd, name: &[u8], target: &[u8]) -> Result<(), EntryError> {
        let shown = || String::from_utf8_lossy(&target[..target.len().min(1000)]).into_owned();
        let names = split(target).map_err(|_| EntryError::LinkOutside(shown()))?;
        let (last, parents) = names.split_last().ok_or_else(|| EntryError::LinkMissing(shown()))?;
        let from = match self.tree.directory(parents) {
            Ok(fd) => fd,
            Err(Errno::NOENT) => return self.unresolved_link(parent, name, target),
            // A file, or a whiteout, is in the way: a layer below has nothing to say.
            Err(Errno::NOTDIR) => return Err(EntryError::LinkMissing(shown())),
            Err(errno) => return step("open the hard link's directory", Err(errno)),
        };
        let target = match step("look at the hard link's target", tree::stat(&from, last))? {
            None => return self.unresolved_link(parent, name, target),
            Some(found) if tree::is_whiteout(&found) => return Err(EntryError::LinkMissing(shown())),
            Some(found) => found,
        };
        let earlier = step("look for an earlier entry of this name", tree::stat(parent, name))?;
        if earlier.is_some_and(|earlier| (earlier.st_dev, earlier.st_ino) == (target.st_dev, target.st_ino)) {
            return Ok(());
        }
        self.clear(parent, name)?;
        step("make the hard link", rustix::fs::linkat(&from, *last, parent, name, AtFlags::empty()))
    }

    /// Remembers a hard link to what may be in a layer below; only the whole image tells.
    fn unresolved_link(&mut self, parent: &OwnedFd, name: &[u8], target: &[u8]) -> Result<(), EntryError> {
        let names = split(target)?;
        for length in 1..names.len() {
            let Ok(directory) = self.tree.directory(&names[..length]) else { break };
            if step("look at the hard link's directory", tree::is_opaque(directory.as_fd()))? {
                return Err(EntryError::LinkMissing(String::from_utf8_lossy(target).into_owned()));
            }
        }
        self.clear(parent, name)?;
        let mut path = step("find the hard link's path", self.tree.path_of(parent.as_fd()))?;
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(name);
        let target = names.join(&b'/');
        // It may be such a link itself.
        let target = self.unresolved.get(&target).cloned().unwrap_or(target);
        if path != target {
            self.unresolved.insert(path, target);
        }
        Ok(())
    }

    /// Keeps those of the unresolved links that no later entry has replaced.
    pub(crate) fn keep_links(&mut self) -> Result<(), ApplyError> {
        for (path, target) in std::mem::take(&mut self.unresolved) {
            let kept = self.is_free(&path).map_err(|source| {
                let entry = String::from_utf8_lossy(&path).into_owned();
                ApplyError::Entry { entry, source }
            })?;
            if kept {
                self.memory.links.push(Link { path, target });
            }
        }
        Ok(())
    }

    /// Tells whether this layer has nothing of a name but a whiteout, which speaks of the layers below.
    fn is_free(&self, path: &[u8]) -> Result<bool, EntryError> {
        let names = split(path)?;
        let (name, parents) = names.split_last().ok_or(EntryError::Root)?;
        let parent = match self.tree.directory(parents) {
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(false),
            parent => step("open the hard link's directory", parent)?,
        };
        let found = step("look for a later entry", tree::stat(&parent, name))?;
        Ok(found.is_none_or(|found| tree::is_whiteout(&found)))
    }
}
