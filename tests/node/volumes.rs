//! Image volumes: what of an image a container sees, that nobody can change it, and that it stays while it is used.
//!
//! The calls are made by the daemon's own bindings: those of another hand do not know sub paths and digests yet.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use podwright_proto::runtime::v1::runtime_service_client::RuntimeServiceClient;
use podwright_proto::runtime::v1::{self, Mount};
use serde_json::{Value, json};
use tokio::process::Command;
use tonic::{Code, Status};

use crate::lab::Node;
use crate::lab::archive::{Format, Image, Layer, Packing, digest};
use crate::lab::cri::{self, eventually, pod, refused};
use crate::lab::node::{REGISTRY, image};
use crate::lab::registry::{Access, Registry};

const MODEL: &str = "volumes.test/model:1";

/// An image of three layers, with a whiteout and a directory that hides what is below it.
fn model() -> Image {
    let bottom = Layer::busybox()
        .dir("etc", 0o755)
        .file("etc/name", 0o644, b"bottom")
        .file("etc/gone", 0o644, b"bottom")
        .dir("opaque", 0o755)
        .file("opaque/hidden", 0o644, b"bottom")
        .symlink("/etc", "link");
    let middle = Layer::new().file("etc/.wh.gone", 0o644, b"").file("etc/more", 0o644, b"middle");
    let top = Layer::new()
        .file("etc/name", 0o644, b"top")
        .dir("opaque", 0o755)
        .file("opaque/.wh..wh..opq", 0o644, b"")
        .file("opaque/seen", 0o644, b"top");
    let layers = [bottom, middle, top].map(|layer| (layer, Packing::Gzip));
    Image::pack(Format::Oci, layers.into(), &json!({}))
}

fn volume(place: &str, image: &str, sub_path: &str) -> Mount {
    Mount {
        container_path: place.to_owned(),
        readonly: true,
        image: Some(v1::ImageSpec { image: image.to_owned(), ..Default::default() }),
        image_sub_path: sub_path.to_owned(),
        ..Default::default()
    }
}

/// A pod whose containers have image volumes.
struct Pod<'a> {
    node: &'a Node,
    name: &'static str,
    id: String,
    runtime: RuntimeServiceClient<tonic::transport::Channel>,
}

impl<'a> Pod<'a> {
    async fn run(node: &'a Node, name: &'static str) -> Self {
        let id = node.run_pod(&pod(node, name)).await;
        Self { node, name, id, runtime: RuntimeServiceClient::new(node.channel()) }
    }

    async fn create(&self, name: &str, mounts: Vec<Mount>) -> Result<String, Status> {
        self.create_of(&image("busybox"), name, mounts).await
    }

    async fn create_of(&self, image: &str, name: &str, mounts: Vec<Mount>) -> Result<String, Status> {
        let namespaces = v1::NamespaceOption { pid: v1::NamespaceMode::Container.into(), ..Default::default() };
        let security = v1::LinuxContainerSecurityContext { namespace_options: Some(namespaces), ..Default::default() };
        let config = v1::ContainerConfig {
            metadata: Some(v1::ContainerMetadata { name: name.to_owned(), attempt: 0 }),
            image: Some(v1::ImageSpec { image: image.to_owned(), ..Default::default() }),
            command: ["sh", "-c", "while :; do sleep 0.05; done"].map(str::to_owned).to_vec(),
            log_path: format!("{}-{name}.log", self.name),
            linux: Some(v1::LinuxContainerConfig { security_context: Some(security), resources: None }),
            mounts,
            ..Default::default()
        };
        let request = v1::CreateContainerRequest {
            pod_sandbox_id: self.id.clone(),
            config: Some(config),
            sandbox_config: Some(v1::PodSandboxConfig::default()),
        };
        Ok(self.runtime.clone().create_container(request).await?.into_inner().container_id)
    }

    async fn start(&self, name: &str, mounts: Vec<Mount>) -> String {
        let id = self.create(name, mounts).await.expect("CreateContainer");
        self.node.start_container(&id).await.expect("StartContainer");
        id
    }

    async fn mounts(&self, container: &str) -> Vec<Mount> {
        let request = v1::ContainerStatusRequest { container_id: container.to_owned(), verbose: false };
        let status = self.runtime.clone().container_status(request).await.expect("ContainerStatus").into_inner();
        status.status.expect("a status").mounts
    }
}

fn layers(node: &Node) -> usize {
    let entries = fs::read_dir(node.layout().layers()).expect("the layers' directory");
    entries.flatten().filter(|entry| entry.path().is_dir()).count()
}

#[tokio::test]
async fn an_image_is_a_read_only_volume() {
    let node = Node::start_with_images(&["busybox"]).await;
    let registry = Registry::start(Access::Open).await;
    node.map_host("volumes.test", &registry.url());
    registry.publish("model", "1", &model());
    let id = node.pull(MODEL).await.expect("PullImage");
    let pod = Pod::run(&node, "model").await;
    let container = pod
        .start(
            "all",
            vec![
                volume("/image", &id, ""),
                volume("/etc-of-it", MODEL, "etc"),
                volume("/by-link", MODEL, "./link"),
                volume("/opaque", MODEL, "opaque"),
                volume("/etc/name", MODEL, "link/name"),
                Mount { recursive_read_only: true, ..volume("/deep/er", MODEL, "etc") },
            ],
        )
        .await;
    let look = "cat /image/etc/name /etc-of-it/more /by-link/name /opaque/seen /etc/name /deep/er/name; echo; \
        ls /etc-of-it /opaque; ls -d /image/etc/gone /image/opaque/hidden 2>&1; /image/bin/echo runs";
    let expected = "topmiddletoptoptoptop\n/etc-of-it:\nmore\nname\n\n/opaque:\nseen\n\
        ls: /image/etc/gone: No such file or directory\nls: /image/opaque/hidden: No such file or directory\nruns\n";
    assert_eq!(node.sh(&container, &format!("{{ {look}; }} || true")).await, expected);
    for place in ["/image/x", "/etc-of-it/x", "/opaque/x", "/opaque/seen", "/etc/name", "/deep/er/x"] {
        let written = node.sh(&container, &format!("(echo x > {place}) 2>&1 || true")).await;
        assert!(written.contains("Read-only file system"), "{place}: {written}");
    }
    for mount in pod.mounts(&container).await {
        let image = mount.image.as_ref().expect("an image");
        assert_eq!(image.image_ref, id, "{mount:?}");
        assert!(mount.readonly && mount.host_path.is_empty(), "{mount:?}");
    }
    assert_eq!(pod.mounts(&container).await[4].image_sub_path, "link/name");
    assert!(crate::lab::residue::mounts(node.layout()).iter().all(|line| line.contains("nsfs")), "only the pod's pin");
    node.delete(&pod.id).await;
    node.finish().await;
}

#[tokio::test]
async fn an_image_volume_that_cannot_be_is_refused_when_its_container_is_created() {
    let node = Node::start_with_images(&["busybox"]).await;
    let pod = Pod::run(&node, "refused").await;
    let busybox = image("busybox");
    let fine = || volume("/image", &busybox, "");
    let cases: Vec<(&str, Code, &[&str], Mount)> = vec![
        (
            "absent",
            Code::NotFound,
            &["ImageVolumeMountFailed", "config.mounts[1].image.image", "lab.test/absent:1", "pull it"],
            volume("/image", "lab.test/absent:1", ""),
        ),
        (
            "no-path",
            Code::InvalidArgument,
            &["ImageVolumeMountFailed", "config.mounts[1].image_sub_path", "\"no/such\" does not exist"],
            volume("/image", &busybox, "no/such"),
        ),
        ("dots", Code::InvalidArgument, &["config.mounts[1].image_sub_path"], volume("/image", &busybox, "etc/../..")),
        ("absolute", Code::InvalidArgument, &["config.mounts[1].image_sub_path"], volume("/image", &busybox, "/etc")),
        ("writable", Code::InvalidArgument, &["config.mounts[1].readonly"], Mount { readonly: false, ..fine() }),
        (
            "host-path",
            Code::InvalidArgument,
            &["config.mounts[1].host_path"],
            Mount { host_path: "/etc".to_owned(), ..fine() },
        ),
        (
            "propagation",
            Code::InvalidArgument,
            &["config.mounts[1].propagation"],
            Mount { propagation: v1::MountPropagation::PropagationBidirectional.into(), ..fine() },
        ),
    ];
    for (name, code, parts, mount) in cases {
        refused(pod.create(name, vec![fine(), mount]).await, code, parts);
    }
    assert!(node.list_containers(Default::default()).await.is_empty());
    node.delete(&pod.id).await;
    node.finish().await;
}

#[tokio::test]
async fn an_image_stays_as_long_as_it_is_mounted() {
    let node = Node::start_with_images(&["busybox"]).await;
    let registry = Registry::start(Access::Open).await;
    node.map_host("volumes.test", &registry.url());
    registry.publish("model", "1", &model());
    let before = layers(&node);
    let id = node.pull(MODEL).await.expect("PullImage");
    let pod = Pod::run(&node, "stays").await;
    let mounts = || vec![volume("/image", MODEL, ""), volume("/part", MODEL, "opaque")];
    let running = pod.start("running", mounts()).await;
    let created = pod.create("created", mounts()).await.expect("CreateContainer");
    node.remove_image(MODEL).await.expect("RemoveImage");
    assert!(node.image_status(MODEL).await.is_none());
    let look = "cat /image/etc/name /image/etc/more /part/seen";
    assert_eq!(node.sh(&running, look).await, "topmiddletop");
    // The daemon that starts collects what nobody needs, and the containers need these layers.
    node.crash().await;
    assert_eq!(node.sh(&running, look).await, "topmiddletop");
    node.start_container(&created).await.expect("StartContainer");
    assert_eq!(node.sh(&created, look).await, "topmiddletop");
    assert_eq!(pod.mounts(&created).await[0].image.as_ref().expect("an image").image_ref, id);
    node.delete(&pod.id).await;
    eventually("the layers are gone", async || (layers(&node) == before).then_some(())).await;
    node.finish().await;
}

/// An OCI layout on disk, for other tools.
struct Layout(PathBuf);

impl Layout {
    fn create(dir: PathBuf) -> Self {
        fs::create_dir_all(dir.join("blobs/sha256")).expect("a new directory");
        fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).expect("the marker is written");
        Self(dir)
    }

    /// Adds a blob and returns its descriptor.
    fn add(&self, media_type: &str, bytes: &[u8], annotations: &[(&str, &str)]) -> Value {
        let name = digest(bytes);
        let place = self.0.join("blobs/sha256").join(name.trim_start_matches("sha256:"));
        fs::write(place, bytes).expect("the blob is written");
        let annotations: BTreeMap<_, _> = annotations.iter().copied().collect();
        json!({"mediaType": media_type, "digest": name, "size": bytes.len(), "annotations": annotations})
    }

    /// Names a manifest in the index and copies it to a registry with skopeo.
    async fn push(&self, manifest: &Value, reference: &str) -> String {
        let bytes = manifest.to_string().into_bytes();
        let mut entry = self.add(manifest["mediaType"].as_str().expect("a type"), &bytes, &[]);
        entry["annotations"] = json!({"org.opencontainers.image.ref.name": "pushed"});
        let index = json!({"schemaVersion": 2, "manifests": [entry]}).to_string();
        fs::write(self.0.join("index.json"), index).expect("the index is written");
        let output = Command::new("skopeo")
            .args(["copy", "--quiet", "--preserve-digests", "--dest-tls-verify=false"])
            .arg(format!("oci:{}:pushed", self.0.display()))
            .arg(format!("docker://{reference}"))
            .output()
            .await
            .expect("hack/test installs skopeo");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        digest(&bytes)
    }
}

/// Pushes an artifact as packers of models make it; returns the digest of its manifest.
async fn push_artifact(dir: &Path, repository: &str) -> String {
    let title = "org.opencontainers.image.title";
    let layout = Layout::create(dir.join("layout"));
    let packed = Layer::new().dir("docs", 0o755).file("docs/readme", 0o600, b"read me").into_bytes();
    let blobs = [
        layout.add("application/vnd.example.weights", b"weights", &[(title, "model/weights.bin")]),
        layout.add("application/json", b"{\"a\":1}", &[(title, "model/config.json")]),
        layout.add(
            "application/vnd.oci.image.layer.v1.tar",
            &packed,
            &[(title, "docs"), ("io.deis.oras.content.unpack", "true")],
        ),
        layout.add("text/plain", b"untitled", &[]),
    ];
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "artifactType": "application/vnd.example.model",
        "config": layout.add("application/vnd.oci.empty.v1+json", b"{}", &[]),
        "layers": blobs,
    });
    let registry = std::env::var("PODWRIGHT_TEST_REGISTRY").expect("hack/test sets it");
    layout.push(&manifest, &format!("{registry}/{repository}:1")).await
}

#[tokio::test]
async fn an_artifact_is_a_volume_of_its_files() {
    let node = Node::start_with_images(&["busybox"]).await;
    let before = layers(&node);
    let manifest = push_artifact(node.dir(), "volumes/artifact").await;
    let name = format!("{REGISTRY}/volumes/artifact");
    let id = node.pull(&format!("{name}:1")).await.expect("PullImage");
    assert_eq!(id, manifest);
    assert_eq!(node.pull(&format!("{name}@{manifest}")).await.expect("PullImage"), id);
    let listed = node.list_images().await.into_iter().find(|image| image.id == id).expect("it is listed");
    assert_eq!(listed.repo_tags, [format!("{name}:1")]);
    assert_eq!(listed.repo_digests, [format!("{name}@{manifest}")]);
    assert!(listed.size > 0);

    let pod = Pod::run(&node, "artifact").await;
    let mounts = vec![
        volume("/artifact", &id, ""),
        volume("/model", &id, "model"),
        volume("/weights", &id, "model/weights.bin"),
        volume("/docs", &id, "docs"),
    ];
    let container = pod.start("reader", mounts).await;
    let untitled = digest(b"untitled").replace(':', "-");
    let script = format!(
        "cd /artifact; ls -R .; cat model/weights.bin /weights docs/readme {untitled} /model/config.json; echo; \
        stat -c '%a %u:%g' model/weights.bin docs/readme; ls /model /docs; (echo x > /weights) 2>&1 || true"
    );
    let expected = format!(
        ".:\ndocs\nmodel\n{untitled}\n\n./docs:\nreadme\n\n./model:\nconfig.json\nweights.bin\n\
        weightsweightsread meuntitled{{\"a\":1}}\n644 0:0\n600 0:0\n/docs:\nreadme\n\n/model:\nconfig.json\nweights.bin\n\
        sh: can't create /weights: Read-only file system\n"
    );
    assert_eq!(node.sh(&container, &script).await, expected);
    assert!(pod.mounts(&container).await.iter().all(|mount| mount.image.as_ref().is_some_and(|it| it.image_ref == id)));

    let own = pod.create_of(&id, "own", Vec::new()).await;
    refused(own, Code::InvalidArgument, &["config.image.image", "application/vnd.example.model", "image volume"]);
    node.remove_image(&id).await.expect("RemoveImage");
    node.crash().await;
    assert_eq!(node.sh(&container, "cat /weights").await, "weights");
    node.delete(&pod.id).await;
    eventually("the layers are gone", async || (layers(&node) == before).then_some(())).await;
    node.finish().await;
}

#[tokio::test]
async fn what_containers_write_is_counted() {
    let node = Node::start_with_images(&["busybox"]).await;
    let running =
        node.run(&cri::shell("writer", "dd if=/dev/zero of=/big bs=1M count=3 2>&1; echo done; exit 0")).await;
    node.exited(&running.container).await;
    let info = async || {
        let request = k8s_cri::v1::ImageFsInfoRequest {};
        let info = node.images.clone().image_fs_info(request).await.expect("ImageFsInfo").into_inner();
        let usage = info.container_filesystems.into_iter().next().expect("one file system");
        (usage.used_bytes.expect("bytes").value, usage.inodes_used.expect("inodes").value)
    };
    let (_, inodes) = eventually("the file is counted", async || {
        let (bytes, inodes) = info().await;
        (bytes >= 3 << 20).then_some((bytes, inodes))
    })
    .await;
    assert!(inodes > 0);
    // A daemon that starts counts what is there.
    node.crash().await;
    eventually("it is counted again", async || (info().await.0 >= 3 << 20).then_some(())).await;
    node.delete(&running.pod).await;
    assert_eq!(info().await, (0, 0));
    node.finish().await;
}
