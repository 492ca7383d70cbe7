//! Pulls, loads, removals, collections and leases side by side: at the end exactly what is referenced is there.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use proptest::prelude::*;
use serde_json::json;
use tokio::sync::watch;

use super::image::{Layer, Tar, TestImage};
use super::load::oci;
use super::registry::{Node, Registry};
use crate::progress::PullProgress;
use crate::{Image, Images, Lease};

const IMAGES: usize = 4;

#[derive(Debug, Clone, Copy)]
enum Step {
    Pull(usize),
    /// Begun and given up.
    Abandon(usize),
    Load(usize),
    Remove(usize),
    Collect,
    /// Held until the next one of its task.
    Hold(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let image = 0..IMAGES;
    prop_oneof![
        4 => image.clone().prop_map(Step::Pull),
        1 => image.clone().prop_map(Step::Abandon),
        2 => image.clone().prop_map(Step::Load),
        3 => image.clone().prop_map(Step::Remove),
        1 => Just(Step::Collect),
        2 => image.prop_map(Step::Hold),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, max_shrink_iters: 30, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn what_is_referenced_stays_and_nothing_else(
        tasks in prop::collection::vec(prop::collection::vec(step(), 1..12), 4), keep in any::<bool>(),
    ) {
        let runtime = || tokio::runtime::Builder::new_multi_thread().worker_threads(4).enable_all().build().unwrap();
        let node = runtime().block_on(run(tasks, keep));
        // The first runtime's end awaits what was begun in it: a pull that is given up while it publishes still does.
        runtime().block_on(check(node));
    }
}

/// What all tasks work with.
struct Lab {
    images: Images,
    /// Names to pull, and archives with the same images.
    names: Vec<String>,
    archives: Vec<PathBuf>,
}

async fn run(tasks: Vec<Vec<Step>>, keep: bool) -> Node {
    let (registry, mut node) = (Registry::start().await, Node::new());
    node.config.keep_layer_blobs = keep;
    let node = node.reopen();
    node.images.collect().unwrap();
    let shared: Vec<Layer> = (0..3).map(|number| layer(&format!("shared-{number}"))).collect();
    let (mut names, mut archives) = (Vec::new(), Vec::new());
    for number in 0..IMAGES {
        let own = layer(&format!("own-{number}"));
        let image = TestImage::new([&shared[..number.min(3)], &[own]].concat());
        names.push(registry.push(&format!("i{number}"), "v", &image));
        let archive = node.dir.path().join(format!("{number}.tar"));
        fs::write(&archive, oci(&[(&image, json!({"io.containerd.image.name": names[number]}))]).end()).unwrap();
        archives.push(archive);
    }
    let lab = Arc::new(Lab { images: node.images.clone(), names, archives });
    let running: Vec<_> = tasks.into_iter().map(|steps| tokio::spawn(one(Arc::clone(&lab), steps))).collect();
    for task in running {
        task.await.unwrap();
    }
    node
}

async fn check(node: Node) {
    let images = node.images.clone();
    tokio::task::spawn_blocking(move || images.collect().unwrap()).await.unwrap();
    // What a lease or a given-up pull leaves is removed in the background.
    let mut left = leftovers(&node);
    while !left.is_empty() && left.iter().all(|path| path.starts_with("layers/.")) {
        tokio::task::yield_now().await;
        left = leftovers(&node);
    }
    assert_eq!(left, BTreeSet::new());
    for image in node.images.list() {
        assert!(image.layers.iter().all(|layer| node.images.layer_path(layer).join("name").exists()));
        assert!(node.images.remove(image.id.as_str()).await.unwrap());
    }
    let left: Vec<String> = node.residue().into_iter().filter(|path| !path.ends_with(".part")).collect();
    assert_eq!(left, Vec::<String>::new());
}

fn layer(name: &str) -> Layer {
    Layer::gzip(Tar::default().file("name", name).file(name, vec![7; 5000]))
}

async fn one(lab: Arc<Lab>, steps: Vec<Step>) {
    let mut held: Option<(Arc<Image>, Lease)> = None;
    let progress = watch::Sender::new(PullProgress::default());
    for step in steps {
        match step {
            Step::Pull(number) => {
                lab.images.pull(&lab.names[number], None, &progress).await.unwrap();
            }
            Step::Abandon(number) => {
                tokio::select! {
                    biased;
                    _ = lab.images.pull(&lab.names[number], None, &progress) => {}
                    () = tokio::task::yield_now() => {}
                }
            }
            Step::Load(number) => {
                lab.images.load(&lab.archives[number], &progress).await.unwrap();
            }
            Step::Remove(number) => {
                lab.images.remove(&lab.names[number]).await.unwrap();
            }
            Step::Collect => {
                let images = lab.images.clone();
                tokio::task::spawn_blocking(move || images.collect().unwrap()).await.unwrap();
            }
            Step::Hold(number) => {
                let next = lab.images.hold(&lab.names[number]);
                if let Some((image, lease)) = std::mem::replace(&mut held, next) {
                    let whole = |layer| lab.images.layer_path(layer).join("name").exists();
                    assert!(image.layers.iter().all(whole), "a held layer went");
                    drop(lease);
                }
            }
        }
    }
}

/// What is there and no image needs; panics where something is not there that one needs.
fn leftovers(node: &Node) -> BTreeSet<String> {
    let mut needed = BTreeSet::new();
    for image in node.images.list() {
        needed.insert(format!("images/{}.json", image.id.hex()));
        needed.extend([&image.id, &image.manifest].map(|blob| format!("content/blobs/sha256/{}", blob.hex())));
        for layer in &image.layers {
            needed.extend(["", ".json", ".tree"].map(|kind| format!("layers/{}{kind}", layer.hex())));
        }
    }
    let found: BTreeSet<String> = node.residue().into_iter().collect();
    let missing: Vec<_> = needed.difference(&found).collect();
    assert!(missing.is_empty(), "{missing:?}");
    // Layers' blobs may stay too, whichever of an image's manifests named them; so do parts of what was given up.
    let is_kept = |path: &&String| node.config.keep_layer_blobs && path.starts_with("content/blobs/");
    found.difference(&needed).filter(|path| !is_kept(path) && !path.ends_with(".part")).cloned().collect()
}
