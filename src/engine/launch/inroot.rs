//! Paths inside a container's root that an image or a volume may have laid traps on.
//!
//! Every look-up is one `openat2(RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)`: the kernel keeps `..` and absolute symbolic
//! links below the root, whatever changes underneath. What is missing is made relative to a directory that was opened that
//! way, by calls that follow no link. A path never leaves the root, but a symbolic link of the image may still lead it to
//! another place inside; where it must not even do that, [`Root::without_links`] refuses every link.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// The kernel's own limit on links in one look-up.
const MAX_LINKS: usize = 40;
/// A look-up is refused with `EAGAIN` when a rename anywhere on the host raced with a `..` in it.
const MAX_RACES: usize = 64;

/// What a path is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Directory,
    File,
}

/// The root directory of a container.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Root<'a> {
    directory: BorrowedFd<'a>,
    resolve: ResolveFlags,
}

impl<'a> Root<'a> {
    pub(crate) fn new(root: &'a OwnedFd) -> Self {
        Self { directory: root.as_fd(), resolve: ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS }
    }

    /// The same root, where a path is refused with `ELOOP` when a symbolic link is on it.
    pub(crate) fn without_links(self) -> Self {
        Self { resolve: self.resolve | ResolveFlags::NO_SYMLINKS, ..self }
    }

    /// Opens what a path leads to. `flags` are those of open(2); close-on-exec is added.
    pub(crate) fn open(self, path: impl AsRef<Path>, flags: OFlags) -> Result<OwnedFd, Errno> {
        let (path, flags) = (path.as_ref(), flags | OFlags::CLOEXEC);
        let mut races = 0;
        loop {
            match rustix::fs::openat2(self.directory, path, flags, Mode::empty(), self.resolve) {
                Err(Errno::AGAIN) if races < MAX_RACES => races += 1,
                result => return result,
            }
        }
    }

    /// Opens what a path leads to as a place (`O_PATH`), made with its parents if it is missing.
    pub(crate) fn ensure(self, path: impl AsRef<Path>, kind: Kind) -> Result<OwnedFd, Errno> {
        let path = path.as_ref();
        match self.open(path, OFlags::PATH) {
            Err(Errno::NOENT) => self.make(path, kind),
            result => result,
        }
    }

    /// Opens the directory that holds a path's last name, made if missing, and gives that name.
    pub(crate) fn parent_of(self, path: &Path) -> Result<(OwnedFd, &OsStr), Errno> {
        let name = path.file_name().ok_or(Errno::INVAL)?;
        let parent = path.parent().unwrap_or(Path::new("/"));
        Ok((self.ensure(parent, Kind::Directory)?, name))
    }

    /// Walks a path name by name and makes what is missing.
    fn make(self, path: &Path, kind: Kind) -> Result<OwnedFd, Errno> {
        let mut links = 0;
        let mut done = PathBuf::from("/");
        let mut left: Vec<OsString> = names(path);
        let mut place = self.open(&done, OFlags::PATH | OFlags::DIRECTORY)?;
        while let Some(name) = left.pop() {
            let next = done.join(&name);
            place = match self.open(&next, OFlags::PATH) {
                Ok(place) => place,
                Err(Errno::NOENT) => {
                    if let Some(link) = link_at(&place, &name)? {
                        // A link to nowhere yet, as /var/run -> /run in an image without /run: what it names is made.
                        links += 1;
                        if links > MAX_LINKS {
                            return Err(Errno::LOOP);
                        }
                        if link.is_absolute() {
                            done = PathBuf::from("/");
                            place = self.open(&done, OFlags::PATH | OFlags::DIRECTORY)?;
                        }
                        left.extend(names(&link));
                        continue;
                    }
                    let kind = if left.is_empty() { kind } else { Kind::Directory };
                    make_at(&place, &name, kind)?;
                    self.open(&next, OFlags::PATH)?
                }
                Err(errno) => return Err(errno),
            };
            done = next;
        }
        Ok(place)
    }
}

/// The names of a path, last one first. `..` stays: the kernel resolves it within the root.
fn names(path: &Path) -> Vec<OsString> {
    let part = |component: Component<'_>| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some(OsString::from("..")),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    };
    path.components().rev().filter_map(part).collect()
}

/// Where a symbolic link points, `None` when there is no such name.
fn link_at(directory: &OwnedFd, name: &OsStr) -> Result<Option<PathBuf>, Errno> {
    match rustix::fs::readlinkat(directory, name, Vec::new()) {
        Ok(link) => Ok(Some(PathBuf::from(OsString::from_vec(link.into_bytes())))),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(errno),
    }
}

fn make_at(directory: &OwnedFd, name: &OsStr, kind: Kind) -> Result<(), Errno> {
    let made = match kind {
        Kind::Directory => rustix::fs::mkdirat(directory, name, Mode::from_raw_mode(0o755)),
        // mknod makes a file without opening it and follows no link.
        Kind::File => rustix::fs::mknodat(directory, name, FileType::RegularFile, Mode::from_raw_mode(0o644), 0),
    };
    match made {
        // Another container made it in a volume that both have.
        Err(Errno::EXIST) => Ok(()),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    struct Tree {
        dir: tempfile::TempDir,
        root: OwnedFd,
    }

    impl Tree {
        /// `outside` is beside `root`, where no path may lead.
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            std::fs::create_dir_all(dir.path().join("root")).unwrap();
            std::fs::create_dir_all(dir.path().join("outside")).unwrap();
            let root = rustix::fs::open(dir.path().join("root"), OFlags::PATH, Mode::empty()).unwrap();
            Self { dir, root }
        }

        fn link(&self, target: &str, name: &str) {
            symlink(target, self.dir.path().join("root").join(name)).unwrap();
        }

        fn ensure(&self, path: &str, kind: Kind) -> Result<PathBuf, Errno> {
            let place = Root::new(&self.root).ensure(path, kind)?;
            let number = std::os::fd::AsRawFd::as_raw_fd(&place);
            let full = std::fs::read_link(format!("/proc/self/fd/{number}")).unwrap();
            assert_eq!(self.outside(), 0, "{path} made something outside");
            Ok(full.strip_prefix(self.dir.path().join("root")).unwrap().to_owned())
        }

        fn outside(&self) -> usize {
            std::fs::read_dir(self.dir.path().join("outside")).unwrap().count()
        }
    }

    #[test]
    fn what_is_missing_is_made() {
        let tree = Tree::new();
        assert_eq!(tree.ensure("/a/b/c", Kind::File).unwrap(), Path::new("a/b/c"));
        assert!(tree.dir.path().join("root/a/b").is_dir());
        assert!(tree.dir.path().join("root/a/b/c").is_file());
        assert_eq!(tree.ensure("/a/./b/../d", Kind::Directory).unwrap(), Path::new("a/d"));
    }

    #[test]
    fn links_stay_inside() {
        let tree = Tree::new();
        let outside = tree.dir.path().join("outside");
        tree.link(outside.to_str().unwrap(), "absolute");
        tree.link("../../../../../../outside", "relative");
        tree.link("/run/deep", "dangling");
        tree.link("loop", "loop");
        // The host's path is taken as one inside the root.
        let inside = outside.strip_prefix("/").unwrap().join("x");
        assert_eq!(tree.ensure("/absolute/x", Kind::File).unwrap(), inside);
        assert_eq!(tree.ensure("/relative/x", Kind::Directory).unwrap(), Path::new("outside/x"));
        assert_eq!(tree.ensure("/dangling/x", Kind::File).unwrap(), Path::new("run/deep/x"));
        assert_eq!(tree.ensure("/../../../../outside/y", Kind::File).unwrap(), Path::new("outside/y"));
        assert_eq!(tree.ensure("/loop/x", Kind::File), Err(Errno::LOOP));
    }

    #[test]
    fn where_no_link_may_be_none_is_taken() {
        let tree = Tree::new();
        std::fs::create_dir(tree.dir.path().join("root/real")).unwrap();
        tree.link("real", "link");
        tree.link("/nowhere", "dangling");
        let root = Root::new(&tree.root).without_links();
        for path in ["/link", "/link/x", "/dangling", "/dangling/x"] {
            assert_eq!(root.ensure(path, Kind::Directory).unwrap_err(), Errno::LOOP, "{path}");
        }
        root.ensure("/real/made/here", Kind::File).unwrap();
        assert!(
            tree.dir.path().join("root/real/made/here").is_file() && !tree.dir.path().join("root/nowhere").exists()
        );
    }

    #[test]
    fn a_file_in_the_way_is_an_error() {
        let tree = Tree::new();
        tree.ensure("/file", Kind::File).unwrap();
        assert_eq!(tree.ensure("/file/x", Kind::File), Err(Errno::NOTDIR));
    }
}
