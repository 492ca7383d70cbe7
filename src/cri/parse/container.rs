//! A container's configuration, from `CreateContainerRequest`.

use std::path::{Component, Path};

use podwright_core::Error;
use podwright_proto::runtime::v1;
use podwright_spec::ContainerConfig;
use podwright_spec::container::ContainerMetadata;

use super::field::{Field, absolute, known, not_empty, required, text, texts};
use super::{mounts, resources, security};
use crate::signal;

/// A request for a new container: the id of its pod, and what it is to be.
pub(crate) type Create = (String, ContainerConfig);

/// Reads the request for a new container. Its copy of the pod's configuration is not needed: the pod's own counts.
pub(crate) fn create(request: v1::CreateContainerRequest) -> Result<Create, Error> {
    let pod = not_empty(request.pod_sandbox_id, Field::root("pod_sandbox_id"))?;
    let at = Field::root("config");
    let config = required(request.config, at)?;
    let linux = config.linux.unwrap_or_default();
    let linux_at = at.child("linux");
    if !config.cdi_devices.is_empty() {
        return Err(at.child("CDI_devices").unsupported("CDI devices"));
    }
    let image = required(config.image, at.child("image"))?;
    let stop_signal = known(config.stop_signal, at.child("stop_signal"))?;
    let config = ContainerConfig {
        metadata: metadata(config.metadata, at.child("metadata"))?,
        image: not_empty(image.image, at.child("image").child("image"))?,
        user_specified_image: image.user_specified_image,
        command: texts(config.command, at.child("command"))?,
        args: texts(config.args, at.child("args"))?,
        working_dir: working_dir(config.working_dir, at.child("working_dir"))?,
        envs: envs(config.envs, at.child("envs"))?,
        mounts: mounts::mounts(config.mounts, at.child("mounts"))?,
        devices: mounts::devices(config.devices, at.child("devices"))?,
        labels: config.labels,
        annotations: config.annotations,
        log_path: log_path(config.log_path, at.child("log_path"))?,
        stdin: config.stdin,
        stdin_once: config.stdin_once,
        tty: config.tty,
        stop_signal: signal::to_number(stop_signal),
        resources: resources::parse(linux.resources, linux_at.child("resources"))?,
        security: security::parse(linux.security_context, linux_at.child("security_context"))?,
    };
    Ok((pod, config))
}

fn metadata(metadata: Option<v1::ContainerMetadata>, at: Field<'_>) -> Result<ContainerMetadata, Error> {
    let metadata = required(metadata, at)?;
    Ok(ContainerMetadata { name: not_empty(metadata.name, at.child("name"))?, attempt: metadata.attempt })
}

fn working_dir(directory: String, field: Field<'_>) -> Result<String, Error> {
    if directory.is_empty() { Ok(directory) } else { absolute(directory, field) }
}

/// A name ends at its `=`, an entry at its zero byte: neither can be part of what it ends.
fn envs(envs: Vec<v1::KeyValue>, at: Field<'_>) -> Result<Vec<(String, Vec<u8>)>, Error> {
    let one = |(index, env): (usize, v1::KeyValue)| {
        let at = at.item(index);
        let key = not_empty(env.key, at.child("key"))?;
        if key.contains('=') {
            return Err(at.child("key").invalid(format!("{key:?} has a = in it")));
        }
        if env.value.contains(&0) {
            return Err(at.child("value").invalid(format!("that of {key:?} has a zero byte")));
        }
        Ok((key, env.value))
    };
    envs.into_iter().enumerate().map(one).collect()
}

/// The log stays below its pod's directory.
fn log_path(path: String, field: Field<'_>) -> Result<String, Error> {
    let path = text(path, field)?;
    for part in Path::new(&path).components() {
        match part {
            Component::RootDir | Component::Prefix(_) => {
                return Err(
                    field.invalid(format!("{path:?} is absolute: it must be relative to the pod's log_directory"))
                );
            }
            Component::ParentDir => {
                return Err(field.invalid(format!("{path:?} leads out of the pod's log_directory")));
            }
            Component::CurDir | Component::Normal(_) => {}
        }
    }
    Ok(path)
}
