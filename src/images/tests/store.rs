//! Leases, removal, collection, and what a killed daemon leaves.

use std::fs;

use super::image::{Layer, Tar, TestImage};
use super::registry::{Node, Registry};

fn two_layers(name: &str) -> TestImage {
    TestImage::new(vec![
        Layer::gzip(Tar::default().file("base", "shared")),
        Layer::gzip(Tar::default().file("own", name)),
    ])
}

#[tokio::test]
async fn an_image_goes_with_all_its_names_and_only_its_own_layers() {
    let (registry, node) = (Registry::start().await, Node::new());
    let (one, two) = (two_layers("one"), two_layers("two"));
    node.pull(&registry.push("one", "v", &one)).await.unwrap();
    node.pull(&registry.push("one", "w", &one)).await.unwrap();
    let kept = node.pull(&registry.push("two", "v", &two)).await.unwrap();
    assert!(node.images.remove(&registry.name("one", "w")).await.unwrap());
    assert!(node.images.find(&registry.name("one", "v")).is_none());
    assert!(!node.images.remove(&registry.name("one", "v")).await.unwrap());
    assert_eq!(node.read(&kept, "own"), "two");
    assert_eq!(node.read(&kept, "base"), "shared");
    assert!(!node.images.layer_path(&one.layers[1].diff_id).exists());
    assert!(node.images.remove(kept.id.as_str()).await.unwrap());
    assert_eq!(node.residue(), Vec::<String>::new());
    assert_eq!((node.images.usage().bytes, node.images.usage().inodes), (0, 0));
}

#[tokio::test]
async fn leased_layers_stay_until_the_lease_ends() {
    let (registry, node) = (Registry::start().await, Node::new());
    let image = two_layers("leased");
    let name = registry.push("x", "v", &image);
    node.pull(&name).await.unwrap();
    let (held, first) = node.images.hold(&name).unwrap();
    let second = node.images.lease(&held);
    assert!(node.images.remove(&name).await.unwrap());
    assert_eq!(node.images.collect().unwrap().layers, 0);
    drop(first);
    assert_eq!(node.read(&held, "own"), "leased");
    // Pulled again meanwhile: nothing to fetch.
    let before = registry.count(image.layers[0].digest().as_str());
    node.pull(&name).await.unwrap();
    assert_eq!(registry.count(image.layers[0].digest().as_str()), before);
    assert!(node.images.remove(&name).await.unwrap());
    // Outside a runtime the work is done at once.
    std::thread::spawn(move || drop(second)).join().unwrap();
    assert_eq!(node.residue(), Vec::<String>::new());
}

#[tokio::test]
async fn after_a_restart_nothing_goes_before_the_leases_are_back() {
    let (registry, node) = (Registry::start().await, Node::new());
    let image = two_layers("running");
    let name = registry.push("x", "v", &image);
    let pulled = node.pull(&name).await.unwrap();
    let running = node.images.lease(&pulled);
    node.images.remove(&name).await.unwrap();
    // The daemon is killed: its leases end with no one to see to it.
    std::mem::forget(running);
    let node = node.reopen();
    let stopped = node.images.lease_layers(&pulled.layers);
    drop(stopped);
    assert_eq!(node.read(&pulled, "own"), "running", "another container may still come back for it");
    let back = node.images.lease_layers(&pulled.layers[..1]);
    assert_eq!(node.images.collect().unwrap().layers, 1);
    assert!(node.images.layer_path(&pulled.layers[0]).exists());
    std::thread::spawn(move || drop(back)).join().unwrap();
    assert_eq!(node.residue(), Vec::<String>::new());
}

#[tokio::test]
async fn a_start_clears_halves_and_moves_damage_aside() {
    let (registry, node) = (Registry::start().await, Node::new());
    let (good, bad, gone) = (TestImage::small("good"), TestImage::small("bad"), TestImage::small("gone"));
    for (name, image) in [("good", &good), ("bad", &bad), ("gone", &gone)] {
        node.pull(&registry.push(name, "v", image)).await.unwrap();
    }
    let root = node.dir.path().join("root");
    fs::create_dir_all(root.join("layers/.new-0-abc/deep/er")).unwrap();
    fs::create_dir_all(root.join(format!("layers/{}", "0".repeat(64)))).unwrap();
    fs::write(root.join(format!("layers/{}.json", "1".repeat(64))), "{}").unwrap();
    fs::write(root.join(format!("layers/{}.tree", "1".repeat(64))), "").unwrap();
    fs::create_dir_all(root.join("layers/.old-1-abc")).unwrap();
    fs::write(root.join("content/ingest/7-x"), "half").unwrap();
    fs::write(root.join(format!("content/blobs/sha256/{}", bad.id().hex())), "damaged").unwrap();
    fs::remove_file(root.join(format!("layers/{}.json", gone.layers[0].diff_id.hex()))).unwrap();
    let cut = root.join(format!("images/{}.json", "2".repeat(64)));
    fs::write(&cut, "{\"version\":1,").unwrap();
    let newer = root.join(format!("images/{}.json", "3".repeat(64)));
    fs::write(&newer, "{\"version\":9,\"shape\":\"unknown\"}").unwrap();
    let node = node.reopen();
    assert_eq!(node.images.list().len(), 1);
    assert_eq!(node.images.list()[0].id, good.id());
    let aside = node.residue().iter().filter(|path| path.ends_with(".json.damaged")).count();
    assert_eq!(aside, 4);
    node.images.collect().unwrap();
    let left: Vec<String> = node.residue().into_iter().filter(|path| !path.ends_with(".damaged")).collect();
    let (id, manifest, layer) = (good.id(), good.manifest_digest(), &good.layers[0].diff_id);
    let mut expected = vec![
        format!("content/blobs/sha256/{}", id.hex()),
        format!("content/blobs/sha256/{}", manifest.hex()),
        format!("images/{}.json", id.hex()),
        format!("layers/{}", layer.hex()),
        format!("layers/{}.json", layer.hex()),
        format!("layers/{}.tree", layer.hex()),
    ];
    expected.sort();
    assert_eq!(left, expected);
    // What was damaged can be pulled again.
    node.pull(&registry.name("bad", "v")).await.unwrap();
}
