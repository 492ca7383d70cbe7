//! Power cuts at any moment of pulls and removals, on a file system of the test's own.
//!
//! The cut is the file system's own emergency stop: what is not synced by then is lost, as it is when a machine goes
//! dark. `PODWRIGHT_TEST_CUTS` (50) of them come at moments drawn from `PODWRIGHT_TEST_SEED` (1).

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::mount::{MntFlags, MsFlags};
use nix::sched::CloneFlags;
use podwright_base::Digest;
use podwright_base::config::Registry as Config;
use podwright_layer::Expected;
use podwright_sys::power_cut;
use tokio::runtime::{self, Runtime};
use tokio::sync::watch;

use super::image::{Layer, Tar, TestImage};
use super::registry::{Registry, layout};
use crate::progress::PullProgress;
use crate::{Images, Outcome, Verified};

const WORKERS: usize = 2;
const IMAGES_EACH: usize = 4;
/// Between power and power cut, in microseconds.
const LONGEST_LIFE: u64 = 400_000;

#[test]
fn fifty_power_cuts_lose_nothing_and_leave_nothing() {
    let setting = |name: &str, default| std::env::var(name).map_or(default, |text| text.parse().expect("a number"));
    let (cuts, seed) = (setting("PODWRIGHT_TEST_CUTS", 50), setting("PODWRIGHT_TEST_SEED", 1));
    // Mounts are those of this thread and of the threads that it starts: no other test sees them, and none outlives it.
    let lab = std::thread::spawn(move || {
        nix::sched::unshare(CloneFlags::CLONE_NEWNS).expect("root may unshare its mounts");
        nix::mount::mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
            .unwrap();
        let mut lab = Lab::new(Random(seed));
        for cut in 0..cuts {
            lab.live_and_die(cut);
        }
        drop(lab.check().1);
        println!("{cuts} cuts (seed {seed}), {} pulls and removals", lab.acknowledged());
    });
    lab.join().unwrap();
}

struct Lab {
    registry: Registry,
    /// Serves the registry.
    _runtime: Runtime,
    dir: tempfile::TempDir,
    random: Random,
    images: Vec<TestImage>,
    /// What each layer is, by its diffID.
    trees: BTreeMap<Digest, Tree>,
    known: Arc<Mutex<Known>>,
}

/// Path, type and mode, time, bytes.
type Tree = BTreeSet<(PathBuf, u32, i64, Vec<u8>)>;

/// What the node has promised.
#[derive(Default)]
struct Known {
    /// Whether an image is there; not in here: it may be.
    there: BTreeMap<usize, bool>,
    acknowledged: usize,
}

impl Lab {
    fn new(mut random: Random) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let runtime = runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let registry = runtime.block_on(Registry::start());
        let layers: Vec<Layer> = (0..6).map(|number| layer(number, &mut random)).collect();
        let images: Vec<TestImage> = (0..WORKERS * IMAGES_EACH)
            .map(|number| {
                let first = usize::try_from(random.below(3)).unwrap();
                let own = Layer::gzip(Tar::default().file("own", format!("{number}")));
                TestImage::new([&layers[first..first + 3], &[own]].concat())
            })
            .collect();
        let mut trees = BTreeMap::new();
        for (number, image) in images.iter().enumerate() {
            registry.push(&format!("i{number}"), "v", image);
            for layer in &image.layers {
                let unpacked = dir.path().join(layer.diff_id.hex());
                if fs::create_dir(&unpacked).is_ok() {
                    let expected = Expected { blob: Some(layer.digest()), diff_id: layer.diff_id.clone() };
                    let listing = unpacked.with_extension("tree");
                    podwright_layer::unpack(layer.blob.as_slice(), &expected, &unpacked, &listing).unwrap();
                    trees.insert(layer.diff_id.clone(), tree(&unpacked));
                }
            }
        }
        let disk = dir.path().join("disk.img");
        File::create(&disk).unwrap().set_len(64 << 20).unwrap();
        fs::create_dir(dir.path().join("mount")).unwrap();
        let made = Command::new("mkfs.ext4").args(["-q", "-E", "lazy_itable_init=0"]).arg(&disk).status();
        assert!(made.expect("e2fsprogs is installed").success());
        Self { registry, _runtime: runtime, dir, random, images, trees, known: Arc::default() }
    }

    fn acknowledged(&self) -> usize {
        self.known.lock().unwrap().acknowledged
    }

    fn mount(&self) -> Disk {
        let place = self.dir.path().join("mount");
        // The loop device goes with the mount.
        let disk = self.dir.path().join("disk.img");
        let mounted = Command::new("mount").args(["-n", "-o", "loop"]).args([&disk, &place]).status();
        assert!(mounted.unwrap().success());
        Disk { place }
    }

    fn open(&self, disk: &Disk) -> Images {
        let config = Config { config_path: self.dir.path().join("certs.d"), attempts: 1, ..Config::default() };
        let images = Images::open(&layout(&disk.place), &config).unwrap();
        images.collect().unwrap();
        images
    }

    /// What was promised is there, what is there is whole, and nothing else is there.
    fn check(&self) -> (Disk, Images) {
        let disk = self.mount();
        let images = self.open(&disk);
        let mut known = self.known.lock().unwrap();
        let listed = images.list();
        for (number, image) in self.images.iter().enumerate() {
            let is_there = listed.iter().any(|known| known.id == image.id());
            assert_eq!(*known.there.entry(number).or_insert(is_there), is_there, "i{number}");
        }
        let mut expected = BTreeSet::from(["content/index.json".to_owned(), "content/oci-layout".to_owned()]);
        let mut names = BTreeSet::new();
        let runtime = runtime::Builder::new_current_thread().build().unwrap();
        let mut verified = Verified::default();
        for image in &listed {
            let (found, outcome) = runtime.block_on(images.verify(image, false, &mut verified)).unwrap();
            assert!(matches!(outcome, Outcome::Whole), "{found:?}");
            for layer in &image.layers {
                assert_eq!(tree(&images.layer_path(layer)), self.trees[layer], "{layer}");
                expected.extend(["", ".json", ".tree"].map(|kind| format!("layers/{}{kind}", layer.hex())));
            }
            for digest in [&image.id, &image.manifest] {
                let blob = format!("content/blobs/sha256/{}", digest.hex());
                assert_eq!(Digest::of(&fs::read(disk.root().join(&blob)).unwrap()), *digest);
                expected.insert(blob);
            }
            expected.insert(format!("images/{}.json", image.id.hex()));
            names.extend(image.tags.clone());
        }
        let mut found = BTreeSet::new();
        for place in ["content", "content/blobs/sha256", "layers", "images"] {
            let entries = fs::read_dir(disk.root().join(place)).unwrap().map(|entry| entry.unwrap().file_name());
            found.extend(entries.map(|name| format!("{place}/{}", name.to_string_lossy())));
        }
        found.retain(|path| !["content/blobs", "content/ingest"].contains(&path.as_str()));
        assert_eq!(found, expected);
        let index: serde_json::Value =
            serde_json::from_slice(&fs::read(disk.root().join("content/index.json")).unwrap()).unwrap();
        let described = index["manifests"].as_array().unwrap().iter();
        let described: BTreeSet<String> =
            described.map(|entry| entry["annotations"]["io.containerd.image.name"].as_str().unwrap().into()).collect();
        assert_eq!(described, names);
        (disk, images)
    }

    fn live_and_die(&mut self, cut: u64) {
        let (disk, images) = self.check();
        let inside = File::open(&disk.place).unwrap();
        let dark = Arc::new(AtomicBool::new(false));
        let runtime = Runtime::new().unwrap();
        let workers: Vec<_> = (0..WORKERS)
            .map(|worker| {
                let own = worker * IMAGES_EACH..(worker + 1) * IMAGES_EACH;
                let names = own.map(|number| (number, self.registry.name(&format!("i{number}"), "v"))).collect();
                let random = Random(self.random.below(u64::MAX));
                runtime.spawn(work(images.clone(), names, random, Arc::clone(&self.known), Arc::clone(&dark)))
            })
            .collect();
        let others = std::thread::spawn({
            let (dark, place, mut random) =
                (Arc::clone(&dark), disk.place.clone(), Random(self.random.below(u64::MAX)));
            move || sync_now_and_then(&place, &mut random, &dark)
        });
        std::thread::sleep(Duration::from_micros(self.random.below(LONGEST_LIFE)));
        dark.store(true, Ordering::SeqCst);
        power_cut::cut(inside.as_fd()).unwrap();
        for worker in workers {
            runtime.block_on(worker).unwrap_or_else(|error| panic!("cut {cut}: {error}"));
        }
        others.join().unwrap();
        drop((images, inside));
        runtime.shutdown_timeout(Duration::from_secs(30));
    }
}

/// Pulls and removes until the disk fails.
async fn work(
    images: Images,
    names: Vec<(usize, String)>,
    mut random: Random,
    known: Arc<Mutex<Known>>,
    dark: Arc<AtomicBool>,
) {
    loop {
        let (number, name) = &names[usize::try_from(random.below(names.len() as u64)).unwrap()];
        let before = known.lock().unwrap().there.remove(number);
        let is_pull = random.below(3) > 0;
        let done = if is_pull {
            let progress = watch::Sender::new(PullProgress::default());
            images.pull(name, None, &progress).await.map(drop).map_err(|error| super::registry::chain(&error))
        } else {
            images.remove(name).await.map(drop).map_err(|error| super::registry::chain(&error))
        };
        if let Err(error) = done {
            assert!(dark.load(Ordering::SeqCst), "{name}: {error}");
            return;
        }
        let mut known = known.lock().unwrap();
        known.there.insert(*number, is_pull);
        known.acknowledged += usize::from(before != Some(is_pull));
    }
}

/// What other programs on a host do: beginnings of publications reach the disk.
fn sync_now_and_then(place: &Path, random: &mut Random, dark: &AtomicBool) {
    let directory = File::open(place).unwrap();
    while !dark.load(Ordering::SeqCst) {
        std::thread::sleep(Duration::from_micros(random.below(3000)));
        fs::write(place.join("other"), "something").and_then(|()| directory.sync_all()).unwrap_or_else(|error| {
            assert!(dark.load(Ordering::SeqCst), "{error}");
        });
    }
}

/// Files of all sizes; the first layer is one whose part is kept when it comes only half.
fn layer(number: u64, random: &mut Random) -> Layer {
    let mut tar = Tar::default().dir("files");
    for file in 0..30 {
        let size = usize::try_from(random.below(20_000)).unwrap();
        let bytes: Vec<u8> = (0..size).map(|_| random.below(256) as u8).collect();
        tar = tar.file(&format!("files/{number}-{file}"), bytes);
    }
    if number == 2 {
        let bytes: Vec<u8> = (0..1_500_000).map(|_| random.below(256) as u8).collect();
        tar = tar.file("large", bytes);
    }
    Layer::zstd(tar)
}

fn tree(root: &Path) -> Tree {
    let (mut tree, mut directories) = (Tree::new(), vec![root.to_owned()]);
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory).unwrap() {
            let path = entry.unwrap().path();
            let metadata = fs::symlink_metadata(&path).unwrap();
            let bytes = if metadata.is_file() { fs::read(&path).unwrap() } else { Vec::new() };
            tree.insert((path.strip_prefix(root).unwrap().to_owned(), metadata.mode(), metadata.mtime(), bytes));
            if metadata.is_dir() {
                directories.push(path);
            }
        }
    }
    tree
}

/// A mounted disk.
struct Disk {
    place: PathBuf,
}

impl Disk {
    fn root(&self) -> PathBuf {
        self.place.join("root")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let unmounted = nix::mount::umount2(&self.place, MntFlags::empty());
        if !std::thread::panicking() {
            unmounted.expect("nobody has files open");
        }
    }
}

/// Numbers that are the same for the same seed (splitmix64).
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (mixed ^ (mixed >> 31)) % limit
    }
}
