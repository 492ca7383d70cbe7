//! What a pod shows on the host while it lives, and that nothing of it stays.

use std::fs;

use crate::lab::cri::{eventually, namespaces, pod, shell};
use crate::lab::{Node, residue};

const FOREVER: &str = "while :; do sleep 0.05; done";

#[tokio::test]
async fn the_hosts_mount_table_shows_the_namespace_pin_alone() {
    let node = Node::start_with_images(&["busybox"]).await;
    let volume = node.dir().join("volume");
    fs::create_dir(&volume).expect("a directory to mount");
    let pod_config = pod(&node, "mounts");
    let pod = node.run_pod(&pod_config).await;
    let mut config = shell("main", FOREVER);
    config.mounts = vec![k8s_cri::v1::Mount {
        container_path: "/data".to_owned(),
        host_path: volume.to_string_lossy().into_owned(),
        ..Default::default()
    }];
    let container = node.create(&pod, &config, &pod_config).await;
    node.start_container(&container).await.expect("StartContainer");
    node.sh(&container, "touch /data/inside /written /dev/shm/written").await;
    assert!(volume.join("inside").exists());

    let mounts = residue::mounts(node.layout());
    let pin = node.layout().netns(&pod.parse().expect("a pod's id")).to_string_lossy().into_owned();
    assert!(mounts.len() == 1 && mounts[0].contains(&pin), "{}", mounts.join("\n"));
    node.delete(&pod).await;
    node.assert_clean();
    node.finish().await;
}

#[tokio::test]
async fn nothing_of_a_pod_stays() {
    let node = Node::start_with_images(&["busybox"]).await;
    let running = node.run(&shell("plain", FOREVER)).await;
    node.delete(&running.pod).await;
    node.assert_clean();

    // Without a stop, with a container that was never started, with one that has ended, with the host's network.
    let pod_config = pod(&node, "mixed");
    let pod_id = node.run_pod(&pod_config).await;
    node.create(&pod_id, &shell("unstarted", "echo"), &pod_config).await;
    let ended = node.create(&pod_id, &shell("ended", "exit 1"), &pod_config).await;
    node.start_container(&ended).await.expect("StartContainer");
    node.exited(&ended).await;
    node.remove_pod(&pod_id).await.expect("RemovePodSandbox");
    node.assert_clean();

    let mut host = pod(&node, "host");
    namespaces(&mut host).network = k8s_cri::v1::NamespaceMode::Node.into();
    let mut config = shell("main", FOREVER);
    crate::lab::cri::security(&mut config).namespace_options = Some(namespaces(&mut host).clone());
    let running = node.run_in(&host, &config).await;
    assert!(residue::netns_pins(node.layout()).is_empty(), "a pod of the host's network has no namespace to pin");
    node.delete(&running.pod).await;
    node.assert_clean();
    node.finish().await;
}

#[tokio::test]
async fn many_pods_at_once_leave_nothing_and_leak_no_descriptor() {
    let node = Node::start_with_images(&["busybox"]).await;
    let descriptors = || fs::read_dir(format!("/proc/{}/fd", node.pid())).expect("the daemon runs").count();
    let round = async |round: usize| {
        let names: Vec<_> = (0..6).map(|index| format!("many-{round}-{index}")).collect();
        let life = async |name: &String| {
            let running = node.run(&shell(name, FOREVER)).await;
            assert_eq!(node.sh(&running.container, "echo here").await, "here\n");
            node.delete(&running.pod).await;
        };
        let [a, b, c, d, e, f] = names.as_slice() else { unreachable!("six names") };
        tokio::join!(life(a), life(b), life(c), life(d), life(e), life(f));
    };
    round(0).await;
    node.assert_clean();
    let before = descriptors();
    for number in 1..4 {
        round(number).await;
    }
    node.assert_clean();
    // A connection or a directory handle may still be closing when the last call returns.
    eventually("the daemon has no more descriptors than before", async || (descriptors() <= before).then_some(()))
        .await;
    node.finish().await;
}
