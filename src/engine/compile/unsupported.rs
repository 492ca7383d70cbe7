//! What the specification may say and this version does not do: refused by name, so that nothing is dropped in silence.
//!
//! Annotations are the exception: the specification has a runtime pass over those it does not know.

use oci_spec::runtime::{Hooks, Linux, Spec};

use crate::error::{CompileError, invalid, missing, unsupported};

/// Refuses a specification by the first such field outside `process` and `mounts`, which look after their own.
pub(crate) fn refuse(spec: &Spec) -> Result<(), CompileError> {
    if !spec.version().starts_with("1.") {
        return Err(invalid("ociVersion", spec.version(), "is not 1.x"));
    }
    let fields = [
        ("solaris", spec.solaris().is_some()),
        ("windows", spec.windows().is_some()),
        ("vm", spec.vm().is_some()),
        ("zos", spec.zos().is_some()),
    ];
    first(&fields)?;
    refuse_linux(spec.linux().as_ref().ok_or_else(|| missing("linux"))?)
}

/// Refuses what a container cannot have in a pod, whose namespaces it shares.
pub(crate) fn refuse_in_pod(spec: &Spec) -> Result<(), CompileError> {
    first(&[
        ("hooks", spec.hooks().as_ref().is_some_and(has_hooks)),
        ("domainname", spec.domainname().as_ref().is_some_and(|name| !name.is_empty())),
    ])?;
    let Some(linux) = spec.linux() else { return Ok(()) };
    first(&[
        ("linux.uidMappings", linux.uid_mappings().as_ref().is_some_and(|it| !it.is_empty())),
        ("linux.gidMappings", linux.gid_mappings().as_ref().is_some_and(|it| !it.is_empty())),
        ("linux.netDevices", linux.net_devices().as_ref().is_some_and(|it| !it.is_empty())),
        ("linux.timeOffsets", linux.time_offsets().as_ref().is_some_and(|it| !it.is_empty())),
    ])
}

fn refuse_linux(linux: &Linux) -> Result<(), CompileError> {
    first(&[
        ("linux.intelRdt", linux.intel_rdt().is_some()),
        ("linux.mountLabel", linux.mount_label().as_ref().is_some_and(|label| !label.is_empty())),
    ])
}

#[allow(deprecated)] // prestart hooks are still in the specification.
fn has_hooks(hooks: &Hooks) -> bool {
    let lists = [
        hooks.prestart(),
        hooks.create_runtime(),
        hooks.create_container(),
        hooks.start_container(),
        hooks.poststart(),
        hooks.poststop(),
    ];
    lists.iter().any(|list| list.as_ref().is_some_and(|hooks| !hooks.is_empty()))
}

fn first(fields: &[(&str, bool)]) -> Result<(), CompileError> {
    match fields.iter().find(|(_, present)| *present) {
        Some((field, _)) => Err(unsupported(*field)),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_field_is_refused_by_its_name() {
        for (field, json) in [
            ("hooks", r#"{"hooks": {"prestart": [{"path": "/bin/true"}]}}"#),
            ("domainname", r#"{"domainname": "example.org"}"#),
            ("linux.uidMappings", r#"{"linux": {"uidMappings": [{"containerID": 0, "hostID": 1, "size": 1}]}}"#),
            ("linux.intelRdt", r#"{"linux": {"intelRdt": {"closID": "x"}}}"#),
            ("linux.mountLabel", r#"{"linux": {"mountLabel": "system_u:object_r:x:s0"}}"#),
            ("linux.timeOffsets", r#"{"linux": {"timeOffsets": {"monotonic": {"secs": 1}}}}"#),
            ("linux.netDevices", r#"{"linux": {"netDevices": {"eth0": {}}}}"#),
        ] {
            let mut json: serde_json::Value = serde_json::from_str(json).unwrap();
            json["ociVersion"] = "1.3.0".into();
            if json["linux"].is_null() {
                json["linux"] = serde_json::json!({});
            }
            let spec: Spec = serde_json::from_value(json).unwrap();
            let refused = refuse(&spec).and_then(|()| refuse_in_pod(&spec));
            assert_eq!(refused.unwrap_err().to_string(), format!("{field} is not supported by this version"));
        }
    }

    #[test]
    fn empty_fields_ask_for_nothing() {
        let spec: Spec = serde_json::from_str(
            r#"{"ociVersion": "1.2.0", "hooks": {"prestart": []},
                "linux": {"uidMappings": []}}"#,
        )
        .unwrap();
        assert_eq!(refuse(&spec), Ok(()));
    }

    #[test]
    fn a_specification_of_another_major_version_is_refused() {
        let spec: Spec = serde_json::from_str(r#"{"ociVersion": "2.0.0", "linux": {}}"#).unwrap();
        assert!(refuse(&spec).unwrap_err().to_string().contains("ociVersion"));
    }
}
