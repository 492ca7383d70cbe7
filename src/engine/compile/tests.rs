//! Whole specifications to plans, as snapshots for each kind of host; and what is refused on the way.

use std::collections::BTreeMap;
use std::path::Path;

use oci_spec::runtime::Spec;
use podwright_plan::wire::{ContainerPlan, ExecPlan, NamespaceMode, PodPlan, Stdio};

use crate::facts::tests::{hybrid, legacy, unified};
use crate::{Bundle, CompileError, ExecRequest, HostFacts, PodRequest, container, exec, pod};

/// A container as the kubelet asks for one: limits, volumes, the default profile's shape in small.
const SPEC: &str = r#"{
    "ociVersion": "1.2.0",
    "root": {"path": "rootfs", "readonly": true},
    "hostname": "web-0",
    "process": {
        "user": {"uid": 1000, "gid": 1000, "additionalGids": [10, 20], "umask": 18},
        "args": ["/bin/server", "--port", "80"],
        "env": ["PATH=/bin", "HOSTNAME=web-0"],
        "cwd": "/srv",
        "capabilities": {
            "bounding": ["CAP_NET_BIND_SERVICE"],
            "effective": ["CAP_NET_BIND_SERVICE"],
            "permitted": ["CAP_NET_BIND_SERVICE"]
        },
        "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 1024, "hard": 4096}],
        "noNewPrivileges": true,
        "oomScoreAdj": 998,
        "terminal": true,
        "consoleSize": {"width": 80, "height": 24}
    },
    "mounts": [
        {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
            "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
        {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
            "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
        {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": ["nosuid", "noexec", "nodev"]},
        {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]},
        {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
            "options": ["nosuid", "noexec", "nodev", "relatime", "ro"]},
        {"destination": "/dev/shm", "type": "tmpfs", "source": "shm",
            "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]},
        {"destination": "/etc/hosts", "type": "bind", "source": "/run/podwright/pods/p/hosts",
            "options": ["rbind", "rprivate", "rw"]},
        {"destination": "/data", "type": "bind", "source": "/var/data", "options": ["rbind", "rslave", "rro"]},
        {"destination": "/image", "type": "overlay", "source": "overlay",
            "options": ["ro", "rprivate", "lowerdir=/var/lib/podwright/layers/top/etc:/var/lib/podwright/layers/base/etc"]}
    ],
    "annotations": {"io.kubernetes.cri.container-type": "container"},
    "linux": {
        "cgroupsPath": "/kubepods/pod1/c1",
        "namespaces": [
            {"type": "pid"}, {"type": "mount"}, {"type": "cgroup"},
            {"type": "network", "path": "/run/netns/podwright-p"},
            {"type": "ipc", "path": "/proc/9/ns/ipc"}, {"type": "uts", "path": "/proc/9/ns/uts"}
        ],
        "resources": {
            "devices": [{"allow": false, "access": "rwm"}, {"allow": true, "type": "c", "major": 10, "minor": 229, "access": "rw"}],
            "memory": {"limit": 134217728, "swap": 134217728},
            "cpu": {"shares": 512, "quota": 50000, "period": 100000, "cpus": "0-1"},
            "pids": {"limit": 100},
            "hugepageLimits": [{"pageSize": "2MB", "limit": 0}]
        },
        "devices": [{"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229, "fileMode": 438}],
        "sysctl": {"net.ipv4.ip_unprivileged_port_start": "0"},
        "seccomp": {
            "defaultAction": "SCMP_ACT_ERRNO",
            "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_AARCH64"],
            "syscalls": [{"names": ["read", "write", "exit_group"], "action": "SCMP_ACT_ALLOW"}]
        },
        "maskedPaths": ["/proc/kcore", "/sys/firmware"],
        "readonlyPaths": ["/proc/sys"]
    }
}"#;

fn spec() -> Spec {
    serde_json::from_str(SPEC).unwrap()
}

fn changed(change: impl FnOnce(&mut serde_json::Value)) -> Spec {
    let mut json: serde_json::Value = serde_json::from_str(SPEC).unwrap();
    change(&mut json);
    serde_json::from_value(json).unwrap()
}

fn compile(spec: &Spec, facts: &HostFacts) -> Result<ContainerPlan, CompileError> {
    let bundle = Bundle {
        id: "c1",
        dir: Path::new("/var/lib/podwright/pods/p/containers/c1"),
        layers_dir: Path::new("/var/lib/podwright/layers"),
        lower: vec!["top".to_owned(), "base".to_owned()],
        writable_dir: Path::new("/var/lib/podwright/pods/p/containers/c1/rootfs"),
        log_path: Some(Path::new("/var/log/pods/x/web/0.log")),
        stdin: true,
        log_rotation: None,
        stdin_once: false,
        shares_shm: true,
    };
    container(spec, &bundle, facts)
}

#[test]
fn a_container_on_a_unified_host() {
    let mut plan = compile(&spec(), &unified()).unwrap();
    // Programs have tests of their own; here it is enough that they are where they belong.
    assert!(!std::mem::take(&mut plan.process.as_mut().unwrap().seccomp).is_empty());
    assert!(!std::mem::take(&mut plan.cgroup.as_mut().unwrap().device_program).is_empty());
    insta::assert_debug_snapshot!(plan);
}

#[test]
fn a_container_on_other_hosts_differs_in_its_cgroup_alone() {
    let [v2, v1, both] = [unified(), legacy(), hybrid()].map(|facts| compile(&spec(), &facts).unwrap());
    insta::assert_debug_snapshot!("cgroup_on_a_legacy_host", v1.cgroup);
    insta::assert_debug_snapshot!("cgroup_on_a_hybrid_host", both.cgroup);
    insta::assert_debug_snapshot!("cgroup_mount_on_a_hybrid_host", both.mounts[5]);
    for mut other in [v1, both] {
        other.cgroup.clone_from(&v2.cgroup);
        other.mounts[5] = v2.mounts[5].clone();
        assert_eq!(other, v2);
    }
}

#[test]
fn a_plan_is_the_same_every_time() {
    // Maps and sets of the specification have no order of their own.
    let spec = changed(|json| {
        json["linux"]["sysctl"] = serde_json::json!({"net.a": "1", "net.b": "2", "net.c": "3", "fs.mqueue.d": "4"});
        json["linux"]["resources"]["unified"] =
            serde_json::json!({"memory.high": "1", "memory.oom.group": "1", "pids.x": "2"});
    });
    let first = compile(&spec, &unified()).unwrap();
    for _ in 0..8 {
        let again: Spec = serde_json::from_value(serde_json::to_value(&spec).unwrap()).unwrap();
        assert_eq!(compile(&again, &unified()).unwrap(), first);
    }
}

#[test]
fn a_privileged_container_sees_the_hosts_devices() {
    let spec = changed(|json| {
        json["mounts"]
            .as_array_mut()
            .unwrap()
            .push(serde_json::json!({"destination": "/dev", "type": "bind", "source": "/dev", "options": ["rbind"]}));
        json["linux"]["resources"]["devices"] = serde_json::json!([{"allow": true, "access": "rwm"}]);
        json["linux"]["namespaces"] = serde_json::json!([{"type": "mount"}]);
        json["hostname"] = "".into();
        json["linux"]["sysctl"] = serde_json::json!({});
    });
    let plan = compile(&spec, &unified()).unwrap();
    assert!(plan.devices.is_empty() && plan.symlinks.is_empty());
    assert!(plan.cgroup.unwrap().device_program.is_empty());
    assert_eq!(plan.pid, i32::from(NamespaceMode::NamespaceHost));
    assert!(!plan.cgroup_namespace);
}

#[test]
fn what_is_wrong_is_told_by_its_field() {
    type Change = fn(&mut serde_json::Value);
    let cases: [(&str, Change); 9] = [
        ("linux.cgroupsPath is missing", |json| json["linux"]["cgroupsPath"] = serde_json::Value::Null),
        ("linux.cgroupsPath: \"/../x\"", |json| json["linux"]["cgroupsPath"] = "/../x".into()),
        ("process is missing", |json| json["process"] = serde_json::Value::Null),
        ("root is missing", |json| json["root"] = serde_json::Value::Null),
        ("would rename the host", |json| json["linux"]["namespaces"] = serde_json::json!([{"type": "mount"}])),
        ("linux.rootfsPropagation", |json| json["linux"]["rootfsPropagation"] = "sideways".into()),
        ("linux.maskedPaths: \"proc/kcore\" is not absolute", |json| {
            json["linux"]["maskedPaths"] = serde_json::json!(["proc/kcore"]);
        }),
        ("linux.seccomp.listenerPath is missing", |json| {
            json["linux"]["seccomp"]["defaultAction"] = "SCMP_ACT_NOTIFY".into()
        }),
        ("linux.resources.memory.swap", |json| json["linux"]["resources"]["memory"]["swap"] = 1.into()),
    ];
    for (words, change) in cases {
        let error = compile(&changed(change), &unified()).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
}

fn compile_exec(spec: &Spec) -> ExecPlan {
    let stdio = Stdio { stdin: false, stdout: true, stderr: true };
    let bundle = Path::new("/var/lib/podwright/pods/p/containers/c1");
    let request =
        ExecRequest { container_id: "c1", bundle, exec_id: "e1", stdio, timeout_ms: 500, tied_to_connection: true };
    exec(spec.process().as_ref().unwrap(), spec, &request, &unified()).unwrap()
}

#[test]
fn an_exec_is_held_by_its_containers_filter() {
    let plan = compile_exec(&spec());
    assert_eq!((plan.container_id.as_str(), plan.exec_id.as_str(), plan.timeout_ms), ("c1", "e1", 500));
    assert_eq!(plan.process, compile(&spec(), &unified()).unwrap().process);
    assert!(!plan.process.unwrap().seccomp.is_empty());
}

fn compile_pod(change: impl FnOnce(&mut PodRequest<'_>)) -> Result<PodPlan, String> {
    let cgroup = "/kubepods/pod1/shim".parse().unwrap();
    let sysctls = BTreeMap::from([("net.core.somaxconn".to_owned(), "1024".to_owned())]);
    let mut request = PodRequest {
        pod_id: "p",
        network: NamespaceMode::NamespacePrivate,
        ipc: NamespaceMode::NamespacePrivate,
        uts: NamespaceMode::NamespacePrivate,
        shared_pid: false,
        hostname: "web-0",
        sysctls: &sysctls,
        shm_size: 64 << 20,
        cgroup: &cgroup,
        oom_score_adj: -998,
    };
    change(&mut request);
    pod(&request, &hybrid()).map_err(|error| error.to_string())
}

#[test]
fn a_pod() {
    let plan = compile_pod(|_| {}).unwrap();
    assert_eq!((plan.hostname.as_str(), plan.shm_size), ("web-0", 64 << 20));
    assert_eq!(plan.sysctls[0].path, "net/core/somaxconn");
    let cgroup = plan.cgroup.unwrap();
    assert_eq!(cgroup.unified, "/sys/fs/cgroup/unified/kubepods/pod1/shim");
    assert!(cgroup.dirs.iter().all(|dir| dir.writes.iter().all(|write| write.inherit || write.lenient)), "no limits");
}

#[test]
fn a_pod_does_not_change_the_host() {
    assert!(compile_pod(|it| it.network = NamespaceMode::NamespaceHost).unwrap_err().contains("whose network"));
    assert!(compile_pod(|it| it.uts = NamespaceMode::NamespaceHost).unwrap_err().contains("would rename the host"));
    assert!(compile_pod(|it| it.ipc = NamespaceMode::NamespacePod).unwrap_err().contains("pod.ipc"));
    assert_eq!(compile_pod(|it| it.ipc = NamespaceMode::NamespaceHost).unwrap().shm_size, 0);
}
