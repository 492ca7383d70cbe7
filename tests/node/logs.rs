//! Container logs in the CRI's format, byte for byte.

use std::path::Path;

use tonic::Code;

use crate::lab::cri::{eventually, pod, shell};
use crate::lab::log::{self, Line};
use crate::lab::node::image;
use crate::lab::{Node, Setup};

#[tokio::test]
async fn each_line_is_stamped_and_named_after_its_stream() {
    let node = Node::start_with_images(&["busybox"]).await;
    let config = shell("streams", "echo out; echo err >&2; echo; echo ' spaced  '");
    let running = node.run(&config).await;
    let status = node.exited(&running.container).await;
    let lines = log::read(&status.log_path);
    let of = |stream: &str| -> Vec<_> {
        let lines = lines.iter().filter(|line| line.stream == stream);
        lines.map(|line| (line.partial, String::from_utf8_lossy(&line.text).into_owned())).collect()
    };
    let full = |text: &str| (false, text.to_owned());
    assert_eq!(of("stdout"), [full("out"), full(""), full(" spaced  ")]);
    assert_eq!(of("stderr"), [full("err")]);
    node.delete(&running.pod).await;
    assert!(std::path::Path::new(&status.log_path).exists(), "the log belongs to the kubelet and outlives the pod");
    node.finish().await;
}

#[tokio::test]
async fn a_long_line_is_split_and_none_of_its_bytes_is_lost() {
    let node = Node::start_with_images(&["busybox"]).await;
    let script = "head -c 40000 /dev/zero | tr '\\0' x; echo; head -c 16384 /dev/zero | tr '\\0' y; echo; printf tail";
    let running = node.run(&shell("long", script)).await;
    let status = node.exited(&running.container).await;
    let lines = log::read(&status.log_path);
    let lengths: Vec<_> = lines.iter().map(|line| line.text.len()).collect();
    assert!(lengths.iter().all(|length| *length <= 16384), "{lengths:?}");
    let joined: Vec<u8> = lines.iter().flat_map(|Line { text, .. }| text.iter().copied()).collect();
    assert_eq!(joined, [vec![b'x'; 40000], vec![b'y'; 16384], b"tail".to_vec()].concat());
    let ends: Vec<_> = lines.iter().filter(|line| !line.partial).map(|line| line.text.last().copied()).collect();
    assert!(ends.starts_with(&[Some(b'x')]), "the pieces of a line end with a full one: {ends:?}");
    assert!(lines[0].partial && lines[1].partial && !lines[2].partial, "{lengths:?}");
    node.delete(&running.pod).await;
    node.finish().await;
}

#[tokio::test]
async fn a_flood_of_output_arrives_whole_and_in_order() {
    let node = Node::start_with_images(&["busybox"]).await;
    let running = node.run(&shell("flood", "seq 1 300000")).await;
    let status = node.exited(&running.container).await;
    let expected: String = (1..=300_000).map(|number| format!("{number}\n")).collect();
    assert!(log::text(&status.log_path, Some("stdout")) == expected, "a line is missing, doubled or out of place");
    node.delete(&running.pod).await;
    node.finish().await;
}

#[tokio::test]
async fn bytes_that_are_no_text_pass_unchanged() {
    let node = Node::start_with_images(&["busybox"]).await;
    let running = node.run(&shell("bytes", r"printf '\377\000\001\r\033[1m\200\n'")).await;
    let status = node.exited(&running.container).await;
    assert_eq!(log::read(&status.log_path)[0].text, b"\xff\x00\x01\r\x1b[1m\x80");
    node.delete(&running.pod).await;
    node.finish().await;
}

#[tokio::test]
async fn a_rotated_log_goes_on_in_a_new_file() {
    let node = Node::start_with_images(&["busybox"]).await;
    let script = "trap 'echo last; exit 0' TERM; i=0; while :; do echo $i; i=$((i+1)); sleep 0.002; done";
    let running = node.run(&shell("rotated", script)).await;
    let path = node.status(&running.container).await.log_path;
    let mut files = Vec::new();
    for round in 0..5 {
        eventually("the log has lines", async || (log::read(&path).len() > 3).then_some(())).await;
        let old = format!("{path}.{round}");
        std::fs::rename(&path, &old).expect("the log is there");
        node.reopen_log(&running.container).await.expect("ReopenContainerLog");
        assert!(std::path::Path::new(&path).exists(), "the new file exists on return");
        files.push(old);
    }
    node.stop_container(&running.container, 30).await.expect("StopContainer");
    files.push(path.clone());
    let text: String = files.iter().map(|file| log::text(file, None)).collect();
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines.last(), Some(&"last"));
    for (number, line) in lines[..lines.len() - 1].iter().enumerate() {
        assert_eq!(*line, number.to_string(), "a line is missing or doubled");
    }

    std::fs::remove_file(&path).expect("the log is there");
    node.reopen_log(&running.container).await.expect_err("an ended container has no log to reopen");
    assert!(!std::path::Path::new(&path).exists(), "a refused call makes no file");
    node.delete(&running.pod).await;
    node.finish().await;
}

#[tokio::test]
async fn a_log_is_reopened_only_for_what_runs() {
    let node = Node::start_with_images(&["busybox"]).await;
    let pod_config = pod(&node, "unstarted");
    let pod = node.run_pod(&pod_config).await;
    let id = node.create(&pod, &shell("main", "echo"), &pod_config).await;
    node.reopen_log(&id).await.expect_err("a created container does not log yet");
    let absent = "0123456789abcdef".repeat(4);
    assert_eq!(node.reopen_log(&absent).await.expect_err("no such container").code(), Code::NotFound);
    node.delete(&pod).await;
    node.finish().await;
}

#[tokio::test]
async fn a_log_rotated_by_the_runtime_loses_nothing() {
    let config = "[container_log]\nmax_bytes = 65536\nmax_files = 30";
    let node = Node::start_with(Setup { config, ..Setup::default() }).await;
    node.pull(&image("busybox")).await.expect("the registry has the image");
    let script = "i=0; while [ $i -lt 20000 ]; do echo $i; i=$((i+1)); done";
    let (pod, status) = node.script(&shell("chatty", script)).await;
    // The oldest has the highest number.
    let rotated = (1..=30).rev().map(|number| format!("{}.{number}", status.log_path));
    let files: Vec<String> = rotated.filter(|path| Path::new(path).exists()).chain([status.log_path.clone()]).collect();
    assert!(files.len() > 5, "{files:?}");
    let text: String = files.iter().map(|path| log::text(path, None)).collect();
    assert_eq!(text, (0..20_000).map(|number| format!("{number}\n")).collect::<String>());
    node.delete(&pod).await;
    node.finish().await;
}

#[tokio::test]
async fn a_log_reopened_while_the_daemon_is_killed_loses_nothing() {
    let node = Node::start_with_images(&["busybox"]).await;
    let running = node.run(&shell("flood", "trap 'exit 0' TERM; i=0; while :; do echo $i; i=$((i+1)); done")).await;
    let path = node.status(&running.container).await.log_path;
    let mut files = Vec::new();
    for round in 0..30 {
        let rotated = format!("{path}.{round}");
        std::fs::rename(&path, &rotated).expect("the log is there");
        files.push(rotated);
        if round % 5 == 4 {
            node.crash().await;
        }
        node.reopen_log(&running.container).await.expect("ReopenContainerLog");
        let size = || std::fs::metadata(&path).expect("the log is there").len();
        eventually("the new file has lines", async || (size() > 20_000).then_some(())).await;
    }
    node.stop_container(&running.container, 30).await.expect("StopContainer");
    files.push(path);
    let text: String = files.iter().map(|file| log::text(file, None)).collect();
    for (number, line) in text.lines().enumerate() {
        assert_eq!(line, number.to_string(), "a line is missing, doubled or out of order");
    }
    assert!(text.lines().count() > 10_000);
    node.delete(&running.pod).await;
    node.finish().await;
}
