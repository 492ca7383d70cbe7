//! Reading files as overlayfs shows them; the kernel's own overlayfs is the judge.

use std::fs;
use std::path::{Path, PathBuf};

use crate::apply::apply;
use crate::testing::Tar;
use crate::tree::Tree;
use crate::view::{ReadFileError, read_file};

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

#[test]
fn it_reads_what_overlayfs_shows() {
    let dir = tempfile::tempdir().unwrap();
    let layers = layers(dir.path(), stack());
    let lower: Vec<&str> = layers.iter().map(|path| path.to_str().unwrap()).collect();
    let fs_fd = rustix::mount::fsopen("overlay", rustix::mount::FsOpenFlags::FSOPEN_CLOEXEC).unwrap();
    rustix::mount::fsconfig_set_string(&fs_fd, "lowerdir", lower.join(":")).unwrap();
    rustix::mount::fsconfig_create(&fs_fd).unwrap();
    let root = rustix::mount::fsmount(
        &fs_fd,
        rustix::mount::FsMountFlags::FSMOUNT_CLOEXEC,
        rustix::mount::MountAttrFlags::empty(),
    )
    .unwrap();
    for path in PATHS {
        use rustix::fs::{Mode, OFlags, ResolveFlags};
        // Detached: it is in no mount table and goes with its descriptor.
        let fd =
            rustix::fs::openat2(&root, *path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty(), ResolveFlags::IN_ROOT);
        let theirs = fd.ok().map(|fd| std::io::read_to_string(fs::File::from(fd)).unwrap());
        let ours = read_file(&layers, path, 100).unwrap().map(|bytes| String::from_utf8(bytes).unwrap());
        assert_eq!(ours, theirs, "{path}");
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
    assert_eq!(read_file(&layers, "/etc/passwd", 6).unwrap().unwrap(), b"middle");
    let missing = [dir.path().join("none")];
    assert!(matches!(read_file(&missing, "/x", 5), Err(ReadFileError::Layer { .. })));
}
