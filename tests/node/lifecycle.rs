//! What a kubelet does all day: pods and containers made, started, asked about, stopped and removed; twice where it retries.

use std::collections::HashMap;

use k8s_cri::v1::*;
use tonic::Code;

use crate::lab::cri::{container, eventually, pod, refused, resources, shell};
use crate::lab::node::image;
use crate::lab::{Node, log};

#[tokio::test]
async fn the_daemon_tells_what_it_is() {
    let node = Node::start().await;
    let version = node.runtime.clone().version(VersionRequest::default()).await.expect("Version").into_inner();
    assert_eq!((version.version.as_str(), version.runtime_api_version.as_str()), ("0.1.0", "v1"));
    assert!(!version.runtime_name.is_empty() && !version.runtime_version.is_empty(), "{version:?}");

    let status = node.runtime.clone().status(StatusRequest { verbose: true }).await.expect("Status").into_inner();
    let conditions = status.status.expect("a status").conditions;
    for name in ["RuntimeReady", "NetworkReady"] {
        let condition =
            conditions.iter().find(|condition| condition.r#type == name).expect("both conditions are there");
        assert!(condition.status, "{condition:?}");
    }
    let config = status.info.get("config").expect("the verbose configuration");
    assert!(serde_json::from_str::<serde_json::Value>(config).expect("JSON").is_object());
    node.images.clone().image_fs_info(ImageFsInfoRequest {}).await.expect("ImageFsInfo never fails");
    node.finish().await;
}

#[tokio::test]
async fn a_container_is_created_runs_and_ends() {
    let node = Node::start_with_images(&["busybox"]).await;
    let pod_config = pod(&node, "life");
    let pod = node.run_pod(&pod_config).await;
    let config = shell("main", "trap 'exit 0' TERM; echo up; while :; do sleep 0.05; done");
    let id = node.create(&pod, &config, &pod_config).await;

    let created = node.status(&id).await;
    assert_eq!(created.state(), ContainerState::ContainerCreated);
    assert!(created.created_at > 0 && created.started_at == 0 && created.finished_at == 0, "{created:?}");

    node.start_container(&id).await.expect("StartContainer");
    let running = node.status(&id).await;
    assert_eq!(running.state(), ContainerState::ContainerRunning);
    assert!(running.started_at >= running.created_at && running.finished_at == 0, "{running:?}");
    eventually("the container has printed", async || log::text(&running.log_path, None).contains("up").then_some(()))
        .await;

    node.stop_container(&id, 30).await.expect("StopContainer");
    let exited = node.status(&id).await;
    assert_eq!(exited.state(), ContainerState::ContainerExited);
    assert_eq!((exited.exit_code, exited.reason.as_str()), (0, "Completed"));
    assert!(exited.finished_at >= exited.started_at && exited.started_at == running.started_at, "{exited:?}");
    node.remove_container(&id).await.expect("RemoveContainer");
    refused(node.try_status(&id).await, Code::NotFound, &[&id]);
    node.delete(&pod).await;
    refused(node.pod_status(&pod).await, Code::NotFound, &[&pod]);
    node.finish().await;
}

#[tokio::test]
async fn an_exit_is_told_with_its_code_and_reason() {
    let node = Node::start_with_images(&["busybox"]).await;
    for (name, script, code, reason) in [
        ("nought", "exit 0", 0, "Completed"),
        ("three", "exit 3", 3, "Error"),
        ("signal", "sh -c 'kill -SEGV $$'; exit $?", 139, "Error"),
    ] {
        let (_, status) = node.script(&shell(name, script)).await;
        assert_eq!((status.exit_code, status.reason.as_str()), (code, reason), "{name}");
    }
    for (name, script, grace, code) in [
        ("polite", "trap 'exit 143' TERM; echo up; while :; do sleep 0.05; done", 30, 143),
        ("deaf", "trap '' TERM; echo up; while :; do sleep 0.05; done", 1, 137),
        ("at-once", "trap 'exit 0' TERM; echo up; while :; do sleep 0.05; done", 0, 137),
    ] {
        let running = node.run(&shell(name, script)).await;
        let path = node.status(&running.container).await.log_path;
        eventually("the trap is set", async || log::text(&path, None).contains("up").then_some(())).await;
        node.stop_container(&running.container, grace).await.expect("StopContainer");
        let status = node.status(&running.container).await;
        assert_eq!((status.exit_code, status.reason.as_str()), (code, "Error"), "{name}");
        node.delete(&running.pod).await;
    }
    node.finish().await;
}

#[tokio::test]
async fn the_images_stop_signal_is_sent() {
    let node = Node::start_with_images(&["nginx"]).await;
    let running = node.run(&container("nginx", &image("nginx"), &[])).await;
    let path = node.status(&running.container).await.log_path;
    eventually("nginx is up", async || log::text(&path, None).contains("start worker process ").then_some(())).await;
    node.stop_container(&running.container, 30).await.expect("StopContainer");
    let status = node.status(&running.container).await;
    assert_eq!((status.exit_code, status.reason.as_str()), (0, "Completed"));
    let log = log::text(&path, None);
    assert!(log.contains("signal 3 (SIGQUIT) received"), "{log}");
    node.delete(&running.pod).await;
    node.finish().await;
}

#[tokio::test]
async fn a_program_that_cannot_be_started_is_a_start_error() {
    let node = Node::start_with_images(&["busybox"]).await;
    let pod_config = pod(&node, "start-error");
    let pod = node.run_pod(&pod_config).await;
    for (name, command, part) in [("absent", "/no/such/program", "/no/such/program"), ("directory", "/etc", "/etc")] {
        let id = node.create(&pod, &container(name, &image("busybox"), &[command]), &pod_config).await;
        let error = node.start_container(&id).await.expect_err("the program cannot be started");
        assert!(error.message().contains(part), "{}", error.message());
        let status = node.status(&id).await;
        assert_eq!(status.state(), ContainerState::ContainerExited);
        assert_eq!((status.exit_code, status.reason.as_str()), (128, "StartError"));
        assert!(status.message.contains(part), "{}", status.message);
        assert!(status.finished_at > 0, "{status:?}");
    }
    node.delete(&pod).await;
    node.finish().await;
}

#[tokio::test]
async fn a_container_killed_for_memory_is_told_apart() {
    let node = Node::start_with_images(&["busybox"]).await;
    let mut config = shell("hungry", "dd if=/dev/zero of=/dev/null bs=200M count=1");
    config.command = ["dd", "if=/dev/zero", "of=/dev/null", "bs=200M", "count=1"].map(str::to_owned).to_vec();
    resources(&mut config).memory_limit_in_bytes = 20 << 20;
    let (_, status) = node.script(&config).await;
    assert_eq!((status.exit_code, status.reason.as_str()), (137, "OOMKilled"));

    // A child of the container's process dies for memory: the container goes on and ends as it likes.
    let mut config = shell("survivor", "dd if=/dev/zero of=/dev/null bs=200M count=1; exit 4");
    resources(&mut config).memory_limit_in_bytes = 20 << 20;
    let (_, status) = node.script(&config).await;
    assert_eq!(status.exit_code, 4);

    // A kill without want of memory is none of that.
    let running = node.run(&shell("killed", "while :; do sleep 0.05; done")).await;
    node.stop_container(&running.container, 0).await.expect("StopContainer");
    assert_eq!(node.status(&running.container).await.reason, "Error");
    node.delete(&running.pod).await;
    node.finish().await;
}

#[tokio::test]
async fn stops_and_removals_may_be_repeated() {
    let node = Node::start_with_images(&["busybox"]).await;
    let running = node.run(&shell("again", "while :; do sleep 0.05; done")).await;
    for _ in 0..2 {
        node.stop_container(&running.container, 0).await.expect("StopContainer");
    }
    for _ in 0..2 {
        node.remove_container(&running.container).await.expect("RemoveContainer");
    }
    for _ in 0..2 {
        node.stop_pod(&running.pod).await.expect("StopPodSandbox");
    }
    for _ in 0..2 {
        node.remove_pod(&running.pod).await.expect("RemovePodSandbox");
    }
    let absent = "0123456789abcdef".repeat(4);
    node.stop_container(&absent, 1).await.expect("stopping nothing is no error");
    node.remove_container(&absent).await.expect("removing nothing is no error");
    node.stop_pod(&absent).await.expect("stopping nothing is no error");
    node.remove_pod(&absent).await.expect("removing nothing is no error");
    refused(node.try_status(&absent).await, Code::NotFound, &[&absent]);
    refused(node.pod_status(&absent).await, Code::NotFound, &[&absent]);
    node.finish().await;
}

#[tokio::test]
async fn a_retry_joins_the_call_it_repeats() {
    let node = Node::start_with_images(&["busybox"]).await;
    let pod_config = pod(&node, "twice");
    let (first, second) = tokio::join!(node.run_pod(&pod_config), node.run_pod(&pod_config));
    assert_eq!(first, second);
    assert_eq!(node.run_pod(&pod_config).await, first);

    let config = shell("main", "while :; do sleep 0.05; done");
    let (one, two) = tokio::join!(node.create(&first, &config, &pod_config), node.create(&first, &config, &pod_config));
    assert_eq!(one, two);
    assert_eq!(node.create(&first, &config, &pod_config).await, one);
    assert_eq!(node.list_pods(PodSandboxFilter::default()).await.len(), 1);
    assert_eq!(node.list_containers(ContainerFilter::default()).await.len(), 1);

    let mut next = pod_config.clone();
    next.metadata.as_mut().expect("set above").attempt = 1;
    let other = node.run_pod(&next).await;
    assert_ne!(other, first, "another attempt is another sandbox");
    node.delete(&first).await;
    node.delete(&other).await;
    node.finish().await;
}

#[tokio::test]
async fn stopping_a_pod_ends_its_containers_and_removing_it_takes_them_along() {
    let node = Node::start_with_images(&["busybox"]).await;
    let running = node.run(&shell("main", "while :; do sleep 0.05; done")).await;
    assert_eq!(
        node.pod_status(&running.pod).await.expect("status").status.expect("a status").state(),
        PodSandboxState::SandboxReady
    );
    node.stop_pod(&running.pod).await.expect("StopPodSandbox");
    let status =
        node.pod_status(&running.pod).await.expect("a stopped sandbox is still known").status.expect("a status");
    assert_eq!(status.state(), PodSandboxState::SandboxNotready);
    assert_eq!(node.status(&running.container).await.state(), ContainerState::ContainerExited);
    node.remove_pod(&running.pod).await.expect("RemovePodSandbox");
    refused(node.try_status(&running.container).await, Code::NotFound, &[]);

    // Removing is forceful: a running container and a ready sandbox are no obstacle.
    let running = node.run(&shell("forced", "trap '' TERM; while :; do sleep 0.05; done")).await;
    node.remove_container(&running.container).await.expect("RemoveContainer of a running one");
    refused(node.try_status(&running.container).await, Code::NotFound, &[]);
    node.remove_pod(&running.pod).await.expect("RemovePodSandbox of a ready one");
    node.assert_clean();
    node.finish().await;
}

#[tokio::test]
async fn status_repeats_what_was_asked_for() {
    let node = Node::start().await;
    let image_id = node.pull(&image("busybox")).await.expect("PullImage");
    let host = node.dir().join("volume");
    std::fs::create_dir(&host).expect("a directory to mount");
    let mut pod_config = pod(&node, "echo");
    let words = |pairs: &[(&str, &str)]| -> HashMap<_, _> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    };
    pod_config.labels = words(&[("app", "echo"), ("empty", "")]);
    pod_config.annotations = words(&[("note", "über alles, \"quoted\"")]);
    let pod = node.run_pod(&pod_config).await;

    let mut config = shell("main", "while :; do sleep 0.05; done");
    config.labels = words(&[("part", "main")]);
    config.annotations = words(&[("io.example/x", "1")]);
    config.mounts = vec![Mount {
        container_path: "/data".to_owned(),
        host_path: host.to_string_lossy().into_owned(),
        readonly: true,
        ..Default::default()
    }];
    let id = node.create(&pod, &config, &pod_config).await;
    node.start_container(&id).await.expect("StartContainer");

    let status = node.status(&id).await;
    assert_eq!((status.id.as_str(), &status.metadata), (id.as_str(), &config.metadata));
    assert_eq!((&status.labels, &status.annotations), (&config.labels, &config.annotations));
    assert_eq!(status.image.expect("the image's name").image, image("busybox"));
    assert_eq!(status.image_id, image_id);
    assert!(!status.image_ref.is_empty());
    assert_eq!(status.log_path, format!("{}/main.log", pod_config.log_directory));
    let mount = status.mounts.iter().find(|mount| mount.container_path == "/data").expect("the mount");
    assert_eq!((mount.host_path.as_str(), mount.readonly), (config.mounts[0].host_path.as_str(), true));

    let response = node.pod_status(&pod).await.expect("PodSandboxStatus");
    let status = response.status.expect("a status");
    assert_eq!((status.id.as_str(), &status.metadata), (pod.as_str(), &pod_config.metadata));
    assert_eq!((&status.labels, &status.annotations), (&pod_config.labels, &pod_config.annotations));
    assert!(status.created_at > 0 && response.timestamp > 0);
    assert!(!status.network.expect("a network status").ip.is_empty());
    assert!(status.linux.and_then(|linux| linux.namespaces).is_some(), "the namespaces are told");
    assert_eq!(response.containers_statuses.iter().map(|status| status.id.as_str()).collect::<Vec<_>>(), [id.as_str()]);
    assert!(response.info.contains_key("info"));
    assert!(node.info(&id).await["runtimeSpec"]["process"].is_object());
    node.delete(&pod).await;
    node.finish().await;
}

#[tokio::test]
async fn lists_are_filtered_by_all_that_is_given() {
    let node = Node::start_with_images(&["busybox"]).await;
    let mut pods = Vec::new();
    for (name, app) in [("one", "web"), ("two", "web"), ("three", "db")] {
        let mut config = pod(&node, name);
        config.labels = HashMap::from([("app".to_owned(), app.to_owned()), ("name".to_owned(), name.to_owned())]);
        let id = node.run_pod(&config).await;
        let mut main = shell("main", "while :; do sleep 0.05; done");
        main.labels = config.labels.clone();
        let container = node.create(&id, &main, &config).await;
        pods.push((id, container));
    }
    node.stop_pod(&pods[1].0).await.expect("StopPodSandbox");
    node.start_container(&pods[0].1).await.expect("StartContainer");
    let web = HashMap::from([("app".to_owned(), "web".to_owned())]);
    let ready = |state: PodSandboxState| Some(PodSandboxStateValue { state: state.into() });
    let in_state = |state: ContainerState| Some(ContainerStateValue { state: state.into() });

    let by = |id: &str, state, labels: &HashMap<String, String>| PodSandboxFilter {
        id: id.to_owned(),
        state,
        label_selector: labels.clone(),
    };
    let all = HashMap::new();
    for (filter, expected) in [
        (by("", None, &all), vec![0, 1, 2]),
        (by("", None, &web), vec![0, 1]),
        (by("", ready(PodSandboxState::SandboxReady), &web), vec![0]),
        (by("", ready(PodSandboxState::SandboxNotready), &all), vec![1]),
        (by(&pods[2].0[..20], None, &all), vec![2]),
        (by(&pods[2].0, None, &web), vec![]),
        (by(&"f".repeat(64), None, &all), vec![]),
    ] {
        let found: Vec<_> = node.list_pods(filter.clone()).await.into_iter().map(|pod| pod.id).collect();
        same(&found, expected.iter().map(|index: &usize| &pods[*index].0), &filter);
    }

    let by = |id: &str, pod: &str, state, labels: &HashMap<String, String>| ContainerFilter {
        id: id.to_owned(),
        pod_sandbox_id: pod.to_owned(),
        state,
        label_selector: labels.clone(),
    };
    for (filter, expected) in [
        (by("", "", None, &all), vec![0, 1, 2]),
        (by("", &pods[1].0, None, &all), vec![1]),
        (by("", "", in_state(ContainerState::ContainerRunning), &all), vec![0]),
        (by("", "", in_state(ContainerState::ContainerCreated), &web), vec![1]),
        (by(&pods[2].1[..20], "", in_state(ContainerState::ContainerCreated), &all), vec![2]),
        (by("", &pods[0].0, in_state(ContainerState::ContainerRunning), &web), vec![0]),
    ] {
        let found: Vec<_> =
            node.list_containers(filter.clone()).await.into_iter().map(|container| container.id).collect();
        same(&found, expected.iter().map(|index: &usize| &pods[*index].1), &filter);
    }
    for (pod, _) in &pods {
        node.delete(pod).await;
    }
    node.finish().await;
}

#[track_caller]
fn same<'a>(found: &[String], expected: impl Iterator<Item = &'a String>, filter: &impl std::fmt::Debug) {
    let mut found: Vec<_> = found.iter().collect();
    let mut expected: Vec<_> = expected.collect();
    found.sort();
    expected.sort();
    assert_eq!(found, expected, "{filter:?}");
}

#[tokio::test]
async fn a_command_runs_inside_a_container() {
    let node = Node::start_with_images(&["busybox"]).await;
    let mut config = shell("main", "while :; do sleep 0.05; done");
    config.envs = vec![KeyValue { key: "COLOUR".to_owned(), value: "blue".to_owned() }];
    config.working_dir = "/home/app".to_owned();
    let running = node.run(&config).await;
    let id = running.container.as_str();

    let response =
        node.try_exec(id, &["sh", "-c", "echo $COLOUR; pwd; echo oops >&2; exit 5"], 30).await.expect("ExecSync");
    assert_eq!(response.exit_code, 5);
    assert_eq!(String::from_utf8_lossy(&response.stdout), "blue\n/home/app\n");
    assert_eq!(String::from_utf8_lossy(&response.stderr), "oops\n");

    let megabytes = node.try_exec(id, &["dd", "if=/dev/zero", "bs=1M", "count=5"], 30).await.expect("ExecSync");
    assert_eq!((megabytes.exit_code, megabytes.stdout.len()), (0, 5 << 20));

    let error = node.try_exec(id, &["/no/such/program"], 30).await;
    match error {
        Ok(response) => assert!(matches!(response.exit_code, 126..=128), "{response:?}"),
        Err(status) => assert!(status.message().contains("/no/such/program"), "{}", status.message()),
    }
    node.stop_container(id, 0).await.expect("StopContainer");
    let error = node.try_exec(id, &["true"], 30).await.expect_err("nothing runs in a stopped container");
    assert!(error.message().contains(id), "{}", error.message());
    node.delete(&running.pod).await;
    node.finish().await;
}

#[tokio::test]
async fn commands_side_by_side_keep_their_output() {
    let node = Node::start_with_images(&["busybox"]).await;
    let running = node.run(&shell("main", "while :; do sleep 0.05; done")).await;
    let lane = async |lane: usize| {
        for round in 0..25 {
            let word = format!("{lane}-{round}");
            let response = node.try_exec(&running.container, &["echo", &word], 30).await.expect("ExecSync");
            assert_eq!(String::from_utf8_lossy(&response.stdout), format!("{word}\n"));
        }
    };
    tokio::join!(lane(0), lane(1), lane(2), lane(3), lane(4), lane(5));
    node.delete(&running.pod).await;
    node.finish().await;
}

#[tokio::test]
async fn an_exec_out_of_time_is_gone_with_all_its_children() {
    let node = Node::start_with_images(&["busybox"]).await;
    let running = node.run(&shell("main", "while :; do sleep 0.05; done")).await;
    let script = "setsid sleep 7654 & sleep 7654 & trap '' TERM; sleep 7654; sleep 7654";
    let result = node.try_exec(&running.container, &["sh", "-c", script], 1).await;
    refused(result, Code::DeadlineExceeded, &[]);
    let processes = node.sh(&running.container, "cat /proc/[0-9]*/cmdline | tr '\\0' ' '").await;
    assert!(!processes.contains("sleep 7654 "), "{processes}");
    assert_eq!(node.status(&running.container).await.state(), ContainerState::ContainerRunning);
    node.delete(&running.pod).await;
    node.finish().await;
}
