//! Listings: what they tell of a hostile tree, and what they find changed in it.

use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};

use podwright_base::Digest;
use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, XattrFlags};
use tar::EntryType;

use crate::testing::{Entry as Member, Tar};
use crate::{Depth, Difference, Entry, Expected, Kind, Listing, ListingError, Origin, Unpacked, What, order, unpack};

pub(crate) struct Layer {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) unpacked: Unpacked,
}

impl Layer {
    pub(crate) fn new(tar: Tar) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("tree")).unwrap();
        let bytes = tar.end();
        let expected = Expected { blob: None, diff_id: Digest::of(&bytes) };
        let listing = dir.path().join("listing");
        let unpacked = unpack(bytes.as_slice(), &expected, &dir.path().join("tree"), &listing).unwrap();
        Self { dir, unpacked }
    }

    pub(crate) fn at(&self, path: &str) -> PathBuf {
        self.dir.path().join("tree").join(path)
    }

    pub(crate) fn listing(&self) -> Listing {
        Listing::open(&self.dir.path().join("listing"), &self.unpacked.listing).unwrap()
    }

    fn entries(&self) -> Vec<Entry> {
        self.listing().entries().collect::<io::Result<_>>().unwrap()
    }

    fn entry(&self, path: &str) -> Entry {
        self.entries().into_iter().find(|entry| entry.path == path.as_bytes()).expect(path)
    }

    pub(crate) fn differences(&self, depth: Depth) -> Vec<String> {
        let found = self.listing().compare(&self.dir.path().join("tree"), depth).unwrap();
        found.iter().map(Difference::to_string).collect()
    }

    /// Gives a file its time back: whoever hides a change does the same.
    fn set_mtime(&self, path: &str, seconds: i64) {
        let time = Timespec { tv_sec: seconds, tv_nsec: 0 };
        let times = Timestamps { last_access: Timespec { tv_sec: 5, tv_nsec: 5 }, last_modification: time };
        rustix::fs::utimensat(CWD, self.at(path), &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
    }
}

pub(crate) fn hostile() -> Tar {
    let deep: String = vec!["d"; 40].join("/");
    let mut tar = Tar::default()
        .dir("./")
        .pax(&[("SCHILY.xattr.user.note", b"\0\xff\n"), ("mtime", b"-1.25")])
        .entry(Member::new(EntryType::Directory, "dir").mode(0o1777).owner(7, 8), b"")
        .file("dir/file", vec![7; 10_000])
        .file("dir-before", "")
        .file("implied/too/file", "x")
        .file(".wh.renewed", "")
        .file("renewed/file", "x")
        .file("opaque/.wh..wh..opq", "")
        .file(".wh.gone", "")
        .file("twice", "first")
        .file("twice", "second")
        .file("one", "linked")
        .hard_link("two", "one")
        .hard_link("dir/three", "two")
        .symlink("link", "/no/where")
        .hard_link("link2", "link")
        .entry(Member::new(EntryType::Char, "null").device(1, 3), b"")
        .entry(Member::new(EntryType::Block, "disk").device(259, 70_000), b"")
        .entry(Member::new(EntryType::Fifo, "fifo"), b"")
        .pax(&[("path", b"\xff\xfe/\x01")])
        .file("bytes", "not UTF-8")
        .pax(&[("path", &[b'n'; 255])])
        .file("long", "")
        .pax(&[("path", deep.as_bytes())])
        .file("deep", "");
    let map = b"1048576,4";
    tar = tar
        .pax(&[
            ("GNU.sparse.major", b"0"),
            ("GNU.sparse.minor", b"1"),
            ("GNU.sparse.map", map),
            ("GNU.sparse.size", b"4194304"),
        ])
        .file("sparse", "data");
    tar
}

#[test]
fn everything_is_listed_once_and_in_order() {
    let layer = Layer::new(hostile());
    let entries = layer.entries();
    assert!(entries.is_sorted_by(|one, other| order(&one.path, &other.path).is_lt()));
    assert_eq!(entries.len() as u64, fs_names(&layer.at("")));
    assert_eq!(entries[0].path, b"");
    let dir = layer.entry("dir");
    assert_eq!((dir.kind, dir.mode, dir.uid, dir.gid, dir.mtime), (Kind::Directory, 0o1777, 7, 8, (-2, 750_000_000)));
    assert_eq!(dir.xattrs, [(b"user.note".to_vec(), b"\0\xff\n".to_vec())]);
    assert_eq!(layer.entry("null").kind, Kind::Character { major: 1, minor: 3 });
    assert_eq!(layer.entry("disk").kind, Kind::Block { major: 259, minor: 70_000 });
    assert_eq!(layer.entry("gone").kind, Kind::Character { major: 0, minor: 0 });
    assert_eq!(layer.entry("link").kind, Kind::Symlink { target: b"/no/where".to_vec() });
    assert_eq!(layer.entry("opaque").xattrs, [(b"trusted.overlay.opaque".to_vec(), b"y".to_vec())]);
    assert_eq!(layer.entry("opaque").origin, Origin::Implied);
    assert_eq!(layer.entry("implied/too").origin, Origin::Implied);
    assert_eq!((layer.entry("dir").origin, layer.entry("renewed").origin), (Origin::Named, Origin::Renewed));
    let groups = ["one", "two", "dir/three", "link", "link2"].map(|path| layer.entry(path).group.unwrap());
    assert!(groups[0] == groups[1] && groups[1] == groups[2] && groups[0].names == 3);
    assert!(groups[3] == groups[4] && groups[3].number != groups[0].number && layer.entry("twice").group.is_none());
    assert!(matches!(layer.entry("sparse").kind, Kind::File { size: 4_194_304, .. }));
    assert!(layer.unpacked.names_root);
    assert_eq!((layer.unpacked.implied, layer.unpacked.unresolved), (3 + 1 + 39, 0));
    assert!(!Layer::new(Tar::default().file("x", "")).unpacked.names_root);
}

fn fs_names(path: &Path) -> u64 {
    let below = fs::read_dir(path).unwrap().map(|entry| {
        let path = entry.unwrap().path();
        if path.symlink_metadata().unwrap().is_dir() { fs_names(&path) } else { 1 }
    });
    1 + below.sum::<u64>()
}

#[test]
fn directories_are_implied_until_an_entry_names_them() {
    let layer = Layer::new(
        Tar::default().file("a/b/x", "").dir("a").file("r/x", "").file("r", "now a file").dir("r").file("r/s/x", ""),
    );
    let origins = ["a", "a/b", "r", "r/s"].map(|path| layer.entry(path).origin);
    assert_eq!(origins, [Origin::Named, Origin::Implied, Origin::Named, Origin::Implied]);
    // A whiteout that comes later has removed what was below all the same.
    let layer = Layer::new(Tar::default().file("d/x", "").file(".wh.d", "").file("e/.wh.x", ""));
    assert_eq!((layer.entry("d").origin, layer.entry("e").origin), (Origin::Renewed, Origin::Implied));
}

#[test]
fn inherited_attributes_are_listed() {
    // Version 2, owner rwx, group r-x, others r-x.
    let acl: Vec<u8> =
        [2, 0, 0, 0]
            .into_iter()
            .chain([(1_u16, 7_u16), (4, 5), (32, 5)].iter().flat_map(|(tag, bits)| {
                [&tag.to_le_bytes()[..], &bits.to_le_bytes(), &u32::MAX.to_le_bytes()].concat()
            }))
            .collect();
    let tar = Tar::default().pax(&[("SCHILY.xattr.system.posix_acl_default", &acl)]).dir("d").dir("d/sub");
    let layer = Layer::new(tar.file("d/sub/file", ""));
    assert_eq!(layer.entry("d/sub").xattrs, [(b"system.posix_acl_default".to_vec(), acl)]);
    assert_eq!(layer.differences(Depth::Content), Vec::<String>::new());
}

#[test]
fn what_was_unpacked_is_found_unchanged() {
    let layer = Layer::new(hostile());
    assert_eq!(layer.differences(Depth::Content), Vec::<String>::new());
    // Times of access are nobody's business, nor is whether zeros take room.
    layer.set_mtime("dir/file", 1_000_000_000);
    let file = File::options().write(true).open(layer.at("sparse")).unwrap();
    file.write_all_at(&[0; 65_536], 0).unwrap();
    drop(file);
    layer.set_mtime("sparse", 1_000_000_000);
    assert_eq!(layer.differences(Depth::Content), Vec::<String>::new());
}

#[test]
fn every_change_is_found_and_named() {
    let change = |what: &str, change: &dyn Fn(&Layer)| {
        let layer = Layer::new(hostile());
        change(&layer);
        assert_eq!(layer.differences(Depth::Content), [what]);
    };
    let flip = |layer: &Layer| {
        let file = File::options().write(true).open(layer.at("dir/file")).unwrap();
        file.write_all_at(&[8], 9_999).unwrap();
        drop(file);
        layer.set_mtime("dir/file", 1_000_000_000);
    };
    change("/dir/file: contents changed", &flip);
    change("/sparse: contents changed", &|layer| {
        let file = File::options().write(true).open(layer.at("sparse")).unwrap();
        file.write_all_at(&[8], 3_000_000).unwrap();
        drop(file);
        layer.set_mtime("sparse", 1_000_000_000);
    });
    change("/twice: size changed", &|layer| {
        File::options().write(true).open(layer.at("twice")).unwrap().set_len(5).unwrap();
        layer.set_mtime("twice", 1_000_000_000);
    });
    change("/twice: mode changed", &|layer| {
        fs::set_permissions(layer.at("twice"), fs::Permissions::from_mode(0o4644)).unwrap();
    });
    change("/twice: owner changed", &|layer| std::os::unix::fs::chown(layer.at("twice"), Some(1), None).unwrap());
    change("/twice: mtime changed", &|layer| layer.set_mtime("twice", 5));
    change("/implied: mtime changed", &|layer| layer.set_mtime("implied", 5));
    change("/dir: xattrs changed", &|layer| {
        rustix::fs::setxattr(layer.at("dir"), "user.note", b"other", XattrFlags::empty()).unwrap();
    });
    change("/opaque: xattrs changed", &|layer| {
        rustix::fs::removexattr(layer.at("opaque"), "trusted.overlay.opaque").unwrap();
    });
    change("/\\xff\\xfe/\\x01: missing", &|layer| {
        let directory = layer.at("").join(std::ffi::OsStr::from_bytes(b"\xff\xfe"));
        let time = directory.metadata().unwrap();
        fs::remove_file(directory.join("\x01")).unwrap();
        File::open(&directory).unwrap().set_times(fs::FileTimes::new().set_modified(time.modified().unwrap())).unwrap();
    });
    let layer = Layer::new(hostile());
    flip(&layer);
    assert_eq!(layer.differences(Depth::Metadata), Vec::<String>::new());
}

#[test]
fn changes_of_names_are_told_once() {
    let layer = Layer::new(hostile());
    fs::remove_dir_all(layer.at("d")).unwrap();
    fs::create_dir_all(layer.at("extra/deep/er")).unwrap();
    fs::remove_file(layer.at("null")).unwrap();
    fs::create_dir(layer.at("null")).unwrap();
    fs::remove_file(layer.at("link")).unwrap();
    std::os::unix::fs::symlink("/else/where", layer.at("link")).unwrap();
    fs::remove_file(layer.at("two")).unwrap();
    fs::copy(layer.at("one"), layer.at("two")).unwrap();
    layer.set_mtime("two", 1_000_000_000);
    layer.set_mtime("", 1_000_000_000);
    let found = layer.differences(Depth::Content);
    let expected = [
        "/d: missing",
        "/dir/three: hard links changed",
        "/extra: extra",
        "/link: mtime, hard links, target changed",
        "/link2: hard links changed",
        "/null: kind changed",
        "/one: hard links changed",
        "/two: hard links changed",
    ];
    assert_eq!(found, expected);
}

#[test]
fn links_are_never_followed() {
    let layer = Layer::new(Tar::default().dir("./").dir("dir").file("dir/file", "x"));
    let outside = layer.dir.path().join("outside");
    fs::rename(layer.at("dir"), &outside).unwrap();
    std::os::unix::fs::symlink(&outside, layer.at("dir")).unwrap();
    layer.set_mtime("", 1_000_000_000);
    assert_eq!(layer.differences(Depth::Content), ["/dir: kind changed"]);
}

#[test]
fn a_tree_deeper_than_descriptors_reach_is_listed() {
    let mut tar = Tar::default().dir("./");
    let mut path = String::new();
    for level in 0..300 {
        path.push_str("d/");
        if level % 100 == 0 {
            tar = tar.pax(&[("path", format!("{path}file").as_bytes())]).file("x", "x");
        }
    }
    let layer = Layer::new(tar);
    assert_eq!(layer.entries().len(), 1 + 201 + 3);
    assert_eq!(layer.differences(Depth::Content), Vec::<String>::new());
    crate::remove_path(&layer.dir.path().join("tree/d")).unwrap();
    layer.set_mtime("", 1_000_000_000);
    assert_eq!(layer.differences(Depth::Content), ["/d: missing"]);
}

#[test]
fn there_is_an_end_to_differences() {
    let layer = Layer::new((0..1200).fold(Tar::default().dir("./"), |tar, number| tar.file(&number.to_string(), "")));
    let tree = layer.dir.path().join("tree");
    fs::remove_dir_all(&tree).unwrap();
    fs::create_dir(&tree).unwrap();
    layer.set_mtime("", 1_000_000_000);
    let found = layer.listing().compare(&tree, Depth::Metadata).unwrap();
    assert_eq!(found.len(), crate::MOST_DIFFERENCES);
    assert!(found.iter().all(|difference| matches!(difference.what, What::Missing)));
}

#[test]
fn a_damaged_listing_is_no_listing() {
    let layer = Layer::new(hostile());
    let path = layer.dir.path().join("listing");
    let good = fs::read(&path).unwrap();
    let mut bad = good.clone();
    bad[good.len() / 2] ^= 1;
    fs::write(&path, &bad).unwrap();
    assert!(matches!(Listing::open(&path, &layer.unpacked.listing), Err(ListingError::Digest { .. })));
    fs::write(&path, b"PODWRIGHT TREE 2\n").unwrap();
    let digest = Digest::of(b"PODWRIGHT TREE 2\n");
    assert!(matches!(Listing::open(&path, &digest), Err(ListingError::Version)));
    fs::write(&path, &good[..good.len() - 20]).unwrap();
    // Compressed records are read in blocks: a short listing shows its end at once.
    let cut = Listing::open(&path, &Digest::of(&good[..good.len() - 20]));
    assert!(cut.is_err() || cut.is_ok_and(|listing| listing.entries().any(|entry| entry.is_err())));
    fs::remove_file(&path).unwrap();
    assert!(matches!(Listing::open(&path, &digest), Err(ListingError::Read(_))));
}
