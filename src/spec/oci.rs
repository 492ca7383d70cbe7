//! The whole specification, put together from its parts.

use std::collections::HashMap;
use std::path::PathBuf;

use oci_spec::runtime::{Linux, Root, Spec};
use serde_json::Value;

use crate::error::SpecError;
use crate::input::ContainerInput;
use crate::{devices, mounts, namespaces, process, resources, security};

/// The version of the OCI runtime specification that the result is written for.
const OCI_VERSION: &str = "1.2.0";

/// Makes a container's OCI runtime specification. Opens nothing and asks nobody: equal input gives an equal result.
///
/// # Errors
/// Names the first field of the request or the image that cannot be accepted.
pub fn container_spec(input: &ContainerInput<'_>) -> Result<Spec, SpecError> {
    let container = input.container;
    if container.security.privileged && !input.pod.linux.privileged {
        return Err(SpecError::PrivilegedInOrdinaryPod);
    }
    let mounts = mounts::mounts(input)?;
    let mut root = Root::default();
    root.set_path(PathBuf::from("rootfs"));
    root.set_readonly(Some(container.security.readonly_rootfs));

    // Every field that `Spec::default()` fills is set here: its defaults are another runtime's.
    let mut spec = Spec::default();
    spec.set_version(OCI_VERSION.to_owned());
    spec.set_root(Some(root));
    spec.set_process(Some(process::process(input)?));
    // The name is that of the pod's namespace, which is joined: it is not the container's to set.
    spec.set_hostname(None);
    spec.set_mounts(Some(mounts.list));
    spec.set_annotations(Some(annotations(input)));
    spec.set_linux(Some(linux(input, mounts.root_propagation)?));
    Ok(spec)
}

/// Writes a specification as `config.json`, with sets and maps in alphabetical order: equal specifications are equal
/// files, whatever the order of the hash tables behind them.
///
/// # Errors
/// A path in it is not UTF-8.
pub fn config_json(spec: &Spec) -> serde_json::Result<String> {
    let mut value = serde_json::to_value(spec)?;
    if let Some(Value::Object(sets)) = value.pointer_mut("/process/capabilities") {
        for set in sets.values_mut().filter_map(Value::as_array_mut) {
            set.sort_by(|a, b| a.as_str().cmp(&b.as_str()));
        }
    }
    serde_json::to_string_pretty(&value)
}

fn linux(input: &ContainerInput<'_>, root_propagation: Option<&str>) -> Result<Linux, SpecError> {
    let security = &input.container.security;
    let mut limits = resources::limits(&input.container.resources, input.host)?;
    limits.set_devices(Some(devices::rules(input)?));
    limits.set_pids(input.pids_limit.map(resources::pids));

    let mut linux = Linux::default();
    linux.set_namespaces(Some(namespaces::namespaces(input)?));
    linux.set_devices(Some(devices::nodes(input)).filter(|nodes| !nodes.is_empty()));
    linux.set_cgroups_path(Some(PathBuf::from(input.cgroup_path)));
    linux.set_resources(Some(limits));
    linux.set_seccomp(security::seccomp(input)?);
    linux.set_rootfs_propagation(root_propagation.map(str::to_owned));
    linux.set_masked_paths(security::paths(input, &security.masked_paths));
    linux.set_readonly_paths(security::paths(input, &security.readonly_paths));
    linux.set_mount_label(security::labels(input).mount);
    Ok(linux)
}

/// Tells hooks, plugins and people where a container comes from, under the keys that containerd made customary.
fn annotations(input: &ContainerInput<'_>) -> HashMap<String, String> {
    let (pod, container) = (&input.pod.metadata, input.container);
    let image = Some(&container.user_specified_image).filter(|name| !name.is_empty()).unwrap_or(&container.image);
    [
        ("container-type", "container"),
        ("container-name", &container.metadata.name),
        ("image-name", image),
        ("sandbox-id", input.pod_id),
        ("sandbox-name", &pod.name),
        ("sandbox-namespace", &pod.namespace),
        ("sandbox-uid", &pod.uid),
    ]
    .into_iter()
    .map(|(key, value)| (format!("io.kubernetes.cri.{key}"), value.to_owned()))
    .collect()
}
