//! What is on disk of images: read by other tools, damaged and repaired, and killed in the middle of.

use std::cell::Cell;
use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::Output;
use std::time::Duration;

use serde_json::{Value, json};

use crate::cli::podwright;
use crate::lab::archive::{Format, Image, Layer, Packing};
use crate::lab::cri::shell;
use crate::lab::node::image;
use crate::lab::registry::{Access, Registry};
use crate::lab::{Node, Setup};
use crate::restart::{Random, is_absence, setting};

async fn skopeo(arguments: &[&str]) -> Vec<u8> {
    let output = tokio::process::Command::new("skopeo").args(arguments).output().await;
    let output = output.expect("hack/test installs skopeo");
    assert!(output.status.success(), "skopeo {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

#[tokio::test]
async fn other_tools_read_the_layout() {
    let node = Node::start_with(Setup {
        config: "keep_layer_blobs = true\npinned_images = [\"*/busybox:*\"]",
        ..Setup::default()
    })
    .await;
    // Docker's manifests are described as what they are, which skopeo does not look for in a layout.
    for name in ["busybox", "nginx"] {
        node.pull(&image(name)).await.expect("PullImage");
        let found = node.image_status(&image(name)).await.expect("the pulled image");
        assert_eq!(found.pinned, name == "busybox");
        let source = format!("oci:{}:{}", node.layout().content().display(), image(name));
        let inspected: Value = serde_json::from_slice(&skopeo(&["inspect", &source]).await).expect("JSON");
        assert_eq!(inspected["Digest"].as_str(), found.repo_digests[0].split('@').next_back());
        let config = skopeo(&["inspect", "--config", "--raw", &source]).await;
        assert_eq!(crate::lab::archive::digest(&config), found.id);
        let copy = node.dir().join(name);
        skopeo(&["copy", "--quiet", "--insecure-policy", &source, &format!("dir:{}", copy.display())]).await;
        assert!(copy.join("manifest.json").exists());
    }
    node.remove_image(&image("nginx")).await.expect("RemoveImage");
    let index = fs::read(node.layout().content().join("index.json")).expect("the layout's index");
    let index: Value = serde_json::from_slice(&index).expect("JSON");
    assert_eq!(index["manifests"].as_array().map(Vec::len), Some(1));
    node.finish().await;
}

/// Changes a byte, as a disk does that forgets.
fn flip(path: &Path) {
    let file = fs::File::options().read(true).write(true).open(path).expect("the file");
    let (times, at) = (file.metadata().expect("its metadata"), file.metadata().expect("its metadata").len() / 2);
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).expect("its middle");
    file.write_all_at(&[byte[0] ^ 1], at).expect("it can be written");
    file.set_modified(times.modified().expect("its time")).expect("its time can be set");
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[tokio::test]
async fn flipped_bytes_are_repaired_under_a_running_container() {
    let node = Node::start_with(Setup { config: "keep_layer_blobs = true", ..Setup::default() }).await;
    let registry = Registry::start(Access::Open).await;
    node.map_host("rot.test", &registry.url());
    let (lower, upper) =
        (Layer::busybox(), Layer::new().dir("data", 0o755).file("data/precious", 0o644, b"precious\n"));
    let packed =
        Image::pack(Format::Oci, vec![(lower, Packing::Gzip), (upper, Packing::Zstd)], &json!({"Cmd": ["sh"]}));
    registry.publish("app", "1", &packed);
    node.pull("rot.test/app:1").await.expect("PullImage");
    let running = node
        .run(&crate::lab::cri::container("runs", "rot.test/app:1", &["sh", "-c", "while :; do sleep 0.05; done"]))
        .await;
    let verified = podwright(&node, &["image", "verify"]).await;
    assert!(verified.status.success() && text(&verified).contains("rot.test/app:1: whole"), "{verified:?}");

    let hex = |digest: &str| digest.trim_start_matches("sha256:").to_owned();
    flip(&node.layout().layers().join(hex(&packed.diff_ids[1])).join("data/precious"));
    let blobs = node.layout().content().join("blobs/sha256");
    flip(&blobs.join(hex(&packed.layers[1])));
    flip(&blobs.join(hex(&packed.id)));
    let before = registry.count("GET", "/blobs/");
    let verified = podwright(&node, &["image", "verify", "rot.test/app:1"]).await;
    assert!(!verified.status.success());
    for told in [
        format!("layer {} /data/precious: contents changed", packed.diff_ids[1]),
        format!("layer blob {}: its digest is", packed.layers[1]),
        format!("configuration {}: its digest is", packed.id),
        "--repair".to_owned(),
    ] {
        assert!(text(&verified).contains(&told), "{told}: {}", text(&verified));
    }
    assert_eq!(registry.count("GET", "/blobs/"), before, "looking fetches nothing");

    let repaired = podwright(&node, &["image", "verify", "--repair"]).await;
    assert!(repaired.status.success() && text(&repaired).contains("rot.test/app:1: repaired"), "{repaired:?}");
    assert_eq!(
        registry.count("GET", &format!("/blobs/{}", packed.layers[0])),
        1,
        "what was whole is not fetched again"
    );
    let verified = podwright(&node, &["image", "verify"]).await;
    assert!(verified.status.success(), "{verified:?}");
    // The running container runs on, a new one sees what was repaired.
    assert_eq!(node.sh(&running.container, "echo here").await, "here\n");
    let (precious, status) =
        node.script(&crate::lab::cri::container("reads", "rot.test/app:1", &["cat", "/data/precious"])).await;
    assert_eq!((precious.as_str(), status.exit_code), ("precious\n", 0));
    node.delete(&running.pod).await;
    node.finish().await;
}

/// `PODWRIGHT_TEST_PULL_KILLS` (50) deaths at moments drawn from `PODWRIGHT_TEST_SEED` (1), in the middle of pulls and
/// removals.
#[tokio::test]
async fn deaths_in_the_middle_of_pulls_leave_only_whole_images() {
    let (kills, seed) = (setting("PODWRIGHT_TEST_PULL_KILLS", 50), setting("PODWRIGHT_TEST_SEED", 1));
    let node = Node::start().await;
    let registry = Registry::start(Access::Open).await;
    node.map_host("kill.test", &registry.url());
    for number in 0..4 {
        let files = |layer: Layer, name: &str| {
            (0..30).fold(layer, |layer, file| layer.file(&format!("{name}-{file}"), 0o644, &vec![file as u8; 3000]))
        };
        let layers = vec![
            (files(Layer::new(), "shared"), Packing::Gzip),
            (files(Layer::new(), &format!("pair-{}", number / 2)), Packing::Zstd),
            (files(Layer::new(), &format!("own-{number}")), Packing::Gzip),
        ];
        let packed = Image::pack(Format::Oci, layers, &json!({"Cmd": [format!("{number}")]}));
        registry.publish(&format!("app{number}"), "1", &packed);
    }
    let (done, pulled) = (Cell::new(false), Cell::new(0));
    let mut random = Random(seed);
    let kubelet = async {
        let mut random = Random(seed + 1);
        while !done.get() {
            let name = format!("kill.test/app{}:1", random.below(4));
            let outcome = match random.below(3) {
                0 => node.remove_image(&name).await,
                _ => node.pull(&name).await.map(|_| pulled.set(pulled.get() + 1)),
            };
            match outcome {
                Ok(()) => {}
                Err(status) if is_absence(&status) => tokio::time::sleep(Duration::from_millis(2)).await,
                Err(status) => panic!("{name}: {status:?}"),
            }
        }
    };
    let killer = async {
        for kill in 0..kills {
            tokio::time::sleep(Duration::from_micros(random.below(300_000))).await;
            node.crash().await;
            let verified = podwright(&node, &["image", "verify"]).await;
            assert!(verified.status.success(), "after kill {kill}: {}", text(&verified));
        }
        done.set(true);
    };
    tokio::join!(killer, kubelet);
    println!("{kills} deaths (seed {seed}) over {} pulls", pulled.get());
    assert!(pulled.get() > 0);
    for image in node.list_images().await {
        node.remove_image(&image.id).await.expect("RemoveImage");
    }
    node.crash().await;
    let layout = node.layout();
    for dir in [layout.layers(), layout.images(), layout.content().join("blobs/sha256")] {
        let left: Vec<_> =
            fs::read_dir(&dir).expect("the directory").map(|entry| entry.expect("a name").path()).collect();
        assert!(left.is_empty(), "{left:?}");
    }
    node.finish().await;
}

#[tokio::test]
async fn a_damaged_record_says_what_to_pull() {
    let node = Node::start_with_images(&["busybox"]).await;
    let id = node.image_status(&image("busybox")).await.expect("the image").id;
    node.kill().await;
    flip(&node.layout().content().join("blobs/sha256").join(id.trim_start_matches("sha256:")));
    node.launch().await;
    assert!(node.list_images().await.is_empty());
    let verified = podwright(&node, &["image", "verify"]).await;
    assert!(
        !verified.status.success() && text(&verified).contains(&format!("pull {}", image("busybox"))),
        "{verified:?}"
    );
    node.pull(&image("busybox")).await.expect("PullImage");
    let verified = podwright(&node, &["image", "verify"]).await;
    assert!(verified.status.success(), "{verified:?}");
    let running = node.run(&shell("whole", "while :; do sleep 0.05; done")).await;
    node.delete(&running.pod).await;
    node.finish().await;
}
