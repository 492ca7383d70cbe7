//! `--systemd-cgroup`: the container's cgroup is a unit of systemd, where that runs.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::json;

use crate::bundle::Bundle;
use crate::limits::cgroup;

fn runs() -> bool {
    Path::new("/run/systemd/system").is_dir()
}

fn bundle() -> Bundle {
    let mut bundle = Bundle::new("exec sleep 1000");
    bundle.flags.push("--systemd-cgroup");
    bundle
}

fn systemctl(words: &[&str]) -> String {
    let output = Command::new("systemctl").args(words).output().unwrap();
    assert!(output.status.success(), "{words:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

fn property(unit: &str, name: &str) -> String {
    systemctl(&["show", "--value", "--property", name, unit])
}

#[test]
fn systemd_has_the_cgroup_or_is_said_to_be_missing() {
    if runs() {
        return a_unit_has_the_limits();
    }
    let bundle = bundle();
    bundle.write();
    let error = bundle.fails(&["create", "--bundle", bundle.dir.path().to_str().unwrap(), &bundle.id]);
    assert!(error.contains("systemd does not run on this host"), "{error}");
}

fn a_unit_has_the_limits() {
    let mut bundle = bundle();
    // A node that the rules do not allow.
    bundle.config["linux"]["devices"] = json!([{ "path": "/dev/log-x", "type": "c", "major": 1, "minor": 11 }]);
    bundle.config["linux"]["resources"]["memory"] = json!({ "limit": 64 << 20 });
    bundle.config["linux"]["resources"]["pids"] = json!({ "limit": 50 });
    bundle.create();
    bundle.ok(&["start", &bundle.id]);
    bundle.flags.clear();
    let unit = format!("podwright-{}.scope", bundle.id);
    let dir = cgroup(bundle.pid(), "memory");
    assert!(dir.ends_with(format!("system.slice/{unit}")), "{}", dir.display());
    let has = |memory: u64| {
        assert_eq!(property(&unit, "MemoryMax"), memory.to_string());
        assert_eq!(fs::read_to_string(dir.join("memory.max")).unwrap().trim(), memory.to_string());
        assert_eq!(property(&unit, "TasksMax"), "50");
        assert_eq!(fs::read_to_string(dir.join("pids.max")).unwrap().trim(), "50");
        bundle.ok(&["exec", &bundle.id, "cat", "/dev/null"]);
        assert!(bundle.fails(&["exec", &bundle.id, "cat", "/dev/log-x"]).contains("Operation not permitted"));
    };
    has(64 << 20);
    systemctl(&["daemon-reload"]);
    has(64 << 20);
    bundle.ok(&["update", "--memory", "32m", &bundle.id]);
    has(32 << 20);
    systemctl(&["daemon-reload"]);
    has(32 << 20);

    bundle.ok(&["delete", "--force", &bundle.id]);
    assert_eq!(property(&unit, "LoadState"), "not-found");
    assert!(!dir.exists());
}

#[test]
fn a_failed_create_leaves_no_unit() {
    let mut bundle = bundle();
    bundle.config["mounts"].as_array_mut().unwrap().push(json!({
        "destination": "/x", "type": "bind", "source": "/no/such", "options": ["bind"]
    }));
    bundle.write();
    let error = bundle.fails(&["create", "--bundle", bundle.dir.path().to_str().unwrap(), &bundle.id]);
    if runs() {
        assert!(error.contains("/no/such"), "{error}");
        assert_eq!(property(&format!("podwright-{}.scope", bundle.id), "LoadState"), "not-found");
    } else {
        assert!(error.contains("systemd does not run on this host"), "{error}");
    }
}
