//! Namespaces: new, joined, inherited.

use std::fs;

use serde_json::json;

use crate::bundle::Bundle;

fn of_process(pid: &str, kind: &str) -> String {
    fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap().to_str().unwrap().to_owned()
}

const LINKS: &str = "for kind in cgroup ipc mnt net pid user uts; do readlink /proc/self/ns/$kind; done";

#[test]
fn what_is_not_listed_is_inherited() {
    let mut bundle = Bundle::new(LINKS);
    for kind in ["network", "uts", "pid"] {
        bundle.without_namespace(kind);
    }
    bundle.config["hostname"] = "".into();
    let seen = bundle.output();
    let seen: Vec<_> = seen.lines().collect();
    for (index, kind) in ["cgroup", "ipc", "mnt", "net", "pid", "user", "uts"].into_iter().enumerate() {
        let inherited = matches!(kind, "net" | "uts" | "pid" | "user");
        assert_eq!(seen[index] == of_process("self", kind), inherited, "{kind}: {seen:?}");
    }
}

#[test]
fn names_are_its_own() {
    let mut bundle = Bundle::new("hostname; cat /proc/sys/kernel/domainname");
    bundle.config["hostname"] = "one".into();
    bundle.config["domainname"] = "two".into();
    assert_eq!(bundle.output(), "one\ntwo\n");
    bundle.without_namespace("uts");
    assert!(String::from_utf8_lossy(&bundle.run().stderr).contains("hostname: \"one\" would rename the host"));
}

#[test]
fn all_of_another_containers_can_be_joined() {
    for with_ids in [false, true] {
        let mut first = Bundle::new("exec sleep 1000");
        let mut second = Bundle::new(LINKS);
        if with_ids {
            first.map_ids();
            second.map_ids();
        }
        first.create();
        first.ok(&["start", &first.id]);
        let pid = first.pid().to_string();
        let mut kinds = vec![("network", "net"), ("ipc", "ipc"), ("uts", "uts"), ("pid", "pid"), ("cgroup", "cgroup")];
        if with_ids {
            kinds.push(("user", "user"));
        }
        for (kind, link) in &kinds {
            second.without_namespace(kind);
            second.namespace(json!({ "type": kind, "path": format!("/proc/{pid}/ns/{link}") }));
        }
        second.config["hostname"] = "".into();
        let seen = second.output();
        for (_, link) in kinds {
            assert!(seen.lines().any(|line| line == of_process(&pid, link)), "{link}: {seen}");
        }
        first.ok(&["delete", "--force", &first.id]);
    }
}

#[test]
fn a_namespace_of_another_kind_is_refused() {
    let mut bundle = Bundle::new("true");
    bundle.without_namespace("network");
    bundle.namespace(json!({ "type": "network", "path": "/proc/self/ns/uts" }));
    let error = String::from_utf8(bundle.run().stderr).unwrap();
    assert!(error.contains("join namespace /proc/self/ns/uts: Invalid argument"), "{error}");
}

#[test]
fn root_of_a_user_namespace_is_nobody_on_the_host() {
    let mut bundle =
        Bundle::new("id -u; cat /proc/self/uid_map; touch /made; stat -c %u /made /dev /dev/pts; exec sleep 1000");
    bundle.map_ids();
    bundle.create();
    bundle.ok(&["start", &bundle.id]);
    while bundle.written().lines().count() < 5 {
        std::thread::yield_now();
    }
    let expected = "0\n         0     100000      65536\n0\n0\n0\n";
    assert_eq!(bundle.written(), expected);
    let status = fs::read_to_string(format!("/proc/{}/status", bundle.pid())).unwrap();
    assert!(status.contains("Uid:\t100000\t100000"), "{status}");
    for kind in ["user", "pid", "mnt", "net"] {
        assert_ne!(of_process(&bundle.pid().to_string(), kind), of_process("self", kind), "{kind}");
    }
    bundle.ok(&["delete", "--force", &bundle.id]);
}

#[test]
fn a_user_namespace_takes_a_root_that_is_closed_to_its_root() {
    use std::os::unix::fs::PermissionsExt;
    let mut bundle = Bundle::new("exec true");
    bundle.map_ids();
    fs::set_permissions(bundle.dir.path(), fs::Permissions::from_mode(0o700)).unwrap();
    assert_eq!(bundle.output(), "");
}

#[test]
fn clocks_are_offset() {
    for with_ids in [false, true] {
        let mut bundle = Bundle::new("cut -d. -f1 /proc/uptime; cat /proc/self/timens_offsets");
        bundle.namespace(json!({ "type": "time" }));
        bundle.config["linux"]["timeOffsets"] =
            json!({ "boottime": { "secs": 1_000_000_000 }, "monotonic": { "secs": 7, "nanosecs": 9 } });
        if with_ids {
            bundle.map_ids();
        }
        let seen = bundle.output();
        let mut lines = seen.lines();
        assert!(lines.next().unwrap().parse::<u64>().unwrap() >= 1_000_000_000, "{seen}");
        let offsets: Vec<Vec<_>> = lines.map(|line| line.split_ascii_whitespace().collect()).collect();
        assert_eq!(offsets, [["monotonic", "7", "9"], ["boottime", "1000000000", "0"]]);
    }
}
