//! To whom a container's v2 cgroup belongs (runtime-spec, "Cgroup ownership").
//!
//! A container with a user namespace of its own may only make cgroups below its own if the directory is its root user's,
//! and it can only reach the directory through a cgroup file system that it may write to, in a cgroup namespace of its own.

use oci_spec::runtime::{LinuxIdMapping, LinuxNamespaceType, Mount, Spec};

/// Finds the host's number of the user that the container's process begins as, where the cgroup is to be theirs.
pub(super) fn owner(spec: &Spec) -> Option<u32> {
    let linux = spec.linux().as_ref()?;
    let own = |kind| {
        let mut namespaces = linux.namespaces().iter().flatten();
        namespaces.any(|it| it.typ() == kind && it.path().as_ref().is_none_or(|path| path.as_os_str().is_empty()))
    };
    if !own(LinuxNamespaceType::User) || !own(LinuxNamespaceType::Cgroup) || !writable(spec) {
        return None;
    }
    let uid = spec.process().as_ref().map_or(0, |process| process.user().uid());
    linux.uid_mappings().iter().flatten().find_map(|mapping| on_host(mapping, uid))
}

/// Tells whether the container has a cgroup file system that is not read-only.
fn writable(spec: &Spec) -> bool {
    let cgroup = |mount: &&Mount| matches!(mount.typ().as_deref(), Some("cgroup" | "cgroup2"));
    let read_only = |mount: &Mount| mount.options().iter().flatten().any(|option| option == "ro");
    spec.mounts().iter().flatten().filter(cgroup).any(|mount| !read_only(mount))
}

fn on_host(mapping: &LinuxIdMapping, uid: u32) -> Option<u32> {
    let offset = uid.checked_sub(mapping.container_id()).filter(|offset| *offset < mapping.size())?;
    mapping.host_id().checked_add(offset)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner_of(change: impl Fn(&mut serde_json::Value)) -> Option<u32> {
        let mut json = serde_json::json!({
            "ociVersion": "1.3.0",
            "process": {"user": {"uid": 5, "gid": 0}, "args": ["sh"], "cwd": "/"},
            "mounts": [{"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["nosuid"]}],
            "linux": {
                "namespaces": [{"type": "user"}, {"type": "cgroup"}, {"type": "mount"}],
                "uidMappings": [
                    {"containerID": 100, "hostID": 7, "size": 10},
                    {"containerID": 0, "hostID": 1000, "size": 6}
                ]
            }
        });
        change(&mut json);
        owner(&serde_json::from_value(json).unwrap())
    }

    #[test]
    fn a_mapped_user_owns_a_cgroup_that_it_can_reach() {
        assert_eq!(owner_of(|_| ()), Some(1005));
        assert_eq!(owner_of(|json| json["process"]["user"]["uid"] = 109.into()), Some(16));
        assert_eq!(owner_of(|json| json["process"]["user"]["uid"] = 6.into()), None);
    }

    #[test]
    fn nobody_else_does() {
        assert_eq!(owner_of(|json| json["mounts"][0]["options"] = serde_json::json!(["ro"])), None);
        assert_eq!(owner_of(|json| json["mounts"] = serde_json::json!([])), None);
        assert_eq!(owner_of(|json| json["linux"]["namespaces"][1]["type"] = "uts".into()), None);
        assert_eq!(owner_of(|json| json["linux"]["namespaces"][0]["path"] = "/proc/1/ns/user".into()), None);
    }
}
