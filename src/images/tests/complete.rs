//! The layer that an image gets on top of its own, as the store keeps it.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use podwright_layer::testing::{Entry, Tar};
use tar::EntryType;

use super::image::{Layer, TestImage};
use super::registry::{Node, Registry};
use crate::{Outcome, PullClass, Verified};

fn base() -> Tar {
    let root = Entry::new(EntryType::Directory, "./").mode(0o751).owner(7, 8);
    let kept = Entry::new(EntryType::Directory, "var/").mode(0o1777);
    Tar::default().pax(&[("SCHILY.xattr.user.note", b"x")]).entry(root, b"").entry(kept, b"").file("tool", "works")
}

fn needy(name: &str) -> TestImage {
    let upper = Tar::default().file("var/implied", name).hard_link("link", "tool");
    TestImage::new(vec![Layer::gzip(base()), Layer::gzip(upper)])
}

#[tokio::test]
async fn it_is_pulled_shared_and_removed_as_any_layer() {
    let (registry, node) = (Registry::start().await, Node::new());
    let (one, two) = (needy("one"), needy("two"));
    let first = node.pull(&registry.push("one", "v", &one)).await.unwrap();
    let second = node.pull(&registry.push("two", "v", &two)).await.unwrap();
    assert_eq!(first.layers.len(), 3);
    assert!(first.layers[2] == second.layers[2] && first.layers[1] != second.layers[1]);
    assert_eq!(node.read(&first, "link"), "works");
    assert_eq!(node.read(&first, "var/implied"), "one");
    let top = node.images.layer_path(&first.layers[2]);
    assert_eq!(fs::metadata(top.join("var")).unwrap().mode() & 0o7777, 0o1777);
    assert_eq!(*node.pull(&registry.name("one", "v")).await.unwrap(), *first, "nothing is new");
    let node = node.reopen();
    node.images.collect().unwrap();
    assert_eq!(node.images.list().len(), 2);
    assert!(node.images.remove(first.id.as_str()).await.unwrap());
    assert_eq!(node.read(&second, "link"), "works");
    assert!(node.images.remove(second.id.as_str()).await.unwrap());
    assert_eq!(node.residue(), Vec::<String>::new());
}

#[tokio::test]
async fn it_is_verified_and_made_anew() {
    let (registry, node) = (Registry::start().await, Node::new());
    let pulled = node.pull(&registry.push("x", "v", &needy("x"))).await.unwrap();
    let (found, _) = node.images.verify(&pulled, false, &mut Verified::default()).await.unwrap();
    assert_eq!(found, []);
    fs::write(node.images.layer_path(&pulled.layers[2]).join("link"), "wrong").unwrap();
    let asked = registry.log().len();
    let (found, outcome) = node.images.verify(&pulled, true, &mut Verified::default()).await.unwrap();
    assert!(found.iter().all(|finding| finding.digest == pulled.layers[2]) && !found.is_empty(), "{found:?}");
    assert!(matches!(outcome, Outcome::Repaired), "{outcome:?}");
    assert_eq!((node.read(&pulled, "link"), registry.log().len()), ("works".to_owned(), asked));
}

#[tokio::test]
async fn layers_that_are_there_are_completed_too() {
    let (registry, node) = (Registry::start().await, Node::new());
    let alone = TestImage::new(vec![Layer::gzip(base())]);
    assert_eq!(node.pull(&registry.push("base", "v", &alone)).await.unwrap().layers.len(), 1);
    let pulled = node.pull(&registry.push("x", "v", &needy("x"))).await.unwrap();
    assert_eq!((pulled.layers.len(), node.read(&pulled, "link")), (3, "works".to_owned()));
}

#[tokio::test]
async fn what_is_mounted_is_each_layer_once_and_none_that_is_hidden() {
    let (registry, node) = (Registry::start().await, Node::new());
    let hiding = Layer::gzip(Tar::default().file(".wh..wh..opq", "").file("var/own", "x"));
    let twice = Layer::gzip(Tar::default().dir("twice"));
    let image = TestImage::new(vec![Layer::gzip(base()), twice.clone(), hiding.clone(), twice.clone(), twice.clone()]);
    let pulled = node.pull(&registry.push("x", "v", &image)).await.unwrap();
    assert_eq!(pulled.layers, [hiding.diff_id, twice.diff_id]);
    assert_eq!(node.images.read_file(&pulled, "tool", 9).unwrap(), None);
    assert_eq!(node.read(&pulled, "var/own"), "x");
    let (found, _) = node.images.verify(&pulled, false, &mut Verified::default()).await.unwrap();
    assert_eq!(found, []);
    assert!(node.images.remove(pulled.id.as_str()).await.unwrap());
    node.images.collect().unwrap();
    assert_eq!(node.residue(), Vec::<String>::new());
}

#[tokio::test]
async fn links_to_nothing_fail_by_name_and_leave_nothing() {
    let (registry, node) = (Registry::start().await, Node::new());
    let upper = Tar::default().hard_link("link", "no/such");
    let image = TestImage::new(vec![Layer::gzip(base()), Layer::gzip(upper)]);
    let error = node.pull(&registry.push("x", "v", &image)).await.unwrap_err();
    assert_eq!(error.class(), PullClass::Unsupported);
    let words = podwright_base::chain(&error);
    assert!(words.contains("link") && words.contains("no/such"), "{words}");
    node.images.collect().unwrap();
    assert_eq!(node.residue(), Vec::<String>::new());
}

#[tokio::test]
async fn a_containers_root_is_like_the_images() {
    let (registry, node) = (Registry::start().await, Node::new());
    let pulled = node.pull(&registry.push("x", "v", &needy("x"))).await.unwrap();
    let upper = node.dir.path().join("upper");
    fs::create_dir(&upper).unwrap();
    node.images.copy_root(&pulled.layers, &upper).unwrap();
    let found = fs::metadata(&upper).unwrap();
    assert_eq!((found.mode() & 0o7777, found.uid(), found.gid()), (0o751, 7, 8));
    let mut value = [0; 8];
    assert_eq!(rustix::fs::getxattr(&upper, "user.note", &mut value[..]).unwrap(), 1);
    // Where no layer says what it is like, it stays as it is.
    fs::set_permissions(&upper, fs::Permissions::from_mode(0o700)).unwrap();
    node.images.copy_root(&pulled.layers[1..], &upper).unwrap();
    assert_eq!(fs::metadata(&upper).unwrap().mode() & 0o7777, 0o700);
}
