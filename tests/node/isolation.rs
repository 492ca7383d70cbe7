//! What a container may and may not: read off the kernel from inside, not off a configuration.

use std::collections::BTreeSet;
use std::fs;

use k8s_cri::v1::security_profile::ProfileType;
use k8s_cri::v1::*;

use crate::lab::Node;
use crate::lab::cri::{namespaces, pod, resources, security, shell};

const FOREVER: &str = "while :; do sleep 0.05; done";

/// A field of `/proc/<pid>/status`.
fn field<'a>(status: &'a str, name: &str) -> &'a str {
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.unwrap_or_else(|| panic!("{name} in {status}")).trim()
}

#[tokio::test]
async fn capabilities_are_those_asked_for() {
    let node = Node::start_with_images(&["busybox"]).await;
    // Docker's and containerd's default set of fourteen.
    const DEFAULT: u64 = 0xa804_25fb;
    const NET_ADMIN: u64 = 1 << 12;
    const NET_RAW: u64 = 1 << 13;
    let list = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    for (name, add, drop, expected) in [
        ("default", list(&[]), list(&[]), DEFAULT),
        ("changed", list(&["NET_ADMIN"]), list(&["CAP_NET_RAW"]), (DEFAULT | NET_ADMIN) & !NET_RAW),
        ("none", list(&[]), list(&["ALL"]), 0),
        ("one", list(&["NET_RAW"]), list(&["ALL"]), NET_RAW),
    ] {
        let mut config = shell(name, "cat /proc/self/status");
        security(&mut config).capabilities =
            Some(Capability { add_capabilities: add, drop_capabilities: drop, ..Default::default() });
        let (status, _) = node.script(&config).await;
        for set in ["CapBnd", "CapEff", "CapPrm"] {
            assert_eq!(u64::from_str_radix(field(&status, set), 16), Ok(expected), "{name}: {set}");
        }
        assert_eq!(u64::from_str_radix(field(&status, "CapAmb"), 16), Ok(0), "{name}");
    }
    // A user without privileges has the bounding set and nothing else.
    let mut config = shell("user", "cat /proc/self/status");
    security(&mut config).run_as_user = Some(Int64Value { value: 1000 });
    let (status, _) = node.script(&config).await;
    assert_eq!(u64::from_str_radix(field(&status, "CapEff"), 16), Ok(0));
    assert_eq!(u64::from_str_radix(field(&status, "CapBnd"), 16), Ok(DEFAULT));
    node.finish().await;
}

#[tokio::test]
async fn new_privileges_and_seccomp_are_those_asked_for() {
    let node = Node::start_with_images(&["busybox"]).await;
    for (name, no_new_privs, profile, mode) in [
        ("confined", true, Some(ProfileType::RuntimeDefault), "2"),
        ("unconfined", false, Some(ProfileType::Unconfined), "0"),
        ("unset", false, None, "0"),
    ] {
        let mut config = shell(name, "cat /proc/self/status");
        security(&mut config).no_new_privs = no_new_privs;
        security(&mut config).seccomp =
            profile.map(|profile| SecurityProfile { profile_type: profile.into(), localhost_ref: String::new() });
        let (status, _) = node.script(&config).await;
        assert_eq!(field(&status, "NoNewPrivs"), u8::from(no_new_privs).to_string(), "{name}");
        assert_eq!(field(&status, "Seccomp"), mode, "{name}");
    }
    // The default profile keeps a container from making namespaces; without it root with SYS_ADMIN may.
    let try_unshare = |name: &str, profile: ProfileType| {
        let mut config = shell(name, "unshare -u true && echo made");
        let add = vec!["SYS_CHROOT".to_owned()];
        security(&mut config).capabilities = Some(Capability { add_capabilities: add, ..Default::default() });
        security(&mut config).seccomp =
            Some(SecurityProfile { profile_type: profile.into(), localhost_ref: String::new() });
        config
    };
    let (output, status) = node.script(&try_unshare("no-unshare", ProfileType::RuntimeDefault)).await;
    assert!(status.exit_code != 0 && output.contains("Operation not permitted"), "{output}");
    node.finish().await;
}

#[tokio::test]
async fn paths_are_masked_and_read_only_as_told() {
    let node = Node::start_with_images(&["busybox"]).await;
    let mut config = shell("masked", FOREVER);
    security(&mut config).masked_paths = ["/proc/cpuinfo", "/proc/no-such-file", "/home"].map(str::to_owned).to_vec();
    security(&mut config).readonly_paths = ["/proc/sys", "/etc"].map(str::to_owned).to_vec();
    let running = node.run(&config).await;
    let id = running.container.as_str();
    assert_eq!(node.sh(id, "wc -c </proc/cpuinfo; ls -A /home; touch /tmp/free").await.trim(), "0");
    for path in ["/proc/sys/kernel/shm_rmid_forced", "/etc/new"] {
        let output = node.sh(id, &format!("echo 0 2>&1 >{path} || echo refused")).await;
        assert!(output.contains("Read-only file system"), "{path}: {output}");
    }
    node.delete(&running.pod).await;

    let mut config = shell("read-only", FOREVER);
    security(&mut config).readonly_rootfs = true;
    let running = node.run(&config).await;
    let output = node.sh(&running.container, "touch /file 2>&1 || true; touch /dev/shm/file; echo >/dev/null").await;
    assert!(output.contains("Read-only file system"), "{output}");
    node.delete(&running.pod).await;
    node.finish().await;
}

#[tokio::test]
async fn the_process_is_the_user_with_the_groups_asked_for() {
    let node = Node::start_with_images(&["busybox"]).await;
    let number = |value| Some(Int64Value { value });
    let base = LinuxContainerSecurityContext::default;
    for (name, asked, uid, gid, groups) in [
        ("root", base(), 0, 0, vec![0]),
        (
            "uid",
            LinuxContainerSecurityContext { run_as_user: number(1000), ..base() },
            1000,
            1000,
            vec![50, 1000, 2000],
        ),
        (
            "named",
            LinuxContainerSecurityContext { run_as_username: "app".to_owned(), ..base() },
            1000,
            1000,
            vec![50, 1000, 2000],
        ),
        ("unlisted", LinuxContainerSecurityContext { run_as_user: number(4321), ..base() }, 4321, 0, vec![0]),
        (
            "all",
            LinuxContainerSecurityContext {
                run_as_user: number(1000),
                run_as_group: number(33),
                supplemental_groups: vec![3000, 3001],
                ..base()
            },
            1000,
            33,
            vec![33, 50, 2000, 3000, 3001],
        ),
        (
            "strict",
            LinuxContainerSecurityContext {
                run_as_user: number(1000),
                supplemental_groups: vec![3000],
                supplemental_groups_policy: SupplementalGroupsPolicy::Strict.into(),
                ..base()
            },
            1000,
            1000,
            vec![1000, 3000],
        ),
    ] {
        let mut config = shell(name, "cat /proc/self/status");
        let namespace_options = security(&mut config).namespace_options.take();
        *security(&mut config) = LinuxContainerSecurityContext { namespace_options, ..asked };
        let (status, _) = node.script(&config).await;
        let ids = |id: u32| vec![id.to_string(); 4].join("\t");
        assert_eq!((field(&status, "Uid"), field(&status, "Gid")), (ids(uid).as_str(), ids(gid).as_str()), "{name}");
        let found: BTreeSet<u32> =
            field(&status, "Groups").split_whitespace().map(|id| id.parse().expect("a gid")).collect();
        // Whether the primary group is listed again makes no difference to the kernel.
        let found: BTreeSet<_> = found.into_iter().chain([gid]).collect();
        assert_eq!(found, groups.into_iter().collect(), "{name}");
    }
    node.finish().await;
}

#[tokio::test]
async fn limits_are_in_the_cgroup() {
    let node = Node::start_with_images(&["busybox"]).await;
    let mut config = shell("limits", FOREVER);
    let limits = resources(&mut config);
    limits.memory_limit_in_bytes = 64 << 20;
    limits.cpu_shares = 512;
    limits.cpu_quota = 20_000;
    limits.cpu_period = 100_000;
    limits.cpuset_cpus = "0".to_owned();
    limits.oom_score_adj = 456;
    let running = node.run(&config).await;
    let pid = node.container_pid(&running.container).await;
    assert_eq!(fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).expect("the process runs").trim(), "456");
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the process runs");
    assert_eq!(field(&status, "Cpus_allowed_list"), "0");
    let cgroups = Cgroups::of(pid);
    assert_eq!(cgroups.read("memory", "memory.limit_in_bytes", "memory.max"), (64_u64 << 20).to_string());
    match cgroups.has_v1("cpu") {
        true => {
            assert_eq!(cgroups.read("cpu", "cpu.shares", ""), "512");
            assert_eq!(cgroups.read("cpu", "cpu.cfs_quota_us", ""), "20000");
            assert_eq!(cgroups.read("cpu", "cpu.cfs_period_us", ""), "100000");
        }
        false => assert_eq!(cgroups.read("cpu", "", "cpu.max"), "20000 100000"),
    }
    assert_eq!(cgroups.read("cpuset", "cpuset.cpus", "cpuset.cpus"), "0");
    node.delete(&running.pod).await;
    node.finish().await;
}

/// A process's control groups, on whichever hierarchies this host has.
struct Cgroups {
    /// Controllers and path of each line of `/proc/<pid>/cgroup`; no controllers: v2.
    lines: Vec<(String, String)>,
}

impl Cgroups {
    fn of(pid: u64) -> Self {
        let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).expect("the process runs");
        let fields = |line: &str| {
            let mut fields = line.splitn(3, ':').skip(1).map(str::to_owned);
            (fields.next().unwrap_or_default(), fields.next().unwrap_or_default())
        };
        Self { lines: text.lines().map(fields).collect() }
    }

    fn path_v1(&self, controller: &str) -> Option<&str> {
        let line = self.lines.iter().find(|(names, _)| names.split(',').any(|name| name == controller));
        line.map(|(_, path)| path.as_str())
    }

    fn has_v1(&self, controller: &str) -> bool {
        self.path_v1(controller).is_some()
    }

    fn read(&self, controller: &str, v1: &str, v2: &str) -> String {
        let file = match self.path_v1(controller) {
            Some(path) => format!("/sys/fs/cgroup/{controller}{path}/{v1}"),
            None => {
                let (_, path) = self.lines.iter().find(|(names, _)| names.is_empty()).expect("a v2 hierarchy");
                format!("/sys/fs/cgroup{path}/{v2}")
            }
        };
        fs::read_to_string(&file).unwrap_or_else(|error| panic!("{file}: {error}")).trim_end().to_owned()
    }
}

#[tokio::test]
async fn process_ids_are_shared_where_asked() {
    let node = Node::start_with_images(&["busybox"]).await;
    for (name, mode, seen) in [("own", NamespaceMode::Container, false), ("shared", NamespaceMode::Pod, true)] {
        let mut pod_config = pod(&node, name);
        namespaces(&mut pod_config).pid = mode.into();
        let pod_id = node.run_pod(&pod_config).await;
        let mut ids = Vec::new();
        for container in ["one", "two"] {
            let mut config = shell(container, &format!("exec sleep 10000{}", ids.len()));
            security(&mut config).namespace_options = Some(namespaces(&mut pod_config).clone());
            let id = node.create(&pod_id, &config, &pod_config).await;
            node.start_container(&id).await.expect("StartContainer");
            ids.push(id);
        }
        let processes = node.sh(&ids[1], "cat /proc/[0-9]*/cmdline | tr '\\0' ' '").await;
        assert!(processes.contains("sleep 100001"), "{name}: {processes}");
        assert_eq!(processes.contains("sleep 100000"), seen, "{name}: {processes}");
        let first = node.sh(&ids[1], "tr '\\0' ' ' </proc/1/cmdline").await;
        assert_eq!(first.contains("sleep"), !seen, "process 1 of {name}: {first}");
        // A shared process space goes on when one container ends, and the end of one is told apart from the other's.
        node.stop_container(&ids[0], 0).await.expect("StopContainer");
        assert_eq!(node.status(&ids[0]).await.exit_code, 137);
        assert_eq!(node.status(&ids[1]).await.state(), ContainerState::ContainerRunning);
        node.delete(&pod_id).await;
    }
    node.finish().await;
}

#[tokio::test]
async fn volumes_are_mounted_as_told() {
    let node = Node::start_with_images(&["busybox"]).await;
    let volume = node.dir().join("volume");
    fs::create_dir(&volume).expect("a directory to mount");
    fs::write(volume.join("file"), "from the host\n").expect("a file to mount");
    let mount = |host: &std::path::Path, inside: &str, readonly| Mount {
        host_path: host.to_string_lossy().into_owned(),
        container_path: inside.to_owned(),
        readonly,
        ..Default::default()
    };
    let mut config = shell("volumes", FOREVER);
    config.mounts = vec![
        mount(&volume, "/deep/new/place", false),
        mount(&volume, "/frozen", true),
        mount(&volume.join("file"), "/etc/one-file", false),
    ];
    let running = node.run(&config).await;
    let id = running.container.as_str();
    assert_eq!(node.sh(id, "cat /deep/new/place/file /frozen/file /etc/one-file").await, "from the host\n".repeat(3));
    node.sh(id, "echo from inside >/deep/new/place/answer").await;
    assert_eq!(fs::read_to_string(volume.join("answer")).expect("the answer"), "from inside\n");
    assert!(node.sh(id, "touch /frozen/x 2>&1 || true").await.contains("Read-only file system"));
    node.delete(&running.pod).await;
    assert!(volume.join("file").exists(), "a volume's content is nobody's to remove");
    node.finish().await;
}

#[tokio::test]
async fn devices_and_kernel_file_systems_are_the_specifications() {
    let node = Node::start_with_images(&["busybox"]).await;
    let running = node.run(&shell("dev", FOREVER)).await;
    let id = running.container.as_str();
    let devices =
        node.sh(id, "for d in null zero full random urandom tty; do stat -c '%n %t:%T %a' /dev/$d; done").await;
    let expected = "/dev/null 1:3 666\n/dev/zero 1:5 666\n/dev/full 1:7 666\n/dev/random 1:8 666\n/dev/urandom 1:9 666\n/dev/tty 5:0 666\n";
    assert_eq!(devices, expected);
    let links = node.sh(id, "for l in fd stdin stdout stderr ptmx; do readlink /dev/$l; done").await;
    assert_eq!(links, "/proc/self/fd\n/proc/self/fd/0\n/proc/self/fd/1\n/proc/self/fd/2\npts/ptmx\n");
    let mounts = node.sh(id, "cat /proc/self/mounts").await;
    for (place, kind) in [
        ("/proc", "proc"),
        ("/dev", "tmpfs"),
        ("/dev/pts", "devpts"),
        ("/dev/shm", "tmpfs"),
        ("/dev/mqueue", "mqueue"),
        ("/sys", "sysfs"),
    ] {
        let found = mounts.lines().any(|line| line.split(' ').skip(1).take(2).eq([place, kind]));
        assert!(found, "{kind} on {place} is missing in {mounts}");
    }
    // Reading a device that nobody granted is refused even to root: made by hand, as a container with MKNOD can.
    let output = node.sh(id, "mknod /tmp/disk b 254 0 && cat /tmp/disk 2>&1 >/dev/null || true").await;
    assert!(output.contains("Operation not permitted"), "{output}");
    node.delete(&running.pod).await;
    node.finish().await;
}
