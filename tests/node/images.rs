//! Images: every way of packing one, from a registry or a file; names, ids and removal; layers that mean harm.

use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use k8s_cri::v1::{AuthConfig, ImageFsInfoRequest};
use serde_json::{Value, json};

use crate::lab::Node;
use crate::lab::archive::{Format, Image, Layer, Packing};
use crate::lab::cri::{container, eventually};
use crate::lab::node::image;
use crate::lab::registry::{Access, Registry};
use crate::lab::relay::Relay;

#[tokio::test]
async fn every_packing_of_a_real_registry_is_pulled() {
    let node = Node::start().await;
    for name in ["busybox", "nginx", "redis", "python"] {
        let id = node.pull(&image(name)).await.unwrap_or_else(|status| panic!("{name}: {status:?}"));
        let found = node.image_status(&image(name)).await.expect("the pulled image");
        assert_eq!(found.id, id, "{name}");
        assert_eq!(found.repo_tags, [image(name)]);
        assert!(
            found.repo_digests.iter().all(|digest| digest.starts_with(&format!("lab.test/{name}@sha256:"))),
            "{found:?}"
        );
        assert_eq!(found.repo_digests.len(), 1);
        assert!(found.size > 0);
        // The id and the digest name it as well as the tag does.
        for other in [&id, &found.repo_digests[0]] {
            assert_eq!(node.image_status(other).await.expect("the same image").id, id, "{other}");
        }
        assert_eq!(node.pull(&image(name)).await.expect("a second pull"), id);
        assert_eq!(node.pull(&found.repo_digests[0]).await.expect("a pull by digest"), id);
    }
    assert_eq!(node.list_images().await.len(), 4);
    let info = node.images.clone().image_fs_info(ImageFsInfoRequest {}).await.expect("ImageFsInfo").into_inner();
    assert!(info.image_filesystems[0].used_bytes.as_ref().is_some_and(|used| used.value > 1 << 20), "{info:?}");
    assert!(!info.container_filesystems.is_empty(), "{info:?}");
    let ingest = fs::read_dir(node.layout().content().join("ingest")).map_or(0, Iterator::count);
    assert_eq!(ingest, 0, "a blob in progress stayed");
    node.finish().await;
}

#[tokio::test]
async fn concurrent_pulls_of_one_image_fetch_it_once() {
    let node = Node::start().await;
    let registry = Registry::start(Access::Open).await;
    node.map_host("count.test", &registry.url());
    let packed = Image::pack(Format::Oci, vec![(Layer::busybox(), Packing::Gzip)], &json!({"Cmd": ["sh"]}));
    registry.publish("app", "1", &packed);
    let (one, two) = tokio::join!(node.pull("count.test/app:1"), node.pull("count.test/app:1"));
    assert_eq!(one.expect("PullImage"), two.expect("PullImage"));
    assert_eq!(registry.count("GET", &format!("/blobs/{}", packed.layers[0])), 1);
    node.finish().await;
}

#[tokio::test]
async fn a_killed_pull_fetches_only_the_rest() {
    const BEFORE: u64 = 12 << 20;
    let node = Node::start().await;
    let relay = Relay::start(&std::env::var("PODWRIGHT_TEST_REGISTRY").expect("set by hack/test")).await;
    node.map_host("relay.test", &relay.url());
    let name = "relay.test/postgres:latest";
    node.pull(name).await.expect("PullImage");
    let all = relay.sent();
    assert!(all > 2 * BEFORE, "{all} bytes are not enough to stop in the middle");
    node.remove_image(name).await.expect("RemoveImage");

    relay.allow(BEFORE);
    tokio::select! {
        pulled = node.pull(name) => panic!("it is stopped in the middle: {pulled:?}"),
        () = relay.exhausted() => {}
    }
    // What the kernel still holds for the daemon dies with it: it takes all first.
    let ingest = node.layout().content().join("ingest");
    let kept =
        || fs::read_dir(&ingest).into_iter().flatten().flatten().filter_map(|entry| Some(entry.metadata().ok()?.len()));
    eventually("the daemon has taken what was sent", async || (kept().sum::<u64>() > BEFORE - (1 << 20)).then_some(()))
        .await;
    node.kill().await;
    relay.open();
    node.launch().await;
    assert!(node.image_status(name).await.is_none());
    node.pull(name).await.expect("PullImage after the crash");
    // What was under way between the two is all that is sent twice.
    assert!(relay.sent() < all + (2 << 20), "{} bytes for an image of {all}", relay.sent());
    assert_eq!(kept().count(), 0, "a part stayed");
    node.finish().await;
}

#[tokio::test]
async fn one_image_has_many_names_and_goes_by_any() {
    let node = Node::start().await;
    let registry = Registry::start(Access::Open).await;
    node.map_host("names.test", &registry.url());
    let packed = Image::pack(Format::Docker, vec![(Layer::busybox(), Packing::Gzip)], &json!({"Cmd": ["sh"]}));
    registry.publish("app", "1", &packed);
    registry.publish("app", "stable", &packed);
    registry.publish("other/app", "1", &packed);
    for name in ["names.test/app:1", "names.test/app:stable", "names.test/other/app:1"] {
        assert_eq!(node.pull(name).await.expect("PullImage"), packed.id);
    }
    let images = node.list_images().await;
    assert_eq!(images.len(), 1);
    let mut tags = images[0].repo_tags.clone();
    tags.sort();
    assert_eq!(tags, ["names.test/app:1", "names.test/app:stable", "names.test/other/app:1"]);
    assert_eq!(images[0].repo_digests.len(), 2);

    // A tag that moves leaves the image it named.
    let newer = Image::pack(Format::Docker, vec![(Layer::busybox(), Packing::Gzip)], &json!({"Cmd": ["ls"]}));
    registry.publish("app", "stable", &newer);
    assert_eq!(node.pull("names.test/app:stable").await.expect("PullImage"), newer.id);
    assert_eq!(node.image_status("names.test/app:stable").await.expect("the newer one").id, newer.id);
    assert_eq!(node.image_status(&packed.id).await.expect("the older one").repo_tags.len(), 2);

    for _ in 0..2 {
        node.remove_image("names.test/app:1").await.expect("RemoveImage");
    }
    assert!(node.image_status("names.test/other/app:1").await.is_none(), "removed by any name, gone by all");
    node.remove_image(&newer.id).await.expect("RemoveImage");
    assert!(node.list_images().await.is_empty());
    let layers = fs::read_dir(node.layout().layers()).map_or(0, Iterator::count);
    assert_eq!(layers, 0, "layers that no image has are gone");
    node.finish().await;
}

#[tokio::test]
async fn a_removed_image_leaves_its_running_container_alone() {
    let node = Node::start_with_images(&["busybox"]).await;
    let running = node.run(&crate::lab::cri::shell("stays", "while :; do sleep 0.05; done")).await;
    node.remove_image(&image("busybox")).await.expect("RemoveImage");
    assert!(node.image_status(&image("busybox")).await.is_none());
    assert_eq!(node.sh(&running.container, "cat /etc/passwd | head -n 1").await, "root:x:0:0:root:/root:/bin/sh\n");
    node.delete(&running.pod).await;
    node.finish().await;
}

#[tokio::test]
async fn an_index_gives_this_platforms_image() {
    let node = Node::start().await;
    let registry = Registry::start(Access::Open).await;
    node.map_host("index.test", &registry.url());
    let ours = Image::pack(Format::Oci, vec![(Layer::busybox(), Packing::Zstd)], &json!({"Cmd": ["echo", "ours"]}));
    let theirs = Image::pack(Format::Oci, vec![(Layer::new().file("their", 0o644, b""), Packing::Gzip)], &json!({}));
    let machine = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let entry = |image: &Image, platform: Value| {
        let digest = registry.put_manifest("app", "unused", image.media_type(), &image.manifest);
        json!({"mediaType": image.media_type(), "digest": digest, "size": image.manifest.len(), "platform": platform})
    };
    registry.publish("app", "ours", &ours);
    let index = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [
        entry(&theirs, json!({"architecture": "s390x", "os": "linux"})),
        entry(&theirs, json!({"architecture": machine, "os": "windows"})),
        entry(&ours, json!({"architecture": machine, "os": "linux"})),
    ]});
    let bytes = index.to_string().into_bytes();
    let digest = registry.put_manifest("app", "1", "application/vnd.oci.image.index.v1+json", &bytes);
    assert_eq!(node.pull("index.test/app:1").await.expect("PullImage"), ours.id);
    let found = node.image_status("index.test/app:1").await.expect("the image");
    assert_eq!(
        found.repo_digests,
        [format!("index.test/app@{digest}")],
        "the digest is the index's, as the registry names it"
    );
    assert_eq!(registry.count("GET", &theirs.layers[0]), 0);

    let alien = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [
        entry(&theirs, json!({"architecture": "s390x", "os": "linux"}))]});
    registry.put_manifest("app", "alien", "application/vnd.oci.image.index.v1+json", alien.to_string().as_bytes());
    let status = node.pull("index.test/app:alien").await.expect_err("not for this machine");
    assert!(status.message().contains(machine), "{}", status.message());
    node.finish().await;
}

#[tokio::test]
async fn credentials_open_a_registry_and_stay_secret() {
    let node = Node::start().await;
    for (host, access) in
        [("basic.test", Access::Basic("anna", "s3cret")), ("bearer.test", Access::Bearer("anna", "s3cret"))]
    {
        let registry = Registry::start(access).await;
        node.map_host(host, &registry.url());
        let packed = Image::pack(Format::Oci, vec![(Layer::busybox(), Packing::Gzip)], &json!({"Cmd": [host]}));
        registry.publish("app", "1", &packed);
        let reference = format!("{host}/app:1");
        let auth = |password: &str| AuthConfig {
            username: "anna".to_owned(),
            password: password.to_owned(),
            ..Default::default()
        };
        node.pull(&reference).await.expect_err("nobody gets in without a password");
        let refused = node.pull_as(&reference, Some(auth("wr0ng-one"))).await.expect_err("a wrong password");
        assert!(!refused.message().contains("wr0ng-one"), "{}", refused.message());
        assert_eq!(node.pull_as(&reference, Some(auth("s3cret"))).await.expect("PullImage"), packed.id);
        // `auth` is user and password in base64, as docker's configuration has them.
        let packed_auth = AuthConfig { auth: "YW5uYTpzM2NyZXQ=".to_owned(), ..Default::default() };
        node.remove_image(&reference).await.expect("RemoveImage");
        assert_eq!(node.pull_as(&reference, Some(packed_auth)).await.expect("PullImage"), packed.id);
    }
    let log = fs::read_to_string(node.dir().join("daemon.log")).expect("the daemon's log");
    for secret in ["s3cret", "wr0ng-one", "YW5uYTpzM2NyZXQ"] {
        assert!(!log.contains(secret), "{secret} is in the log");
    }
    node.finish().await;
}

/// Where a layer is unpacked.
fn unpacked(node: &Node, diff_id: &str) -> PathBuf {
    let dir = node.layout().layers().join(diff_id.trim_start_matches("sha256:"));
    // The layer's own directory may hold its files below a subdirectory.
    ["", "fs", "diff"].iter().map(|below| dir.join(below)).find(|dir| dir.join("kept").exists()).unwrap_or(dir)
}

#[tokio::test]
async fn a_layer_is_unpacked_with_all_that_a_file_can_have() {
    let node = Node::start().await;
    let registry = Registry::start(Access::Open).await;
    node.map_host("layers.test", &registry.url());
    // VFS_CAP_REVISION_2 with cap_net_raw permitted and effective, as `setcap cap_net_raw+ep` writes it.
    let capability = [1_u8, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let lower = Layer::busybox()
        .file("kept", 0o644, b"lower")
        .file("gone", 0o644, b"lower")
        .dir("opaque", 0o755)
        .file("opaque/below", 0o644, b"lower")
        .dir("merged", 0o755)
        .file("merged/below", 0o644, b"lower");
    let upper = Layer::new()
        .file("kept", 0o4755, b"upper")
        .file(".wh.gone", 0o644, b"")
        .dir("opaque", 0o700)
        .file("opaque/.wh..wh..opq", 0o644, b"")
        .file("opaque/above", 0o644, b"upper")
        .file("merged/above", 0o644, b"upper")
        .link("kept", "linked")
        .symlink("/etc/passwd", "pointer")
        .char_device("device", 1, 3)
        .file_with("capable", 0o755, b"#!/bin/sh", &[("security.capability", &capability), ("user.note", b"hello")]);
    let packed =
        Image::pack(Format::Oci, vec![(lower, Packing::Plain), (upper, Packing::Zstd)], &json!({"Cmd": ["sh"]}));
    registry.publish("layers", "1", &packed);
    node.pull("layers.test/layers:1").await.expect("PullImage");

    let script = "cat /kept; echo; ls -d /gone /opaque/* /merged/* 2>&1; readlink /pointer; stat -c '%n %a %h %s %F' /kept /linked /opaque";
    let (output, status) = node.script(&container("look", "layers.test/layers:1", &["sh", "-c", script])).await;
    assert_eq!(status.exit_code, 0, "{output}");
    let expected = "upper\nls: /gone: No such file or directory\n/merged/above\n/merged/below\n/opaque/above\n/etc/passwd\n\
        /kept 4755 2 5 regular file\n/linked 4755 2 5 regular file\n/opaque 700 ";
    assert!(output.starts_with(expected), "{output}");

    let dir = unpacked(&node, &packed.diff_ids[1]);
    let device = fs::metadata(dir.join("device")).expect("the device node");
    assert!(device.file_type().is_char_device() && device.rdev() == nix::sys::stat::makedev(1, 3));
    let kept = fs::metadata(dir.join("kept")).expect("the file");
    assert_eq!((kept.permissions().mode() & 0o7777, kept.mtime()), (0o4755, 1_700_000_000));
    for (key, value) in [("security.capability", capability.as_slice()), ("user.note", b"hello")] {
        let mut buffer = [0; 64];
        let length = rustix::fs::getxattr(dir.join("capable"), key, &mut buffer).expect("the attribute");
        assert_eq!(&buffer[..length], value, "{key}");
    }
    node.finish().await;
}

#[tokio::test]
async fn a_hostile_layer_writes_nowhere_but_into_itself() {
    let node = Node::start().await;
    let registry = Registry::start(Access::Open).await;
    node.map_host("hostile.test", &registry.url());
    let outside = node.dir().join("outside");
    fs::create_dir(&outside).expect("a directory to protect");
    fs::write(outside.join("precious"), "untouched").expect("a file to protect");
    let target = outside.to_string_lossy().into_owned();
    let relative = |depth: usize| format!("{}{}", "../".repeat(depth), target.trim_start_matches('/'));
    let layers: Vec<(&str, Layer)> = vec![
        ("dots", Layer::new().file(&format!("{}/evil", relative(12)), 0o644, b"evil")),
        ("absolute", Layer::new().file(&format!("{target}/evil"), 0o644, b"evil")),
        ("dots-in-the-middle", Layer::new().dir("a", 0o755).file(&format!("a/{}/evil", relative(12)), 0o644, b"evil")),
        ("link-then-write", Layer::new().symlink(&target, "door").file("door/evil", 0o644, b"evil")),
        ("relative-link", Layer::new().symlink(&relative(12), "door").file("door/evil", 0o644, b"evil")),
        ("link-then-file", Layer::new().symlink(&format!("{target}/precious"), "file").file("file", 0o644, b"evil")),
        ("hard-link", Layer::new().link(&format!("{target}/precious"), "file").file("file", 0o644, b"evil")),
        (
            "hard-link-by-dots",
            Layer::new().link(&format!("{}/precious", relative(12)), "file").file("file", 0o644, b"evil"),
        ),
        (
            "hard-link-by-link",
            Layer::new().symlink(&target, "door").link("door/precious", "file").file("file", 0o644, b"evil"),
        ),
        ("whiteout", Layer::new().symlink(&target, "door").file("door/.wh.precious", 0o644, b"")),
        ("whiteout-of-dots", Layer::new().file("a/.wh...", 0o644, b"").file(".wh..", 0o644, b"")),
        ("opaque", Layer::new().symlink(&target, "door").file("door/.wh..wh..opq", 0o644, b"")),
        ("mode", Layer::new().symlink(&target, "door").dir("door", 0o777)),
    ];
    let mode = fs::metadata(&outside).expect("the directory").permissions().mode();
    for (name, layer) in layers {
        let packed = Image::pack(
            Format::Oci,
            vec![(Layer::busybox(), Packing::Gzip), (layer, Packing::Gzip)],
            &json!({"Cmd": [name]}),
        );
        registry.publish(name, "1", &packed);
        // Refused or held inside the layer: both are right.
        let pulled = node.pull(&format!("hostile.test/{name}:1")).await;
        assert!(only_precious(&outside), "{name} wrote outside: {pulled:?}");
        assert_eq!(
            fs::metadata(&outside).expect("the directory").permissions().mode(),
            mode,
            "{name} changed a mode outside"
        );
        if let Err(status) = pulled {
            let digits = packed.diff_ids[1].trim_start_matches("sha256:");
            assert!(!node.layout().layers().join(digits).exists(), "{name}: a refused layer was published");
            assert!(!status.message().is_empty());
        }
    }
    node.finish().await;
}

fn only_precious(dir: &Path) -> bool {
    let names: Vec<_> = fs::read_dir(dir).expect("the directory").flatten().map(|entry| entry.file_name()).collect();
    names == ["precious"] && fs::read(dir.join("precious")).expect("the file") == b"untouched"
}

#[tokio::test]
async fn archives_of_either_kind_are_loaded() {
    let node = Node::start().await;
    let layouts =
        std::env::var("PODWRIGHT_TEST_IMAGES").expect("PODWRIGHT_TEST_IMAGES holds what `hack/images --dir` prints");
    for (kind, name) in [("oci-archive", "loaded/oci"), ("docker-archive", "loaded/docker")] {
        let tar = node.dir().join(format!("{kind}.tar"));
        let reference = format!("lab.test/{name}:1");
        let target = format!("{kind}:{}:{reference}", tar.display());
        let made = tokio::process::Command::new("skopeo")
            .args(["copy", "--quiet", "--insecure-policy", &format!("oci:{layouts}/oci/busybox:latest"), &target])
            .status()
            .await
            .expect("hack/test installs skopeo");
        assert!(made.success());
        let output =
            node.command(&["image", "load", &tar.to_string_lossy()]).output().await.expect("podwright image load");
        assert!(output.status.success(), "{kind}: {}", String::from_utf8_lossy(&output.stderr));
        let found = node.image_status(&reference).await.unwrap_or_else(|| panic!("{kind}: {reference} is not there"));
        assert!(found.id.starts_with("sha256:"), "{found:?}");
        let (text, status) = node.script(&container(kind, &reference, &["echo", "loaded"])).await;
        assert_eq!((status.exit_code, text.as_str()), (0, "loaded\n"), "{kind}");
        node.remove_image(&reference).await.expect("RemoveImage");
    }
    node.finish().await;
}
