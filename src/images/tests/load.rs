//! Archives of images.

use std::fs;

use serde_json::json;
use tokio::sync::watch;

use super::image::{Layer, Tar, TestImage, gzip, zstd};
use super::registry::{Node, chain};
use crate::progress::PullProgress;
use crate::{Image, LoadError};

async fn load(node: &Node, bytes: &[u8]) -> Result<Vec<std::sync::Arc<Image>>, LoadError> {
    let path = node.dir.path().join("archive.tar");
    fs::write(&path, bytes).unwrap();
    node.images.load(&path, &watch::channel(PullProgress::default()).0).await
}

fn blob(tar: Tar, bytes: &[u8]) -> Tar {
    tar.file(&format!("blobs/sha256/{}", podwright_base::Digest::of(bytes).hex()), bytes)
}

/// An OCI layout whose index comes last, as a stream may have it.
pub(crate) fn oci(images: &[(&TestImage, serde_json::Value)]) -> Tar {
    let mut tar = Tar::default().file("oci-layout", r#"{"imageLayoutVersion":"1.0.0"}"#);
    let mut entries = Vec::new();
    for (image, annotations) in images {
        tar = blob(blob(tar, &image.manifest_bytes()), &image.config);
        for layer in &image.layers {
            tar = blob(tar, &layer.blob);
        }
        let media_type = &image.manifest["mediaType"];
        entries.push(
            json!({"mediaType": media_type, "digest": image.manifest_digest(), "size": 1, "annotations": annotations}),
        );
    }
    tar.file("./index.json", json!({"schemaVersion": 2, "manifests": entries}).to_string())
}

#[tokio::test]
async fn an_oci_layout_with_two_names_and_one_image_without() {
    let node = Node::new();
    let (named, bare) = (TestImage::small("named"), TestImage::small("bare"));
    let archive = oci(&[
        (
            &named,
            json!({"io.containerd.image.name": "docker.io/library/named:1", "org.opencontainers.image.ref.name": "1"}),
        ),
        (&named, json!({"org.opencontainers.image.ref.name": "r.io/other:2"})),
        (&bare, json!({"org.opencontainers.image.ref.name": "latest"})),
    ]);
    for bytes in [archive.clone().end(), gzip(&archive.clone().end()), zstd(&archive.end())] {
        let images = load(&node, &bytes).await.unwrap();
        assert_eq!(images.len(), 2);
        assert_eq!(images[0].tags, ["docker.io/library/named:1", "r.io/other:2"]);
        assert_eq!(images[0].digests[1], format!("r.io/other@{}", named.manifest_digest()));
        assert!(images[1].tags.is_empty() && images[1].digests.is_empty());
        assert_eq!(node.read(&node.images.find("named:1").unwrap(), "etc/name"), "named");
    }
    for image in node.images.list() {
        assert!(node.images.remove(image.id.as_str()).await.unwrap());
    }
    assert_eq!(node.residue(), Vec::<String>::new());
}

#[tokio::test]
async fn what_docker_save_writes() {
    let node = Node::new();
    let image = TestImage::new(vec![
        Layer::plain(Tar::default().file("a", "bottom")),
        Layer::plain(Tar::default().file("a", "top")),
    ]);
    let archive = Tar::default()
        .file("abc/layer.tar", &image.layers[0].blob)
        // The same layer of another image is a link to it.
        .symlink("def/layer.tar", "../ghi/layer.tar")
        .file("ghi/layer.tar", &image.layers[1].blob)
        .file("config.json", &image.config)
        .file(
            "manifest.json",
            json!([{"Config": "config.json", "RepoTags": ["busybox:1"], "Layers": ["abc/layer.tar", "def/layer.tar"]}])
                .to_string(),
        );
    let images = load(&node, &archive.end()).await.unwrap();
    assert_eq!(images[0].id, image.id());
    assert_eq!(
        (images[0].tags.as_slice(), images[0].digests.len()),
        (&["docker.io/library/busybox:1".to_owned()][..], 0)
    );
    assert_eq!(node.read(&images[0], "a"), "top");
    let node = node.reopen();
    assert_eq!(node.images.find("busybox:1").unwrap().id, image.id());
}

#[tokio::test]
async fn what_cannot_be_loaded_says_why_and_leaves_nothing() {
    let node = Node::new();
    let image = TestImage::small("x");
    let mut wrong = oci(&[(&image, json!({}))]).cut();
    let at = wrong.windows(4).position(|window| window == &image.layers[0].blob[..4]).unwrap();
    // Inside the file's text in the gzip stream.
    wrong[at + 30] ^= 1;
    let name = format!("blobs/sha256/{}", image.id().hex());
    let no_config = Tar::default()
        .file("oci-layout", "{}")
        .file(&format!("blobs/sha256/{}", image.manifest_digest().hex()), image.manifest_bytes())
        .file("index.json", json!({"schemaVersion": 2, "manifests": [{"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": image.manifest_digest(), "size": 1}]}).to_string());
    let looped = Tar::default().symlink("manifest.json", "manifest.json");
    for (bytes, words) in [
        (b"no archive at all, but long enough to be looked at".repeat(20), "no tar archive"),
        (Tar::default().file("x", "y").end(), "holds no images"),
        (wrong, "digest"),
        (no_config.end(), name.as_str()),
        (looped.end(), "holds no images"),
        (Tar::default().file("manifest.json", "[").end(), "manifest.json"),
        (oci(&[(&image, json!({"io.containerd.image.name": "BAD"}))]).end(), "BAD"),
    ] {
        let error = load(&node, &bytes).await.unwrap_err();
        assert!(chain(&error).contains(words), "{words}: {}", chain(&error));
        assert_eq!(node.residue(), Vec::<String>::new());
    }
    let missing = node.images.load(&node.dir.path().join("none"), &watch::channel(PullProgress::default()).0).await;
    assert!(chain(&missing.unwrap_err()).contains("none"));
}
