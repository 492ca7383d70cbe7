//! Bad input: the right code, a message that names the field and the cause, and no residue.

use k8s_cri::v1::*;
use tonic::Code;

use crate::lab::archive::{Format, Image, Layer, Packing};
use crate::lab::cri::{container, eventually, namespaces, pod, refused, security, shell};
use crate::lab::node::image;
use crate::lab::registry::{Access, Registry};
use crate::lab::{Node, Setup};

#[tokio::test]
async fn a_malformed_reference_is_refused() {
    let node = Node::start().await;
    for reference in ["", "lower/UPPER", "a//b", "name:", "name@sha256:beef", "name:tag:tag", "../x", "name with space"]
    {
        refused(node.pull(reference).await, Code::InvalidArgument, &["image.image"]);
    }
    node.finish().await;
}

#[tokio::test]
async fn what_the_registry_does_not_have_is_not_found() {
    let node = Node::start().await;
    for reference in [image("no-such-image"), "lab.test/busybox:no-such-tag".to_owned()] {
        refused(node.pull(&reference).await, Code::NotFound, &[&reference]);
    }
    assert!(node.list_images().await.is_empty());
    node.finish().await;
}

#[tokio::test]
async fn a_registry_that_is_away_is_told_in_the_words_the_kubelet_knows() {
    let node = Node::start().await;
    let unused = std::net::TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a port");
    node.map_host("away.test", &format!("http://{unused}"));
    let status = node.pull("away.test/busybox:latest").await.expect_err("nobody listens there");
    assert_eq!(status.code(), Code::Unknown, "{}", status.message());
    assert!(status.message().starts_with("RegistryUnavailable"), "{}", status.message());
    assert!(status.message().contains(&unused.to_string()), "{}", status.message());
    node.finish().await;
}

#[tokio::test]
async fn a_blob_that_is_not_what_its_digest_says_is_dropped() {
    let node = Node::start().await;
    let registry = Registry::start(Access::Open).await;
    node.map_host("liar.test", &registry.url());
    let layer = Layer::new().file("truth", 0o644, b"what the digest says");
    let honest = Image::pack(
        Format::Oci,
        vec![(Layer::busybox(), Packing::Gzip), (layer, Packing::Gzip)],
        &serde_json::json!({}),
    );
    registry.publish("forged/layer", "1", &honest);
    let mut forged = honest.blobs[&honest.layers[1]].clone();
    let last = forged.len() - 9;
    forged[last] ^= 1;
    registry.forge_blob(&honest.layers[1], &forged);
    let status = node.pull("liar.test/forged/layer:1").await.expect_err("a forged layer");
    assert!(status.message().contains(&honest.layers[1]), "{}", status.message());
    nothing_pulled(&node, &honest).await;

    // A manifest asked for by digest and answered with another one.
    let other =
        Image::pack(Format::Oci, vec![(Layer::busybox(), Packing::Gzip)], &serde_json::json!({"User": "other"}));
    let wanted = format!("sha256:{}", "ab".repeat(32));
    registry.put_manifest("forged/manifest", &wanted, other.media_type(), &other.manifest);
    let reference = format!("liar.test/forged/manifest@{wanted}");
    let status = node.pull(&reference).await.expect_err("a forged manifest");
    assert!(status.message().contains(&wanted), "{}", status.message());
    nothing_pulled(&node, &honest).await;
    node.finish().await;
}

async fn nothing_pulled(node: &Node, image: &Image) {
    assert!(node.list_images().await.is_empty());
    for diff_id in &image.diff_ids[1..] {
        let digits = diff_id.trim_start_matches("sha256:");
        assert!(!node.layout().layers().join(digits).exists(), "the layer was published");
    }
    // What had come of another layer may stay, for the next pull; of the forged one, the last, nothing.
    let part = format!("{}.part", image.layers.last().expect("a layer").trim_start_matches("sha256:"));
    let ingest: Vec<_> = std::fs::read_dir(node.layout().content().join("ingest"))
        .expect("the directory of blobs in progress")
        .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
        .collect();
    assert!(ingest.iter().all(|name| name.ends_with(".part") && *name != part), "stayed: {ingest:?}");
}

#[tokio::test]
async fn an_unknown_runtime_handler_is_refused() {
    let node = Node::start().await;
    let result = node.try_run_pod(&pod(&node, "handler"), "no-such-handler").await;
    refused(result, Code::InvalidArgument, &["runtime_handler", "no-such-handler"]);
    assert!(node.list_pods(PodSandboxFilter::default()).await.is_empty());
    node.assert_clean();
    node.finish().await;
}

#[tokio::test]
async fn a_pod_without_what_every_pod_has_is_refused() {
    let node = Node::start().await;
    let result = node.runtime.clone().run_pod_sandbox(RunPodSandboxRequest::default()).await;
    refused(result, Code::InvalidArgument, &["config"]);
    let mut config = pod(&node, "nameless");
    config.metadata = None;
    refused(node.try_run_pod(&config, "").await, Code::InvalidArgument, &["metadata"]);
    let mut config = pod(&node, "target");
    namespaces(&mut config).pid = NamespaceMode::Target.into();
    refused(node.try_run_pod(&config, "").await, Code::InvalidArgument, &["pid"]);
    let mut config = pod(&node, "sysctl");
    config.linux.as_mut().expect("set by pod()").sysctls.insert("kernel.no_such_key".to_owned(), "1".to_owned());
    let status = node.try_run_pod(&config, "").await.expect_err("no such sysctl");
    assert!(status.message().contains("kernel.no_such_key"), "{}", status.message());
    assert!(node.list_pods(PodSandboxFilter::default()).await.is_empty());
    node.assert_clean();
    node.finish().await;
}

#[tokio::test]
async fn a_container_that_could_never_start_is_refused_when_it_is_created() {
    let node = Node::start_with_images(&["busybox"]).await;
    let pod_config = pod(&node, "host");
    let pod = node.run_pod(&pod_config).await;
    let absent = node.dir().join("absent").to_string_lossy().into_owned();
    let mount = |host_path: &str, container_path: &str| Mount {
        host_path: host_path.to_owned(),
        container_path: container_path.to_owned(),
        ..Default::default()
    };
    let main = || shell("main", "echo");
    let with = |change: &dyn Fn(&mut ContainerConfig)| {
        let mut config = main();
        change(&mut config);
        config
    };
    let cases: [(ContainerConfig, Code, &[&str]); 9] = [
        (container("main", &image("never-pulled"), &[]), Code::NotFound, &["image", "never-pulled"]),
        (with(&|config| config.image = None), Code::InvalidArgument, &["image"]),
        (with(&|config| config.metadata = None), Code::InvalidArgument, &["metadata"]),
        (
            with(&|config| config.mounts = vec![mount(&absent, "/data")]),
            Code::InvalidArgument,
            &["mounts[0].host_path", &absent],
        ),
        (with(&|config| config.mounts = vec![mount("/tmp", "")]), Code::InvalidArgument, &["mounts[0].container_path"]),
        (
            with(&|config| security(config).run_as_username = "no-such-user".to_owned()),
            Code::InvalidArgument,
            &["run_as_username", "no-such-user"],
        ),
        (
            with(&|config| {
                let capabilities = Capability { add_capabilities: vec!["FLY".to_owned()], ..Default::default() };
                security(config).capabilities = Some(capabilities);
            }),
            Code::InvalidArgument,
            &["add_capabilities", "FLY"],
        ),
        (with(&|config| config.log_path = "../../escape.log".to_owned()), Code::InvalidArgument, &["log_path"]),
        (
            with(&|config| security(config).run_as_group = Some(Int64Value { value: 7 })),
            Code::InvalidArgument,
            &["run_as_group"],
        ),
    ];
    for (config, code, parts) in cases {
        refused(node.try_create(&pod, &config, &pod_config).await, code, parts);
        assert!(node.list_containers(ContainerFilter::default()).await.is_empty(), "{config:?}");
    }
    let id = pod.parse().expect("a pod's id");
    let left = std::fs::read_dir(node.layout().containers(&id)).map_or(0, Iterator::count);
    assert_eq!(left, 0, "a refused container left a directory");

    let absent = "0123456789abcdef".repeat(4);
    refused(node.try_create(&absent, &main(), &pod_config).await, Code::NotFound, &[&absent]);
    refused(node.start_container(&absent).await, Code::NotFound, &[&absent]);
    refused(node.try_exec(&absent, &["true"], 0).await, Code::NotFound, &[&absent]);

    node.stop_pod(&pod).await.expect("StopPodSandbox");
    refused(node.try_create(&pod, &main(), &pod_config).await, Code::FailedPrecondition, &[&pod, "not ready"]);
    node.remove_pod(&pod).await.expect("RemovePodSandbox");
    node.finish().await;
}

#[tokio::test]
async fn a_container_starts_once() {
    let node = Node::start_with_images(&["busybox"]).await;
    let running = node.run(&shell("once", "exit 0")).await;
    node.exited(&running.container).await;
    refused(node.start_container(&running.container).await, Code::FailedPrecondition, &[&running.container]);
    refused(node.try_exec(&running.container, &["true"], 0).await, Code::FailedPrecondition, &[&running.container]);
    node.delete(&running.pod).await;
    node.finish().await;
}

#[tokio::test]
async fn a_full_disk_is_told_and_leaves_nothing() {
    let node = Node::start_with(Setup { root_size: Some(12 << 20), ..Setup::default() }).await;
    node.pull(&image("busybox")).await.expect("a small image fits");
    let used = || {
        let stat = nix::sys::statvfs::statvfs(node.layout().root()).expect("the root's file system");
        stat.blocks() - stat.blocks_free()
    };
    let before = used();
    refused(node.pull(&image("python")).await, Code::ResourceExhausted, &["No space left on device"]);
    assert_eq!(node.list_images().await.len(), 1);
    // A layer that is being removed when the call returns may take a moment.
    eventually("the failed pull's blocks are free", async || (used() <= before + 16).then_some(())).await;

    // What is on the node goes on.
    let running = node.run(&shell("after", "echo works")).await;
    assert_eq!(node.exited(&running.container).await.exit_code, 0);
    node.delete(&running.pod).await;
    node.finish().await;
}
