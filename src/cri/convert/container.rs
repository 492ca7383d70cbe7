//! Containers.

use podwright_base::Digest;
use podwright_core::ExecOutput;
use podwright_core::view::{ContainerState, ContainerView};
use podwright_proto::runtime::v1;
use podwright_spec::container::{ContainerConfig, ContainerMetadata, Mount, Propagation, Resources};
use podwright_spec::user::User;
use serde_json::{Value, json};

use crate::signal;

/// Bytes of a command's output in one answer: clients take messages of up to 16 MiB, framing included.
const OUTPUT_LIMIT: usize = (16 << 20) - 1024;

/// Makes a container as lists hold it.
pub(crate) fn item(container: &ContainerView) -> v1::Container {
    let config = &container.config;
    v1::Container {
        id: container.id.to_string(),
        pod_sandbox_id: container.pod.to_string(),
        metadata: Some(metadata(&config.metadata)),
        image: Some(image(config)),
        image_ref: container.image_ref.clone(),
        state: state(&container.state).into(),
        created_at: container.created_at,
        labels: config.labels.clone(),
        annotations: config.annotations.clone(),
        image_id: container.image_id.to_string(),
    }
}

/// Makes a container's status.
pub(crate) fn status(container: &ContainerView) -> v1::ContainerStatus {
    let config = &container.config;
    let life = Life::of(&container.state);
    v1::ContainerStatus {
        id: container.id.to_string(),
        metadata: Some(metadata(&config.metadata)),
        state: state(&container.state).into(),
        created_at: container.created_at,
        started_at: life.started_at,
        finished_at: life.finished_at,
        exit_code: life.exit_code,
        image: Some(image(config)),
        image_ref: container.image_ref.clone(),
        reason: life.reason,
        message: life.message,
        labels: config.labels.clone(),
        annotations: config.annotations.clone(),
        mounts: mounts(container),
        log_path: container.log_path.as_ref().map(|path| path.display().to_string()).unwrap_or_default(),
        resources: Some(v1::ContainerResources { linux: Some(resources(&config.resources)), windows: None }),
        image_id: container.image_id.to_string(),
        user: Some(v1::ContainerUser { linux: Some(user(&container.user)) }),
        stop_signal: signal::from_number(container.stop_signal).into(),
    }
}

/// Makes the details of a verbose status, with the OCI configuration that the container was made from.
pub(crate) fn details(container: &ContainerView, runtime_spec: Value) -> Value {
    let pid = match container.state {
        ContainerState::Running { pid, .. } => pid,
        ContainerState::Created | ContainerState::Exited(_) => 0,
    };
    json!({ "sandboxID": container.pod.as_str(), "pid": pid, "runtimeSpec": runtime_spec })
}

/// Makes the answer of a command that ended, in a size that clients take: where the two streams together are too
/// long, each keeps half of the room and what the other leaves.
pub(crate) fn exec_output(mut output: ExecOutput) -> v1::ExecSyncResponse {
    let half = OUTPUT_LIMIT / 2;
    let stderr = output.stderr.len().min(half.max(OUTPUT_LIMIT.saturating_sub(output.stdout.len())));
    output.stderr.truncate(stderr);
    output.stdout.truncate(OUTPUT_LIMIT - stderr);
    v1::ExecSyncResponse { stdout: output.stdout, stderr: output.stderr, exit_code: output.exit_code }
}

/// Tells a container's state.
pub(crate) fn state(state: &ContainerState) -> v1::ContainerState {
    match state {
        ContainerState::Created => v1::ContainerState::ContainerCreated,
        ContainerState::Running { .. } => v1::ContainerState::ContainerRunning,
        ContainerState::Exited(_) => v1::ContainerState::ContainerExited,
    }
}

/// The fields of a status that follow from the state.
#[derive(Default)]
struct Life {
    started_at: i64,
    finished_at: i64,
    exit_code: i32,
    reason: String,
    message: String,
}

impl Life {
    fn of(state: &ContainerState) -> Self {
        match state {
            ContainerState::Created => Self::default(),
            ContainerState::Running { started_at, .. } => Self { started_at: *started_at, ..Self::default() },
            ContainerState::Exited(exited) => Self {
                started_at: exited.started_at,
                finished_at: exited.finished_at,
                exit_code: exited.code,
                reason: exited.reason.as_str().to_owned(),
                message: exited.message.clone(),
            },
        }
    }
}

fn metadata(metadata: &ContainerMetadata) -> v1::ContainerMetadata {
    v1::ContainerMetadata { name: metadata.name.clone(), attempt: metadata.attempt }
}

fn image(config: &ContainerConfig) -> v1::ImageSpec {
    v1::ImageSpec {
        image: config.image.clone(),
        user_specified_image: config.user_specified_image.clone(),
        ..Default::default()
    }
}

fn mounts(container: &ContainerView) -> Vec<v1::Mount> {
    let images = &container.volume_images;
    container.config.mounts.iter().enumerate().map(|(index, volume)| mount(volume, images.get(&index))).collect()
}

/// The kubelet finds the termination message by the host path of its mount.
fn mount(mount: &Mount, image: Option<&Digest>) -> v1::Mount {
    let propagation = match mount.propagation {
        Propagation::Private => v1::MountPropagation::PropagationPrivate,
        Propagation::HostToContainer => v1::MountPropagation::PropagationHostToContainer,
        Propagation::Bidirectional => v1::MountPropagation::PropagationBidirectional,
    };
    v1::Mount {
        container_path: mount.container_path.clone(),
        host_path: mount.host_path.display().to_string(),
        readonly: mount.readonly,
        selinux_relabel: mount.selinux_relabel,
        propagation: propagation.into(),
        recursive_read_only: mount.recursive_read_only,
        image: mount.image.as_ref().map(|volume| v1::ImageSpec {
            image: volume.image.clone(),
            user_specified_image: volume.user_specified_image.clone(),
            image_ref: image.map(Digest::to_string).unwrap_or_default(),
            ..Default::default()
        }),
        image_sub_path: mount.image.as_ref().map(|volume| volume.sub_path.clone()).unwrap_or_default(),
        ..Default::default()
    }
}

fn user(user: &User) -> v1::LinuxContainerUser {
    v1::LinuxContainerUser {
        uid: user.uid.into(),
        gid: user.gid.into(),
        supplemental_groups: user.additional_gids.iter().map(|gid| i64::from(*gid)).collect(),
    }
}

fn resources(resources: &Resources) -> v1::LinuxContainerResources {
    let hugepage = |(size, limit): &(String, u64)| v1::HugepageLimit { page_size: size.clone(), limit: *limit };
    v1::LinuxContainerResources {
        cpu_period: resources.cpu_period,
        cpu_quota: resources.cpu_quota,
        cpu_shares: resources.cpu_shares,
        memory_limit_in_bytes: resources.memory_limit_in_bytes,
        oom_score_adj: resources.oom_score_adj,
        cpuset_cpus: resources.cpuset_cpus.clone(),
        cpuset_mems: resources.cpuset_mems.clone(),
        hugepage_limits: resources.hugepage_limits.iter().map(hugepage).collect(),
        unified: resources.unified.clone(),
        memory_swap_limit_in_bytes: resources.memory_swap_limit_in_bytes,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use podwright_core::view::{ExitReason, Exited};
    use podwright_spec::container::ImageVolume;

    use super::*;
    use crate::fixtures;

    #[test]
    fn a_status_echoes_what_was_asked_for() {
        let view = fixtures::container(ContainerState::Created);
        let status = status(&view);
        let asked = fixtures::create_container().config.unwrap();
        assert_eq!(status.metadata, asked.metadata);
        assert_eq!(status.image, asked.image);
        assert_eq!(status.mounts, asked.mounts);
        assert_eq!((status.labels, status.annotations), (asked.labels, asked.annotations));
        assert_eq!(status.stop_signal, asked.stop_signal);
        assert_eq!(status.resources.unwrap().linux, asked.linux.unwrap().resources);
        assert_eq!(status.image_id, format!("sha256:{}", "12".repeat(32)));
        assert_eq!(status.log_path, "/var/log/pods/shop_web_8b1a/nginx/2.log");
        assert_eq!(status.user.unwrap().linux.unwrap().supplemental_groups, [1000, 5]);
        assert_eq!((status.started_at, status.finished_at, status.exit_code), (0, 0, 0));
    }

    #[test]
    fn an_image_volume_is_told_with_its_digest() {
        let mut view = fixtures::container(ContainerState::Created);
        let mut config = ContainerConfig::clone(&view.config);
        let (image, sub_path) = ("example.org/model:1".to_owned(), "weights".to_owned());
        let volume = ImageVolume { image, user_specified_image: "model:1".to_owned(), sub_path };
        config.mounts.push(Mount {
            container_path: "/model".to_owned(),
            host_path: Default::default(),
            image: Some(volume),
            readonly: true,
            ..config.mounts[0].clone()
        });
        view.config = Arc::new(config);
        view.volume_images.insert(1, Digest::from_sha256(&[0x56; 32]));
        let mounts = status(&view).mounts;
        assert_eq!(mounts[0].image, None);
        assert_eq!((mounts[1].host_path.as_str(), mounts[1].image_sub_path.as_str()), ("", "weights"));
        let image = mounts[1].image.as_ref().unwrap();
        assert_eq!((image.image.as_str(), image.user_specified_image.as_str()), ("example.org/model:1", "model:1"));
        assert_eq!(image.image_ref, format!("sha256:{}", "56".repeat(32)));
    }

    #[test]
    fn an_end_is_told_with_its_reason() {
        let exited = Exited {
            started_at: 5,
            finished_at: 6,
            code: 137,
            reason: ExitReason::OomKilled,
            message: "the limit is 64 MiB".to_owned(),
        };
        let status = status(&fixtures::container(ContainerState::Exited(exited)));
        assert_eq!(status.state(), v1::ContainerState::ContainerExited);
        assert_eq!((status.started_at, status.finished_at, status.exit_code), (5, 6, 137));
        assert_eq!((status.reason.as_str(), status.message.as_str()), ("OOMKilled", "the limit is 64 MiB"));
    }

    #[test]
    fn an_answer_never_outgrows_what_clients_take() {
        let sizes = |stdout: usize, stderr: usize| {
            let output = ExecOutput { stdout: vec![b'o'; stdout], stderr: vec![b'e'; stderr], exit_code: 3 };
            let answer = exec_output(output);
            assert_eq!(answer.exit_code, 3);
            (answer.stdout.len(), answer.stderr.len())
        };
        assert_eq!(sizes(10, 20), (10, 20));
        assert_eq!(sizes(16 << 20, 0), (OUTPUT_LIMIT, 0));
        assert_eq!(sizes(16 << 20, 20), (OUTPUT_LIMIT - 20, 20));
        assert_eq!(sizes(20, 16 << 20), (20, OUTPUT_LIMIT - 20));
        assert_eq!(sizes(16 << 20, 16 << 20), (OUTPUT_LIMIT / 2, OUTPUT_LIMIT / 2));
    }
}
