//! Applies a layer's members to its directory, as overlayfs wants a lower layer to be.
//!
//! Whiteouts become character devices 0:0, opaque markers the `trusted.overlay.opaque` attribute; a layer may bring
//! neither of its own accord. Everything lands inside the tree, whatever names and links the archive holds (see
//! `tree.rs`), and each error names its entry.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::rc::Rc;

use rustix::fs::{AtFlags, FileType, Gid, Mode, Timespec, Timestamps, Uid};
use rustix::io::Errno;

use crate::amount::Amount;
use crate::apply_error::{ApplyError, EntryError, Fault, step};
use crate::archive::{Kind, Member, Members};
use crate::contents::ContentHasher;
use crate::listing::Origin;
use crate::survey::Memory;
use crate::tree::{self, ParentError, Tree};

const WHITEOUT: &[u8] = b".wh.";
/// AUFS's own files begin with it; of them only the opaque marker has a meaning elsewhere.
const WHITEOUT_META: &[u8] = b".wh..wh.";
const WHITEOUT_OPAQUE: &[u8] = b".wh..wh..opq";
const BUFFER: usize = 128 << 10;

/// Applies all of an archive below `tree`; returns what it takes on disk, and what its listing needs to know.
pub(crate) fn apply(archive: impl Read, tree: &Tree) -> Result<(Amount, Memory), ApplyError> {
    let mut members = Members::new(archive);
    let mut applier = Applier {
        tree,
        parent: None,
        times: HashMap::new(),
        amount: Amount { bytes: 0, inodes: 1 },
        unresolved: BTreeMap::new(),
        memory: Memory::default(),
        hasher: ContentHasher::new(),
        buffer: vec![0; BUFFER],
    };
    applier.begin()?;
    while let Some(member) = members.next()? {
        applier.member(&member, &mut members).map_err(|fault| {
            let entry = String::from_utf8_lossy(&member.path[..member.path.len().min(1000)]).into_owned();
            match fault {
                Fault::Data(source) => ApplyError::Data { entry, source },
                Fault::Entry(source) => ApplyError::Entry { entry, source },
            }
        })?;
    }
    applier.finish()
}

/// Applies members one after the other.
pub(crate) struct Applier<'a> {
    pub(crate) tree: &'a Tree,
    /// The directory that the last entry went into: archives list directory by directory.
    pub(crate) parent: Option<(Vec<u8>, Rc<OwnedFd>)>,
    /// Directories' times, set at the end: every entry made in a directory changes its own.
    pub(crate) times: HashMap<Vec<u8>, (i64, u32)>,
    pub(crate) amount: Amount,
    /// Hard links whose targets are not in this layer, by their names.
    pub(crate) unresolved: BTreeMap<Vec<u8>, Vec<u8>>,
    pub(crate) memory: Memory,
    pub(crate) hasher: ContentHasher,
    pub(crate) buffer: Vec<u8>,
}

/// Splits a path of the archive into the names on its way. An absolute one begins at the layer's root.
pub(crate) fn split(path: &[u8]) -> Result<Vec<&[u8]>, EntryError> {
    if path.contains(&0) {
        return Err(EntryError::Nul);
    }
    let names: Vec<&[u8]> = path.split(|byte| *byte == b'/').filter(|name| !matches!(*name, b"" | b".")).collect();
    if names.contains(&&b".."[..]) { Err(EntryError::Outside) } else { Ok(names) }
}

impl Applier<'_> {
    fn begin(&mut self) -> Result<(), ApplyError> {
        // Until an entry names it.
        let root = rustix::fs::fstat(self.tree.root()).map_err(|errno| ApplyError::Root(errno.into()))?;
        self.memory.implied.insert(root.st_ino, Origin::Implied);
        Ok(())
    }

    fn member(&mut self, member: &Member, data: &mut Members<impl Read>) -> Result<(), Fault> {
        let names = split(&member.path)?;
        let Some((name, parents)) = names.split_last() else {
            return Ok(self.root(member)?);
        };
        if name.starts_with(WHITEOUT) || parents.iter().any(|parent| parent.starts_with(WHITEOUT)) {
            return Ok(self.whiteout(name, parents)?);
        }
        for (key, _) in &member.xattrs {
            if key.starts_with(b"trusted.overlay.") || key.starts_with(b"user.overlay.") {
                return Err(EntryError::ReservedXattr(String::from_utf8_lossy(key).into_owned()).into());
            }
        }
        let parent = self.parent(parents)?;
        if member.kind != Kind::Directory {
            self.times.remove(&names.join(&b'/'));
        }
        match &member.kind {
            Kind::File { size, sparse } => return self.file(&parent, name, member, *size, sparse.as_ref(), data),
            Kind::HardLink { target } => return Ok(self.hard_link(&parent, name, target)?),
            Kind::Directory => {
                self.directory(&parent, name)?;
                self.times.insert(names.join(&b'/'), member.mtime);
            }
            Kind::Symlink { target } => {
                self.clear(&parent, name)?;
                step("make the symbolic link", rustix::fs::symlinkat(target.as_slice(), &*parent, *name))?;
            }
            Kind::Character { major, minor } => {
                self.node(&parent, name, FileType::CharacterDevice, *major, *minor)?;
            }
            Kind::Block { major, minor } => self.node(&parent, name, FileType::BlockDevice, *major, *minor)?,
            Kind::Fifo => self.node(&parent, name, FileType::Fifo, 0, 0)?,
        }
        Ok(self.metadata(&parent, name, member)?)
    }

    /// An entry for the root sets the layer directory's own attributes.
    fn root(&mut self, member: &Member) -> Result<(), EntryError> {
        if member.kind != Kind::Directory {
            return Err(EntryError::Root);
        }
        let root = Rc::new(step("open the layer's root", self.tree.directory(&[]))?);
        self.metadata(&root, b".", member)?;
        self.named(&root, b".")?;
        self.times.insert(Vec::new(), member.mtime);
        Ok(())
    }

    fn parent(&mut self, names: &[&[u8]]) -> Result<Rc<OwnedFd>, EntryError> {
        let path = names.join(&b'/');
        match &self.parent {
            Some((known, parent)) if *known == path => Ok(Rc::clone(parent)),
            _ => {
                let (parent, made) = self.tree.make_directory(names).map_err(EntryError::Parent)?;
                self.amount.add_directories(made.len() as u64);
                for made in made {
                    let origin = if made.renewed { Origin::Renewed } else { Origin::Implied };
                    self.memory.implied.insert(made.inode, origin);
                    if made.renewed {
                        self.memory.marked.insert(made.inode);
                    }
                }
                let parent = Rc::new(parent);
                self.parent = Some((path, Rc::clone(&parent)));
                Ok(parent)
            }
        }
    }

    /// Makes room for an entry: a later one replaces an earlier one, whatever either is.
    pub(crate) fn clear(&mut self, parent: &OwnedFd, name: &[u8]) -> Result<(), EntryError> {
        if step("look for an earlier entry of this name", tree::stat(parent, name))?.is_some() {
            // What is removed may have been on the way to the remembered directory.
            self.parent = None;
            step("remove the earlier entry of this name", tree::remove(parent.as_fd(), name))?;
        }
        Ok(())
    }

    fn directory(&mut self, parent: &OwnedFd, name: &[u8]) -> Result<(), EntryError> {
        let found = step("look for an earlier entry of this name", tree::stat(parent, name))?;
        if let Some(found) = &found
            && tree::file_type(found) == FileType::Directory
        {
            self.memory.implied.remove(&found.st_ino);
            return Ok(());
        }
        self.clear(parent, name)?;
        step("make the directory", rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(0o700)))?;
        self.amount.add_directories(1);
        self.named(parent, name)?;
        if found.as_ref().is_some_and(tree::is_whiteout) {
            // The whiteout hid a lower directory, whose contents must not come through this one.
            self.opaque(parent, name)?;
        }
        Ok(())
    }

    /// Forgets that a directory was implied: an entry names it, or it has the inode number of one that was removed.
    fn named(&mut self, parent: &OwnedFd, name: &[u8]) -> Result<(), EntryError> {
        if !self.memory.implied.is_empty()
            && let Some(found) = step("look at the directory", tree::stat(parent, name))?
        {
            self.memory.implied.remove(&found.st_ino);
        }
        Ok(())
    }

    fn opaque(&mut self, parent: &OwnedFd, name: &[u8]) -> Result<(), EntryError> {
        step("make the directory opaque", tree::set_opaque(parent.as_fd(), name))?;
        self.mark(parent, name)
    }

    /// Remembers that a name has extended attributes.
    fn mark(&mut self, parent: &OwnedFd, name: &[u8]) -> Result<(), EntryError> {
        if let Some(found) = step("look at the attributes", tree::stat(parent, name))? {
            self.memory.marked.insert(found.st_ino);
        }
        Ok(())
    }

    fn node(
        &mut self,
        parent: &OwnedFd,
        name: &[u8],
        kind: FileType,
        major: u32,
        minor: u32,
    ) -> Result<(), EntryError> {
        self.clear(parent, name)?;
        let device = rustix::fs::makedev(major, minor);
        step("make the node", rustix::fs::mknodat(parent, name, kind, Mode::from_raw_mode(0o600), device))?;
        self.amount.add_file(0);
        Ok(())
    }

    fn whiteout(&mut self, name: &[u8], parents: &[&[u8]]) -> Result<(), EntryError> {
        if parents.iter().any(|parent| parent.starts_with(WHITEOUT_META)) {
            return Ok(());
        }
        if parents.iter().any(|parent| parent.starts_with(WHITEOUT)) {
            return Err(EntryError::Whiteout);
        }
        if name == WHITEOUT_OPAQUE {
            let directory = self.parent(parents)?;
            return self.opaque(&directory, b".");
        }
        let hidden = match name.strip_prefix(WHITEOUT) {
            _ if name.starts_with(WHITEOUT_META) => return Ok(()),
            Some(hidden) if !matches!(hidden, b"" | b"." | b"..") => hidden,
            _ => return Err(EntryError::Whiteout),
        };
        let parent = match self.parent(parents) {
            // This layer has put something else in the directory's place, which hides all of it anyway; umoci still
            // writes whiteouts for each name that was in it.
            Err(EntryError::Parent(ParentError::NotDirectory(_) | ParentError::Dangling(_))) => return Ok(()),
            parent => parent?,
        };
        match step("look for an entry of the hidden name", tree::stat(&parent, hidden))? {
            None => {
                let mode = Mode::from_raw_mode(0o000);
                let made = rustix::fs::mknodat(&*parent, hidden, FileType::CharacterDevice, mode, 0);
                step("make the whiteout", made)?;
                self.amount.add_file(0);
                Ok(())
            }
            // A whiteout speaks of the layers below: what this layer itself brings stays, and hides them anyway.
            Some(found) if tree::file_type(&found) == FileType::Directory => {
                if let Some(origin) = self.memory.implied.get_mut(&found.st_ino) {
                    *origin = Origin::Renewed;
                }
                self.opaque(&parent, hidden)
            }
            Some(_) => Ok(()),
        }
    }

    /// Sets owner, mode, attributes and time of anything but a file, links not followed.
    fn metadata(&mut self, parent: &OwnedFd, name: &[u8], member: &Member) -> Result<(), EntryError> {
        let (uid, gid) = (Uid::from_raw(member.uid), Gid::from_raw(member.gid));
        step("set the owner", rustix::fs::chownat(parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW))?;
        if !matches!(member.kind, Kind::Symlink { .. }) {
            let mode = Mode::from_raw_mode(member.mode);
            step("set the mode", rustix::fs::chmodat(parent, name, mode, AtFlags::empty()))?;
        } else {
            self.amount.add_file(0);
        }
        for (key, value) in &member.xattrs {
            xattr(key, tree::set_xattr(parent.as_fd(), name, OsStr::from_bytes(key), value))?;
            self.mark(parent, name)?;
            self.memory.bequeaths |= key == b"system.posix_acl_default";
        }
        if member.kind != Kind::Directory {
            let set = rustix::fs::utimensat(parent, name, &times(member.mtime), AtFlags::SYMLINK_NOFOLLOW);
            step("set the time", set)?;
        }
        Ok(())
    }

    fn finish(mut self) -> Result<(Amount, Memory), ApplyError> {
        self.keep_links()?;
        for (path, mtime) in &self.times {
            let names: Vec<&[u8]> = path.split(|byte| *byte == b'/').filter(|name| !name.is_empty()).collect();
            let set = match names.split_last() {
                None => rustix::fs::utimensat(self.tree.root(), ".", &times(*mtime), AtFlags::SYMLINK_NOFOLLOW),
                Some((name, parents)) => self.tree.directory(parents).and_then(|parent| {
                    rustix::fs::utimensat(&parent, *name, &times(*mtime), AtFlags::SYMLINK_NOFOLLOW)
                }),
            };
            match set {
                // A later entry has replaced the directory, or one above it.
                Ok(()) | Err(Errno::NOENT | Errno::NOTDIR) => {}
                Err(errno) => {
                    let source = EntryError::Io { step: "set the directory's time", source: errno.into() };
                    return Err(ApplyError::Entry { entry: String::from_utf8_lossy(path).into_owned(), source });
                }
            }
        }
        Ok((self.amount, self.memory))
    }
}

/// An attribute that the file system has no room for by design (user attributes of links and nodes, any on some file
/// systems) is left out, as other engines do; a file capability never is.
pub(crate) fn xattr(key: &[u8], set: io::Result<()>) -> Result<(), EntryError> {
    match set {
        Err(error) if key != b"security.capability" => match Errno::from_io_error(&error) {
            Some(Errno::NOTSUP) => Ok(()),
            Some(Errno::PERM) if key.starts_with(b"user.") => Ok(()),
            _ => step("set an extended attribute", Err(error)),
        },
        other => step("set an extended attribute", other),
    }
}

pub(crate) fn times((seconds, nanos): (i64, u32)) -> Timestamps {
    let time = Timespec { tv_sec: seconds, tv_nsec: nanos.into() };
    Timestamps { last_access: time, last_modification: time }
}
