//! Limits of a container that runs, and one that stands still.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde_json::{Value, json};

use crate::bundle::Bundle;

/// A process's cgroup of a controller, in either hierarchy.
pub fn cgroup(pid: u64, controller: &str) -> PathBuf {
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let fields = groups.lines().map(|line| line.splitn(3, ':').collect::<Vec<_>>());
    let (v1, v2): (Vec<_>, Vec<_>) = fields.partition(|fields| fields[0] != "0");
    match v1.iter().find(|fields| fields[1].split(',').any(|it| it == controller)) {
        Some(fields) => Path::new("/sys/fs/cgroup").join(controller).join(fields[2].trim_start_matches('/')),
        None => Path::new("/sys/fs/cgroup").join(v2[0][2].trim_start_matches('/')),
    }
}

/// The first of these files that is there.
fn value(dir: &Path, files: [&str; 2]) -> String {
    let texts = files.iter().filter_map(|file| fs::read_to_string(dir.join(file)).ok());
    texts.map(|text| text.trim().to_owned()).next().unwrap()
}

fn memory(pid: u64) -> String {
    value(&cgroup(pid, "memory"), ["memory.limit_in_bytes", "memory.max"])
}

fn processes(pid: u64) -> String {
    value(&cgroup(pid, "pids"), ["pids.max", "pids.max"])
}

/// The limits that are kept of it.
fn kept(bundle: &Bundle) -> Value {
    let path = bundle.path("state").join(&bundle.id).join("config.json");
    let spec: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    spec["linux"]["resources"].clone()
}

#[test]
fn limits_change_and_are_remembered() {
    let mut bundle = Bundle::new("exec sleep 1000");
    bundle.config["linux"]["resources"]["memory"] = json!({ "limit": 64 << 20 });
    bundle.create();
    bundle.ok(&["start", &bundle.id]);
    let pid = bundle.pid();
    assert_eq!(memory(pid), (64 << 20).to_string());

    bundle.ok(&["update", "--memory", "32m", "--pids-limit", "20", &bundle.id]);
    assert_eq!((memory(pid), processes(pid)), ((32 << 20).to_string(), "20".to_owned()));
    let file = bundle.path("limits");
    fs::write(&file, json!({ "pids": { "limit": 30 } }).to_string()).unwrap();
    bundle.ok(&["update", "-r", file.to_str().unwrap(), &bundle.id]);
    assert_eq!((memory(pid), processes(pid)), ((32 << 20).to_string(), "30".to_owned()));
    let kept = kept(&bundle);
    assert_eq!((&kept["memory"]["limit"], &kept["pids"]["limit"]), (&json!(32 << 20), &json!(30)));
    assert!(kept["devices"].is_array());

    bundle.ok(&["delete", "--force", &bundle.id]);
    assert!(bundle.fails(&["update", "--memory", "1g", &bundle.id]).contains("does not exist"));
}

#[test]
fn a_bad_limit_changes_nothing() {
    let bundle = Bundle::new("exec sleep 1000");
    bundle.create();
    let (pid, before) = (bundle.pid(), kept(&bundle));
    let (memory_before, processes_before) = (memory(pid), processes(pid));
    // The last is for the kernel to refuse, after others were written.
    for bad in [
        json!({ "memory": { "limit": -2 } }),
        json!({ "memory": 5 }),
        json!({
            "memory": { "limit": 64 << 20 }, "pids": { "limit": 20 }, "cpu": { "cpus": "9999" },
        }),
    ] {
        let file = bundle.path("limits");
        fs::write(&file, bad.to_string()).unwrap();
        bundle.fails(&["update", "-r", file.to_str().unwrap(), &bundle.id]);
        assert_eq!((memory(pid), processes(pid)), (memory_before.clone(), processes_before.clone()), "{bad}");
        assert_eq!(kept(&bundle), before);
    }
    assert!(bundle.fails(&["update", "--memory", "many", &bundle.id]).contains("memory"));
    bundle.ok(&["delete", &bundle.id]);
}

#[test]
fn a_paused_container_stands_still() {
    let bundle = Bundle::new("while :; do echo >>/out; done");
    bundle.create();
    bundle.ok(&["start", &bundle.id]);
    let length = || fs::metadata(bundle.path("rootfs/out")).map_or(0, |file| file.len());
    while length() == 0 {
        std::thread::yield_now();
    }
    bundle.ok(&["pause", &bundle.id]);
    assert_eq!(bundle.status(), "paused");
    let stopped = length();
    // These take long enough for many a line.
    assert!(bundle.fails(&["pause", &bundle.id]).contains("it is paused"));
    assert!(bundle.fails(&["start", &bundle.id]).contains("it is paused"));
    let refused = bundle.command(&["exec", &bundle.id, "true"]).output().unwrap();
    assert_eq!(refused.status.code(), Some(255));
    assert!(String::from_utf8(refused.stderr).unwrap().contains("it is paused"));
    assert_eq!(length(), stopped);

    bundle.ok(&["resume", &bundle.id]);
    assert_eq!(bundle.status(), "running");
    assert!(bundle.fails(&["resume", &bundle.id]).contains("it is running"));
    while length() == stopped {
        std::thread::yield_now();
    }
    bundle.ok(&["exec", &bundle.id, "true"]);
    bundle.ok(&["delete", "--force", &bundle.id]);
}

#[test]
fn a_paused_container_can_be_killed_and_deleted() {
    for kill in [true, false] {
        let bundle = Bundle::new("exec sleep 1000");
        bundle.create();
        bundle.ok(&["start", &bundle.id]);
        bundle.ok(&["pause", &bundle.id]);
        if kill {
            bundle.ok(&["kill", &bundle.id, "KILL"]);
            bundle.wait();
        }
        bundle.ok(&["delete", "--force", &bundle.id]);
    }
}

fn events(bundle: &Bundle, words: &[&str]) -> Vec<Value> {
    bundle.ok(words).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn what_it_uses_is_told() {
    let mut bundle = Bundle::new("exec sleep 1000");
    bundle.config["linux"]["resources"]["pids"] = json!({ "limit": 50 });
    bundle.create();
    bundle.ok(&["start", &bundle.id]);
    let events = events(&bundle, &["events", "--stats", &bundle.id]);
    let [event] = &events[..] else { panic!("{events:?}") };
    assert_eq!((event["type"].as_str(), event["id"].as_str()), (Some("stats"), Some(&*bundle.id)));
    let data = &event["data"];
    assert_eq!(data["pids"], json!({ "current": 1, "limit": 50 }));
    assert!(data["memory"]["usage"]["usage"].as_u64().unwrap() > 0);
    assert!(data["memory"]["raw"].as_object().unwrap().len() > 5);
    assert!(data["cpu"]["usage"]["total"].as_u64().unwrap() > 0);
    bundle.ok(&["kill", &bundle.id, "KILL"]);
    bundle.wait();
    assert!(bundle.fails(&["events", &bundle.id]).contains("it is stopped"));
    bundle.ok(&["delete", &bundle.id]);
}

#[test]
fn an_oom_kill_is_told() {
    // The shell stays and sees its child be killed, once it is told to go on.
    let script = "while [ ! -e /go ]; do sleep 0.01; done; sh -c 'x=x; while :; do x=$x$x; done'; exit 0";
    let mut bundle = Bundle::new(script);
    bundle.config["linux"]["resources"]["memory"] = json!({ "limit": 16 << 20, "swap": 16 << 20 });
    bundle.create();
    bundle.ok(&["start", &bundle.id]);
    let mut command = bundle.command(&["events", "--interval", "10ms", &bundle.id]);
    let mut watching = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(watching.stdout.take().unwrap()).lines();
    // It watches from here on.
    assert!(lines.next().unwrap().unwrap().contains("stats"));
    fs::write(bundle.path("rootfs/go"), "").unwrap();
    let told = lines.map_while(Result::ok).filter(|line| line.contains(r#""type":"oom""#)).count();
    assert!(told > 0);
    assert!(watching.wait().unwrap().success());
    bundle.ok(&["delete", &bundle.id]);
}
