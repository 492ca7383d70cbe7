//! From `create` to `delete`.

use std::fs;
use std::os::fd::AsRawFd;

use serde_json::json;

use crate::bundle::Bundle;

#[test]
fn a_container_waits_for_its_start() {
    let bundle = Bundle::new("echo started; exec sleep 1000");
    bundle.create();
    let state = bundle.state();
    assert_eq!((state["status"].as_str(), state["id"].as_str()), (Some("created"), Some(&*bundle.id)));
    assert_eq!(state["bundle"].as_str(), bundle.dir.path().to_str());
    assert_eq!(fs::read_to_string(bundle.path("pid")).unwrap(), state["pid"].to_string());
    assert_eq!(bundle.written(), "");

    bundle.ok(&["start", &bundle.id]);
    assert_eq!(bundle.status(), "running");
    assert!(bundle.fails(&["start", &bundle.id]).contains("it is running"));
    assert!(bundle.fails(&["delete", &bundle.id]).contains("it is running"));
    while bundle.written() != "started\n" {
        std::thread::yield_now();
    }

    bundle.ok(&["kill", &bundle.id, "KILL"]);
    bundle.wait();
    assert_eq!(bundle.state()["pid"], json!(0));
    assert!(bundle.fails(&["kill", &bundle.id]).contains("it is stopped"));
    bundle.ok(&["delete", &bundle.id]);
    assert!(bundle.fails(&["state", &bundle.id]).contains("does not exist"));
    bundle.ok(&["delete", "--force", &bundle.id]);
}

#[test]
fn what_was_created_or_runs_can_be_deleted() {
    let bundle = Bundle::new("sleep 1000 & exec sleep 1000");
    bundle.create();
    assert!(bundle.fails(&["create", "--bundle", bundle.dir.path().to_str().unwrap(), &bundle.id]).contains("exists"));
    bundle.ok(&["delete", &bundle.id]);
    bundle.create();
    bundle.ok(&["start", &bundle.id]);
    assert_eq!(bundle.ok(&["list", "--quiet"]), format!("{}\n", bundle.id));
    bundle.ok(&["delete", "--force", &bundle.id]);
    assert_eq!(bundle.ok(&["list", "--format", "json"]), "[]\n");
}

#[test]
fn nothing_is_mounted_on_the_host() {
    let bundle = Bundle::new("exec sleep 1000");
    bundle.create();
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(bundle.dir.path().to_str().unwrap()), "{mounts}");
    bundle.ok(&["delete", "--force", &bundle.id]);
}

#[test]
fn the_exit_code_is_the_programs() {
    assert_eq!(Bundle::new("exit 42").run().status.code(), Some(42));
    // An init gets no signal from inside that it does not handle: another process has to die of it.
    assert_eq!(Bundle::new("sh -c 'kill -9 $$'; exit $?").run().status.code(), Some(137));
    let mut bundle = Bundle::new("kill -9 $$");
    bundle.without_namespace("pid");
    assert_eq!(bundle.run().status.code(), Some(137));
}

#[test]
fn a_program_that_cannot_run_is_told_by_start() {
    let mut bundle = Bundle::new("");
    bundle.config["process"]["args"] = json!(["/etc"]);
    fs::create_dir(bundle.path("rootfs/etc")).unwrap();
    bundle.create();
    assert!(bundle.fails(&["start", &bundle.id]).contains("execve /etc: Permission denied"));
    bundle.wait();
    assert_eq!(bundle.status(), "stopped");
    bundle.ok(&["delete", &bundle.id]);
}

#[test]
fn a_failed_create_leaves_nothing() {
    let mut bundle = Bundle::new("true");
    bundle.config["mounts"].as_array_mut().unwrap().push(json!({
        "destination": "/x", "type": "bind", "source": "/no/such", "options": ["bind"]
    }));
    bundle.write();
    let error = bundle.fails(&["create", "--bundle", bundle.dir.path().to_str().unwrap(), &bundle.id]);
    assert!(error.contains("/no/such: No such file or directory"), "{error}");
}

#[test]
fn errors_are_logged_as_json() {
    let bundle = Bundle::new("true");
    let log = bundle.path("log");
    bundle.fails(&["--log", log.to_str().unwrap(), "--log-format", "json", "state", "nobody"]);
    let line: serde_json::Value = serde_json::from_slice(&fs::read(log).unwrap()).unwrap();
    assert_eq!(
        (line["level"].as_str(), line["msg"].as_str()),
        (Some("error"), Some("container \"nobody\" does not exist"))
    );
}

#[test]
fn promised_descriptors_are_the_programs_and_no_others() {
    let bundle = Bundle::new("ls /proc/self/fd | grep -v '^[012]$' | sort -n | head -2; cat <&3");
    fs::write(bundle.path("file"), "from outside\n").unwrap();
    bundle.write();
    let file = fs::File::open(bundle.path("file")).unwrap();
    // A shell gives the command its descriptor 3.
    let script = format!("exec \"$0\" \"$@\" 3</proc/{}/fd/{}", std::process::id(), file.as_raw_fd());
    let mut command = std::process::Command::new("sh");
    command.args(["-c", &script, env!("CARGO_BIN_EXE_podwright-oci"), "--root"]).arg(bundle.path("state"));
    command.args(["run", "--preserve-fds", "1", "--bundle"]).arg(bundle.dir.path()).arg(&bundle.id);
    let output = command.output().unwrap();
    let words = String::from_utf8(output.stdout.clone()).unwrap();
    // ls itself has the directory open as the next one.
    assert!(words.ends_with("from outside\n") && words.starts_with("3\n4\n"), "{output:?}");
    assert!(
        bundle
            .fails(&["create", "--preserve-fds", "9", "--bundle", bundle.dir.path().to_str().unwrap(), &bundle.id])
            .contains("more than there are")
    );
}
