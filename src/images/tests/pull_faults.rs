//! Registries that misbehave: the right error, and nothing left on disk.

use serde_json::json;

use super::image::{Entry, Layer, Tar, TestImage};
use super::registry::{Fault, Node, Registry, chain};
use crate::PullClass;

fn big() -> TestImage {
    // Does not compress, so that the blob is as long as it looks.
    let mut state = 1_u32;
    let noise: Vec<u8> = std::iter::repeat_with(|| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_be_bytes()[0]
    })
    .take(300_000)
    .collect();
    TestImage::new(vec![Layer::gzip(Tar::default().file("noise", noise))])
}

/// Pulls what fails, and returns the error's class and words.
async fn fail(node: &Node, name: &str) -> (PullClass, String) {
    let error = node.pull(name).await.unwrap_err();
    assert_eq!(node.residue(), Vec::<String>::new());
    (error.class(), chain(&error))
}

#[tokio::test]
async fn a_broken_transfer_goes_on_where_it_broke() {
    let (registry, node) = (Registry::start().await, Node::new());
    let image = big();
    let (name, blob) = (registry.push("x", "v", &image), image.layers[0].digest());
    registry.fault(blob.as_str(), Fault::Break(100_000));
    registry.fault(blob.as_str(), Fault::Break(50_000));
    node.pull(&name).await.unwrap();
    let asked: Vec<_> = registry.log().into_iter().filter(|asked| asked.path.contains(blob.hex())).collect();
    let ranges: Vec<Option<&str>> = asked.iter().map(|asked| asked.range.as_deref()).collect();
    assert_eq!(ranges, [None, Some("bytes=100000-"), Some("bytes=150000-")]);
}

#[tokio::test]
async fn a_registry_without_ranges_sends_all_again() {
    let (registry, node) = (Registry::start().await, Node::new());
    let image = big();
    let (name, blob) = (registry.push("x", "v", &image), image.layers[0].digest());
    registry.fault(blob.as_str(), Fault::Break(100_000));
    registry.fault(blob.as_str(), Fault::NoRange);
    node.pull(&name).await.unwrap();
}

#[tokio::test]
async fn a_stalled_transfer_is_dropped_and_goes_on() {
    let (registry, node) = (Registry::start().await, Node::new());
    let image = big();
    let (name, blob) = (registry.push("x", "v", &image), image.layers[0].digest());
    registry.fault(blob.as_str(), Fault::Stall(100_000));
    node.pull(&name).await.unwrap();
    assert_eq!(registry.count(blob.hex()), 2);
}

#[tokio::test]
async fn what_always_breaks_is_given_up() {
    let (registry, node) = (Registry::start().await, Node::new());
    let image = big();
    let (name, blob) = (registry.push("x", "v", &image), image.layers[0].digest());
    for _ in 0..3 {
        registry.fault(blob.as_str(), Fault::Break(10));
    }
    let (class, words) = fail(&node, &name).await;
    assert_eq!(class, PullClass::Unavailable, "{words}");
    assert!(words.contains(&registry.address.to_string()), "{words}");
    assert_eq!(registry.count(blob.hex()), 3);
}

#[tokio::test]
async fn busy_and_broken_registries_are_asked_again() {
    let (registry, node) = (Registry::start().await, Node::new());
    let name = registry.push("x", "v", &TestImage::small("x"));
    let busy = |status| Fault::Status(status, vec![("retry-after", "0".to_owned())], String::new());
    registry.fault("/manifests/", busy(429));
    registry.fault("/manifests/", busy(503));
    registry.fault("/blobs/", busy(500));
    node.pull(&name).await.unwrap();
    assert_eq!(registry.count("/manifests/"), 3);
    let other = registry.push("y", "v", &TestImage::small("y"));
    for _ in 0..3 {
        registry.fault("/y/manifests/", busy(502));
    }
    let error = node.pull(&other).await.unwrap_err();
    assert_eq!(error.class(), PullClass::Unavailable);
    assert!(chain(&error).contains("502"), "{}", chain(&error));
}

#[tokio::test]
async fn wrong_bytes_are_told_by_their_digest() {
    let (registry, node) = (Registry::start().await, Node::new());
    let image = big();
    let (name, blob) = (registry.push("x", "v", &image), image.layers[0].digest());
    let mut flipped = image.layers[0].blob.clone();
    let last = flipped.len() - 1;
    flipped[last / 2] ^= 1;
    for wrong in [
        flipped,
        vec![b'<'; last + 1],
        Layer::gzip(Tar::default()).blob.into_iter().chain(vec![0; last]).take(last + 1).collect(),
    ] {
        registry.fault(blob.as_str(), Fault::Bytes(wrong));
        let (class, words) = fail(&node, &name).await;
        assert_eq!(class, PullClass::Mismatch, "{words}");
        assert!(words.contains("digest is sha256:") && words.contains(blob.as_str()), "{words}");
    }
    registry.fault(image.id().as_str(), Fault::Bytes(vec![b' '; image.config.len()]));
    let (class, words) = fail(&node, &name).await;
    assert!(class == PullClass::Mismatch && words.contains(image.id().as_str()), "{words}");
    let pinned = format!("{}/x@{}", registry.address, image.manifest_digest());
    registry.fault("/manifests/", Fault::Bytes(b"{}".to_vec()));
    let (class, words) = fail(&node, &pinned).await;
    assert!(class == PullClass::Mismatch && words.contains(image.manifest_digest().as_str()), "{words}");
}

#[tokio::test]
async fn wrong_lengths_are_told() {
    let (registry, node) = (Registry::start().await, Node::new());
    let image = big();
    let (name, blob) = (registry.push("x", "v", &image), image.layers[0].digest());
    let whole = &image.layers[0].blob;
    for wrong in [whole[..whole.len() - 1].to_vec(), [whole.as_slice(), b"more"].concat()] {
        registry.fault(blob.as_str(), Fault::Bytes(wrong.clone()));
        let (class, words) = fail(&node, &name).await;
        assert_eq!(class, PullClass::Mismatch, "{words}");
        assert!(words.contains(&format!("{} bytes long, not {}", wrong.len(), whole.len())), "{words}");
    }
    // Longer than the descriptor says, in an image whose manifest lies.
    let mut lying = big();
    lying.manifest["layers"][0]["size"] = json!(1000);
    let (class, words) = fail(&node, &registry.push("lying", "v", &lying)).await;
    assert_eq!(class, PullClass::Mismatch, "{words}");
}

#[tokio::test]
async fn a_layer_that_is_not_the_configurations_is_told() {
    let (registry, node) = (Registry::start().await, Node::new());
    let mut image = TestImage::small("one");
    image.layers[0].diff_id = TestImage::small("two").layers[0].diff_id.clone();
    let (class, words) = fail(&node, &registry.push("x", "v", &TestImage::new(image.layers.clone()))).await;
    assert_eq!(class, PullClass::Mismatch, "{words}");
    assert!(words.contains("diffID") && words.contains(image.layers[0].diff_id.as_str()), "{words}");
}

#[tokio::test]
async fn a_huge_manifest_is_not_read() {
    let (registry, node) = (Registry::start().await, Node::new());
    let image = TestImage::small("x");
    let name = registry.push("x", "v", &image);
    registry.fault("/manifests/", Fault::Bytes(vec![b' '; 5 << 20]));
    let (class, words) = fail(&node, &name).await;
    assert!(class == PullClass::Unsupported && words.contains("longer than"), "{words}");
}

#[tokio::test]
async fn what_is_missing_denied_or_unknown_is_told_apart() {
    let (registry, node) = (Registry::start().await, Node::new());
    let (class, words) = fail(&node, &registry.name("none", "v")).await;
    assert!(class == PullClass::NotFound && words.contains("manifest unknown"), "{words}");
    let name = registry.push("x", "v", &TestImage::small("x"));
    registry.fault("/manifests/", Fault::Status(403, vec![], String::new()));
    assert_eq!(fail(&node, &name).await.0, PullClass::Unauthorized);
    registry.fault("/manifests/", Fault::Status(418, vec![], String::new()));
    assert_eq!(fail(&node, &name).await.0, PullClass::Internal);
    assert_eq!(fail(&node, "UPPER").await.0, PullClass::Invalid);
    registry.put(
        "old/manifests/v",
        "application/vnd.docker.distribution.manifest.v1+prettyjws",
        br#"{"schemaVersion":1}"#.to_vec(),
    );
    let (class, words) = fail(&node, &registry.name("old", "v")).await;
    assert!(class == PullClass::Unsupported && words.contains("schema 1"), "{words}");
    let mut foreign = TestImage::small("x");
    foreign.manifest["layers"][0]["mediaType"] = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip".into();
    let (class, words) = fail(&node, &registry.push("foreign", "v", &foreign)).await;
    assert!(class == PullClass::Unsupported && words.contains("foreign"), "{words}");
}

#[tokio::test]
async fn nobody_there_is_unavailable() {
    let node = Node::new();
    Registry::start().await;
    // Port 1 is nobody's.
    let (class, words) = fail(&node, "127.0.0.1:1/x:v").await;
    assert_eq!(class, PullClass::Unavailable, "{words}");
    assert!(words.contains("127.0.0.1:1"), "{words}");
    // Each endpoint and its cause is told once, without what the client's layers have to say of themselves.
    let refused = "tcp connect error: Connection refused (os error 111)";
    node.hosts("r.example", "server = \"http://127.0.0.1:1\"\n[host.\"http://127.0.0.2:1\"]");
    let (class, words) = fail(&node, "r.example/x:v").await;
    assert_eq!(class, PullClass::Unavailable, "{words}");
    let each = format!("ask http://127.0.0.2:1: {refused}; ask http://127.0.0.1:1: {refused}");
    assert_eq!(words, format!("pull r.example/x:v: no endpoint gives it: {each}"));
}

#[tokio::test]
async fn a_hostile_layer_fails_by_name_and_stops_the_others() {
    let (registry, node) = (Registry::start().await, Node::new());
    let image = TestImage::new(vec![
        Layer::gzip(Tar::default().file("good", "x")),
        Layer::gzip(Tar::default().file("../evil", "x")),
        Layer::gzip(Tar::default().entry(Entry::new(tar::EntryType::Regular, "late"), b"x")),
    ]);
    let (class, words) = fail(&node, &registry.push("x", "v", &image)).await;
    assert!(
        class == PullClass::Unsupported && words.contains("../evil") && words.contains("out of the layer"),
        "{words}"
    );
}

#[tokio::test]
async fn mirrors_are_asked_first_and_fallen_back_from() {
    let (mirror, upstream, node) = (Registry::start().await, Registry::start().await, Node::new());
    let image = TestImage::small("mirrored");
    upstream.push("a/x", "v", &image);
    let hosts = format!(
        "server = \"http://{}\"\n[host.\"http://127.0.0.1:1\"]\n[host.\"http://{}\"]\ncapabilities = [\"pull\", \"resolve\"]\n",
        upstream.address, mirror.address
    );
    node.hosts("r.example", &hosts);
    let pulled = node.pull("r.example/a/x:v").await.unwrap();
    assert_eq!(pulled.tags, ["r.example/a/x:v"]);
    assert!(mirror.count("/manifests/") == 1 && mirror.log()[0].query == "ns=r.example", "{:?}", mirror.log());
    assert_eq!(upstream.log()[0].query, "");
    // Now the mirror has another one; nothing more goes upstream.
    let other = TestImage::small("other");
    mirror.push("a/y", "v", &other);
    let before = upstream.log().len();
    node.pull("r.example/a/y:v").await.unwrap();
    assert_eq!(upstream.log().len(), before);
    // Without the capability, a mirror does not say what a tag means.
    node.hosts("r.example", &hosts.replace(", \"resolve\"", ""));
    let error = node.pull("r.example/a/none:v").await.unwrap_err();
    assert_eq!(error.class(), PullClass::NotFound);
    assert_eq!(mirror.count("/none/"), 0);
    node.hosts("r.example", "server = 7");
    assert!(chain(&node.pull("r.example/a/y:v").await.unwrap_err()).contains("hosts.toml"));
}
