//! `linux.uidMappings`, `linux.gidMappings` and `linux.timeOffsets`: what new user and time namespaces are made with.

use std::collections::BTreeMap;

use oci_spec::runtime::{Linux, LinuxIdMapping};
use podwright_plan::wire;

use crate::error::{CompileError, invalid, missing};

/// Compiles the ids of a user namespace: users, then groups.
pub(crate) fn id_maps(
    linux: &Linux,
    namespaces: &[wire::Namespace],
) -> Result<(Vec<wire::IdMap>, Vec<wire::IdMap>), CompileError> {
    let user = namespaces.iter().find(|it| it.kind() == wire::NamespaceKind::User);
    let compile = |maps: &Option<Vec<LinuxIdMapping>>, field: &'static str| {
        let maps = maps.as_deref().unwrap_or_default();
        match user {
            None if !maps.is_empty() => Err(invalid(field, "", "needs a user namespace in linux.namespaces")),
            Some(user) if user.path.is_empty() && maps.is_empty() => Err(missing(field)),
            _ => maps.iter().enumerate().map(|(index, map)| id_map(map, &format!("{field}[{index}]"))).collect(),
        }
    };
    Ok((compile(linux.uid_mappings(), "linux.uidMappings")?, compile(linux.gid_mappings(), "linux.gidMappings")?))
}

fn id_map(map: &LinuxIdMapping, field: &str) -> Result<wire::IdMap, CompileError> {
    if map.size() == 0 {
        return Err(invalid(format!("{field}.size"), "0", "maps nothing"));
    }
    Ok(wire::IdMap { inside: map.container_id(), outside: map.host_id(), count: map.size() })
}

/// Compiles the offsets of a time namespace, sorted by clock.
pub(crate) fn time_offsets(
    linux: &Linux,
    namespaces: &[wire::Namespace],
) -> Result<Vec<wire::TimeOffset>, CompileError> {
    let sorted: BTreeMap<_, _> = linux.time_offsets().iter().flatten().collect();
    let is_new = namespaces.iter().any(|it| it.kind() == wire::NamespaceKind::Time && it.path.is_empty());
    if !sorted.is_empty() && !is_new {
        return Err(invalid("linux.timeOffsets", "", "needs a new time namespace in linux.namespaces"));
    }
    let compile = |(clock, offset): (&String, &oci_spec::runtime::LinuxTimeOffset)| {
        if !matches!(clock.as_str(), "monotonic" | "boottime") {
            return Err(invalid("linux.timeOffsets", clock, "is no clock that has an offset"));
        }
        let (seconds, nanoseconds) = (offset.secs().unwrap_or(0), offset.nanosecs().unwrap_or(0));
        Ok(wire::TimeOffset { clock: clock.clone(), seconds, nanoseconds })
    };
    sorted.into_iter().map(compile).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn linux(json: &str) -> Linux {
        serde_json::from_str(json).unwrap()
    }

    fn namespace(kind: wire::NamespaceKind, path: &str) -> Vec<wire::Namespace> {
        vec![wire::Namespace { kind: kind.into(), path: path.into() }]
    }

    const MAPS: &str = r#"{"uidMappings": [{"containerID": 0, "hostID": 1000, "size": 2}],
        "gidMappings": [{"containerID": 0, "hostID": 7, "size": 1}]}"#;

    #[test]
    fn ids_need_a_user_namespace_and_a_new_one_needs_ids() {
        let user = namespace(wire::NamespaceKind::User, "");
        let (uids, gids) = id_maps(&linux(MAPS), &user).unwrap();
        assert_eq!(uids, [wire::IdMap { inside: 0, outside: 1000, count: 2 }]);
        assert_eq!(gids, [wire::IdMap { inside: 0, outside: 7, count: 1 }]);
        assert!(id_maps(&linux(MAPS), &[]).unwrap_err().to_string().contains("needs a user namespace"));
        assert_eq!(id_maps(&linux("{}"), &user).unwrap_err().to_string(), "linux.uidMappings is missing");
        assert!(id_maps(&linux("{}"), &namespace(wire::NamespaceKind::User, "/proc/7/ns/user")).is_ok());
        let none = MAPS.replace("\"size\": 2", "\"size\": 0");
        assert!(id_maps(&linux(&none), &user).unwrap_err().to_string().contains("linux.uidMappings[0].size"));
    }

    #[test]
    fn offsets_need_a_new_time_namespace() {
        let linux = linux(r#"{"timeOffsets": {"monotonic": {"secs": -3}, "boottime": {"secs": 1, "nanosecs": 9}}}"#);
        let time = namespace(wire::NamespaceKind::Time, "");
        let offsets = time_offsets(&linux, &time).unwrap();
        let seen: Vec<_> = offsets.iter().map(|it| (&*it.clock, it.seconds, it.nanoseconds)).collect();
        assert_eq!(seen, [("boottime", 1, 9), ("monotonic", -3, 0)]);
        assert!(time_offsets(&linux, &namespace(wire::NamespaceKind::Time, "/x")).is_err());
        let other = super::tests::linux(r#"{"timeOffsets": {"realtime": {"secs": 1}}}"#);
        assert!(time_offsets(&other, &time).unwrap_err().to_string().contains("realtime"));
    }
}
