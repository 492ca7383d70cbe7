//! Typical containers, from request to `config.json`, as snapshots; and the rules that reach over several parts.

use std::collections::BTreeMap;
use std::path::Path;

use oci_spec::image::{Config, ConfigBuilder, ImageConfiguration};
use oci_spec::runtime::{LinuxSeccomp, LinuxSeccompAction};

use crate::container::{
    ContainerConfig, ContainerMetadata, Device, ImageVolume, Mount, Propagation, Resources, Security, SecurityProfile,
    SelinuxOptions,
};
use crate::pod::{LinuxPod, NamespaceMode, PodConfig, PodMetadata};
use crate::user::User;
use crate::{
    ContainerInput, DeviceKind, HostTraits, PodFiles, PodNamespaces, ResolvedDevice, SpecError, VolumeSource,
    config_json, container_spec,
};

/// An ordinary container in an ordinary pod, for tests to change.
pub(crate) struct Fixture {
    pub(crate) pod: PodConfig,
    pub(crate) container: ContainerConfig,
    pub(crate) user: User,
    pub(crate) host: HostTraits,
    image: ImageConfiguration,
    namespaces: PodNamespaces,
    devices: Vec<ResolvedDevice>,
    image_volumes: BTreeMap<usize, VolumeSource>,
    seccomp: Option<LinuxSeccomp>,
    pids_limit: Option<i64>,
}

impl Default for Fixture {
    fn default() -> Self {
        let mut image = ImageConfiguration::default();
        let config = ConfigBuilder::default()
            .entrypoint(vec!["/usr/bin/web".to_owned()])
            .cmd(vec!["--serve".to_owned()])
            .env(vec!["PATH=/usr/bin:/bin".to_owned(), "MODE=image".to_owned()])
            .working_dir("/srv")
            .build()
            .unwrap();
        image.set_config(Some(config));
        Self {
            pod: pod(),
            container: container(),
            user: User { uid: 0, gid: 0, additional_gids: vec![0], home: Some("/root".to_owned()) },
            host: HostTraits {
                hostname: "node-1".to_owned(),
                capabilities: (1 << 41) - 1,
                swap_accounting: true,
                hugetlb: true,
                nofile: Some((1_048_576, 1_048_576)),
                ..HostTraits::default()
            },
            image,
            namespaces: PodNamespaces {
                network: Some("/run/netns/podwright-p0".into()),
                ipc: Some("/proc/77/ns/ipc".into()),
                uts: Some("/proc/77/ns/uts".into()),
                pid: None,
                target_pid: None,
            },
            devices: Vec::new(),
            image_volumes: BTreeMap::new(),
            seccomp: None,
            pids_limit: None,
        }
    }
}

impl Fixture {
    pub(crate) fn image_config(&mut self, config: Config) {
        self.image.set_config(Some(config));
    }

    pub(crate) fn input(&self) -> ContainerInput<'_> {
        ContainerInput {
            pod: &self.pod,
            container: &self.container,
            pod_id: "p0",
            image: &self.image,
            user: &self.user,
            files: PodFiles {
                resolv_conf: Some(Path::new("/run/pod/resolv.conf")),
                hosts: Some(Path::new("/run/pod/hosts")),
                hostname: Some(Path::new("/run/pod/hostname")),
            },
            namespaces: &self.namespaces,
            cgroup_path: "/podwright/p0/c0",
            devices: &self.devices,
            image_volumes: &self.image_volumes,
            seccomp: self.seccomp.as_ref(),
            pids_limit: self.pids_limit,
            host: &self.host,
        }
    }

    fn json(&self) -> String {
        config_json(&container_spec(&self.input()).unwrap()).unwrap()
    }

    fn error(&self) -> SpecError {
        container_spec(&self.input()).unwrap_err()
    }
}

fn pod() -> PodConfig {
    PodConfig {
        metadata: PodMetadata { name: "web".into(), uid: "uid-1".into(), namespace: "shop".into(), attempt: 0 },
        hostname: "web-0".into(),
        log_directory: "/var/log/pods/web".into(),
        dns: None,
        port_mappings: Vec::new(),
        labels: BTreeMap::new(),
        annotations: BTreeMap::new(),
        runtime_handler: String::new(),
        linux: LinuxPod { pid: NamespaceMode::Container, ..LinuxPod::default() },
    }
}

fn container() -> ContainerConfig {
    ContainerConfig {
        metadata: ContainerMetadata { name: "main".into(), attempt: 0 },
        image: "registry.example/web:1".into(),
        user_specified_image: String::new(),
        command: Vec::new(),
        args: Vec::new(),
        working_dir: String::new(),
        envs: Vec::new(),
        mounts: Vec::new(),
        devices: Vec::new(),
        labels: BTreeMap::new(),
        annotations: BTreeMap::new(),
        log_path: "main/0.log".into(),
        stdin: false,
        stdin_once: false,
        tty: false,
        stop_signal: None,
        resources: Resources::default(),
        security: Security { pid: NamespaceMode::Container, ..Security::default() },
    }
}

pub(crate) fn volume(place: &str, source: &str) -> Mount {
    Mount {
        container_path: place.into(),
        host_path: source.into(),
        image: None,
        readonly: false,
        recursive_read_only: false,
        selinux_relabel: false,
        propagation: Propagation::Private,
    }
}

pub(crate) fn image_volume(place: &str, sub_path: &str) -> Mount {
    let image = "registry.example/model:1".to_owned();
    let image = ImageVolume { image, user_specified_image: String::new(), sub_path: sub_path.to_owned() };
    Mount { image: Some(image), ..volume(place, "") }
}

fn device(path: &str, kind: DeviceKind, major: u32, minor: u32, access: &str) -> ResolvedDevice {
    ResolvedDevice { path: path.into(), kind, major, minor, mode: 0o660, uid: 0, gid: 44, access: access.into() }
}

fn words(list: &[&str]) -> Vec<String> {
    list.iter().map(|word| (*word).to_owned()).collect()
}

#[test]
fn a_container_that_asks_for_nothing() {
    insta::assert_snapshot!(Fixture::default().json());
}

#[test]
fn a_restricted_web_server() {
    let mut fixture = Fixture {
        user: User { uid: 101, gid: 101, additional_gids: vec![101, 2000], home: None },
        seccomp: Some(profile()),
        pids_limit: Some(1024),
        ..Fixture::default()
    };
    let container = &mut fixture.container;
    container.user_specified_image = "web".into();
    container.args = words(&["--port", "80"]);
    container.envs = vec![("MODE".into(), b"production".to_vec()), ("GREETING".into(), "grüß".into())];
    container.mounts = vec![
        volume("/etc/web/conf.d", "/pods/1/conf"),
        Mount { readonly: true, ..volume("/etc/web", "/pods/1/config") },
        volume("/dev/termination-log", "/pods/1/termination-log"),
        volume("/etc/hosts", "/pods/1/etc-hosts"),
    ];
    container.resources = Resources {
        cpu_period: 100_000,
        cpu_quota: 50_000,
        cpu_shares: 512,
        memory_limit_in_bytes: 64 << 20,
        oom_score_adj: 900,
        ..Resources::default()
    };
    container.security = Security {
        drop_capabilities: words(&["ALL"]),
        add_capabilities: words(&["NET_BIND_SERVICE"]),
        readonly_rootfs: true,
        no_new_privs: true,
        masked_paths: words(&["/proc/kcore", "/proc/keys"]),
        readonly_paths: words(&["/proc/sys"]),
        seccomp: SecurityProfile::RuntimeDefault,
        ..container.security.clone()
    };
    insta::assert_snapshot!(fixture.json());
}

#[test]
fn a_privileged_container() {
    let mut fixture = Fixture::default();
    fixture.pod.linux.privileged = true;
    fixture.host.devices = vec![
        device("/dev/fuse", DeviceKind::Char, 10, 229, "rwm"),
        device("/dev/vda", DeviceKind::Block, 254, 0, "rwm"),
    ];
    fixture.host.apparmor = true;
    fixture.host.apparmor_default = Some("podwright-default".into());
    let security = &mut fixture.container.security;
    security.privileged = true;
    security.seccomp = SecurityProfile::RuntimeDefault;
    security.masked_paths = words(&["/proc/kcore"]);
    insta::assert_snapshot!(fixture.json());
}

#[test]
fn a_node_agent_on_the_hosts_namespaces() {
    let mut fixture = Fixture::default();
    fixture.pod.hostname = String::new();
    let linux = &mut fixture.pod.linux;
    (linux.network, linux.ipc, linux.pid) = (NamespaceMode::Node, NamespaceMode::Node, NamespaceMode::Node);
    fixture.namespaces = PodNamespaces::default();
    fixture.container.security.pid = NamespaceMode::Node;
    fixture.container.mounts =
        vec![Mount { readonly: true, propagation: Propagation::HostToContainer, ..volume("/host", "/") }];
    insta::assert_snapshot!(fixture.json());
}

#[test]
fn a_shell_on_a_terminal_in_a_shared_process_namespace() {
    let mut fixture = Fixture::default();
    fixture.pod.linux.pid = NamespaceMode::Pod;
    fixture.namespaces.pid = Some("/proc/78/ns/pid".into());
    let container = &mut fixture.container;
    (container.tty, container.stdin) = (true, true);
    container.command = words(&["/bin/sh"]);
    container.working_dir = "/tmp".into();
    container.security.pid = NamespaceMode::Pod;
    insta::assert_snapshot!(fixture.json());
}

#[test]
fn a_container_with_a_device_and_huge_pages() {
    let devices = vec![device("/dev/gpu0", DeviceKind::Char, 195, 0, "rw")];
    let mut fixture = Fixture { devices, ..Fixture::default() };
    let container = &mut fixture.container;
    container.devices =
        vec![Device { container_path: "/dev/gpu0".into(), host_path: "/dev/gpu0".into(), permissions: "rw".into() }];
    container.resources = Resources {
        hugepage_limits: vec![("2MB".into(), 4 << 20), ("1GB".into(), 0)],
        cpuset_cpus: "0-1".into(),
        cpuset_mems: "0".into(),
        unified: [("memory.high".to_owned(), "1000000".to_owned())].into(),
        ..Resources::default()
    };
    insta::assert_snapshot!(fixture.json());
}

#[test]
fn a_storage_driver_that_mounts_for_others() {
    let mut fixture = Fixture::default();
    fixture.pod.linux.privileged = true;
    fixture.container.security.privileged = true;
    fixture.container.mounts = vec![
        Mount { propagation: Propagation::Bidirectional, ..volume("/var/lib/kubelet", "/var/lib/kubelet") },
        Mount { readonly: true, recursive_read_only: true, ..volume("/lib/modules", "/lib/modules") },
        volume("/dev", "/dev"),
    ];
    insta::assert_snapshot!(fixture.json());
}

#[test]
fn a_container_with_image_volumes() {
    let mut fixture = Fixture::default();
    fixture.container.mounts = vec![
        Mount { readonly: true, ..image_volume("/model", "") },
        volume("/data", "/pods/1/data"),
        Mount { readonly: true, ..image_volume("/etc/model.conf", "etc/model.conf") },
    ];
    fixture.image_volumes.insert(0, VolumeSource::Directories(vec!["/layers/top".into(), "/layers/base".into()]));
    fixture.image_volumes.insert(2, VolumeSource::File("/layers/base/etc/model.conf".into()));
    insta::assert_snapshot!(fixture.json());
}

#[test]
fn a_container_on_a_host_with_security_modules() {
    let mut fixture = Fixture::default();
    fixture.host.apparmor = true;
    fixture.host.apparmor_default = Some("podwright-default".into());
    fixture.host.selinux = true;
    fixture.container.security.selinux = Some(SelinuxOptions { level: "s0:c1,c2".into(), ..SelinuxOptions::default() });
    insta::assert_snapshot!(fixture.json());
}

#[test]
fn a_privileged_container_needs_a_privileged_pod() {
    let mut fixture = Fixture::default();
    fixture.container.security.privileged = true;
    assert_eq!(fixture.error(), SpecError::PrivilegedInOrdinaryPod);
}

#[test]
fn a_namespace_the_pod_lacks_is_never_the_hosts_instead() {
    type Change = fn(&mut Fixture);
    let cases: [(Change, &str); 5] = [
        (|f| f.namespaces.network = None, "network"),
        (|f| f.namespaces.uts = None, "network"),
        (|f| f.namespaces.ipc = None, "ipc"),
        (|f| f.container.security.pid = NamespaceMode::Pod, "pid"),
        (|f| f.container.security.pid = NamespaceMode::Target("c9".into()), "target_id"),
    ];
    for (change, option) in cases {
        let mut fixture = Fixture::default();
        change(&mut fixture);
        assert_eq!(fixture.error().field(), format!("linux.security_context.namespace_options.{option}"));
    }
}

#[test]
fn a_seccomp_profile_is_never_left_out() {
    for (asked, name) in
        [(SecurityProfile::RuntimeDefault, "RuntimeDefault"), (SecurityProfile::Localhost("/p.json".into()), "/p.json")]
    {
        let mut fixture = Fixture::default();
        fixture.container.security.seccomp = asked;
        assert_eq!(fixture.error(), SpecError::NoSeccompProfile { name: name.into() });
        fixture.seccomp = Some(profile());
        let spec = container_spec(&fixture.input()).unwrap();
        assert_eq!(spec.linux().as_ref().unwrap().seccomp(), &fixture.seccomp);
    }
    for without in [SecurityProfile::Unset, SecurityProfile::Unconfined] {
        let mut fixture = Fixture { seccomp: Some(profile()), ..Fixture::default() };
        fixture.container.security.seccomp = without;
        assert_eq!(container_spec(&fixture.input()).unwrap().linux().as_ref().unwrap().seccomp(), &None);
    }
}

#[test]
fn an_apparmor_profile_needs_a_host_that_has_it() {
    let mut fixture = Fixture::default();
    fixture.container.security.apparmor = SecurityProfile::RuntimeDefault;
    assert!(container_spec(&fixture.input()).is_ok());
    fixture.container.security.apparmor = SecurityProfile::Localhost("mine".into());
    assert_eq!(fixture.error(), SpecError::NoApparmor { name: "mine".into() });
    fixture.host.apparmor = true;
    let process = container_spec(&fixture.input()).unwrap().process().clone().unwrap();
    assert_eq!(process.apparmor_profile().as_deref(), Some("mine"));
}

#[test]
fn device_permissions_are_letters() {
    for (permissions, fine) in [("rwm", true), ("r", true), ("", false), ("rx", false)] {
        let mut fixture = Fixture::default();
        fixture.container.devices = vec![Device {
            container_path: "/dev/x".into(),
            host_path: "/dev/x".into(),
            permissions: permissions.into(),
        }];
        let result = container_spec(&fixture.input()).map_err(|error| error.field());
        assert_eq!(result.is_ok(), fine, "{permissions:?}");
        assert!(fine || result == Err("devices[0].permissions".to_owned()));
    }
}

#[test]
fn equal_input_is_an_equal_file() {
    assert_eq!(Fixture::default().json(), Fixture::default().json());
    let read_back: oci_spec::runtime::Spec = serde_json::from_str(&Fixture::default().json()).unwrap();
    assert_eq!(read_back, container_spec(&Fixture::default().input()).unwrap());
}

fn profile() -> LinuxSeccomp {
    let mut profile = LinuxSeccomp::default();
    profile.set_default_action(LinuxSeccompAction::ScmpActErrno);
    profile
}
