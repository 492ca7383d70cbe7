//! The layer that an image needs on top of its own.

use std::fs;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;

use podwright_base::Digest;
use tar::EntryType;

use crate::testing::{Entry, Tar};
use crate::{CompleteError, Expected, Listing, Lower, Unpacked, complete, unpack};

/// Layers, bottom first, and the one that completes them.
struct Image {
    dir: tempfile::TempDir,
    layers: Vec<Unpacked>,
}

impl Image {
    fn new(tars: Vec<Tar>) -> Self {
        let mut image = Self { dir: tempfile::tempdir().unwrap(), layers: Vec::new() };
        for tar in tars {
            image.push(&tar.end());
        }
        image
    }

    fn push(&mut self, bytes: &[u8]) {
        let (tree, listing) = self.places(self.layers.len());
        fs::create_dir(&tree).unwrap();
        let expected = Expected { blob: None, diff_id: Digest::of(bytes) };
        self.layers.push(unpack(bytes, &expected, &tree, &listing).unwrap());
    }

    fn places(&self, layer: usize) -> (PathBuf, PathBuf) {
        (self.dir.path().join(layer.to_string()), self.dir.path().join(format!("{layer}.tree")))
    }

    fn archive(&self) -> Result<Vec<u8>, CompleteError> {
        let lower = |(layer, unpacked): (usize, &Unpacked)| {
            let (tree, listing) = self.places(layer);
            Lower::open(&tree, Some(Listing::open(&listing, &unpacked.listing).unwrap())).unwrap()
        };
        let mut archive = Vec::new();
        let any = complete(self.layers.iter().enumerate().map(lower).collect(), &mut archive)?;
        assert_eq!(any, (!archive.is_empty()).then(|| Digest::of(&archive)));
        Ok(archive)
    }

    /// Makes the completing layer and returns its names.
    fn complete(&mut self) -> Vec<String> {
        let archive = self.archive().unwrap();
        assert_eq!(self.archive().unwrap(), archive, "the same layers, the same archive");
        if archive.is_empty() {
            return Vec::new();
        }
        self.push(&archive);
        let (_, listing) = self.places(self.layers.len() - 1);
        let listing = Listing::open(&listing, &self.layers.last().unwrap().listing).unwrap();
        let entries: Vec<_> = listing.entries().collect::<io::Result<_>>().unwrap();
        entries.iter().skip(1).map(|entry| String::from_utf8_lossy(&entry.path).into_owned()).collect()
    }

    fn top(&self, path: &str) -> fs::Metadata {
        fs::symlink_metadata(self.at(path)).unwrap()
    }

    fn at(&self, path: &str) -> PathBuf {
        self.places(self.layers.len() - 1).0.join(path)
    }
}

fn dir(path: &str, mode: u32) -> Entry {
    Entry::new(EntryType::Directory, path).mode(mode).owner(3, 4).mtime(77)
}

fn with(entry: Entry) -> Tar {
    Tar::default().entry(entry, b"")
}

#[test]
fn implied_directories_are_like_those_below() {
    let base = Tar::default()
        .entry(dir("a", 0o700), b"")
        .pax(&[("SCHILY.xattr.user.note", b"x"), ("mtime", b"-1.25")])
        .entry(dir("a/b", 0o1777), b"")
        .entry(dir("other", 0o700), b"");
    let mut image = Image::new(vec![
        base,
        Tar::default().file("a/b/c/d", ""),
        Tar::default().file("a/b/c/e", "").file("new/f", ""),
    ]);
    assert_eq!(image.complete(), ["a", "a/b"]);
    let (a, b) = (image.top("a"), image.top("a/b"));
    assert_eq!((a.mode() & 0o7777, a.uid(), a.gid(), a.mtime()), (0o700, 3, 4, 77));
    assert_eq!((b.mode() & 0o7777, b.uid(), b.mtime(), b.mtime_nsec()), (0o1777, 3, -2, 750_000_000));
    let mut value = [0; 8];
    assert_eq!(rustix::fs::getxattr(image.at("a/b"), "user.note", &mut value[..]).unwrap(), 1);
}

#[test]
fn ordinary_images_need_nothing() {
    let base = with(dir("a", 0o700));
    for upper in [
        with(dir("a", 0o755)).file("a/x", ""),
        Tar::default().file("b/x", ""),
        // Removed, and made anew: the defaults are right.
        Tar::default().file(".wh.a", "").file("a/x", ""),
        Tar::default().file("a/x", "").file(".wh.a", ""),
    ] {
        assert_eq!(Image::new(vec![base.clone(), upper]).complete(), Vec::<String>::new());
    }
    assert_eq!(Image::new(vec![Tar::default().file("a/b/x", "")]).complete(), Vec::<String>::new());
}

#[test]
fn the_search_for_attributes_ends_where_the_directory_does() {
    let base = with(dir("a", 0o700)).entry(dir("a/b", 0o701), b"");
    // Hidden by a whiteout, a file, an opaque parent, a parent made anew; then implied again.
    for hiding in [
        Tar::default().file("a/.wh.b", ""),
        Tar::default().file("a/b", ""),
        Tar::default().file("a/.wh..wh..opq", ""),
        Tar::default().file(".wh.a", "").file("a/x", ""),
    ] {
        let mut image = Image::new(vec![base.clone(), hiding, Tar::default().file("a/b/x", "")]);
        assert!(!image.complete().contains(&"a/b".to_owned()));
    }
    // An opaque mark hides what is in a directory, not what it is like.
    let opaque = Tar::default().file("a/b/.wh..wh..opq", "").file("a/b/x", "");
    let mut image = Image::new(vec![base.clone(), opaque]);
    assert_eq!(image.complete(), ["a", "a/b"]);
    assert_eq!(image.top("a/b").mode() & 0o7777, 0o701);
    // What the whole image does not show needs no attributes.
    let mut image = Image::new(vec![base, Tar::default().file("a/b/x", ""), Tar::default().file(".wh.a", "")]);
    assert_eq!(image.complete(), Vec::<String>::new());
}

#[test]
fn parents_keep_what_they_are_like() {
    let base = with(dir("a", 0o700)).entry(dir("a/b", 0o701), b"");
    let upper = with(dir("a", 0o711)).file("a/b/x", "");
    let mut image = Image::new(vec![base, upper]);
    assert_eq!(image.complete(), ["a", "a/b"]);
    assert_eq!((image.top("a").mode() & 0o7777, image.top("a/b").mode() & 0o7777), (0o711, 0o701));
}

#[test]
fn hard_links_lead_to_layers_below() {
    let base = with(dir("d", 0o700))
        .entry(Entry::new(EntryType::Regular, "d/file").mode(0o4711).owner(5, 6).mtime(9), b"data")
        .hard_link("other", "d/file")
        .symlink("ways", "/d")
        .symlink("link", "no/where");
    let upper = Tar::default().hard_link("new", "ways/file").hard_link("again", "new").hard_link("l2", "link");
    let mut image = Image::new(vec![base, upper]);
    assert_eq!(image.layers[1].unresolved, 3);
    assert_eq!(image.complete(), ["again", "d", "d/file", "l2", "link", "new", "other"]);
    let new = image.top("new");
    assert_eq!((new.mode() & 0o7777, new.uid(), new.gid(), new.mtime(), new.nlink()), (0o4711, 5, 6, 9, 4));
    assert!(["again", "d/file", "other"].iter().all(|name| image.top(name).ino() == new.ino()));
    assert_eq!(fs::read(image.at("new")).unwrap(), b"data");
    assert_eq!((image.top("l2").nlink(), image.top("l2").ino()), (2, image.top("link").ino()));
    assert_eq!(image.top("d").mode() & 0o7777, 0o700);
}

#[test]
fn links_are_what_their_targets_were_then() {
    let layers = vec![
        Tar::default().file("a", "first"),
        Tar::default().hard_link("b", "a"),
        Tar::default().file("a", "second").hard_link("c", "b").hard_link("d", "a"),
        Tar::default().hard_link("e", "b").file(".wh.c", "").file("f", "").hard_link("g", "e"),
        Tar::default().file("g", "own").file("h/x", ""),
    ];
    let mut image = Image::new(layers);
    assert_eq!(image.complete(), ["b", "e"]);
    assert_eq!((fs::read(image.at("b")).unwrap(), image.top("b").nlink()), (b"first".to_vec(), 2));
    // What is there of a name in the same layer counts: a later entry replaces the link, a whiteout does not.
    let base = Tar::default().file("a", "x").file("b", "old").file("c", "old");
    let upper = Tar::default().hard_link("b", "a").file("b", "new").hard_link("c", "a").file(".wh.c", "");
    let mut image = Image::new(vec![base, upper]);
    assert_eq!(image.complete(), ["a", "c"]);
}

#[test]
fn a_link_takes_a_directorys_place() {
    let base = Tar::default().file("a", "x").dir("b").dir("b/sub");
    let mut image = Image::new(vec![base, Tar::default().file("b/sub/y", "").hard_link("b", "a")]);
    assert_eq!(image.complete(), ["a", "b"]);
    assert!(image.top("b").is_file());
}

#[test]
fn links_to_nothing_are_errors() {
    let base = with(dir("d", 0o700)).file("d/file", "").file("gone", "");
    let refused = |upper: Tar| Image::new(vec![base.clone(), upper]).archive().unwrap_err().to_string();
    assert!(refused(Tar::default().hard_link("l", "none")).contains(r#""l" leads to "none", which is neither in"#));
    assert!(refused(Tar::default().hard_link("l", "d/file/x")).contains("neither in"));
    assert!(refused(Tar::default().hard_link("l", "d")).contains("the directory"));
    let hidden =
        Image::new(vec![base.clone(), Tar::default().file(".wh.gone", ""), Tar::default().hard_link("l", "gone")]);
    assert!(matches!(hidden.archive(), Err(CompleteError::LinkMissing { .. })));
    let looped = Tar::default().symlink("x", "y").symlink("y", "x");
    assert!(Image::new(vec![looped, Tar::default().hard_link("l", "x/z")]).archive().is_err());
}

#[test]
fn holes_stay_holes() {
    let base = Tar::default().pax(&[("GNU.sparse.map", b"1048576,4"), ("GNU.sparse.size", b"1099511627776")]);
    let base = base.file("sparse", "data").file("empty", "");
    let mut image = Image::new(vec![base, Tar::default().hard_link("l", "sparse").hard_link("e", "empty")]);
    assert_eq!(image.complete(), ["e", "empty", "l", "sparse"]);
    let found = image.top("l");
    assert!(found.size() == 1 << 40 && found.blocks() < 1000);
    let mut bytes = [0; 6];
    fs::File::open(image.at("l")).unwrap().read_exact_at(&mut bytes, 1_048_575).unwrap();
    assert_eq!(&bytes, b"\0data\0");
}
