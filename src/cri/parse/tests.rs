//! What is granted, what is refused and by which field, and that no message whatever brings the parser down.

use podwright_core::error::Class;
use podwright_proto::runtime::v1;
use podwright_spec::container::{RunAs, SecurityProfile};
use podwright_spec::pod::NamespaceMode;
use proptest::prelude::*;

use super::{container, pod};
use crate::fixtures;

type Break<T> = fn(&mut T);

fn pod_problem(change: Break<v1::PodSandboxConfig>) -> String {
    let mut request = fixtures::run_pod();
    change(request.config.as_mut().unwrap());
    let error = pod::run_pod(request).unwrap_err();
    assert_eq!(error.class(), Class::InvalidArgument, "{error}");
    error.to_string()
}

fn container_problem(change: Break<v1::ContainerConfig>) -> String {
    let mut request = fixtures::create_container();
    change(request.config.as_mut().unwrap());
    let error = container::create(request).unwrap_err();
    assert_eq!(error.class(), Class::InvalidArgument, "{error}");
    error.to_string()
}

fn pod_linux(config: &mut v1::PodSandboxConfig) -> &mut v1::LinuxPodSandboxConfig {
    config.linux.get_or_insert_default()
}

fn pod_security(config: &mut v1::PodSandboxConfig) -> &mut v1::LinuxSandboxSecurityContext {
    pod_linux(config).security_context.get_or_insert_default()
}

fn security(config: &mut v1::ContainerConfig) -> &mut v1::LinuxContainerSecurityContext {
    config.linux.get_or_insert_default().security_context.get_or_insert_default()
}

fn resources(config: &mut v1::ContainerConfig) -> &mut v1::LinuxContainerResources {
    config.linux.get_or_insert_default().resources.get_or_insert_default()
}

/// Makes the first mount an image volume.
fn image_volume<'a>(config: &'a mut v1::ContainerConfig, sub_path: &str) -> &'a mut v1::Mount {
    let image = v1::ImageSpec { image: "example.org/model:1".to_owned(), ..Default::default() };
    let mount = &mut config.mounts[0];
    (mount.image, mount.image_sub_path, mount.readonly) = (Some(image), sub_path.to_owned(), true);
    mount.host_path.clear();
    mount
}

fn namespaces(userns: v1::NamespaceMode) -> v1::NamespaceOption {
    let userns_options = v1::UserNamespace { mode: userns.into(), ..Default::default() };
    v1::NamespaceOption { userns_options: Some(userns_options), ..Default::default() }
}

#[test]
fn a_pod_is_read_whole() {
    let config = pod::run_pod(fixtures::run_pod()).unwrap();
    assert_eq!((config.metadata.name.as_str(), config.metadata.attempt), ("web", 1));
    assert_eq!(config.port_mappings.len(), 1);
    assert_eq!(config.linux.pid, NamespaceMode::Container);
    assert_eq!(config.linux.network, NamespaceMode::Pod);
    assert_eq!(config.annotations["note"], "kept as it is");
}

#[test]
fn a_container_is_read_whole() {
    let (pod, config) = container::create(fixtures::create_container()).unwrap();
    assert_eq!(pod, "ab".repeat(32));
    assert_eq!(config.envs, [("RAW".to_owned(), vec![0xff, 0xfe])]);
    assert_eq!(config.security.user, RunAs::Uid(1000));
    assert_eq!(config.stop_signal, Some(3));
    assert_eq!(config.resources.memory_limit_in_bytes, 64 << 20);
}

#[test]
fn a_port_without_a_host_port_is_no_mapping() {
    let mut request = fixtures::run_pod();
    request.config.as_mut().unwrap().port_mappings[0].host_port = 0;
    assert_eq!(pod::run_pod(request).unwrap().port_mappings, []);
}

#[test]
fn an_empty_resolver_configuration_is_none() {
    let mut request = fixtures::run_pod();
    request.config.as_mut().unwrap().dns_config = Some(v1::DnsConfig::default());
    assert_eq!(pod::run_pod(request).unwrap().dns, None);
}

#[test]
fn an_unknown_handler_is_refused_with_the_known_ones() {
    let request = v1::RunPodSandboxRequest { runtime_handler: "kata".to_owned(), ..fixtures::run_pod() };
    let error = pod::run_pod(request).unwrap_err().to_string();
    assert_eq!(error, "runtime_handler: \"kata\" is not known here; known is \"\", the default one");
}

#[test]
fn a_pods_bad_field_is_named() {
    let cases: &[(&str, Break<v1::PodSandboxConfig>)] = &[
        ("config.metadata", |c| c.metadata = None),
        ("config.metadata.name", |c| c.metadata.as_mut().unwrap().name.clear()),
        ("config.metadata.uid", |c| c.metadata.as_mut().unwrap().uid.clear()),
        ("config.metadata.namespace", |c| c.metadata.as_mut().unwrap().namespace.clear()),
        ("config.hostname", |c| c.hostname = "x".repeat(65)),
        ("config.hostname", |c| c.hostname = "a\n10.0.0.1 b".to_owned()),
        ("config.log_directory", |c| c.log_directory = "var/log".to_owned()),
        ("config.dns_config.servers[0]", |c| c.dns_config.as_mut().unwrap().servers[0] = "1.1.1.1\nx".to_owned()),
        ("config.dns_config.searches[1]", |c| {
            c.dns_config.as_mut().unwrap().searches = vec!["a.b".to_owned(), String::new()];
        }),
        ("config.port_mappings[0].protocol", |c| c.port_mappings[0].protocol = 3),
        ("config.port_mappings[0].container_port", |c| c.port_mappings[0].container_port = -1),
        ("config.port_mappings[0].container_port", |c| c.port_mappings[0].container_port = 0),
        ("config.port_mappings[0].host_port", |c| c.port_mappings[0].host_port = 65536),
        ("config.port_mappings[0].host_ip", |c| c.port_mappings[0].host_ip = "here".to_owned()),
        ("config.linux.cgroup_parent", |c| pod_linux(c).cgroup_parent = "kubepods-pod1.slice".to_owned()),
        ("config.linux.cgroup_parent", |c| pod_linux(c).cgroup_parent = "kubepods".to_owned()),
        ("config.linux.cgroup_parent", |c| pod_linux(c).cgroup_parent = "/a/../../b".to_owned()),
        ("config.linux.sysctls", |c| {
            pod_linux(c).sysctls.insert("vm.overcommit_memory".to_owned(), "1".to_owned());
        }),
        ("config.linux.security_context.run_as_user", |c| {
            pod_security(c).run_as_user = Some(v1::Int64Value { value: -1 });
        }),
        ("config.linux.security_context.run_as_group", |c| {
            pod_security(c).run_as_group = Some(v1::Int64Value { value: 1 });
        }),
        ("config.linux.security_context.namespace_options.network", |c| {
            let mode = v1::NamespaceMode::Container.into();
            pod_security(c).namespace_options = Some(v1::NamespaceOption { network: mode, ..Default::default() });
        }),
        ("config.linux.security_context.namespace_options.pid", |c| {
            let mode = v1::NamespaceMode::Target.into();
            pod_security(c).namespace_options = Some(v1::NamespaceOption { pid: mode, ..Default::default() });
        }),
        ("config.linux.security_context.namespace_options.userns_options.mode", |c| {
            pod_security(c).namespace_options = Some(namespaces(v1::NamespaceMode::Pod));
        }),
        ("config.linux.security_context.namespace_options.userns_options.mode", |c| {
            pod_security(c).namespace_options = Some(namespaces(v1::NamespaceMode::Container));
        }),
    ];
    for (field, change) in cases {
        let problem = pod_problem(*change);
        assert!(problem.starts_with(&format!("{field}: ")), "{field} is not named by: {problem}");
    }
}

#[test]
fn a_containers_bad_field_is_named() {
    let cases: &[(&str, Break<v1::ContainerConfig>)] = &[
        ("config.metadata.name", |c| c.metadata.as_mut().unwrap().name.clear()),
        ("config.image", |c| c.image = None),
        ("config.image.image", |c| c.image.as_mut().unwrap().image.clear()),
        ("config.command[1]", |c| c.command = vec!["sh".to_owned(), "a\0b".to_owned()]),
        ("config.working_dir", |c| c.working_dir = "srv".to_owned()),
        ("config.envs[0].key", |c| c.envs[0].key.clear()),
        ("config.envs[0].key", |c| c.envs[0].key = "A=B".to_owned()),
        ("config.envs[0].value", |c| c.envs[0].value = vec![b'a', 0]),
        ("config.mounts[0].container_path", |c| c.mounts[0].container_path = "data".to_owned()),
        ("config.mounts[0].container_path", |c| c.mounts[0].container_path.clear()),
        ("config.mounts[0].host_path", |c| c.mounts[0].host_path.clear()),
        ("config.mounts[0].host_path", |c| c.mounts[0].host_path = "./data".to_owned()),
        ("config.mounts[0].propagation", |c| c.mounts[0].propagation = 3),
        ("config.mounts[0].image.image", |c| image_volume(c, "").image.as_mut().unwrap().image.clear()),
        ("config.mounts[0].image_sub_path", |c| _ = image_volume(c, "/etc")),
        ("config.mounts[0].image_sub_path", |c| _ = image_volume(c, "etc/../../x")),
        ("config.mounts[0].image_sub_path", |c| _ = image_volume(c, "a\0b")),
        ("config.mounts[0].image_sub_path", |c| c.mounts[0].image_sub_path = "etc".to_owned()),
        ("config.mounts[0].uidMappings", |c| image_volume(c, "").uid_mappings = vec![v1::IdMapping::default()]),
        ("config.mounts[0].mount_options", |c| image_volume(c, "").mount_options = vec!["noexec".to_owned()]),
        ("config.mounts[0].uidMappings", |c| c.mounts[0].gid_mappings = vec![v1::IdMapping::default()]),
        ("config.mounts[0].recursive_read_only", |c| c.mounts[0].recursive_read_only = true),
        ("config.mounts[0].mount_options", |c| c.mounts[0].mount_options = vec!["noexec".to_owned()]),
        ("config.devices[0].permissions", |c| c.devices[0].permissions = "rx".to_owned()),
        ("config.devices[0].host_path", |c| c.devices[0].host_path = "fuse".to_owned()),
        ("config.CDI_devices", |c| c.cdi_devices = vec![v1::CdiDevice { name: "a/b=c".to_owned() }]),
        ("config.log_path", |c| c.log_path = "/etc/passwd".to_owned()),
        ("config.log_path", |c| c.log_path = "x/../../y".to_owned()),
        ("config.stop_signal", |c| c.stop_signal = 66),
        ("config.linux.resources.cpu_period", |c| resources(c).cpu_period = -1),
        ("config.linux.resources.cpu_quota", |c| resources(c).cpu_quota = -2),
        ("config.linux.resources.cpu_shares", |c| resources(c).cpu_shares = -1),
        ("config.linux.resources.memory_limit_in_bytes", |c| resources(c).memory_limit_in_bytes = -1),
        ("config.linux.resources.memory_swap_limit_in_bytes", |c| resources(c).memory_swap_limit_in_bytes = 1),
        ("config.linux.resources.oom_score_adj", |c| resources(c).oom_score_adj = 1001),
        ("config.linux.resources.cpuset_cpus", |c| resources(c).cpuset_cpus = "3-1".to_owned()),
        ("config.linux.resources.cpuset_mems", |c| resources(c).cpuset_mems = "0,".to_owned()),
        ("config.linux.resources.hugepage_limits[0].page_size", |c| {
            resources(c).hugepage_limits = vec![v1::HugepageLimit { page_size: "../2MB".to_owned(), limit: 1 }];
        }),
        ("config.linux.resources.unified", |c| {
            resources(c).unified.insert("../memory.max".to_owned(), "1".to_owned());
        }),
        ("config.linux.resources.unified", |c| {
            resources(c).unified.insert("cgroup.procs".to_owned(), "1".to_owned());
        }),
        ("config.linux.security_context.run_as_user", |c| {
            security(c).run_as_user = Some(v1::Int64Value { value: -1 });
        }),
        ("config.linux.security_context.run_as_username", |c| security(c).run_as_username = "www".to_owned()),
        ("config.linux.security_context.run_as_group", |c| {
            security(c).run_as_user = None;
            security(c).run_as_group = Some(v1::Int64Value { value: 1 });
        }),
        ("config.linux.security_context.supplemental_groups[1]", |c| security(c).supplemental_groups = vec![1, -1]),
        ("config.linux.security_context.supplemental_groups_policy", |c| {
            security(c).supplemental_groups_policy = 2;
        }),
        ("config.linux.security_context.masked_paths[0]", |c| {
            security(c).masked_paths = vec!["proc/kcore".to_owned()];
        }),
        ("config.linux.security_context.namespace_options.target_id", |c| {
            let mode = v1::NamespaceMode::Target.into();
            security(c).namespace_options = Some(v1::NamespaceOption { pid: mode, ..Default::default() });
        }),
        ("config.linux.security_context.namespace_options.userns_options.mode", |c| {
            security(c).namespace_options = Some(namespaces(v1::NamespaceMode::Pod));
        }),
        ("config.linux.security_context.seccomp.profile_type", |c| {
            security(c).seccomp = Some(v1::SecurityProfile { profile_type: 3, ..Default::default() });
        }),
        ("config.linux.security_context.seccomp.localhost_ref", |c| {
            let localhost_ref = "profiles/web.json".to_owned();
            security(c).seccomp = Some(v1::SecurityProfile { profile_type: 2, localhost_ref });
        }),
        ("config.linux.security_context.apparmor.localhost_ref", |c| {
            security(c).apparmor = Some(v1::SecurityProfile { profile_type: 2, ..Default::default() });
        }),
        #[allow(deprecated)] // the older form is checked like the newer one
        ("config.linux.security_context.apparmor_profile", |c| {
            security(c).apparmor_profile = "localhost/".to_owned();
        }),
        #[allow(deprecated)] // the older form is checked like the newer one
        ("config.linux.security_context.seccomp_profile_path", |c| {
            security(c).seccomp_profile_path = "web.json".to_owned();
        }),
    ];
    for (field, change) in cases {
        let problem = container_problem(*change);
        assert!(problem.starts_with(&format!("{field}: ")), "{field} is not named by: {problem}");
    }
}

#[test]
fn an_image_volume_is_read_whole() {
    let mut request = fixtures::create_container();
    image_volume(request.config.as_mut().unwrap(), "models/./a").recursive_read_only = true;
    let (_, config) = container::create(request).unwrap();
    let mount = &config.mounts[0];
    let image = mount.image.as_ref().unwrap();
    assert_eq!((image.image.as_str(), image.sub_path.as_str()), ("example.org/model:1", "models/./a"));
    assert!(mount.readonly && mount.recursive_read_only && mount.host_path.as_os_str().is_empty());
}

#[test]
fn what_has_no_config_is_refused() {
    let pod = pod::run_pod(v1::RunPodSandboxRequest::default()).unwrap_err();
    assert_eq!(pod.to_string(), "config: is missing");
    let no_pod = container::create(v1::CreateContainerRequest::default()).unwrap_err();
    assert_eq!(no_pod.to_string(), "pod_sandbox_id: is empty");
    let request = v1::CreateContainerRequest { config: None, ..fixtures::create_container() };
    assert_eq!(container::create(request).unwrap_err().to_string(), "config: is missing");
}

#[test]
fn the_hosts_user_namespace_may_be_asked_for() {
    let mut request = fixtures::run_pod();
    pod_security(request.config.as_mut().unwrap()).namespace_options = Some(namespaces(v1::NamespaceMode::Node));
    assert!(pod::run_pod(request).is_ok());
}

#[test]
#[allow(deprecated)] // both forms are compared here
fn the_older_form_of_a_profile_counts_where_the_newer_is_absent() {
    let mut request = fixtures::create_container();
    let context = security(request.config.as_mut().unwrap());
    context.seccomp_profile_path = "localhost//etc/web.json".to_owned();
    context.apparmor_profile = "localhost/web".to_owned();
    let parsed = |request| container::create(request).unwrap().1.security;
    let older = parsed(request.clone());
    assert_eq!(older.seccomp, SecurityProfile::Localhost("/etc/web.json".to_owned()));
    assert_eq!(older.apparmor, SecurityProfile::Localhost("web".to_owned()));
    security(request.config.as_mut().unwrap()).seccomp = Some(v1::SecurityProfile::default());
    assert_eq!(parsed(request).seccomp, SecurityProfile::RuntimeDefault);
}

/// Texts that paths, names and references are mistaken for.
fn any_text() -> impl Strategy<Value = String> {
    prop_oneof![
        Just(String::new()),
        any::<String>(),
        "[/.a-z0-9:@=,-]{0,20}",
        Just("/".to_owned()),
        Just("localhost/".to_owned()),
        Just("2MB".to_owned()),
    ]
}

/// Small values, so that enumerations are hit inside and outside, and the ends of the range.
fn any_number() -> impl Strategy<Value = i32> {
    prop_oneof![-2..70_i32, any::<i32>()]
}

fn any_namespaces() -> impl Strategy<Value = Option<v1::NamespaceOption>> {
    let userns = prop::option::of(any_number().prop_map(|mode| v1::UserNamespace { mode, ..Default::default() }));
    let options = (any_number(), any_number(), any_number(), any_text(), userns);
    prop::option::of(options.prop_map(|(network, pid, ipc, target_id, userns_options)| v1::NamespaceOption {
        network,
        pid,
        ipc,
        target_id,
        userns_options,
    }))
}

fn any_pod() -> impl Strategy<Value = v1::RunPodSandboxRequest> {
    let metadata = prop::option::of((any_text(), any_text(), any_text()));
    let ports = prop::collection::vec((any_number(), any_number(), any_number(), any_text()), 0..3);
    let texts = (any_text(), any_text(), any_text());
    (metadata, texts, ports, any_namespaces(), any_text(), any_text()).prop_map(
        |(metadata, (hostname, log_directory, server), ports, namespace_options, cgroup_parent, sysctl)| {
            let metadata =
                metadata.map(|(name, uid, namespace)| v1::PodSandboxMetadata { name, uid, namespace, attempt: 0 });
            let port = |(protocol, container_port, host_port, host_ip)| v1::PortMapping {
                protocol,
                container_port,
                host_port,
                host_ip,
            };
            let security = v1::LinuxSandboxSecurityContext { namespace_options, ..Default::default() };
            let linux = v1::LinuxPodSandboxConfig {
                cgroup_parent,
                security_context: Some(security),
                sysctls: [(format!("net.{sysctl}"), sysctl)].into(),
                ..Default::default()
            };
            let config = v1::PodSandboxConfig {
                metadata,
                hostname,
                log_directory,
                dns_config: Some(v1::DnsConfig { servers: vec![server], ..Default::default() }),
                port_mappings: ports.into_iter().map(port).collect(),
                linux: Some(linux),
                ..Default::default()
            };
            v1::RunPodSandboxRequest { config: Some(config), ..Default::default() }
        },
    )
}

fn any_security() -> impl Strategy<Value = v1::LinuxContainerSecurityContext> {
    let number = || prop::option::of(any::<i64>().prop_map(|value| v1::Int64Value { value }));
    let profile = || {
        let fields = (any_number(), any_text());
        prop::option::of(
            fields.prop_map(|(profile_type, localhost_ref)| v1::SecurityProfile { profile_type, localhost_ref }),
        )
    };
    let who = (number(), number(), any_text(), prop::collection::vec(any::<i64>(), 0..3), any_number());
    (who, profile(), profile(), any_namespaces(), any_text()).prop_map(
        |((run_as_user, run_as_group, run_as_username, supplemental_groups, policy), seccomp, apparmor, ns, path)| {
            v1::LinuxContainerSecurityContext {
                run_as_user,
                run_as_group,
                run_as_username,
                supplemental_groups,
                supplemental_groups_policy: policy,
                seccomp,
                apparmor,
                namespace_options: ns,
                masked_paths: vec![path],
                ..Default::default()
            }
        },
    )
}

fn any_resources() -> impl Strategy<Value = v1::LinuxContainerResources> {
    (any::<[i64; 6]>(), any_text(), any_text(), any_text()).prop_map(|(numbers, cpuset_cpus, page_size, file)| {
        let [cpu_period, cpu_quota, cpu_shares, memory_limit_in_bytes, memory_swap_limit_in_bytes, oom_score_adj] =
            numbers;
        v1::LinuxContainerResources {
            cpu_period,
            cpu_quota,
            cpu_shares,
            memory_limit_in_bytes,
            memory_swap_limit_in_bytes,
            oom_score_adj,
            cpuset_cpus,
            hugepage_limits: vec![v1::HugepageLimit { page_size, limit: 0 }],
            unified: [(file, String::new())].into(),
            ..Default::default()
        }
    })
}

fn any_container() -> impl Strategy<Value = v1::CreateContainerRequest> {
    let mount = (any_text(), any_text(), any_number()).prop_map(|(container_path, host_path, propagation)| v1::Mount {
        container_path,
        host_path,
        propagation,
        ..Default::default()
    });
    let env = (any_text(), any::<Vec<u8>>()).prop_map(|(key, value)| v1::KeyValue { key, value });
    let texts = (any_text(), any_text(), any_text());
    (any_security(), any_resources(), mount, env, texts, any_number()).prop_map(
        |(security, resources, mount, env, (working_dir, log_path, permissions), stop_signal)| {
            let mut request = fixtures::create_container();
            let config = request.config.get_or_insert_default();
            config.linux =
                Some(v1::LinuxContainerConfig { resources: Some(resources), security_context: Some(security) });
            config.mounts = vec![mount];
            config.envs = vec![env];
            config.devices[0].permissions = permissions;
            (config.working_dir, config.log_path, config.stop_signal) = (working_dir, log_path, stop_signal);
            request
        },
    )
}

proptest! {
    #[test]
    fn no_pod_request_brings_the_parser_down(request in any_pod()) {
        if let Ok(config) = pod::run_pod(request) {
            prop_assert!(!config.metadata.name.is_empty());
            prop_assert!(config.port_mappings.iter().all(|port| port.host_port != 0 && port.container_port != 0));
            prop_assert!(!config.linux.cgroup_parent.split('/').any(|part| part == ".."));
        }
    }

    #[test]
    fn no_container_request_brings_the_parser_down(request in any_container()) {
        if let Ok((_, config)) = container::create(request) {
            prop_assert!(config.mounts.iter().all(|mount| mount.container_path.starts_with('/')));
            prop_assert!(!config.log_path.starts_with('/') && !config.log_path.split('/').any(|part| part == ".."));
            prop_assert!(config.resources.unified.keys().all(|file| !file.contains('/')));
        }
    }
}
