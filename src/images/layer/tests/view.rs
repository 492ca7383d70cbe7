//! Reading files as overlayfs shows them; the kernel's own overlayfs is the judge.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Dir, FileType, Mode, OFlags, ResolveFlags, makedev, openat2};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen};

use crate::apply::apply;
use crate::testing::Tar;
use crate::tree::Tree;
use crate::view::{Located, ReadFileError, locate, read_file};

fn layers(dir: &Path, tars: Vec<Tar>) -> Vec<PathBuf> {
    let mut paths = Vec::new();
    for (number, tar) in tars.into_iter().enumerate() {
        let path = dir.join(number.to_string());
        fs::create_dir(&path).unwrap();
        apply(tar.end().as_slice(), &Tree::open(&path).unwrap()).unwrap();
        paths.insert(0, path);
    }
    paths
}

fn stack() -> Vec<Tar> {
    vec![
        Tar::default()
            .file("etc/passwd", "bottom")
            .file("etc/group", "bottom")
            .file("opaque/hidden", "bottom")
            .file("gone/file", "bottom")
            .file("file-then-dir", "bottom")
            .file("dir-then-file/x", "bottom")
            .file("usr/lib/os", "bottom")
            .symlink("lib", "usr/lib")
            .symlink("abs", "/etc/passwd")
            .symlink("etc/up", "../../../../etc/group")
            .symlink("loop", "loop")
            .symlink("dangling", "nothing"),
        Tar::default()
            .file("etc/passwd", "middle")
            .file("etc/.wh.group", "")
            .file("opaque/.wh..wh..opq", "")
            .file("opaque/seen", "middle")
            .file(".wh.gone", "")
            .dir("file-then-dir")
            .file("file-then-dir/x", "middle")
            .file("dir-then-file", "middle"),
        Tar::default()
            .file("gone/new", "top")
            .file("usr/lib/os", "top")
            .dir("dir-then-file")
            .file("dir-then-file/y", "top"),
    ]
}

const PATHS: &[&str] = &[
    "/etc/passwd",
    "etc/passwd",
    "/etc/group",
    "/opaque/hidden",
    "/opaque/seen",
    "/gone/file",
    "/gone/new",
    "/file-then-dir/x",
    "/dir-then-file/x",
    "/dir-then-file/y",
    "/lib/os",
    "/abs",
    "/etc/up",
    "/../../etc/passwd",
    "/dangling",
    "/etc/passwd/x",
    "/lib/../../etc/passwd",
    "/none",
    "/etc/../usr/./lib//os",
];

/// A detached overlay: it is in no mount table and goes with its descriptor.
fn overlay(layers: &[PathBuf]) -> OwnedFd {
    let fs_fd = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).unwrap();
    let lower: Vec<&str> = layers.iter().map(|path| path.to_str().unwrap()).collect();
    fsconfig_set_string(&fs_fd, "lowerdir", lower.join(":")).unwrap();
    fsconfig_create(&fs_fd).unwrap();
    fsmount(&fs_fd, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty()).unwrap()
}

/// Opens as if the overlay were the root directory.
fn open_in(root: &OwnedFd, path: &str) -> Option<OwnedFd> {
    openat2(root, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty(), ResolveFlags::IN_ROOT).ok()
}

fn read_all(fd: OwnedFd) -> String {
    std::io::read_to_string(fs::File::from(fd)).unwrap()
}

/// Every path below a directory, and what the files hold.
fn tree_of(root: &OwnedFd, below: &str) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    for entry in Dir::read_from(open_in(root, below).unwrap()).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().to_str().unwrap();
        let path = format!("{below}/{name}");
        match entry.file_type() {
            FileType::Directory if name != "." && name != ".." => found.extend(tree_of(root, &path)),
            FileType::RegularFile => drop(found.insert(path.clone(), read_all(open_in(root, &path).unwrap()))),
            _ => {}
        }
    }
    found
}

#[test]
fn it_reads_what_overlayfs_shows() {
    let dir = tempfile::tempdir().unwrap();
    let layers = layers(dir.path(), stack());
    let root = overlay(&layers);
    for path in PATHS {
        let theirs = open_in(&root, path).map(read_all);
        let ours = read_file(&layers, path, 100).unwrap().map(|bytes| String::from_utf8(bytes).unwrap());
        assert_eq!(ours, theirs, "{path}");
    }
}

#[test]
fn a_part_of_an_image_is_what_overlayfs_shows_there() {
    let dir = tempfile::tempdir().unwrap();
    let layers = layers(dir.path(), stack());
    let root = overlay(&layers);
    for (path, several) in [
        ("/", true),
        ("etc", true),
        ("etc/.", true),
        ("opaque", false),
        ("gone", false),
        ("file-then-dir", false),
        ("dir-then-file", false),
        ("usr", true),
        ("lib", true),
        ("lib/../../../usr/lib", true),
        ("etc/../lib", true),
    ] {
        let Some(Located::Directories(parts)) = locate(&layers, path).unwrap() else { panic!("{path}: a directory") };
        assert_eq!(parts.len() > 1, several, "{path}: {parts:?}");
        let theirs = tree_of(&root, path);
        let part = match parts.as_slice() {
            [one] => fs::File::open(one).unwrap().into(),
            parts => overlay(parts),
        };
        let ours = tree_of(&part, ".");
        let below = |tree: &BTreeMap<String, String>, from: &str| -> Vec<_> {
            tree.iter().map(|(name, text)| (name.strip_prefix(from).unwrap().to_owned(), text.clone())).collect()
        };
        assert_eq!(below(&ours, "."), below(&theirs, path), "{path}");
    }
    for (path, layer) in [("etc/passwd", 1), ("abs", 1), ("lib/os", 0), ("dir-then-file/y", 0)] {
        let Some(Located::File(file)) = locate(&layers, path).unwrap() else { panic!("{path}: a file") };
        assert!(file.starts_with(&layers[layer]) && file.is_file(), "{path}: {}", file.display());
    }
    for path in ["none", "etc/group", "gone/file", "opaque/hidden", "etc/passwd/x", "dangling", "dir-then-file/x"] {
        assert_eq!(locate(&layers, path).unwrap(), None, "{path}");
    }
}

#[test]
fn what_is_no_file_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let layers = layers(dir.path(), stack());
    assert!(matches!(read_file(&layers, "/etc", 100), Err(ReadFileError::NotFile { .. })));
    assert!(matches!(read_file(&layers, "/", 100), Err(ReadFileError::NotFile { .. })));
    assert!(matches!(read_file(&layers, "/loop", 100), Err(ReadFileError::Loop { .. })));
    assert!(matches!(read_file(&layers, "/etc/passwd", 5), Err(ReadFileError::TooLong { limit: 5, .. })));
    assert!(matches!(locate(&layers, "/loop"), Err(ReadFileError::Loop { .. })));
    rustix::fs::mknodat(CWD, layers[0].join("null"), FileType::CharacterDevice, Mode::empty(), makedev(1, 3)).unwrap();
    assert!(matches!(locate(&layers, "/null"), Err(ReadFileError::NotFile { .. })));
    assert_eq!(read_file(&layers, "/etc/passwd", 6).unwrap().unwrap(), b"middle");
    let missing = [dir.path().join("none")];
    assert!(matches!(read_file(&missing, "/x", 5), Err(ReadFileError::Layer { .. })));
}
