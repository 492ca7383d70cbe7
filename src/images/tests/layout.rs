//! The content directory as an OCI image layout, read as other tools read it.

use std::fs;

use podwright_base::Digest;
use serde_json::{Value, json};
use tokio::sync::watch;

use super::image::{Layer, Tar, TestImage};
use super::load::oci;
use super::registry::{Node, Registry};
use crate::platform::Host;
use crate::progress::PullProgress;

/// Name, digest and size of each descriptor.
fn index(node: &Node) -> Vec<(Value, String, u64)> {
    let index: Value = serde_json::from_slice(&fs::read(content(node).join("index.json")).unwrap()).unwrap();
    let described = index["manifests"].as_array().unwrap().iter().map(|entry| {
        assert_eq!(entry["platform"], json!({"os": "linux", "architecture": Host::current().architecture}));
        let annotations = &entry["annotations"];
        assert_eq!(annotations["org.opencontainers.image.ref.name"], annotations["io.containerd.image.name"]);
        let name = annotations["io.containerd.image.name"].clone();
        (name, entry["digest"].as_str().unwrap().to_owned(), entry["size"].as_u64().unwrap())
    });
    described.collect()
}

fn content(node: &Node) -> std::path::PathBuf {
    node.dir.path().join("root/content")
}

fn has(node: &Node, digest: &Digest) -> bool {
    content(node).join("blobs/sha256").join(digest.hex()).exists()
}

#[tokio::test]
async fn every_image_and_name_has_its_descriptor() {
    let (registry, node) = (Registry::start().await, Node::new());
    assert_eq!(index(&node), []);
    let (one, two) = (TestImage::small("one"), TestImage::small("two"));
    let first = registry.push("one", "v", &one);
    let second = registry.push("one", "w", &one);
    let bare = format!("{}/two@{}", registry.address, two.manifest_digest());
    registry.push("two", "v", &two);
    for name in [&first, &second, &bare] {
        node.pull(name).await.unwrap();
    }
    let descriptor = |name: Value, image: &TestImage| {
        (name, image.manifest_digest().to_string(), image.manifest_bytes().len() as u64)
    };
    let mut expected =
        vec![descriptor(json!(first), &one), descriptor(json!(second), &one), descriptor(Value::Null, &two)];
    let sorted = |mut all: Vec<(Value, String, u64)>| {
        all.sort_by_key(|(name, ..)| name.to_string());
        all
    };
    expected = sorted(expected);
    assert_eq!(sorted(index(&node)), expected);

    // Lost, it comes back; a tag that moves is only where it points to.
    fs::write(content(&node).join("index.json"), "{").unwrap();
    let node = node.reopen();
    assert_eq!(sorted(index(&node)), expected);
    registry.push("one", "w", &two);
    node.pull(&second).await.unwrap();
    assert_eq!(sorted(index(&node)), [descriptor(json!(first), &one), descriptor(json!(second), &two)]);
    node.images.remove(&first).await.unwrap();
    node.images.remove(&second).await.unwrap();
    assert_eq!(index(&node), []);
}

#[tokio::test]
async fn an_index_stays_as_long_as_a_name_has_its_digest() {
    let (registry, node) = (Registry::start().await, Node::new());
    let image = TestImage::small("indexed");
    registry.push("x", "unused", &image);
    let index = json!({"schemaVersion": 2, "manifests": [{
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "digest": image.manifest_digest(),
        "size": image.manifest_bytes().len(),
        "platform": {"os": "linux", "architecture": Host::current().architecture},
    }]});
    let index = index.to_string().into_bytes();
    registry.put("x/manifests/v", "application/vnd.oci.image.index.v1+json", index.clone());
    let pulled = node.pull(&registry.name("x", "v")).await.unwrap();
    assert_eq!(pulled.digests, [format!("{}/x@{}", registry.address, Digest::of(&index))]);
    node.images.collect().unwrap();
    assert!(has(&node, &Digest::of(&index)));
    node.images.remove(&registry.name("x", "v")).await.unwrap();
    assert_eq!(node.residue(), Vec::<String>::new());
}

#[tokio::test]
async fn layers_blobs_are_kept_where_the_configuration_says_so() {
    let (mut node, image) = (Node::new(), TestImage::small("kept"));
    let archive = oci(&[(&image, json!({"io.containerd.image.name": "r.io/kept:1"}))]).end();
    let path = node.dir.path().join("archive.tar");
    fs::write(&path, archive).unwrap();
    let blob = image.layers[0].digest();
    for kept in [false, true] {
        node.config.keep_layer_blobs = kept;
        node = node.reopen();
        node.images.collect().unwrap();
        node.images.load(&path, &watch::channel(PullProgress::default()).0).await.unwrap();
        node.images.collect().unwrap();
        assert_eq!(has(&node, &blob), kept);
        let usage = node.images.usage().bytes;
        assert!(usage > 0);
        if !kept {
            node.images.remove("r.io/kept:1").await.unwrap();
        }
    }
    assert_eq!(fs::read(content(&node).join("blobs/sha256").join(blob.hex())).unwrap(), image.layers[0].blob);
    let (registry, pulled) = (Registry::start().await, TestImage::small("pulled"));
    node.pull(&registry.push("x", "v", &pulled)).await.unwrap();
    assert!(has(&node, &pulled.layers[0].digest()));
    let ingest = node.residue().iter().filter(|path| path.starts_with("content/ingest")).count();
    assert_eq!(ingest, 0, "what was fetched became the blob");
    // No longer wanted, they go.
    node.config.keep_layer_blobs = false;
    let node = node.reopen();
    node.images.collect().unwrap();
    assert!(!has(&node, &blob) && !has(&node, &pulled.layers[0].digest()));
    assert!(node.images.find("r.io/kept:1").is_some());
}

#[tokio::test]
async fn a_damaged_document_is_replaced_by_the_next_pull() {
    let (registry, node) = (Registry::start().await, Node::new());
    let image = TestImage::new(vec![Layer::plain(Tar::default().file("a", "b"))]);
    let name = registry.push("x", "v", &image);
    node.pull(&name).await.unwrap();
    let manifest = content(&node).join("blobs/sha256").join(image.manifest_digest().hex());
    fs::write(&manifest, "damaged").unwrap();
    node.pull(&name).await.unwrap();
    assert_eq!(fs::read(&manifest).unwrap(), image.manifest_bytes());
}
