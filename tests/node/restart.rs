//! The daemon dies at any moment and comes back under its running pods.

use std::cell::Cell;
use std::time::Duration;

use k8s_cri::v1::{ContainerState, PodSandboxState};
use tonic::{Code, Status};

use crate::lab::cri::{eventually, pod, shell};
use crate::lab::node::image;
use crate::lab::{Node, log};

#[tokio::test]
async fn pods_run_on_while_the_daemon_is_away() {
    let node = Node::start_with_images(&["busybox"]).await;
    let script = "trap 'exit 9' TERM; i=0; while :; do echo $i; i=$((i+1)); sleep 0.002; done";
    let running = node.run(&shell("ticker", script)).await;
    let before = node.status(&running.container).await;
    let pid = node.container_pid(&running.container).await;
    let ips = node.pod_ips(&running.pod).await;
    node.crash().await;

    let after = node.status(&running.container).await;
    assert_eq!(after, before, "a restart changes nothing of a running container");
    assert_eq!(node.container_pid(&running.container).await, pid);
    assert_eq!(node.pod_ips(&running.pod).await, ips);
    let status = node.pod_status(&running.pod).await.expect("PodSandboxStatus").status.expect("a status");
    assert_eq!(status.state(), PodSandboxState::SandboxReady);
    assert_eq!(node.sh(&running.container, "echo here").await, "here\n");
    assert!(node.image_status(&image("busybox")).await.is_some());

    let seen = log::read(&before.log_path).len();
    eventually("the log goes on", async || (log::read(&before.log_path).len() > seen).then_some(())).await;
    node.stop_container(&running.container, 30).await.expect("StopContainer");
    assert_eq!(node.status(&running.container).await.exit_code, 9);
    counted(&log::text(&before.log_path, None));
    node.delete(&running.pod).await;
    node.finish().await;
}

#[tokio::test]
async fn an_exit_in_the_daemons_absence_is_reported() {
    let node = Node::start_with_images(&["busybox"]).await;
    let volume = node.dir().join("volume");
    std::fs::create_dir(&volume).expect("a directory to mount");
    let mut config = shell("waits", "echo waiting; while [ ! -e /data/go ]; do sleep 0.02; done; echo gone; exit 42");
    config.mounts = vec![k8s_cri::v1::Mount {
        container_path: "/data".to_owned(),
        host_path: volume.to_string_lossy().into_owned(),
        ..Default::default()
    }];
    let running = node.run(&config).await;
    let started = node.status(&running.container).await;
    let process = format!("/proc/{}", node.container_pid(&running.container).await);
    node.kill().await;
    std::fs::write(volume.join("go"), "").expect("the sign to go");
    eventually("the container's process is gone", async || (!std::path::Path::new(&process).exists()).then_some(()))
        .await;
    let before_launch =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_nanos();
    node.launch().await;

    let status = node.exited(&running.container).await;
    assert_eq!((status.exit_code, status.reason.as_str()), (42, "Error"));
    assert_eq!(status.started_at, started.started_at);
    assert!(
        u128::try_from(status.finished_at).expect("after 1970") <= before_launch,
        "the time is the process's, not the restart's"
    );
    assert_eq!(log::text(&status.log_path, None), "waiting\ngone\n");
    node.delete(&running.pod).await;
    node.finish().await;
}

#[tokio::test]
async fn a_shim_that_died_is_told_and_cleaned_up() {
    let node = Node::start_with_images(&["busybox"]).await;
    let running = node.run(&shell("orphan", "while :; do sleep 0.05; done")).await;
    let info = node.pod_status(&running.pod).await.expect("PodSandboxStatus").info;
    let info: serde_json::Value = serde_json::from_str(&info["info"]).expect("JSON");
    let shim = i32::try_from(info["pid"].as_i64().expect("the shim's process id")).expect("a process id");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(shim), nix::sys::signal::Signal::SIGKILL).expect("the shim runs");
    eventually("the sandbox is not ready", async || {
        let status = node.pod_status(&running.pod).await.expect("PodSandboxStatus").status.expect("a status");
        (status.state() == PodSandboxState::SandboxNotready).then_some(())
    })
    .await;
    let status = node.exited(&running.container).await;
    assert_ne!(status.exit_code, 0);
    node.delete(&running.pod).await;
    node.assert_clean();
    node.finish().await;
}

/// `PODWRIGHT_TEST_KILLS` (100) deaths at moments drawn from `PODWRIGHT_TEST_SEED` (1), in the middle of whatever a kubelet
/// that retries is doing. The draws are the same for the same seed; what they hit is up to the scheduler.
#[tokio::test]
async fn a_hundred_deaths_lose_nothing() {
    let (kills, seed) = (setting("PODWRIGHT_TEST_KILLS", 100), setting("PODWRIGHT_TEST_SEED", 1));
    let node = Node::start_with_images(&["busybox"]).await;
    let done = Cell::new(false);
    let mut random = Random(seed);
    let killer = async {
        for _ in 0..kills {
            tokio::time::sleep(Duration::from_micros(random.below(150_000))).await;
            node.crash().await;
        }
        done.set(true);
    };
    let kubelet = async {
        let mut lives = 0;
        while !done.get() {
            one_life(&node, lives).await;
            lives += 1;
        }
        lives
    };
    let ((), lives) = tokio::join!(killer, kubelet);
    println!("{kills} deaths (seed {seed}) over {lives} pods");
    assert!(lives > 0);
    node.finish().await;
}

/// Reads a number from the environment.
pub(crate) fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().expect("a number"))
}

/// Everything a kubelet does with a pod of two containers, each call repeated until it gets an answer.
async fn one_life(node: &Node, attempt: u32) {
    let mut pod_config = pod(node, &format!("life-{attempt}"));
    pod_config.metadata.as_mut().expect("set by pod()").attempt = attempt;
    let script = "i=0; trap 'echo last; exit 7' TERM; while :; do echo $i; i=$((i+1)); sleep 0.002; done";
    let ticker = shell("ticker", script);
    let short = shell("short", "seq 0 199; exit 3");

    let pod = answered("RunPodSandbox", async || node.try_run_pod(&pod_config, "").await).await;
    let ticker = answered("CreateContainer", async || node.try_create(&pod, &ticker, &pod_config).await).await;
    let short = answered("CreateContainer", async || node.try_create(&pod, &short, &pod_config).await).await;
    for id in [&ticker, &short] {
        answered("StartContainer", async || started(node, id).await).await;
    }
    let echo = answered("ExecSync", async || node.try_exec(&ticker, &["echo", "hello"], 30).await).await;
    assert_eq!((echo.exit_code, echo.stdout.as_slice()), (0, &b"hello\n"[..]));

    let status = eventually("the short container exits", async || {
        let status = answered("ContainerStatus", async || node.try_status(&short).await).await;
        (status.state() == ContainerState::ContainerExited).then_some(status)
    })
    .await;
    assert_eq!((status.exit_code, status.reason.as_str()), (3, "Error"), "{}", status.message);
    assert_eq!(counted(&log::text(&status.log_path, None)), 200);

    let path = answered("ContainerStatus", async || node.try_status(&ticker).await).await.log_path;
    eventually("the ticker has printed", async || (!log::read(&path).is_empty()).then_some(())).await;
    answered("StopContainer", async || node.stop_container(&ticker, 30).await).await;
    let status = answered("ContainerStatus", async || node.try_status(&ticker).await).await;
    assert_eq!((status.exit_code, status.reason.as_str()), (7, "Error"), "{}", status.message);
    let text = log::text(&path, None);
    counted(text.strip_suffix("last\n").unwrap_or_else(|| panic!("the last line is missing: {text}")));

    answered("RemoveContainer", async || node.remove_container(&short).await).await;
    answered("StopPodSandbox", async || node.stop_pod(&pod).await).await;
    answered("RemovePodSandbox", async || node.remove_pod(&pod).await).await;
}

/// Asserts that the lines are 0, 1, 2 … without a gap and returns how many there are.
#[track_caller]
fn counted(text: &str) -> usize {
    for (number, line) in text.lines().enumerate() {
        assert_eq!(line, number.to_string(), "a line is missing or doubled");
    }
    text.lines().count()
}

/// Starts a container. A start whose answer was lost and whose container has ended since cannot be repeated; that it happened
/// is success.
async fn started(node: &Node, id: &str) -> Result<(), Status> {
    match node.start_container(id).await {
        Err(refusal) if refusal.code() == Code::FailedPrecondition => {
            let status = node.try_status(id).await?;
            assert!(status.started_at > 0, "{}: {status:?}", refusal.message());
            Ok(())
        }
        result => result,
    }
}

/// Repeats a call while the daemon is away; any answer of its own but success is a failure.
async fn answered<T>(what: &str, call: impl AsyncFn() -> Result<T, Status>) -> T {
    eventually(what, async || match call().await {
        Ok(value) => Some(value),
        Err(status) if is_absence(&status) => None,
        Err(status) => panic!("{what}: {status:?}"),
    })
    .await
}

/// Whether a call failed because no daemon was there to answer it.
pub(crate) fn is_absence(status: &Status) -> bool {
    let broken = ["transport error", "h2 protocol error", "connection", "operation was canceled"];
    matches!(status.code(), Code::Unavailable | Code::Unknown | Code::Cancelled | Code::Internal)
        && (status.code() == Code::Unavailable || broken.iter().any(|part| status.message().contains(part)))
}

/// Numbers that are the same for the same seed (xorshift).
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        // A few rounds first, so that small seeds do not give small numbers; zero would stay zero.
        let mut state = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        for (shift, left) in [(13, true), (7, false), (17, true)] {
            state ^= if left { state << shift } else { state >> shift };
        }
        self.0 = state;
        state % limit
    }
}
