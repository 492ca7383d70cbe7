//! The applier, by friendly and by hostile layers.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::path::Path;

use proptest::prelude::*;
use tar::EntryType;

use crate::apply::apply;
use crate::apply_error::{ApplyError, EntryError};
use crate::testing::{Entry, Tar};
use crate::tree::{self, Tree};

/// A layer's directory below one that must stay as it is.
struct Ground {
    dir: tempfile::TempDir,
}

impl Ground {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("layer")).unwrap();
        fs::create_dir(dir.path().join("outside")).unwrap();
        fs::write(dir.path().join("outside/file"), "untouched").unwrap();
        Self { dir }
    }

    fn layer(&self) -> std::path::PathBuf {
        self.dir.path().join("layer")
    }

    fn at(&self, path: &str) -> std::path::PathBuf {
        self.layer().join(path)
    }

    fn apply(&self, tar: Tar) -> Result<crate::amount::Amount, ApplyError> {
        let result = apply(tar.end().as_slice(), &Tree::open(&self.layer()).unwrap());
        self.check_outside();
        result.map(|(amount, _)| amount)
    }

    fn refuse(&self, tar: Tar) -> EntryError {
        match self.apply(tar) {
            Err(ApplyError::Entry { source, .. }) => source,
            other => panic!("{other:?}"),
        }
    }

    /// Nothing but the layer's directory has changed.
    fn check_outside(&self) {
        let names = |path: &Path| {
            let mut names: Vec<_> = fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name()).collect();
            names.sort();
            names
        };
        assert_eq!(names(self.dir.path()), ["layer", "outside"]);
        assert_eq!(names(&self.dir.path().join("outside")), ["file"]);
        let file = self.dir.path().join("outside/file");
        assert_eq!(fs::read(&file).unwrap(), b"untouched");
        let meta = file.metadata().unwrap();
        assert_eq!((meta.mode() & 0o7777, meta.uid(), meta.nlink()), (0o644, 0, 1));
    }

    fn whiteout(&self, path: &str) -> bool {
        let meta = fs::symlink_metadata(self.at(path)).unwrap();
        meta.file_type().is_char_device() && meta.rdev() == 0
    }

    fn opaque(&self, path: &str) -> bool {
        let file = File::open(self.at(path)).unwrap();
        tree::is_opaque(std::os::fd::AsFd::as_fd(&file)).unwrap()
    }
}

fn xattr(path: &Path, name: &str) -> Option<Vec<u8>> {
    let mut value = vec![0; 256];
    let length = rustix::fs::lgetxattr(path, name, value.as_mut_slice()).ok()?;
    value.truncate(length);
    Some(value)
}

#[test]
fn everything_is_as_the_archive_says() {
    let ground = Ground::new();
    let capability = b"\x01\0\0\x02\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    let amount = ground
        .apply(
            Tar::default()
                .entry(Entry::new(EntryType::Directory, "./").mode(0o711).mtime(7), b"")
                .entry(Entry::new(EntryType::Directory, "d/").mode(0o1777).owner(3, 4).mtime(11), b"")
                .entry(Entry::new(EntryType::Regular, "d/setuid").mode(0o6755).owner(5, 6).mtime(12), b"data")
                .pax(&[("SCHILY.xattr.security.capability", capability), ("SCHILY.xattr.user.note", b"a\nb")])
                .entry(Entry::new(EntryType::Regular, "d/caps").mode(0o755).owner(9, 9), b"")
                .entry(Entry::new(EntryType::Symlink, "d/link").link("/no/where").owner(7, 8).mtime(13), b"")
                .hard_link("d/hard", "./d/setuid")
                .entry(Entry::new(EntryType::Char, "null").device(1, 3).mode(0o666), b"")
                .entry(Entry::new(EntryType::Block, "disk").device(259, 70_000).mode(0o660).owner(0, 6), b"")
                .entry(Entry::new(EntryType::Fifo, "fifo").mode(0o600), b"")
                .pax(&[("mtime", b"100.25"), ("uid", b"3000000000")])
                .file("/absolute/implicit/file", "x"),
        )
        .unwrap();
    let meta = |path: &str| fs::symlink_metadata(ground.at(path)).unwrap();
    assert_eq!((meta("").mode() & 0o7777, meta("").mtime()), (0o711, 7));
    let d = meta("d");
    assert_eq!((d.mode() & 0o7777, d.uid(), d.gid(), d.mtime()), (0o1777, 3, 4, 11));
    let setuid = meta("d/setuid");
    assert_eq!((setuid.mode() & 0o7777, setuid.uid(), setuid.gid(), setuid.mtime()), (0o6755, 5, 6, 12));
    assert_eq!((setuid.nlink(), setuid.ino()), (2, meta("d/hard").ino()));
    assert_eq!(xattr(&ground.at("d/caps"), "security.capability").unwrap(), capability);
    assert_eq!(xattr(&ground.at("d/caps"), "user.note").unwrap(), b"a\nb");
    let link = meta("d/link");
    assert_eq!((link.uid(), link.gid(), link.mtime()), (7, 8, 13));
    assert_eq!(fs::read_link(ground.at("d/link")).unwrap(), Path::new("/no/where"));
    assert_eq!(meta("null").rdev(), rustix::fs::makedev(1, 3));
    assert_eq!((meta("null").mode() & 0o7777, meta("disk").rdev()), (0o666, rustix::fs::makedev(259, 70_000)));
    assert!(meta("fifo").file_type().is_fifo());
    let file = meta("absolute/implicit/file");
    assert_eq!((file.uid(), file.mtime(), file.mtime_nsec()), (3_000_000_000, 100, 250_000_000));
    let implicit = meta("absolute/implicit");
    assert_eq!((implicit.mode() & 0o7777, implicit.uid()), (0o755, 0));
    assert_eq!(amount.inodes, 11);
}

#[test]
fn whiteouts_and_opaque_directories_become_overlays() {
    let ground = Ground::new();
    ground
        .apply(
            Tar::default()
                .file("a/.wh.gone", "")
                .file("b/.wh..wh..opq", "")
                .file("b/new", "x")
                .file(".wh..wh.plnk/1.2", "aufs")
                .file("c/.wh..wh.aufs", "aufs")
                // Hidden below, and new here, in either order.
                .file(".wh.first", "")
                .file("first", "x")
                .file("second", "x")
                .file(".wh.second", "")
                .file(".wh.dir", "")
                .dir("dir")
                .dir("dir2")
                .file(".wh.dir2", "")
                .file("was-dir", "now a file")
                .file("was-dir/.wh.x", "")
                .symlink("was-dir2", "/no/where")
                .file("was-dir2/.wh.x", "")
                .file(".wh.dir3", "")
                .file("dir3/implicit", "x"),
        )
        .unwrap();
    assert!(ground.whiteout("a/gone"));
    assert_eq!(fs::read(ground.at("was-dir")).unwrap(), b"now a file");
    assert!(ground.opaque("b") && !ground.opaque("a"));
    assert!(!ground.at(".wh..wh.plnk").exists());
    for file in ["first", "second", "b/new", "dir3/implicit"] {
        assert_eq!(fs::read(ground.at(file)).unwrap(), b"x", "{file}");
    }
    assert!(ground.opaque("dir") && ground.opaque("dir2") && ground.opaque("dir3"));
}

#[test]
fn bad_whiteouts_are_refused() {
    for bad in [".wh.", ".wh...", "a/.wh...", ".wh.dir/file", "a/.wh.b/c"] {
        assert!(matches!(Ground::new().refuse(Tar::default().file(bad, "")), EntryError::Whiteout), "{bad}");
    }
}

#[test]
fn overlay_attributes_are_no_layers_to_bring() {
    for key in ["trusted.overlay.opaque", "trusted.overlay.redirect", "user.overlay.opaque"] {
        let tar = Tar::default().pax(&[(&format!("SCHILY.xattr.{key}"), b"y")]).dir("d");
        assert!(matches!(Ground::new().refuse(tar), EntryError::ReservedXattr(found) if found == key));
    }
}

#[test]
fn paths_that_lead_out_are_refused() {
    for path in ["../outside/new", "a/../../outside/file", "/../../outside/file", ".."] {
        assert!(matches!(Ground::new().refuse(Tar::default().file(path, "evil")), EntryError::Outside), "{path}");
        assert!(matches!(Ground::new().refuse(Tar::default().dir(path)), EntryError::Outside), "{path}");
        let link = Tar::default().hard_link("l", path);
        assert!(matches!(Ground::new().refuse(link), EntryError::LinkOutside(_)), "{path}");
    }
    let nul = Tar::default().pax(&[("path", b"a\0b")]).file("x", "");
    assert!(matches!(Ground::new().refuse(nul), EntryError::Nul));
}

#[test]
fn links_lead_nowhere_but_into_the_layer() {
    let ground = Ground::new();
    let outside = ground.dir.path().join("outside").to_str().unwrap().to_owned();
    // Written through a link, relative or absolute: the host's directory is not what it means.
    for target in ["../outside", "../../../../../../outside", &outside] {
        let tar = Tar::default().symlink("out", target).file("out/file", "evil");
        assert!(matches!(ground.refuse(tar), EntryError::Parent(_)), "{target}");
        let tar = Tar::default().symlink("out", target).hard_link("stolen", "out/file");
        // The image's own outside may be in a layer below.
        ground.apply(tar).unwrap();
        assert!(!ground.at("stolen").exists(), "{target}");
        let tar = Tar::default().symlink("out", target).file("out/.wh.file", "");
        ground.apply(tar).unwrap();
    }
    // The link itself can be replaced, and its target cannot be changed by that.
    let tar = Tar::default()
        .symlink("l", &format!("{outside}/file"))
        .entry(Entry::new(EntryType::Regular, "l").mode(0o777).owner(1, 1), b"mine");
    ground.apply(tar).unwrap();
    assert_eq!(fs::read(ground.at("l")).unwrap(), b"mine");
    // A hard link to a symbolic link is a link to the link.
    ground.apply(Tar::default().symlink("s", &format!("{outside}/file")).hard_link("h", "s")).unwrap();
    assert!(fs::symlink_metadata(ground.at("h")).unwrap().is_symlink());
    // Inside the layer links are followed as the kernel would in a container.
    ground.apply(Tar::default().dir("usr/lib").symlink("lib", "/usr/lib").file("lib/so", "x")).unwrap();
    assert_eq!(fs::read(ground.at("usr/lib/so")).unwrap(), b"x");
    let looped = Tar::default().symlink("x", "y").symlink("y", "x").file("x/z", "");
    assert!(matches!(ground.refuse(looped), EntryError::Parent(_)));
    for magic in ["/proc/self/root", "/proc/self/cwd"] {
        let tar = Tar::default().symlink("m", magic).file("m/etc/evil", "");
        assert!(matches!(ground.refuse(tar), EntryError::Parent(_)), "{magic}");
    }
}

#[test]
fn the_later_entry_wins() {
    let ground = Ground::new();
    ground
        .apply(
            Tar::default()
                .file("a/deep/file", "x")
                .file("a", "now a file")
                .file("b", "x")
                .entry(Entry::new(EntryType::Directory, "b").mtime(5), b"")
                .file("b/in", "y")
                .file("c", "old")
                .file("c", "new")
                .entry(Entry::new(EntryType::Directory, "d").mtime(6), b"")
                .entry(Entry::new(EntryType::Regular, "d").mtime(77), b"file")
                .file("e", "e")
                .hard_link("e", "e")
                .hard_link("f", "e")
                .hard_link("f", "e"),
        )
        .unwrap();
    let read = |path: &str| fs::read(ground.at(path)).unwrap();
    assert_eq!((read("a"), read("b/in"), read("c")), (b"now a file".to_vec(), b"y".to_vec(), b"new".to_vec()));
    assert_eq!(ground.at("b").metadata().unwrap().mtime(), 5);
    assert_eq!(ground.at("d").metadata().unwrap().mtime(), 77);
    assert_eq!(ground.at("e").metadata().unwrap().nlink(), 2);
}

#[test]
fn holes_stay_holes() {
    let ground = Ground::new();
    let records: &[(&str, &[u8])] = &[("GNU.sparse.size", b"10000000"), ("GNU.sparse.map", b"5000000,3")];
    ground.apply(Tar::default().pax(records).file("s", "abc")).unwrap();
    let file = File::open(ground.at("s")).unwrap();
    let meta = file.metadata().unwrap();
    let mut three = [0; 3];
    file.read_exact_at(&mut three, 5_000_000).unwrap();
    assert_eq!((meta.len(), &three), (10_000_000, b"abc"));
    assert!(meta.blocks() * 512 < 1_000_000, "{}", meta.blocks());
}

#[test]
fn errors_name_their_entry() {
    let ground = Ground::new();
    let long = "n".repeat(256);
    let error = ground.apply(Tar::default().pax(&[("path", long.as_bytes())]).file("x", "")).unwrap_err();
    assert!(error.to_string().contains(&long), "{error}");
    assert!(matches!(ground.refuse(Tar::default().file("a", "").file("a/b", "")), EntryError::Parent(_)));
    assert!(matches!(ground.refuse(Tar::default().file("./", "")), EntryError::Root));
    let cut = Tar::default().file("whole", "x").file("cut", "y".repeat(2000)).cut();
    let error = apply(&cut[..cut.len() - 1000], &Tree::open(&ground.layer()).unwrap()).unwrap_err();
    assert!(matches!(&error, ApplyError::Data { entry, .. } if entry == "cut"), "{error:?}");
}

#[test]
fn the_longest_names_and_many_files() {
    let ground = Ground::new();
    let name = "n".repeat(255);
    let mut tar = Tar::default().pax(&[("path", format!("d/{name}").as_bytes())]).file("x", "");
    for number in 0..1000 {
        tar = tar.file(&format!("many/{}/{number}", number % 7), number.to_string());
    }
    ground.apply(tar).unwrap();
    assert!(ground.at("d").join(name).exists());
    assert_eq!(fs::read(ground.at("many/5/705")).unwrap(), b"705");
}

#[test]
fn a_mode_is_not_masked() {
    let ground = Ground::new();
    ground.apply(Tar::default().entry(Entry::new(EntryType::Regular, "f").mode(0o666), b"").file("i/x", "")).unwrap();
    assert_eq!(ground.at("f").metadata().unwrap().permissions().mode() & 0o7777, 0o666);
    assert_eq!(ground.at("i").metadata().unwrap().permissions().mode() & 0o7777, 0o755);
}

/// Entries that play together: few names, links that point at them, out of the layer and at each other.
fn hostile() -> impl Strategy<Value = Vec<(EntryType, &'static str, &'static str)>> {
    let name = proptest::sample::select(vec![
        "a",
        "b",
        "c",
        "a/b",
        "b/a",
        "a/b/c",
        "c/file",
        "..",
        "../outside/file",
        "/outside/file",
        "a/../../outside",
        ".wh.a",
        "a/.wh.b",
        ".wh..wh..opq",
        "b/.wh..wh..opq",
        ".",
        "a/.",
        "outside/file",
    ]);
    let target = proptest::sample::select(vec![
        "a",
        "b",
        "../outside",
        "../../outside",
        "/outside",
        "/",
        "..",
        ".",
        "a/b",
        "../outside/file",
        "outside/file",
        "/proc/self/root",
        "/proc/self/cwd/../outside",
        "",
    ]);
    let kind = proptest::sample::select(vec![
        EntryType::Regular,
        EntryType::Directory,
        EntryType::Symlink,
        EntryType::Symlink,
        EntryType::Link,
        EntryType::Fifo,
        EntryType::Char,
    ]);
    proptest::collection::vec((kind, name, target), 1..12)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn no_layer_writes_outside(entries in hostile()) {
        let ground = Ground::new();
        let tar = entries.into_iter().fold(Tar::default(), |tar, (kind, name, target)| {
            tar.entry(Entry::new(kind, name).link(target).mode(0o777).owner(1, 1).device(0, 0), b"")
        });
        // A refused layer is applied as far as it went, which is what is looked at.
        let _ = ground.apply(tar);
    }
}
