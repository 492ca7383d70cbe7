//! Trees of files as a container sees them: of layers, by overlayfs in a mount namespace of its own; of another tool.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use serde_json::json;

use super::archive::{Image, digest};

/// Each name but the root's, and all that is to be said of it.
pub(crate) type Tree = BTreeMap<Vec<u8>, String>;

/// Reads a tree. Times since `start` are those of directories that no layer gives a time: they are told as such.
pub(crate) fn tree(root: &Path, start: SystemTime) -> Tree {
    let mut reader = Reader { start, tree: Tree::new(), first: BTreeMap::new() };
    reader.directory(root, &[]);
    reader.tree
}

struct Reader {
    start: SystemTime,
    tree: Tree,
    /// The first name of inodes that have several.
    first: BTreeMap<(u64, u64), Vec<u8>>,
}

impl Reader {
    fn directory(&mut self, at: &Path, path: &[u8]) {
        let mut names: Vec<_> = fs::read_dir(at).expect("a directory").map(|entry| entry.expect("a name")).collect();
        names.sort_by_key(fs::DirEntry::file_name);
        for entry in names {
            let mut path = path.to_vec();
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(entry.file_name().as_bytes());
            let metadata = entry.metadata().expect("its metadata");
            let told = self.name(&entry.path(), &path, &metadata);
            if metadata.is_dir() {
                self.directory(&entry.path(), &path);
            }
            self.tree.insert(path, told);
        }
    }

    fn name(&mut self, at: &Path, path: &[u8], metadata: &fs::Metadata) -> String {
        let kind = metadata.file_type();
        let what = if kind.is_dir() {
            "directory".to_owned()
        } else if kind.is_file() {
            format!("file of {} {}", metadata.len(), digest(&fs::read(at).expect("its contents")))
        } else if kind.is_symlink() {
            format!("link to {:?}", fs::read_link(at).expect("its target"))
        } else if kind.is_fifo() {
            "fifo".to_owned()
        } else {
            let rdev = (rustix::fs::major(metadata.rdev()), rustix::fs::minor(metadata.rdev()));
            format!("{} device {rdev:?}", if kind.is_char_device() { "character" } else { "block" })
        };
        let time = (metadata.mtime(), metadata.mtime_nsec());
        let since = self.start.duration_since(UNIX_EPOCH).expect("it is after 1970").as_secs();
        let time = if kind.is_dir() && time.0 >= since.cast_signed() { "now".to_owned() } else { format!("{time:?}") };
        let same = match self.first.entry((metadata.dev(), metadata.ino())) {
            _ if kind.is_dir() => String::new(),
            Entry::Occupied(first) => format!(", one with {}", first.get().escape_ascii()),
            Entry::Vacant(vacant) => {
                vacant.insert(path.to_vec());
                String::new()
            }
        };
        let (mode, uid, gid) = (metadata.mode() & 0o7777, metadata.uid(), metadata.gid());
        format!("{what}, {mode:04o} {uid}:{gid} {time}{}{same}", attributes(at))
    }
}

/// Extended attributes, the labels of the host's security module left out.
fn attributes(at: &Path) -> String {
    let mut list = vec![0; 65_536];
    let length = rustix::fs::llistxattr(at, list.as_mut_slice()).expect("its attributes");
    let mut keys: Vec<&[u8]> = list[..length].split(|byte| *byte == 0).filter(|key| !key.is_empty()).collect();
    keys.retain(|key| *key != b"security.selinux");
    keys.sort_unstable();
    let told = keys.into_iter().map(|key| {
        let mut value = vec![0; 65_536];
        let length = rustix::fs::lgetxattr(at, key, value.as_mut_slice()).expect("its value");
        format!(", {}={}", key.escape_ascii(), value[..length].escape_ascii())
    });
    told.collect()
}

/// Reads what overlayfs shows of layer directories, bottom first. `scratch` is an empty directory.
pub(crate) fn merged(layers: &[PathBuf], scratch: &Path, start: SystemTime) -> Tree {
    let (layers, scratch) = (layers.to_vec(), scratch.to_owned());
    // The mount goes with the thread, whose namespace it is in.
    let thread = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS).expect("the tests run as root");
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).expect("private mounts");
        tree_of_overlay(&layers, &scratch, start)
    });
    thread.join().expect("the layers are mounted")
}

fn tree_of_overlay(layers: &[PathBuf], scratch: &Path, start: SystemTime) -> Tree {
    // Short names: mount options have room for a page.
    let link = |(number, layer): (usize, &PathBuf)| {
        std::os::unix::fs::symlink(layer, scratch.join(number.to_string())).expect("a short name");
        scratch.join(number.to_string()).display().to_string()
    };
    let mut lower: Vec<String> = layers.iter().enumerate().map(link).collect();
    lower.reverse();
    // overlayfs wants two.
    for name in ["none", "merged"] {
        fs::create_dir(scratch.join(name)).expect("a directory");
    }
    lower.push(scratch.join("none").display().to_string());
    let options = format!("lowerdir={}", lower.join(":"));
    let place = scratch.join("merged");
    mount(Some("overlay"), &place, Some("overlay"), MsFlags::MS_RDONLY, Some(options.as_str())).expect("an overlay");
    tree(&place, start)
}

/// Reads what umoci makes of an image in an OCI layout.
pub(crate) fn by_umoci(layout: &Path, scratch: &Path, start: SystemTime) -> Tree {
    let bundle = scratch.join("bundle");
    let image = format!("{}:latest", layout.display());
    let output = Command::new("umoci").args(["unpack", "--image", &image]).arg(&bundle).output();
    let output = output.expect("hack/test installs umoci");
    assert!(output.status.success(), "umoci: {}", String::from_utf8_lossy(&output.stderr));
    let tree = tree(&bundle.join("rootfs"), start);
    fs::remove_dir_all(&bundle).expect("umoci's tree can be removed");
    tree
}

/// Writes an image as an OCI layout, named `latest`.
pub(crate) fn write_layout(image: &Image, place: &Path) {
    let blobs = place.join("blobs/sha256");
    fs::create_dir_all(&blobs).expect("a directory");
    let manifest = digest(&image.manifest);
    let files = image.blobs.iter().map(|(name, bytes)| (name, bytes.as_slice()));
    for (name, bytes) in files.chain([(&manifest, image.manifest.as_slice())]) {
        fs::write(blobs.join(name.trim_start_matches("sha256:")), bytes).expect("a blob");
    }
    let index = json!({"schemaVersion": 2, "manifests": [{
        "mediaType": image.media_type(), "digest": manifest, "size": image.manifest.len(),
        "annotations": {"org.opencontainers.image.ref.name": "latest"}}]});
    fs::write(place.join("index.json"), index.to_string()).expect("the index");
    fs::write(place.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).expect("the marker");
}

/// Fails with the names that differ.
pub(crate) fn assert_same(what: &str, ours: &Tree, theirs: &Tree) {
    let mut names: Vec<&Vec<u8>> = ours.keys().chain(theirs.keys()).collect();
    names.sort_unstable();
    names.dedup();
    let none = "nothing".to_owned();
    let differs = names.into_iter().filter(|name| ours.get(*name) != theirs.get(*name)).map(|name| {
        let told = |tree: &Tree| tree.get(name).unwrap_or(&none).clone();
        format!("/{}\n  podwright: {}\n  the other: {}", name.escape_ascii(), told(ours), told(theirs))
    });
    let differs: Vec<String> = differs.take(20).collect();
    assert!(differs.is_empty(), "{what}:\n{}", differs.join("\n"));
    assert!(!ours.is_empty(), "{what}: nothing was compared");
}

/// Times from here on are the present.
pub(crate) fn start() -> SystemTime {
    // The kernel's clock for files goes in ticks.
    SystemTime::now() - Duration::from_secs(1)
}
