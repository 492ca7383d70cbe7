//! The debugging tool of every Kubernetes node, where it is on PATH.

use serde_json::json;
use tokio::process::Command;

use crate::lab::Node;
use crate::lab::cri::eventually;
use crate::lab::node::image;

async fn crictl(node: &Node, arguments: &[&str]) -> String {
    let endpoint = format!("unix://{}", node.layout().socket().display());
    let mut command = Command::new("crictl");
    command.args([
        "--config",
        "/dev/null",
        "--timeout",
        "60s",
        "--runtime-endpoint",
        &endpoint,
        "--image-endpoint",
        &endpoint,
    ]);
    let output = command.args(arguments).kill_on_drop(true).output().await.expect("crictl is on PATH");
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "crictl {arguments:?}: {out}{err}");
    out.trim_end().to_owned()
}

#[tokio::test]
#[ignore = "needs crictl on PATH"]
async fn crictl_runs_a_pod_from_pull_to_removal() {
    let node = Node::start().await;
    crictl(&node, &["version"]).await;
    crictl(&node, &["info"]).await;
    crictl(&node, &["pull", &image("busybox")]).await;
    assert!(crictl(&node, &["images"]).await.contains("lab.test/busybox"));

    let write = |name: &str, value: serde_json::Value| {
        let path = node.dir().join(name);
        std::fs::write(&path, value.to_string()).expect("the file is written");
        path.to_string_lossy().into_owned()
    };
    let pod_file = write(
        "pod.json",
        json!({"metadata": {"name": "box", "namespace": "default", "uid": "box-uid", "attempt": 1},
            "log_directory": node.logs(), "linux": {}}),
    );
    let script = "echo hello; trap 'exit 0' TERM; while :; do sleep 0.05; done";
    let container_file = write(
        "container.json",
        json!({"metadata": {"name": "main"}, "image": {"image": image("busybox")}, "command": ["sh", "-c", script],
            "log_path": "main.log", "linux": {}}),
    );
    let pod = crictl(&node, &["runp", &pod_file]).await;
    let container = crictl(&node, &["create", &pod, &container_file, &pod_file]).await;
    crictl(&node, &["start", &container]).await;
    assert!(crictl(&node, &["pods"]).await.contains("Ready"));
    assert!(crictl(&node, &["ps"]).await.contains("Running"));
    eventually("the log has the line", async || (crictl(&node, &["logs", &container]).await == "hello").then_some(()))
        .await;
    assert_eq!(crictl(&node, &["exec", "-s", &container, "echo", "inside"]).await, "inside");
    crictl(&node, &["inspect", &container]).await;
    crictl(&node, &["inspectp", &pod]).await;
    crictl(&node, &["stop", "--timeout", "30", &container]).await;
    assert!(crictl(&node, &["ps", "--all"]).await.contains("Exited"));
    crictl(&node, &["rm", &container]).await;
    crictl(&node, &["stopp", &pod]).await;
    crictl(&node, &["rmp", &pod]).await;
    crictl(&node, &["rmi", &image("busybox")]).await;
    assert!(node.list_images().await.is_empty());
    node.assert_clean();
    node.finish().await;
}
