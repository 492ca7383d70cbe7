//! Pulls that go well, and what they make of each other.

use std::sync::Arc;

use serde_json::json;
use tokio::sync::watch;

use super::image::{Layer, Tar, TestImage, zstd};
use super::registry::{Fault, Node, Registry};
use crate::platform::Host;
use crate::progress::{LayerState, PullProgress};

#[tokio::test]
async fn an_image_of_all_compressions_arrives() {
    let (registry, node) = (Registry::start().await, Node::new());
    let image = TestImage::new(vec![
        Layer::gzip(Tar::default().dir("etc").file("etc/passwd", "bottom").file("etc/gone", "x")),
        Layer::zstd(Tar::default().dir("etc").file("etc/passwd", "top").file("etc/.wh.gone", "")),
        Layer::plain(Tar::default().file("plain", "p")),
        // Docker's empty layer, twice.
        Layer::gzip(Tar::default()),
        Layer::gzip(Tar::default()),
    ]);
    let name = registry.push("a/b", "v1", &image);
    let (progress, _) = watch::channel(PullProgress::default());
    let pulled = node.images.pull(&name, None, &progress).await.unwrap();
    assert_eq!(pulled.id, image.id());
    assert_eq!(pulled.tags, std::slice::from_ref(&name));
    assert_eq!(pulled.digests, [format!("{}/a/b@{}", registry.address, image.manifest_digest())]);
    assert_eq!((pulled.layers.len(), pulled.manifest.clone()), (4, image.manifest_digest()));
    assert!(pulled.size > 0);
    assert_eq!(pulled.config.config().as_ref().unwrap().cmd().as_ref().unwrap(), &["/bin/true"]);
    assert_eq!(node.read(&pulled, "/etc/passwd"), "top");
    assert_eq!(node.images.read_file(&pulled, "/etc/gone", 9).unwrap(), None);
    let steps = progress.borrow().clone();
    assert!(steps.layers.iter().all(|layer| matches!(layer.state, LayerState::Done | LayerState::Present)));
    assert!(steps.layers.iter().all(|layer| layer.done == layer.total && layer.total > 0));
    let usage = node.images.usage();
    assert!(usage.bytes >= pulled.size && usage.inodes > 5 && usage.mountpoint.is_dir());
    for found in [&name, image.id().as_str(), image.id().hex(), &image.id().hex()[..12], &pulled.digests[0]] {
        assert_eq!(node.images.find(found).unwrap().id, pulled.id, "{found}");
    }
    assert!(node.images.find(&image.id().hex()[..11]).is_none());
}

#[tokio::test]
async fn chunked_zstd_is_zstd() {
    let (registry, node) = (Registry::start().await, Node::new());
    // One frame for each chunk; what is for readers that seek stands in frames that others skip, at the end.
    let tar = Tar::default().file("one", "1").file("two", "2").end();
    let (first, second) = tar.split_at(1024);
    let skipped = |text: &[u8]| {
        let length = u32::try_from(text.len()).unwrap();
        [&0x184D_2A50_u32.to_le_bytes(), &length.to_le_bytes(), text].concat()
    };
    let blob = [zstd(first), zstd(second), skipped(b"the table of contents"), skipped(b"GNUlInUx")].concat();
    let diff_id = podwright_base::Digest::of(&tar);
    let layer = Layer { blob, diff_id, media_type: "application/vnd.oci.image.layer.v1.tar+zstd" };
    let pulled = node.pull(&registry.push("x", "v", &TestImage::new(vec![layer]))).await.unwrap();
    assert_eq!((node.read(&pulled, "one"), node.read(&pulled, "two")), ("1".to_owned(), "2".to_owned()));
}

#[tokio::test]
async fn an_index_leads_to_this_hosts_image() {
    let (registry, node) = (Registry::start().await, Node::new());
    let image = TestImage::small("right");
    registry.push("x", "unused", &image);
    let entry = |digest: String, architecture: &str| json!({"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest, "size": 1, "platform": {"os": "linux", "architecture": architecture}});
    let other = format!("sha256:{}", "0".repeat(64));
    let index = json!({"schemaVersion": 2, "manifests": [entry(other, "sparc64"), entry(image.manifest_digest().to_string(), Host::current().architecture)]});
    let index = index.to_string().into_bytes();
    let top = podwright_base::Digest::of(&index);
    for named in ["latest", top.as_str()] {
        registry.put(&format!("x/manifests/{named}"), "application/vnd.oci.image.index.v1+json", index.clone());
    }
    let pulled = node.pull(&format!("{}/x", registry.address)).await.unwrap();
    assert_eq!(pulled.digests, [format!("{}/x@{top}", registry.address)]);
    assert_eq!(pulled.manifest, image.manifest_digest());
    // By digest, and by tag and digest: the same image, one more way to name it, no tag.
    let by_both = format!("{}/x:other@{top}", registry.address);
    let again = node.pull(&by_both).await.unwrap();
    assert_eq!((again.tags.len(), again.digests.len()), (1, 1));
    assert_eq!(node.images.find(&by_both).unwrap().id, pulled.id);
    let by_manifest = format!("{}/x@{}", registry.address, image.manifest_digest());
    assert_eq!(node.images.find(&by_manifest).unwrap().id, pulled.id);
}

#[tokio::test]
async fn docker_schema_2_is_understood() {
    let (registry, node) = (Registry::start().await, Node::new());
    let mut image = TestImage::small("docker");
    image.manifest["mediaType"] = "application/vnd.docker.distribution.manifest.v2+json".into();
    image.manifest["config"]["mediaType"] = "application/vnd.docker.container.image.v1+json".into();
    image.manifest["layers"][0]["mediaType"] = "application/vnd.docker.image.rootfs.diff.tar.gzip".into();
    let pulled = node.pull(&registry.push("x", "v1", &image)).await.unwrap();
    assert_eq!(node.read(&pulled, "/etc/name"), "docker");
}

#[tokio::test]
async fn what_is_there_is_not_fetched_again() {
    let (registry, node) = (Registry::start().await, Node::new());
    let base = Layer::gzip(Tar::default().file("base", "x"));
    let one = TestImage::new(vec![base.clone(), Layer::gzip(Tar::default().file("one", "1"))]);
    let two = TestImage::new(vec![base.clone(), Layer::gzip(Tar::default().file("two", "2"))]);
    node.pull(&registry.push("one", "v", &one)).await.unwrap();
    let pulled = node.pull(&registry.push("two", "v", &two)).await.unwrap();
    assert_eq!(registry.count(base.digest().as_str()), 1);
    assert_eq!(node.read(&pulled, "base"), "x");
    let node = node.reopen();
    node.pull(&registry.name("two", "v")).await.unwrap();
    assert_eq!(registry.count(two.layers[1].digest().as_str()), 1);
    assert_eq!(node.images.list().len(), 2);
}

#[tokio::test]
async fn identical_pulls_are_one() {
    let (registry, node) = (Registry::start().await, Node::new());
    let image = TestImage::small("joined");
    let name = registry.push("x", "v", &image);
    let (open, held) = watch::channel(false);
    registry.fault("/blobs/", Fault::Hold(held));
    let (progress, mut steps) = watch::channel(PullProgress::default());
    let (first, second, ()) = tokio::join!(node.images.pull(&name, None, &progress), node.pull(&name), async {
        // The configuration is held: both have joined by then, or the second starts anew and asks again.
        while registry.count("/blobs/") == 0 {
            tokio::task::yield_now().await;
        }
        open.send_replace(true);
    });
    assert!(Arc::ptr_eq(&first.unwrap(), &second.unwrap()));
    assert_eq!(registry.count("/manifests/"), 1);
    assert_eq!(steps.borrow_and_update().layers[0].state, LayerState::Done);
}

#[tokio::test]
async fn a_layer_of_two_pulls_is_fetched_once() {
    let (registry, node) = (Registry::start().await, Node::new());
    let base = Layer::gzip(Tar::default().file("base", "x"));
    let one = TestImage::new(vec![base.clone(), Layer::gzip(Tar::default().file("one", "1"))]);
    let two = TestImage::new(vec![base.clone(), Layer::gzip(Tar::default().file("two", "2"))]);
    let (name_one, name_two) = (registry.push("one", "v", &one), registry.push("two", "v", &two));
    let (open, held) = watch::channel(false);
    registry.fault(base.digest().as_str(), Fault::Hold(held));
    let (one, two, ()) = tokio::join!(node.pull(&name_one), node.pull(&name_two), async {
        while registry.count(one.layers[1].digest().as_str()) + registry.count(two.layers[1].digest().as_str()) < 2 {
            tokio::task::yield_now().await;
        }
        open.send_replace(true);
    });
    assert_eq!((node.read(&one.unwrap(), "base"), node.read(&two.unwrap(), "base")), ("x".to_owned(), "x".to_owned()));
    assert_eq!(registry.count(base.digest().as_str()), 1);
}

#[tokio::test]
async fn a_dropped_pull_leaves_nothing() {
    let (registry, node) = (Registry::start().await, Node::new());
    let image = TestImage::new(vec![Layer::plain(Tar::default().file("big", vec![1; 900_000]))]);
    let name = registry.push("x", "v", &image);
    registry.fault(image.layers[0].digest().as_str(), Fault::Stall(700_000));
    let (progress, mut steps) = watch::channel(PullProgress::default());
    tokio::select! {
        _ = node.images.pull(&name, None, &progress) => panic!("it stalls"),
        _ = steps.wait_for(|steps| steps.layers.first().is_some_and(|layer| layer.done > 0)) => {}
    }
    while !node.residue().is_empty() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn of_two_that_wait_one_may_go() {
    let (registry, node) = (Registry::start().await, Node::new());
    let name = registry.push("x", "v", &TestImage::small("x"));
    let (open, held) = watch::channel(false);
    registry.fault("/blobs/", Fault::Hold(held));
    let mut goes = Box::pin(node.pull(&name));
    let mut stays = Box::pin(node.pull(&name));
    while registry.count("/blobs/") == 0 {
        tokio::select! {
            biased;
            _ = &mut goes => panic!("it is held"),
            _ = &mut stays => panic!("it is held"),
            () = tokio::task::yield_now() => {}
        }
    }
    drop(goes);
    open.send_replace(true);
    stays.await.unwrap();
    assert_eq!(registry.count("/manifests/"), 1);
}

#[tokio::test]
async fn a_moved_tag_leaves_the_old_image_without_it() {
    let (registry, node) = (Registry::start().await, Node::new());
    let (old, new) = (TestImage::small("old"), TestImage::small("new"));
    let name = registry.push("x", "v", &old);
    node.pull(&name).await.unwrap();
    registry.push("x", "v", &new);
    node.pull(&name).await.unwrap();
    let check = |node: &Node| {
        assert_eq!(node.images.find(&name).unwrap().id, new.id());
        let old = node.images.find(old.id().as_str()).unwrap();
        assert_eq!((old.tags.len(), old.digests.len()), (0, 1));
    };
    check(&node);
    let node = node.reopen();
    check(&node);
    // Another name of the same image is one more name.
    let other = registry.push("y", "v", &new);
    assert_eq!(node.pull(&other).await.unwrap().tags.len(), 2);
}
