//! One layer's directory tree, addressed so that no name in an archive can lead out of it.
//!
//! Paths are resolved by `openat2` with `RESOLVE_IN_ROOT`: `..` stops at the layer's root, absolute links begin there,
//! and `/proc` magic links are no way out. The last component is then handled by `*at` calls that do not follow links.

use std::ffi::{CStr, CString, OsStr};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags, Stat, XattrFlags};
use rustix::io::Errno;

/// overlayfs: what the layers below have in this directory is hidden.
pub(crate) const OPAQUE: &str = "trusted.overlay.opaque";

const DIRECTORY: OFlags = OFlags::DIRECTORY.union(OFlags::PATH).union(OFlags::CLOEXEC);
/// How often a resolution is tried that a concurrent rename somewhere on the host has disturbed (EAGAIN).
const RESOLVE_ATTEMPTS: usize = 1000;

/// The root of a layer.
#[derive(Debug)]
pub(crate) struct Tree {
    root: OwnedFd,
}

/// A directory that was made on the way to another name.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Made {
    pub(crate) inode: u64,
    /// It has taken a whiteout's place.
    pub(crate) renewed: bool,
}

/// Why a directory of the tree could not be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ParentError {
    #[error("its parent {0:?} is a link to nothing in this layer")]
    Dangling(String),
    #[error("its parent {0:?} is no directory")]
    NotDirectory(String),
    #[error("open or make its parent directory")]
    Io(#[source] io::Error),
}

impl Tree {
    /// Opens a directory as the root of a tree.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        Ok(Self { root: rustix::fs::openat(CWD, path, DIRECTORY | OFlags::NOFOLLOW, Mode::empty())? })
    }

    /// Returns the tree's root.
    pub(crate) fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// Opens a directory; links on the way, and at its end, are followed inside the tree.
    pub(crate) fn directory(&self, components: &[&[u8]]) -> Result<OwnedFd, Errno> {
        let path = if components.is_empty() { b".".to_vec() } else { components.join(&b'/') };
        let mut attempts = 0;
        loop {
            let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
            match rustix::fs::openat2(&self.root, path.as_slice(), DIRECTORY, Mode::empty(), resolve) {
                Err(Errno::AGAIN) if attempts < RESOLVE_ATTEMPTS => attempts += 1,
                result => return result,
            }
        }
    }

    /// Returns the path of one of the tree's directories, from its root.
    pub(crate) fn path_of(&self, directory: BorrowedFd<'_>) -> io::Result<Vec<u8>> {
        let path = |fd: BorrowedFd<'_>| {
            rustix::fs::readlinkat(CWD, format!("/proc/self/fd/{}", fd.as_raw_fd()), Vec::new())
                .map(CString::into_bytes)
        };
        let (whole, root) = (path(directory)?, path(self.root())?);
        let below = whole.strip_prefix(root.as_slice()).ok_or(Errno::XDEV)?;
        Ok(below.strip_prefix(b"/").unwrap_or(below).to_vec())
    }

    /// Opens a directory and makes what is missing of it: 0755, root's. Where a whiteout is in the way, the directory
    /// that takes its place is opaque, so that what the whiteout hid stays hidden.
    pub(crate) fn make_directory(&self, components: &[&[u8]]) -> Result<(OwnedFd, Vec<Made>), ParentError> {
        match self.directory(components) {
            Ok(fd) => return Ok((fd, Vec::new())),
            Err(Errno::NOENT | Errno::NOTDIR) => {}
            Err(errno) => return Err(ParentError::Io(errno.into())),
        }
        let (mut parent, mut made) = (self.directory(&[]).map_err(|errno| ParentError::Io(errno.into()))?, Vec::new());
        for (index, name) in components.iter().enumerate() {
            let shown = || String::from_utf8_lossy(&components[..=index].join(&b'/')).into_owned();
            parent = match self.directory(&components[..=index]) {
                Ok(fd) => fd,
                Err(Errno::NOENT | Errno::NOTDIR) => {
                    let found = stat(&parent, name).map_err(ParentError::Io)?;
                    match found {
                        None => make_plain_directory(&parent, name, false),
                        Some(found) if is_whiteout(&found) => rustix::fs::unlinkat(&parent, *name, AtFlags::empty())
                            .map_err(io::Error::from)
                            .and_then(|()| make_plain_directory(&parent, name, true)),
                        Some(found) if file_type(&found) == FileType::Symlink => {
                            return Err(ParentError::Dangling(shown()));
                        }
                        Some(_) => return Err(ParentError::NotDirectory(shown())),
                    }
                    .map_err(ParentError::Io)?;
                    let fd = self.directory(&components[..=index]).map_err(|errno| ParentError::Io(errno.into()))?;
                    let inode = rustix::fs::fstat(&fd).map_err(|errno| ParentError::Io(errno.into()))?.st_ino;
                    made.push(Made { inode, renewed: found.is_some() });
                    fd
                }
                Err(errno) => return Err(ParentError::Io(errno.into())),
            };
        }
        Ok((parent, made))
    }
}

fn make_plain_directory(parent: &OwnedFd, name: &[u8], opaque: bool) -> io::Result<()> {
    rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(0o755))?;
    // The process's umask has taken bits away.
    rustix::fs::chmodat(parent, name, Mode::from_raw_mode(0o755), AtFlags::empty())?;
    if opaque { set_opaque(parent.as_fd(), name) } else { Ok(()) }
}

/// Looks at a name without following it; `None` when there is nothing.
pub(crate) fn stat(parent: &OwnedFd, name: &[u8]) -> io::Result<Option<Stat>> {
    match rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

pub(crate) fn file_type(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

/// overlayfs: a character device 0:0 hides its name in the layers below.
pub(crate) fn is_whiteout(stat: &Stat) -> bool {
    file_type(stat) == FileType::CharacterDevice && stat.st_rdev == 0
}

/// Hides a directory's lower contents.
pub(crate) fn set_opaque(parent: BorrowedFd<'_>, name: &[u8]) -> io::Result<()> {
    set_xattr(parent, name, OsStr::new(OPAQUE), b"y")
}

/// Tells whether a directory hides its lower contents.
pub(crate) fn is_opaque(directory: BorrowedFd<'_>) -> io::Result<bool> {
    let mut value = [0; 1];
    match rustix::fs::getxattr(proc_path(directory, b".").as_slice(), OPAQUE, &mut value[..]) {
        Ok(length) => Ok(length == 1 && value == *b"y"),
        // RANGE: a longer value, which is not "y".
        Err(Errno::NODATA | Errno::NOTSUP | Errno::RANGE) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

/// Sets an extended attribute of a name without following it. There is no `setxattrat` before kernel 6.13, and
/// `O_PATH` descriptors take no `fsetxattr`: the parent's own `/proc` link stands in for it.
pub(crate) fn set_xattr(parent: BorrowedFd<'_>, name: &[u8], key: &OsStr, value: &[u8]) -> io::Result<()> {
    Ok(rustix::fs::lsetxattr(proc_path(parent, name).as_slice(), key, value, XattrFlags::empty())?)
}

/// Removes an extended attribute of a name without following it; one that is gone is fine.
pub(crate) fn remove_xattr(parent: BorrowedFd<'_>, name: &[u8], key: &[u8]) -> io::Result<()> {
    match rustix::fs::lremovexattr(proc_path(parent, name).as_slice(), key) {
        Err(Errno::NODATA) => Ok(()),
        result => Ok(result?),
    }
}

fn proc_path(parent: BorrowedFd<'_>, name: &[u8]) -> Vec<u8> {
    let mut path = format!("/proc/self/fd/{}/", parent.as_raw_fd()).into_bytes();
    path.extend_from_slice(name);
    path
}

/// Removes whatever has this name, a directory with all that is below it; nothing there is fine.
///
/// What nests deeper is first moved up beside its parent: an archive may nest directories deeper than a stack or a
/// descriptor table is large.
pub(crate) fn remove(parent: BorrowedFd<'_>, name: &[u8]) -> io::Result<()> {
    match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR) => {}
        Err(errno) => return Err(errno.into()),
    }
    let top = open_directory(parent, name)?;
    let mut moved = 0_u64;
    loop {
        let mut any = false;
        for child in names(&top)? {
            any = true;
            if !unlink_or_is_directory(&top, &child)? {
                continue;
            }
            let directory = open_directory(top.as_fd(), &child)?;
            for grandchild in names(&directory)? {
                if unlink_or_is_directory(&directory, &grandchild)? {
                    moved += 1;
                    let place = format!(".moved-{moved}");
                    rename_free(&directory, &grandchild, &top, place.as_bytes())?;
                }
            }
            rustix::fs::unlinkat(&top, child.as_slice(), AtFlags::REMOVEDIR)?;
        }
        if !any {
            return Ok(rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR)?);
        }
    }
}

/// Moves a directory to a free name that begins with `place`: the archive may have taken that very name.
fn rename_free(from: &OwnedFd, name: &[u8], to: &OwnedFd, place: &[u8]) -> io::Result<()> {
    let mut place = place.to_vec();
    loop {
        match rustix::fs::renameat_with(from, name, to, place.as_slice(), rustix::fs::RenameFlags::NOREPLACE) {
            Err(Errno::EXIST) => place.push(b'+'),
            result => return Ok(result?),
        }
    }
}

/// Removes a name and returns `false`, or returns `true` when it is a directory.
fn unlink_or_is_directory(parent: &OwnedFd, name: &[u8]) -> io::Result<bool> {
    match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) => Ok(false),
        Err(Errno::ISDIR) => Ok(true),
        Err(errno) => Err(errno.into()),
    }
}

fn open_directory(parent: BorrowedFd<'_>, name: &[u8]) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(parent, name, flags, Mode::empty())?)
}

fn names(directory: &OwnedFd) -> io::Result<Vec<Vec<u8>>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name: &CStr = entry.file_name();
        if !matches!(name.to_bytes(), b"." | b"..") {
            names.push(name.to_bytes().to_owned());
        }
    }
    Ok(names)
}

/// Removes whatever has this path, a directory with all that is below it; nothing there is fine.
///
/// # Errors
/// When the disk refuses.
pub fn remove_path(path: &Path) -> io::Result<()> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(Errno::INVAL.into());
    };
    match rustix::fs::openat(CWD, parent, DIRECTORY, Mode::empty()) {
        Ok(parent) => remove(parent.as_fd(), name.as_bytes()),
        Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn trees_deeper_than_any_path_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        let outside = dir.path().join("outside");
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("kept"), "x").unwrap();
        let top = dir.path().join("top");
        fs::create_dir(&top).unwrap();
        std::os::unix::fs::symlink(&outside, top.join("link")).unwrap();
        fs::create_dir_all(top.join(".moved-1/.moved-2/x")).unwrap();
        let mut at = open_directory(CWD, top.as_os_str().as_bytes()).unwrap();
        for _ in 0..1100 {
            rustix::fs::mkdirat(&at, "deep", Mode::from_raw_mode(0o755)).unwrap();
            rustix::fs::openat(&at, "file", OFlags::CREATE | OFlags::WRONLY, Mode::empty()).unwrap();
            at = open_directory(at.as_fd(), b"deep").unwrap();
        }
        remove_path(&top).unwrap();
        assert!(!top.exists());
        assert!(outside.join("kept").exists());
        remove_path(&top).unwrap();
    }

    #[test]
    fn links_are_followed_inside_only() {
        let dir = tempfile::tempdir().unwrap();
        let tree = Tree::open(dir.path()).unwrap();
        std::os::unix::fs::symlink("/etc", dir.path().join("out")).unwrap();
        std::os::unix::fs::symlink("../../../etc", dir.path().join("up")).unwrap();
        for link in [b"out", &b"up"[..]] {
            assert_eq!(tree.directory(&[link]).unwrap_err(), Errno::NOENT);
            assert!(matches!(tree.make_directory(&[link, b"x"]), Err(ParentError::Dangling(_))));
        }
        tree.make_directory(&[b"etc"]).unwrap();
        tree.make_directory(&[b"out", b"made"]).unwrap();
        assert!(dir.path().join("etc/made").is_dir());
        assert!(!Path::new("/etc/made").exists());
    }
}
