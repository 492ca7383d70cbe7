//! Damage of every kind, found and repaired.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use podwright_base::Digest;
use serde_json::json;
use tokio::sync::watch;

use super::image::{Layer, Tar, TestImage};
use super::load::oci;
use super::registry::{Node, Registry};
use crate::progress::PullProgress;
use crate::{Image, Outcome, Verified};

/// An image of two layers, the lower one large enough for its blob to matter.
fn image(name: &str) -> TestImage {
    let tar = Tar::default().dir("etc").file("etc/passwd", "root").file("bin", vec![7; 9000]).hard_link("bin2", "bin");
    TestImage::new(vec![Layer::gzip(tar), Layer::zstd(Tar::default().file("name", name))])
}

fn blob(node: &Node, digest: &Digest) -> PathBuf {
    node.dir.path().join("root/content/blobs/sha256").join(digest.hex())
}

fn flip(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x40;
    let (times, file) = (fs::metadata(path).unwrap().modified().unwrap(), fs::File::options().write(true).open(path));
    std::os::unix::fs::FileExt::write_all_at(file.as_ref().unwrap(), &bytes, 0).unwrap();
    // Rot leaves no trace.
    file.unwrap().set_modified(times).unwrap();
}

/// What was found, one line for each, and what became of it.
async fn verify(node: &Node, image: &Arc<Image>, repair: bool) -> (Vec<String>, Outcome) {
    let (found, outcome) = node.images.verify(image, repair, &mut Verified::default()).await.unwrap();
    (found.iter().map(ToString::to_string).collect(), outcome)
}

async fn assert_whole(node: &Node, image: &Arc<Image>) {
    let (found, outcome) = verify(node, image, false).await;
    assert!(matches!(outcome, Outcome::Whole), "{found:?}");
}

#[tokio::test]
async fn flipped_bytes_are_found_and_only_they_are_fetched() {
    let (registry, mut node) = (Registry::start().await, Node::new());
    node.config.keep_layer_blobs = true;
    let (node, image) = (node.reopen(), image("kept"));
    let pulled = node.pull(&registry.push("x", "v", &image)).await.unwrap();
    assert_whole(&node, &pulled).await;
    let (layer, name) = (node.images.layer_path(&pulled.layers[0]), image.layers[1].digest());
    flip(&layer.join("bin"));
    flip(&blob(&node, &name));
    flip(&blob(&node, &image.id()));
    flip(&blob(&node, &image.manifest_digest()));
    let passwd = fs::metadata(layer.join("etc/passwd")).unwrap().ino();
    let directory = fs::metadata(&layer).unwrap().ino();
    let (found, outcome) = verify(&node, &pulled, false).await;
    assert!(matches!(outcome, Outcome::Damaged));
    let expected = [
        format!("configuration {}: its digest is", image.id()),
        format!("manifest {}: its digest is", image.manifest_digest()),
        format!("layer {} /bin: contents changed", pulled.layers[0]),
    ];
    assert!(expected.iter().all(|text| found.iter().any(|found| found.starts_with(text))), "{found:#?}");
    let before = registry.log().len();
    let (found, outcome) = verify(&node, &pulled, true).await;
    assert!(matches!(outcome, Outcome::Repaired), "{outcome:?}");
    assert!(found.iter().any(|found| found.starts_with(&format!("layer blob {name}: its digest is"))), "{found:#?}");
    assert_whole(&node, &pulled).await;
    // The large layer came from its kept blob, what was whole from nowhere.
    let asked: Vec<String> = registry.log()[before..].iter().map(|asked| asked.path.clone()).collect();
    let mut expected = vec![
        format!("/v2/x/blobs/{}", image.id()),
        format!("/v2/x/blobs/{name}"),
        format!("/v2/x/manifests/{}", image.manifest_digest()),
    ];
    expected.sort();
    let mut sorted = asked.clone();
    sorted.sort();
    assert_eq!(sorted, expected);
    assert_eq!(fs::metadata(layer.join("etc/passwd")).unwrap().ino(), passwd);
    assert_eq!(fs::metadata(&layer).unwrap().ino(), directory, "who has mounted it keeps it");
    assert_eq!(fs::metadata(layer.join("bin")).unwrap().nlink(), 2);
    assert_eq!(node.read(&pulled, "bin"), String::from_utf8(vec![7; 9000]).unwrap());
    node.images.remove("x").await.unwrap();
}

#[tokio::test]
async fn layers_are_restored_whatever_is_left_of_them() {
    let (registry, node) = (Registry::start().await, Node::new());
    let image = image("restored");
    let pulled = node.pull(&registry.push("x", "v", &image)).await.unwrap();
    let beside = |kind: &str| node.images.layer_path(&pulled.layers[0]).with_extension(kind);
    let layer = node.images.layer_path(&pulled.layers[0]);
    for (damage, told) in [
        (&(|| fs::remove_dir_all(&layer).unwrap()) as &dyn Fn(), "missing"),
        (&|| fs::remove_file(beside("json")).unwrap(), "its facts are missing or damaged"),
        (&|| fs::write(beside("json"), "{").unwrap(), "its facts are missing or damaged"),
        (&|| flip(&beside("tree")), "its listing: its digest is"),
        (&|| fs::remove_file(beside("tree")).unwrap(), "its listing: read it: No such file"),
        (&|| fs::remove_dir_all(layer.join("etc")).unwrap(), "/etc: missing"),
        (&|| fs::write(layer.join("etc/more"), "x").unwrap(), "/etc/more: extra"),
    ] {
        damage();
        let (found, outcome) = verify(&node, &pulled, true).await;
        assert!(matches!(outcome, Outcome::Repaired), "{told}: {outcome:?}");
        assert!(found.iter().any(|found| found.contains(told)), "{told}: {found:?}");
        assert_whole(&node, &pulled).await;
    }
    assert_eq!(node.read(&pulled, "etc/passwd"), "root");
    let left = node.residue();
    assert!(!left.iter().any(|path| path.contains("/.") || path.starts_with("content/ingest")), "{left:?}");
}

#[tokio::test]
async fn what_was_loaded_is_repaired_from_what_is_kept() {
    for keep in [false, true] {
        let (mut node, image) = (Node::new(), image("loaded"));
        node.config.keep_layer_blobs = keep;
        let node = node.reopen();
        let path = node.dir.path().join("archive.tar");
        fs::write(&path, oci(&[(&image, json!({}))]).end()).unwrap();
        let loaded = node.images.load(&path, &watch::channel(PullProgress::default()).0).await.unwrap();
        flip(&node.images.layer_path(&loaded[0].layers[0]).join("bin"));
        let (_, outcome) = verify(&node, &loaded[0], true).await;
        match outcome {
            Outcome::Repaired if keep => {}
            Outcome::Failed(failures) if !keep => {
                assert!(failures[0].to_string().contains("load it again"), "{}", failures[0]);
            }
            outcome => panic!("{keep}: {outcome:?}"),
        }
    }
}

#[tokio::test]
async fn a_registry_that_is_away_is_told_and_later_asked_again() {
    let (registry, node) = (Registry::start().await, Node::new());
    let image = image("away");
    let name = registry.push("x", "v", &image);
    let pulled = node.pull(&name).await.unwrap();
    flip(&node.images.layer_path(&pulled.layers[0]).join("etc/passwd"));
    for _ in 0..3 {
        registry.fault("/blobs/", super::registry::Fault::Status(503, Vec::new(), String::new()));
    }
    let (_, outcome) = verify(&node, &pulled, true).await;
    // By its digest it fails three times, by its tag it comes.
    assert!(matches!(outcome, Outcome::Repaired), "{outcome:?}");
    assert_whole(&node, &pulled).await;
}

#[tokio::test]
async fn after_a_power_cut_the_next_start_looks_and_repairs() {
    let (registry, node) = (Registry::start().await, Node::new());
    let image = image("cut");
    let pulled = node.pull(&registry.push("x", "v", &image)).await.unwrap();
    let file = node.images.layer_path(&pulled.layers[0]).join("bin");
    let mark = node.dir.path().join("root/images.open");
    assert!(mark.exists());
    fs::File::options().write(true).open(&file).unwrap().set_len(0).unwrap();
    flip(&blob(&node, &image.manifest_digest()));
    // Only the daemon was killed.
    let node = node.reopen();
    node.images.recover().await.unwrap();
    assert_eq!(fs::metadata(&file).unwrap().len(), 0);
    fs::write(&mark, "another boot").unwrap();
    let node = node.reopen();
    node.images.close().unwrap();
    assert!(mark.exists(), "nobody has looked yet");
    node.images.recover().await.unwrap();
    assert_eq!(fs::metadata(&file).unwrap().len(), 9000);
    assert_whole(&node, &node.images.find(image.id().as_str()).unwrap()).await;
    node.images.close().unwrap();
    assert!(!mark.exists());
}

#[tokio::test]
async fn what_a_start_moved_aside_says_what_to_pull() {
    let (registry, node) = (Registry::start().await, Node::new());
    let image = image("aside");
    let name = registry.push("x", "v", &image);
    node.pull(&name).await.unwrap();
    assert!(node.images.set_aside().unwrap().is_empty());
    flip(&blob(&node, &image.id()));
    let node = node.reopen();
    let aside = node.images.set_aside().unwrap();
    assert_eq!(aside[0].digest, image.id());
    assert!(aside[0].what.contains(&format!("pull {name} or ")), "{}", aside[0]);
    let pulled = node.pull(&name).await.unwrap();
    assert!(node.images.set_aside().unwrap().is_empty());
    assert_whole(&node, &pulled).await;
}
