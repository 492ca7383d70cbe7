//! Hooks at all six points.

use std::fs;

use serde_json::{Value, json};

use crate::bundle::Bundle;

const POINTS: [&str; 6] = ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"];

/// A hook that adds a line to a file: its point, the status and pid that it was told, and the mount namespace it is in.
fn note(point: &str, file: &str) -> Value {
    let script = format!(
        "state=$(cat); echo {point} $(echo $state | grep -o '\"status\":\"[a-z]*\"') $(echo $state | grep -o '\"pid\":[0-9]*') \
         $(readlink /proc/self/ns/mnt) $VAR >> {file}"
    );
    json!({ "path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/bin:/usr/bin", "VAR=given"] })
}

#[test]
fn each_is_run_at_its_point_with_the_state() {
    let mut bundle = Bundle::new("exec sleep 1000");
    let file = bundle.path("notes").to_str().unwrap().to_owned();
    for point in POINTS {
        // The container's root has a file of its own.
        let file = if point == "startContainer" { "/notes" } else { &file };
        bundle.config["hooks"][point] = json!([note(point, file)]);
    }
    bundle.create();
    bundle.ok(&["start", &bundle.id]);
    let pid = bundle.pid();
    let own = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/mnt")).unwrap().to_str().unwrap().to_owned();
    let (host, container) = (own("self"), own(&pid.to_string()));
    let inside = fs::read_to_string(bundle.path("rootfs/notes")).unwrap();
    assert_eq!(inside, format!("startContainer \"status\":\"created\" \"pid\":1 {container} given\n"));
    bundle.ok(&["delete", "--force", &bundle.id]);
    let expected = [
        format!("prestart \"status\":\"creating\" \"pid\":{pid} {host} given"),
        format!("createRuntime \"status\":\"creating\" \"pid\":{pid} {host} given"),
        format!("createContainer \"status\":\"creating\" \"pid\":1 {container} given"),
        format!("poststart \"status\":\"running\" \"pid\":{pid} {host} given"),
        format!("poststop \"status\":\"stopped\" \"pid\":0 {host} given"),
    ];
    assert_eq!(fs::read_to_string(file).unwrap().lines().collect::<Vec<_>>(), expected);
}

#[test]
fn one_that_fails_keeps_the_container_from_its_next_step() {
    let failing = json!([{ "path": "/bin/sh", "args": ["sh", "-c", "echo no luck >&2; exit 3"] }]);
    for (point, fails) in [
        ("prestart", "create"),
        ("createRuntime", "create"),
        ("createContainer", "create"),
        ("startContainer", "start"),
    ] {
        let mut bundle = Bundle::new("exec sleep 1000");
        bundle.config["hooks"][point] = failing.clone();
        bundle.write();
        let create = ["create", "--bundle", bundle.dir.path().to_str().unwrap(), &bundle.id];
        let error = match fails {
            "create" => bundle.fails(&create),
            _ => {
                bundle.create();
                let error = bundle.fails(&["start", &bundle.id]);
                bundle.wait();
                bundle.ok(&["delete", &bundle.id]);
                error
            }
        };
        assert!(error.contains(&format!("run {point} hook /bin/sh: exit status: 3: no luck")), "{error}");
    }
}

#[test]
fn one_that_comes_too_late_to_matter_is_a_warning() {
    let mut bundle = Bundle::new("true");
    for point in ["poststart", "poststop"] {
        bundle.config["hooks"][point] = json!([{ "path": "/bin/false" }]);
    }
    let output = bundle.run();
    assert!(output.status.success(), "{output:?}");
    let words = String::from_utf8(output.stderr).unwrap();
    assert_eq!(words.matches("warning: run post").count(), 2, "{words}");
}

#[test]
fn one_that_hangs_is_killed_with_what_it_started() {
    let mut bundle = Bundle::new("true");
    let file = bundle.path("pids").to_str().unwrap().to_owned();
    let script = format!("sleep 1000 & echo $! > {file}; sleep 1000");
    bundle.config["hooks"]["createRuntime"] =
        json!([{ "path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/bin"], "timeout": 1 }]);
    let words = String::from_utf8(bundle.run().stderr).unwrap();
    assert!(words.contains("run createRuntime hook /bin/sh: it was not done after 1 s"), "{words}");
    let pid = fs::read_to_string(file).unwrap();
    // It is reaped by init, whenever that comes to it.
    while fs::read_to_string(format!("/proc/{}/stat", pid.trim())).is_ok_and(|stat| !stat.contains(") Z ")) {
        std::thread::yield_now();
    }
}
