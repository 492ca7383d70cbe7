//! `linux.seccomp.listenerPath` and `listenerMetadata`: who is asked by a filter, and what they are told with it.
//!
//! That is the "container process state" of the specification. The pids in it are known once the process is there: the
//! text is cut where they belong.

use std::collections::BTreeMap;
use std::path::Path;

use oci_spec::runtime::{LinuxSeccomp, Spec};
use podwright_plan::wire;
use serde_json::{Value, json};

use crate::error::CompileError;
use crate::mounts::absolute;

/// The name that the specification has for the one descriptor that goes along.
const DESCRIPTOR: &str = "seccompFd";

/// The container that a process is of.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Owner<'a> {
    pub(crate) id: &'a str,
    /// Absolute directory of its bundle.
    pub(crate) bundle: &'a Path,
    /// As the specification calls it: `creating` for init, `running` for the others.
    pub(crate) status: &'static str,
}

/// Compiles who is asked. The profile's filter asks.
pub(crate) fn listener(
    spec: &Spec,
    profile: &LinuxSeccomp,
    owner: Owner<'_>,
) -> Result<wire::SeccompListener, CompileError> {
    let path = profile.listener_path().as_deref().unwrap_or(Path::new(""));
    // Sorted: a plan is the same each time.
    let annotations: BTreeMap<_, _> = spec.annotations().iter().flatten().collect();
    let mut process = json!({ "ociVersion": spec.version(), "fds": [DESCRIPTOR] });
    if let Some(metadata) = profile.listener_metadata() {
        process["metadata"] = metadata.as_str().into();
    }
    let container = json!({
        "ociVersion": spec.version(),
        "id": owner.id,
        "status": owner.status,
        "bundle": owner.bundle.to_string_lossy(),
        "annotations": annotations,
    });
    let state = vec![up_to_pid(&process), format!(r#","state":{}"#, up_to_pid(&container)), "}}".to_owned()];
    Ok(wire::SeccompListener { path: absolute(path, "linux.seccomp.listenerPath")?, state })
}

/// An object up to where the value of its last field, `pid`, begins.
fn up_to_pid(object: &Value) -> String {
    let text = object.to_string();
    format!(r#"{},"pid":"#, text.strip_suffix('}').unwrap_or(&text))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compile(seccomp: &str) -> Result<wire::SeccompListener, String> {
        let json = format!(
            r#"{{"ociVersion": "1.2.0", "annotations": {{"b": "\"2\"", "a": "1"}},
                "linux": {{"seccomp": {{"defaultAction": "SCMP_ACT_ALLOW", {seccomp}}}}}}}"#
        );
        let spec: Spec = serde_json::from_str(&json).unwrap();
        let profile = spec.linux().as_ref().unwrap().seccomp().clone().unwrap();
        let owner = Owner { id: "c1", bundle: Path::new("/b"), status: "creating" };
        listener(&spec, &profile, owner).map_err(|error| error.to_string())
    }

    #[test]
    fn pids_make_the_parts_one_state() {
        let listener = compile(r#""listenerPath": "/run/l", "listenerMetadata": "m=\"1\"""#).unwrap();
        assert_eq!(listener.path, "/run/l");
        let [first, second, last] = &listener.state[..] else { panic!("{:?}", listener.state) };
        let state: Value = serde_json::from_str(&format!("{first}7{second}5{last}")).unwrap();
        let expected = json!({
            "ociVersion": "1.2.0",
            "fds": ["seccompFd"],
            "pid": 7,
            "metadata": "m=\"1\"",
            "state": {
                "ociVersion": "1.2.0", "id": "c1", "status": "creating", "pid": 5, "bundle": "/b",
                "annotations": {"a": "1", "b": "\"2\""},
            },
        });
        assert_eq!(state, expected);
    }

    #[test]
    fn the_socket_has_an_absolute_path() {
        assert!(compile(r#""listenerPath": "run/l""#).unwrap_err().contains("linux.seccomp.listenerPath"));
    }
}
