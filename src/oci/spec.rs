//! `spec`: writes a `config.json` to start from.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use serde_json::{Value, json};

use crate::args::Spec;
use crate::error::Error;
use crate::state::OCI_VERSION;

/// What a container may do when nobody says more.
const CAPABILITIES: [&str; 3] = ["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"];

/// Does `spec`.
pub(crate) fn spec(args: &Spec) -> Result<(), Error> {
    let path = args.bundle.as_deref().unwrap_or(Path::new(".")).join("config.json");
    let mut spec = ordinary();
    if args.rootless {
        make_rootless(&mut spec);
    }
    // An existing one is somebody's work.
    let mut file = File::create_new(&path).map_err(Error::file("make", &path))?;
    writeln!(file, "{spec:#}").map_err(Error::file("write", &path))
}

fn ordinary() -> Value {
    let mount = |destination: &str, kind: &str, source: &str, options: &[&str]| json!({ "destination": destination, "type": kind, "source": source, "options": options });
    let namespaces = ["pid", "network", "ipc", "uts", "mount", "cgroup"].map(|kind| json!({ "type": kind }));
    json!({
        "ociVersion": OCI_VERSION,
        "process": {
            "terminal": true,
            "user": { "uid": 0, "gid": 0 },
            "args": ["sh"],
            "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TERM=xterm"],
            "cwd": "/",
            "capabilities": {
                "bounding": CAPABILITIES, "effective": CAPABILITIES, "permitted": CAPABILITIES,
            },
            "rlimits": [{ "type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024 }],
            "noNewPrivileges": true,
        },
        "root": { "path": "rootfs", "readonly": true },
        "hostname": "podwright",
        "mounts": [
            mount("/proc", "proc", "proc", &[]),
            mount("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
            mount("/dev/pts", "devpts", "devpts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
            mount("/dev/shm", "tmpfs", "shm", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
            mount("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
            mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
            mount("/sys/fs/cgroup", "cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", "ro"]),
        ],
        "linux": {
            "resources": { "devices": [{ "allow": false, "access": "rwm" }] },
            "namespaces": namespaces,
            "maskedPaths": [
                "/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
                "/proc/timer_stats", "/proc/sched_debug", "/sys/firmware", "/proc/scsi",
            ],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
        },
    })
}

/// What a user without root can have: an id of their own for root, the host's network and its /sys, no limits.
fn make_rootless(spec: &mut Value) {
    let map = |id: u32| json!([{ "containerID": 0, "hostID": id, "size": 1 }]);
    let linux = &mut spec["linux"];
    linux["uidMappings"] = map(rustix::process::geteuid().as_raw());
    linux["gidMappings"] = map(rustix::process::getegid().as_raw());
    linux["namespaces"] = ["pid", "ipc", "uts", "mount", "cgroup", "user"].map(|kind| json!({ "type": kind })).into();
    if let Some(linux) = linux.as_object_mut() {
        linux.remove("resources");
    }
    if let Some(mounts) = spec["mounts"].as_array_mut() {
        // The host's is in its /sys.
        mounts.retain(|mount| mount["type"] != "cgroup");
        for mount in mounts {
            if mount["destination"] == "/dev/pts" {
                // Its group has no id in the user namespace.
                mount["options"] = json!(["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]);
            }
            if mount["destination"] == "/sys" {
                *mount = json!({ "destination": "/sys", "type": "none", "source": "/sys",
                    "options": ["rbind", "nosuid", "noexec", "nodev", "ro"] });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_are_specifications() {
        let mut spec = ordinary();
        let parsed: oci_spec::runtime::Spec = serde_json::from_value(spec.clone()).unwrap();
        assert_eq!(parsed.hostname().as_deref(), Some("podwright"));
        make_rootless(&mut spec);
        let parsed: oci_spec::runtime::Spec = serde_json::from_value(spec).unwrap();
        assert_eq!(parsed.linux().as_ref().unwrap().uid_mappings().as_ref().unwrap().len(), 1);
    }
}
