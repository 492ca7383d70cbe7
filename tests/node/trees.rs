//! The same images unpacked by Podwright, whose layers overlayfs puts together, and by umoci: the trees are identical,
//! names, modes, owners, times, extended attributes, hard links and devices.
//!
//! Where the two differ by design, or umoci is wrong, a test of its own says so.

use std::fs;
use std::path::{Path, PathBuf};

use podwright_layer::testing::{Entry, Tar};
use serde_json::{Value, json};
use tar::EntryType;

use crate::lab::Node;
use crate::lab::archive::{Format, Image, Layer, Packing};
use crate::lab::cri::shell;
use crate::lab::node::image;
use crate::lab::registry::{Access, Registry};
use crate::lab::tree::{Tree, assert_same, by_umoci, merged, start, write_layout};

/// Pulls an image and reads what a container of it would see.
async fn pulled(node: &Node, name: &str, scratch: &Path) -> Tree {
    let start = start();
    let id = node.pull(name).await.unwrap_or_else(|status| panic!("{name}: {status:?}"));
    let hex = id.trim_start_matches("sha256:");
    let record = fs::read(node.layout().images().join(format!("{hex}.json"))).expect("the image's record");
    let record: Value = serde_json::from_slice(&record).expect("JSON");
    let layers = record["layers"].as_array().expect("its layers").iter();
    let directory =
        |layer: &Value| node.layout().layers().join(layer.as_str().expect("a digest").trim_start_matches("sha256:"));
    let layers: Vec<PathBuf> = layers.map(directory).collect();
    fs::create_dir(scratch.join("overlay")).expect("a directory");
    let tree = merged(&layers, &scratch.join("overlay"), start);
    fs::remove_dir_all(scratch.join("overlay")).expect("it can be removed");
    tree
}

#[tokio::test]
async fn real_images_are_unpacked_as_by_umoci() {
    let node = Node::start().await;
    let images = PathBuf::from(std::env::var("PODWRIGHT_TEST_IMAGES").expect("set by hack/test"));
    let scratch = tempfile::tempdir().expect("a directory");
    for name in ["busybox", "nginx", "redis", "postgres", "python"] {
        let ours = pulled(&node, &image(name), scratch.path()).await;
        let theirs = by_umoci(&images.join("oci").join(name), scratch.path(), start());
        assert_same(name, &ours, &theirs);
    }
    node.finish().await;
}

/// Images that are compared, of podwright's packing and of umoci's, which knows no zstd.
struct Lab {
    node: Node,
    registry: Registry,
    scratch: tempfile::TempDir,
}

impl Lab {
    async fn start() -> Self {
        let node = Node::start().await;
        let registry = Registry::start(Access::Open).await;
        node.map_host("trees.test", &registry.url());
        Self { node, registry, scratch: tempfile::tempdir().expect("a directory") }
    }

    async fn ours(&self, name: &str, layers: &[Tar], packings: &[Packing]) -> Tree {
        self.registry.publish(name, "1", &pack(layers, packings));
        pulled(&self.node, &format!("trees.test/{name}:1"), self.scratch.path()).await
    }

    async fn compare(&self, name: &str, layers: &[Tar]) {
        self.compare_packed(name, layers, &[Packing::Gzip]).await;
    }

    async fn compare_packed(&self, name: &str, layers: &[Tar], packings: &[Packing]) {
        let ours = self.ours(name, layers, packings).await;
        assert_same(name, &ours, &self.theirs(name, layers));
    }

    fn theirs(&self, name: &str, layers: &[Tar]) -> Tree {
        let (layout, start) = (self.scratch.path().join(name), start());
        write_layout(&pack(layers, &[Packing::Gzip]), &layout);
        by_umoci(&layout, self.scratch.path(), start)
    }
}

fn pack(layers: &[Tar], packings: &[Packing]) -> Image {
    let layers = layers.iter().zip(packings.iter().cycle());
    let layers = layers.map(|(layer, packing)| (Layer::of(layer.clone().cut()), *packing)).collect();
    Image::pack(Format::Oci, layers, &json!({"Cmd": ["sh"]}))
}

fn dir(path: &str, mode: u32, time: u64) -> Entry {
    Entry::new(EntryType::Directory, path).mode(mode).owner(7, 8).mtime(time)
}

fn with(entry: Entry) -> Tar {
    Tar::default().entry(entry, b"")
}

#[tokio::test]
async fn implied_directories_are_as_by_umoci() {
    let lab = Lab::start().await;
    let base = with(dir("a", 0o700, 77))
        .pax(&[("SCHILY.xattr.user.note", b"kept"), ("mtime", b"-1.25")])
        .entry(dir("a/b", 0o1777, 0), b"")
        .entry(dir("a/b/c", 0o2750, 79), b"")
        .entry(dir("z", 0o711, 80), b"");
    let layers = [
        base,
        Tar::default().file("a/b/c/one", "1").file("new/dir/file", "x"),
        with(dir("a", 0o755, 90)).file("a/b/c/two", "2"),
        Tar::default().file("a/b/.wh.c", "").file("z/x", "").file("new/dir/other", ""),
        Tar::default().file("a/b/c/three", "anew"),
    ];
    for count in 2..layers.len() {
        lab.compare(&format!("implied{count}"), &layers[..count]).await;
    }
    // When umoci makes a directory that is implied, the one that it comes into loses the time that its layer gave it.
    let (ours, mut theirs) = (lab.ours("implied", &layers, &[Packing::Gzip]).await, lab.theirs("implied", &layers));
    let told = theirs.get_mut(&b"a/b"[..]).expect("the directory");
    assert!(told.contains(" now"), "{told}");
    *told = told.replace(" now", " (-2, 750000000)");
    assert_same("implied", &ours, &theirs);
    lab.node.finish().await;
}

#[tokio::test]
async fn hard_links_across_layers_are_as_by_umoci() {
    let lab = Lab::start().await;
    let base = with(dir("d", 0o750, 77))
        .entry(Entry::new(EntryType::Regular, "d/file").mode(0o4711).owner(5, 6).mtime(9), b"data")
        .hard_link("d/same", "d/file")
        .file("late", "late")
        .symlink("link", "no/where")
        .entry(Entry::new(EntryType::Fifo, "fifo").mode(0o640), b"");
    let upper = Tar::default()
        .hard_link("new", "d/file")
        .hard_link("sub/again", "new")
        .hard_link("l2", "link")
        .hard_link("f2", "fifo")
        .hard_link("gone", "late");
    let third = Tar::default().hard_link("third", "sub/again").file(".wh.gone", "").file("l2", "now a file");
    let layers = [base, upper, third];
    lab.compare("links2", &layers[..2]).await;
    lab.compare("links3", &layers).await;
    lab.node.finish().await;
}

#[tokio::test]
async fn whiteouts_are_as_by_umoci() {
    let lab = Lab::start().await;
    let base = ["a", "b", "c", "e"].iter().fold(Tar::default(), |tar, name| {
        let (file, sub) = (format!("{name}/file"), format!("{name}/sub"));
        tar.entry(dir(name, 0o750, 5), b"")
            .file(&file, *name)
            .entry(dir(&sub, 0o700, 6), b"")
            .file(&format!("{sub}/x"), "x")
    });
    let layers = [
        base.file("f", "f").symlink("s", "a").file("twice", "first").file("kind", "file"),
        // Gone; gone and made anew in the same layer; emptied; a file becomes a directory and the other way round.
        Tar::default()
            .file(".wh.a", "")
            .file(".wh.b", "")
            .entry(dir("b", 0o755, 50), b"")
            .file("b/new", "new")
            .entry(dir("c", 0o755, 51), b"")
            .file("c/.wh..wh..opq", "")
            .file("c/new", "new")
            .file(".wh.f", "")
            .file(".wh.twice", "")
            .file("twice", "second")
            .entry(dir("kind", 0o700, 52), b"")
            .file("kind/in", "in")
            .file("e/sub", "was a directory"),
        // Back in a later layer.
        with(dir("a", 0o701, 60)).file("a/back", "back").file("f", "back").file("kind", "file again").file(".wh.s", ""),
        Tar::default().file(".wh.nothing", "").file("c/.wh.new", "").symlink("s", "c").file("e/.wh.file", ""),
        // All of it.
        Tar::default().file(".wh..wh..opq", "").entry(dir("a", 0o700, 70), b"").file("left", "x"),
    ];
    for count in 2..=layers.len() {
        lab.compare(&format!("whiteouts{count}"), &layers[..count]).await;
    }
    lab.node.finish().await;
}

#[tokio::test]
async fn names_and_times_are_as_by_umoci() {
    let lab = Lab::start().await;
    let long = "n".repeat(255);
    let deep = vec!["d".repeat(200); 18].join("/");
    let gnu = |path: &str, kind: u8| {
        let mut header = Entry::new(EntryType::new(kind), "././@LongLink").header;
        header.set_size(path.len() as u64 + 1);
        let mut tar = Tar::default();
        tar.raw(header, format!("{path}\0").as_bytes());
        tar.cut()
    };
    let names = Tar::default()
        .pax(&[("path", long.as_bytes())])
        .file("x", "long")
        .pax(&[("path", format!("{deep}/file").as_bytes())])
        .file("x", "deep")
        .pax(&[("path", format!("{deep}/link").as_bytes()), ("linkpath", format!("{deep}/file").as_bytes())])
        .hard_link("x", "y")
        .pax(&[("path", b"\xff\xfe\x01/\xc3\x28 \n")])
        .file("x", "no UTF-8")
        .file("ünïcode", "UTF-8")
        .joined(&gnu(&format!("gnu/{long}"), b'L'))
        .file("x", "by GNU")
        .joined(&gnu(&format!("gnu/{}", "l".repeat(200)), b'L'))
        .joined(&gnu(&"t".repeat(300), b'K'))
        .symlink("x", "y");
    let times = Tar::default()
        .pax(&[("mtime", b"-86400.5")])
        .file("before", "1969")
        .pax(&[("mtime", b"1700000000.123456789")])
        .file("fraction", "")
        .pax(&[("mtime", b"-0.000000001")])
        .symlink("link", "x")
        .pax(&[("mtime", b"4294967296.5")])
        .entry(dir("late", 0o755, 0), b"")
        .file("late/file", "");
    lab.compare("names", &[names.clone(), Tar::default().file("over", ""), times.clone()]).await;
    lab.compare("times", &[times, names]).await;
    lab.node.finish().await;
}

#[tokio::test]
async fn special_files_are_as_by_umoci() {
    let lab = Lab::start().await;
    let capability = b"\x01\0\0\x02\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    let special = Tar::default()
        .entry(Entry::new(EntryType::Regular, "setuid").mode(0o4755), b"s")
        .entry(Entry::new(EntryType::Regular, "setgid").mode(0o2755).owner(1000, 1000), b"s")
        .pax(&[("SCHILY.xattr.security.capability", capability), ("SCHILY.xattr.user.binary", b"\0\n=\xff")])
        .entry(Entry::new(EntryType::Regular, "ping").mode(0o755).owner(3, 4), b"ping")
        .pax(&[("uid", b"3000000000"), ("gid", b"4000000000")])
        .file("owned", "")
        .entry(Entry::new(EntryType::Char, "null").device(1, 3).mode(0o666), b"")
        .entry(Entry::new(EntryType::Block, "disk").device(259, 70_000).mode(0o660).owner(0, 6), b"")
        .entry(Entry::new(EntryType::Fifo, "fifo").mode(0o622), b"")
        .hard_link("null2", "null")
        .pax(&[("GNU.sparse.numblocks", b"2"), ("GNU.sparse.map", b"0,3,1048576,4"), ("GNU.sparse.size", b"2097152")])
        .file("sparse01", "onedata")
        .pax(&[
            ("GNU.sparse.major", b"1"),
            ("GNU.sparse.minor", b"0"),
            ("GNU.sparse.realsize", b"10000"),
            ("GNU.sparse.name", b"sparse10"),
        ])
        .file("x", [&b"1\n9000\n4\n"[..], &[0; 503], b"data"].concat());
    lab.compare("special", &[special, Tar::default().hard_link("disk2", "disk").hard_link("ping2", "ping")]).await;
    lab.node.finish().await;
}

#[tokio::test]
async fn many_files_and_layers_are_as_by_umoci() {
    let lab = Lab::start().await;
    let mut small = Tar::default();
    for number in 0..10_000 {
        let path = format!("s/{}/{}", number % 97, number);
        small = small.entry(Entry::new(EntryType::Regular, &path).owner(number % 5, 0).mtime(number), path.as_bytes());
    }
    lab.compare("small", &[small]).await;
    let layer = |number: u64| {
        let own = Tar::default().file(&format!("own/{number}"), "x").file("shared", number.to_string());
        let own = own.file(&format!("{}/deep/file", number % 7), number.to_string());
        if number > 0 {
            own.file(&format!("own/.wh.{}", number - 1), "")
        } else {
            own.entry(dir("own", 0o1777, 9), b"")
        }
    };
    lab.compare("layers", &(0..60).map(layer).collect::<Vec<_>>()).await;
    let packings = [Packing::Zstd, Packing::Plain, Packing::Gzip];
    let mixed = [layer(0), Tar::default(), layer(1), layer(2), Tar::default(), layer(3)];
    lab.compare_packed("packings", &mixed, &packings).await;
    lab.node.finish().await;
}

/// A layer that names a file below a directory which is a symbolic link in a layer below: the layer's own directory hides
/// the link, as with every runtime that unpacks layers for overlayfs. umoci follows the link.
#[tokio::test]
async fn links_of_layers_below_are_not_followed() {
    let lab = Lab::start().await;
    let base = Tar::default().dir("usr").dir("usr/lib").symlink("lib", "usr/lib");
    let ours = lab.ours("through", &[base, Tar::default().file("lib/file", "x")], &[Packing::Gzip]).await;
    let names: Vec<String> = ours.keys().map(|name| String::from_utf8_lossy(name).into_owned()).collect();
    assert_eq!(names, ["lib", "lib/file", "usr", "usr/lib"]);
    lab.node.finish().await;
}

/// umoci gives its own tree's root; a container's is made with the container.
#[tokio::test]
async fn a_containers_root_is_like_its_images() {
    let lab = Lab::start().await;
    let root = with(Entry::new(EntryType::Directory, "./").mode(0o751).owner(0, 42));
    let layers = vec![(Layer::of(root.cut()), Packing::Gzip), (Layer::busybox(), Packing::Gzip)];
    let packed = Image::pack(Format::Oci, layers, &json!({"Cmd": ["sh"]}));
    lab.registry.publish("root", "1", &packed);
    lab.node.pull("trees.test/root:1").await.expect("PullImage");
    let mut config = shell("root", "stat -c '%a %u %g' /");
    config.image.as_mut().expect("it has one").image = "trees.test/root:1".to_owned();
    let (output, _) = lab.node.script(&config).await;
    assert_eq!(output.trim(), "751 0 42");
    lab.node.finish().await;
}
