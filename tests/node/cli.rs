//! The client commands, for machines without crictl.

use std::process::Output;
use std::time::Duration;

use k8s_cri::v1::PodSandboxFilter;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::lab::Node;
use crate::lab::cri::{PATIENCE, eventually, shell};
use crate::lab::node::image;

/// Runs a command to its end.
pub(crate) async fn podwright(node: &Node, arguments: &[&str]) -> Output {
    let output = tokio::time::timeout(PATIENCE, node.command(arguments).output()).await;
    output.unwrap_or_else(|_| panic!("podwright {arguments:?} does not end")).expect("the command can be started")
}

/// Runs a command that must succeed and returns what it printed.
async fn said(node: &Node, arguments: &[&str]) -> String {
    let output = podwright(node, arguments).await;
    assert!(output.status.success(), "podwright {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[tokio::test]
async fn run_pulls_shows_the_output_and_removes_all() {
    let node = Node::start().await;
    let script = "echo out; echo err >&2; hostname -i; exit 6";
    let output = podwright(&node, &["run", "--timing", &image("busybox"), "--", "sh", "-c", script]).await;
    assert_eq!(output.status.code(), Some(6), "{output:?}");
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(out.starts_with("out\n") && !out.contains("err"), "{out}");
    assert!(err.contains("err\n"), "{err}");
    let ip = out.lines().last().and_then(|line| line.split_whitespace().next()).expect("an address");
    assert!(err.contains(ip), "--timing tells the pod's address {ip}: {err}");
    assert!(node.list_pods(PodSandboxFilter::default()).await.is_empty());
    node.assert_clean();

    // What the image says is run when no command is given; here a shell at the end of its input.
    assert_eq!(said(&node, &["run", &image("busybox")]).await, "");
    node.finish().await;
}

#[tokio::test]
async fn run_tells_its_own_failures_apart() {
    let node = Node::start().await;
    let output = podwright(&node, &["run", &image("no-such-image")]).await;
    assert_eq!(output.status.code(), Some(125));
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(error.contains("no-such-image") && error.lines().count() == 1, "{error}");
    let output = podwright(&node, &["run", &image("busybox"), "--", "/no/such/program"]).await;
    assert_eq!(output.status.code(), Some(125));
    assert!(String::from_utf8_lossy(&output.stderr).contains("/no/such/program"));
    node.assert_clean();
    node.finish().await;
}

#[tokio::test]
async fn an_interrupted_run_removes_its_pod() {
    let node = Node::start_with_images(&["busybox"]).await;
    let script = "trap 'exit 130' TERM; while :; do sleep 0.05; done";
    let mut run = node
        .command(&["run", &image("busybox"), "--", "sh", "-c", script])
        .spawn()
        .expect("the command can be started");
    eventually("the container runs", async || {
        let pods = node.list_pods(PodSandboxFilter::default()).await;
        (!pods.is_empty() && !node.list_containers(Default::default()).await.is_empty()).then_some(())
    })
    .await;
    let pid = Pid::from_raw(run.id().expect("it runs").cast_signed());
    kill(pid, Signal::SIGINT).expect("it can be signalled");
    let status =
        tokio::time::timeout(PATIENCE, run.wait()).await.expect("an interrupted run ends").expect("its status");
    assert!(!status.success());
    assert!(node.list_pods(PodSandboxFilter::default()).await.is_empty());
    node.assert_clean();
    node.finish().await;
}

#[tokio::test]
async fn pods_are_listed_looked_into_and_removed() {
    let node = Node::start().await;
    let pulled = said(&node, &["image", "pull", &image("busybox")]).await;
    let id = node.image_status(&image("busybox")).await.expect("the pulled image").id;
    assert!(pulled.contains(&id), "{pulled}");
    let images = said(&node, &["image", "ls"]).await;
    assert!(images.contains("lab.test/busybox"), "{images}");

    let running =
        node.run(&shell("web", "echo hello; echo oops >&2; trap 'exit 0' TERM; while :; do sleep 0.05; done")).await;
    let ps = said(&node, &["ps"]).await;
    let ip = node.pod_ips(&running.pod).await[0].to_string();
    for part in [&running.container[..12], "web", &ip, "lab.test/busybox"] {
        assert!(ps.contains(part), "{part} is missing in\n{ps}");
    }
    eventually("both lines are in the log", async || {
        let output = podwright(&node, &["logs", &running.container]).await;
        (output.stdout == b"hello\n" && output.stderr == b"oops\n").then_some(())
    })
    .await;
    let output = podwright(&node, &["exec", &running.container, "sh", "-c", "echo inside; exit 9"]).await;
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(9), &b"inside\n"[..]));
    assert_eq!(said(&node, &["exec", &running.container[..10], "echo", "by prefix"]).await, "by prefix\n");

    let follow = async { podwright(&node, &["logs", "-f", &running.container]).await };
    let stop = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        node.stop_container(&running.container, 30).await.expect("StopContainer");
    };
    let (followed, ()) = tokio::join!(follow, stop);
    assert_eq!(followed.stdout, b"hello\n", "following ends with the container");

    said(&node, &["rm", "-f", &running.pod]).await;
    node.assert_clean();
    said(&node, &["image", "rm", &image("busybox")]).await;
    assert!(node.list_images().await.is_empty());
    node.finish().await;
}

#[tokio::test]
async fn a_missing_daemon_is_told_with_its_address() {
    let node = Node::start().await;
    node.kill().await;
    let output = podwright(&node, &["ps"]).await;
    assert_eq!(output.status.code(), Some(1));
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(error.contains(&node.layout().socket().to_string_lossy().into_owned()), "{error}");
    node.launch().await;
    node.finish().await;
}

#[tokio::test]
async fn a_second_daemon_is_kept_out() {
    let node = Node::start().await;
    let config = node.dir().join("config.toml").to_string_lossy().into_owned();
    let mut second = tokio::process::Command::new(crate::lab::node::program());
    second.args(["serve", "--config", &config]).kill_on_drop(true);
    let output =
        tokio::time::timeout(PATIENCE, second.output()).await.expect("the second one gives up").expect("its output");
    assert!(!output.status.success());
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(error.contains(&node.layout().state().to_string_lossy().into_owned()), "{error}");
    assert!(node.list_images().await.is_empty(), "the first one goes on");
    node.finish().await;
}

#[tokio::test]
async fn a_bad_configuration_names_key_and_line() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let file = dir.path().join("config.toml");
    for (text, parts) in [
        ("[network]\nmasqerade = true\n", ["masqerade", "line 2"]),
        ("[registry]\n\nattempts = \"many\"\n", ["attempts", "line 3"]),
    ] {
        std::fs::write(&file, text).expect("the file is written");
        let mut daemon = tokio::process::Command::new(crate::lab::node::program());
        let output = daemon.arg("serve").arg("--config").arg(&file).kill_on_drop(true).output();
        let output = tokio::time::timeout(PATIENCE, output).await.expect("it gives up").expect("its output");
        assert!(!output.status.success());
        let error = String::from_utf8_lossy(&output.stderr);
        for part in parts {
            assert!(error.contains(part), "{part} is missing in {error}");
        }
    }
    let output = tokio::process::Command::new(crate::lab::node::program()).args(["config", "default"]).output().await;
    let output = output.expect("the command can be started");
    assert!(output.status.success());
    std::fs::write(&file, output.stdout).expect("the file is written");
    let parsed = podwright_base::config_file::load(&file, true);
    assert!(parsed.is_ok(), "{parsed:?}");
}
