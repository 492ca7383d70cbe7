//! Another process in a running container.

use std::fs;

use serde_json::json;

use crate::bundle::Bundle;

/// A container that runs, and is deleted at the end.
fn running(change: impl FnOnce(&mut Bundle)) -> Bundle {
    let mut bundle = Bundle::new("exec sleep 1000");
    change(&mut bundle);
    bundle.create();
    bundle.ok(&["start", &bundle.id]);
    bundle
}

fn end(bundle: &Bundle) {
    bundle.ok(&["delete", "--force", &bundle.id]);
}

const LINKS: &str = "for kind in cgroup ipc mnt net pid time user uts; do readlink /proc/self/ns/$kind; done";

#[test]
fn it_is_where_the_container_is() {
    for with_ids in [false, true] {
        let bundle = running(|bundle| {
            bundle.namespace(json!({ "type": "time" }));
            if with_ids {
                bundle.map_ids();
            }
        });
        let seen = bundle.ok(&["exec", &bundle.id, "sh", "-c", LINKS]);
        let pid = bundle.pid();
        let kinds = ["cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts"];
        let expected = kinds.map(|kind| fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap());
        assert_eq!(seen.lines().collect::<Vec<_>>(), expected.each_ref().map(|link| link.to_str().unwrap()));
        let own = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
        let file = bundle.path("exec");
        let words = ["exec", "--detach", "--pid-file", file.to_str().unwrap(), &bundle.id, "sleep", "1000"];
        // Not to a pipe, which would end with the process alone.
        assert!(bundle.command(&words).status().unwrap().success());
        let exec = fs::read_to_string(bundle.path("exec")).unwrap();
        assert_eq!(fs::read_to_string(format!("/proc/{exec}/cgroup")).unwrap(), own);
        let mut pids = [pid.to_string(), exec];
        pids.sort_unstable_by_key(|pid| pid.parse::<u32>().unwrap());
        assert_eq!(bundle.ok(&["ps", "--format", "json", &bundle.id]), format!("[{}]\n", pids.join(",")));
        end(&bundle);
    }
}

#[test]
fn flags_say_who_and_where_it_is() {
    let bundle = running(|_| {});
    let id = &*bundle.id;
    let words = ["exec", "--user", "7:8", "-g", "9", "--cwd", "/bin", "-e", "A=b", id, "sh", "-c", "id; pwd; echo $A"];
    assert_eq!(bundle.ok(&words), "uid=7 gid=8 groups=9\n/bin\nb\n");
    let words = ["exec", "--cap", "CAP_CHOWN", id, "grep", "CapEff", "/proc/self/status"];
    assert_eq!(bundle.ok(&words), "CapEff:\t0000000020000421\n");
    let process = json!({ "args": ["sh", "-c", "pwd; echo $0 $X; exit 7"], "cwd": "/proc", "env": ["X=y"], "user": { "uid": 1, "gid": 1 } });
    fs::write(bundle.path("process.json"), process.to_string().replace("/proc", "/")).unwrap();
    let file = bundle.path("process.json");
    let output = bundle.command(&["exec", "-p", file.to_str().unwrap(), id]).output().unwrap();
    assert_eq!((output.status.code(), &*output.stdout), (Some(7), &b"/\nsh y\n"[..]), "{output:?}");
    end(&bundle);
}

#[test]
fn a_failure_of_its_own_is_255() {
    let bundle = running(|_| {});
    let fails = |words: &[&str], expected: &str| {
        let output = bundle.command(words).output().unwrap();
        assert_eq!(output.status.code(), Some(255), "{output:?}");
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(error.contains(expected), "{error}");
    };
    fails(&["exec", &bundle.id, "no-such"], "execve no-such: No such file or directory");
    fails(&["exec", "--cwd", "/none", &bundle.id, "true"], "open working directory /none: No such file or directory");
    fails(&["exec", "--user", "nobody", &bundle.id, "true"], "--user");
    bundle.ok(&["kill", &bundle.id, "KILL"]);
    bundle.wait();
    fails(&["exec", &bundle.id, "true"], "it is stopped");
    end(&bundle);
}

#[test]
fn it_has_no_descriptor_of_the_programs() {
    let bundle = running(|_| {});
    let listed = bundle.ok(&["exec", &bundle.id, "ls", "/proc/self/fd"]);
    // The last one is ls's own.
    assert_eq!(listed, "0\n1\n2\n3\n");
    end(&bundle);
}
