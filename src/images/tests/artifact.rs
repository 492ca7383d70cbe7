//! Artifacts: pulled as files and directories, kept, found again and removed as images are.

use podwright_base::Digest;
use serde_json::{Value, json};

use super::image::{Tar, gzip};
use super::registry::{Fault, Node, Registry};
use crate::{Image, Located, PullClass};

const TITLE: &str = "org.opencontainers.image.title";

/// Pushes blobs with media types and annotations under one manifest; returns the reference and the manifest's digest.
fn push(registry: &Registry, repository: &str, blobs: &[(&str, &[u8], Value)]) -> (String, Digest) {
    let descriptor = |(media_type, bytes, annotations): &(&str, &[u8], Value)| {
        registry.push_blob(repository, bytes.to_vec());
        json!({"mediaType": media_type, "digest": Digest::of(bytes), "size": bytes.len(), "annotations": annotations})
    };
    let media_type = "application/vnd.oci.image.manifest.v1+json";
    registry.push_blob(repository, b"{}".to_vec());
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": media_type,
        "artifactType": "application/vnd.example.model",
        "config": {"mediaType": "application/vnd.oci.empty.v1+json", "digest": Digest::of(b"{}"), "size": 2},
        "layers": blobs.iter().map(descriptor).collect::<Vec<_>>(),
    });
    let bytes = manifest.to_string().into_bytes();
    let digest = Digest::of(&bytes);
    for name in ["v1", digest.as_str()] {
        registry.put(&format!("{repository}/manifests/{name}"), media_type, bytes.clone());
    }
    (registry.name(repository, "v1"), digest)
}

fn layers(node: &Node) -> usize {
    let names = std::fs::read_dir(node.dir.path().join("root/layers")).unwrap();
    names.filter(|entry| entry.as_ref().unwrap().path().is_dir()).count()
}

fn found(node: &Node, image: &Image) {
    assert_eq!(node.read(image, "model/weights.bin"), "weights");
    assert_eq!(node.read(image, "empty"), "");
    assert_eq!(node.read(image, "docs/readme"), "read me");
    let Some(Located::Directories(root)) = node.images.locate(image, "").unwrap() else { panic!("a directory") };
    assert_eq!(root.len(), 4);
}

#[tokio::test]
async fn an_artifact_is_its_files() {
    let (registry, node) = (Registry::start().await, Node::new());
    let packed = gzip(&Tar::default().file("docs/readme", "read me").end());
    let config: &[u8] = br#"{"a":1}"#;
    let blobs: [(&str, &[u8], Value); 4] = [
        ("application/octet-stream", b"weights", json!({TITLE: "model/weights.bin"})),
        ("text/plain", b"", json!({TITLE: "empty"})),
        ("application/vnd.oci.image.layer.v1.tar+gzip", &packed, json!({TITLE: "docs"})),
        ("application/json", config, json!({})),
    ];
    let (name, digest) = push(&registry, "models/a", &blobs);
    let pulled = node.pull(&name).await.unwrap();
    assert_eq!((&pulled.id, &pulled.manifest), (&digest, &digest));
    assert_eq!(pulled.artifact.as_ref().unwrap().kind, "application/vnd.example.model");
    assert!(pulled.size >= 4 * 4096, "{}", pulled.size);
    found(&node, &pulled);
    let untitled = Digest::of(config).to_string().replace(':', "-");
    assert_eq!(node.read(&pulled, &untitled), r#"{"a":1}"#);
    // Once more, by digest, and after a restart: the same one.
    let by_digest = node.pull(&format!("{}/models/a@{digest}", registry.address)).await.unwrap();
    assert_eq!((by_digest.id.clone(), by_digest.tags.len()), (digest.clone(), 1));
    assert_eq!(registry.count(Digest::of(b"weights").as_str()), 1, "what is there is not fetched again");
    let node = node.reopen();
    let [kept] = &*node.images.list() else { panic!("one image") };
    assert_eq!(kept.artifact, pulled.artifact);
    found(&node, kept);
    assert_eq!(node.images.collect().unwrap().layers, 0);
    assert!(node.images.remove(&name).await.unwrap());
    assert_eq!(layers(&node), 0);
    assert_eq!(std::fs::read_dir(node.dir.path().join("root/content/blobs/sha256")).unwrap().count(), 0);
}

#[tokio::test]
async fn artifacts_share_blobs_that_have_the_same_name() {
    let (registry, node) = (Registry::start().await, Node::new());
    let blob = |title: &str| ("text/plain", &b"shared"[..], json!({TITLE: title}));
    let (one, _) = push(&registry, "one", &[blob("a")]);
    let (two, _) = push(&registry, "two", &[blob("a"), blob("b")]);
    node.pull(&one).await.unwrap();
    let two = node.pull(&two).await.unwrap();
    assert_eq!(layers(&node), 2);
    assert!(node.images.remove(&one).await.unwrap());
    assert_eq!((node.read(&two, "a"), node.read(&two, "b")), ("shared".to_owned(), "shared".to_owned()));
}

#[tokio::test]
async fn a_blob_that_is_another_one_is_no_part_of_an_artifact() {
    let (registry, node) = (Registry::start().await, Node::new());
    let blob = |title: &str| ("text/plain", &b"truth"[..], json!({TITLE: title}));
    let (name, _) = push(&registry, "one", &[blob("a")]);
    registry.fault(Digest::of(b"truth").as_str(), Fault::Bytes(b"false".to_vec()));
    let error = node.pull(&name).await.unwrap_err();
    assert_eq!(error.class(), PullClass::Mismatch, "{error}");
    let (name, _) = push(&registry, "two", &[blob("../a")]);
    let error = node.pull(&name).await.unwrap_err();
    assert_eq!(error.class(), PullClass::Unsupported, "{error}");
    assert!(node.images.list().is_empty());
    assert_eq!(layers(&node), 0);
}
