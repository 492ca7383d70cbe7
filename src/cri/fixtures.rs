//! Requests and views for the tests of this crate.

use std::collections::BTreeMap;
use std::sync::Arc;

use podwright_base::{ContainerId, Digest, PodId};
use podwright_core::view::{ContainerState, ContainerView, PodView};
use podwright_proto::runtime::v1;
use podwright_spec::user::User;

use crate::parse;

fn one(key: &str, value: &str) -> BTreeMap<String, String> {
    BTreeMap::from([(key.to_owned(), value.to_owned())])
}

/// A request that is granted.
pub(crate) fn run_pod() -> v1::RunPodSandboxRequest {
    let metadata = v1::PodSandboxMetadata {
        name: "web".to_owned(),
        uid: "8b1a".to_owned(),
        namespace: "shop".to_owned(),
        attempt: 1,
    };
    let namespace_options = v1::NamespaceOption { pid: v1::NamespaceMode::Container.into(), ..Default::default() };
    let security_context =
        v1::LinuxSandboxSecurityContext { namespace_options: Some(namespace_options), ..Default::default() };
    let linux = v1::LinuxPodSandboxConfig {
        cgroup_parent: "/kubepods/pod8b1a".to_owned(),
        security_context: Some(security_context),
        sysctls: one("net.ipv4.ip_forward", "1"),
        ..Default::default()
    };
    let config = v1::PodSandboxConfig {
        metadata: Some(metadata),
        hostname: "web-0".to_owned(),
        log_directory: "/var/log/pods/shop_web_8b1a".to_owned(),
        dns_config: Some(v1::DnsConfig { servers: vec!["10.96.0.10".to_owned()], ..Default::default() }),
        port_mappings: vec![v1::PortMapping { container_port: 80, host_port: 8080, ..Default::default() }],
        labels: one("app", "web"),
        annotations: one("note", "kept as it is"),
        linux: Some(linux),
        ..Default::default()
    };
    v1::RunPodSandboxRequest { config: Some(config), ..Default::default() }
}

/// A request that is granted.
pub(crate) fn create_container() -> v1::CreateContainerRequest {
    let image = v1::ImageSpec {
        image: "sha256:12".to_owned(),
        user_specified_image: "example.org/web:1".to_owned(),
        ..Default::default()
    };
    let mount = v1::Mount {
        container_path: "/dev/termination-log".to_owned(),
        host_path: "/var/lib/kubelet/pods/8b1a/x".to_owned(),
        ..Default::default()
    };
    let linux = v1::LinuxContainerConfig {
        resources: Some(v1::LinuxContainerResources { memory_limit_in_bytes: 64 << 20, ..Default::default() }),
        security_context: Some(v1::LinuxContainerSecurityContext {
            run_as_user: Some(v1::Int64Value { value: 1000 }),
            ..Default::default()
        }),
    };
    let config = v1::ContainerConfig {
        metadata: Some(v1::ContainerMetadata { name: "nginx".to_owned(), attempt: 2 }),
        image: Some(image),
        envs: vec![v1::KeyValue { key: "RAW".to_owned(), value: vec![0xff, 0xfe] }],
        mounts: vec![mount],
        devices: vec![v1::Device {
            container_path: "/dev/fuse".to_owned(),
            host_path: "/dev/fuse".to_owned(),
            permissions: "rwm".to_owned(),
        }],
        labels: one("tier", "front"),
        log_path: "nginx/2.log".to_owned(),
        stop_signal: v1::Signal::Sigquit.into(),
        linux: Some(linux),
        ..Default::default()
    };
    v1::CreateContainerRequest { pod_sandbox_id: "ab".repeat(32), config: Some(config), ..Default::default() }
}

/// A ready pod without containers, made from [`run_pod`].
pub(crate) fn pod() -> PodView {
    PodView {
        id: PodId::random(),
        config: Arc::new(parse::pod::run_pod(run_pod()).unwrap()),
        ready: true,
        reason: String::new(),
        created_at: 1_700_000_000_000_000_000,
        shim_pid: Some(4242),
        ips: vec!["10.88.0.2".parse().unwrap(), "fd00::2".parse().unwrap()],
        netns: Some("/run/netns/podwright-x".into()),
        cgroup: "/kubepods/pod8b1a/shim".to_owned(),
        containers: Vec::new(),
    }
}

/// A container made from [`create_container`].
pub(crate) fn container(state: ContainerState) -> ContainerView {
    let (_, config) = parse::container::create(create_container()).unwrap();
    ContainerView {
        id: ContainerId::random(),
        pod: PodId::random(),
        config: Arc::new(config),
        image_id: Digest::from_sha256(&[0x12; 32]),
        image_ref: format!("example.org/web@{}", Digest::from_sha256(&[0x34; 32])),
        volume_images: BTreeMap::new(),
        created_at: 1_700_000_000_000_000_000,
        state,
        log_path: Some("/var/log/pods/shop_web_8b1a/nginx/2.log".into()),
        user: User { uid: 1000, gid: 1000, additional_gids: vec![1000, 5], home: None },
        stop_signal: 3,
        bundle_config: "/var/lib/podwright/pods/x/config.json".into(),
    }
}
