//! `mounts`: what is mounted inside the container, in the specification's order.

use std::path::Path;

use oci_spec::runtime::{Mount, Spec};
use podwright_plan::wire;
use podwright_plan::wire::mount::Kind;

use crate::cgroup::{self, CgroupPath};
use crate::error::{CompileError, invalid, missing, unsupported};
use crate::facts::HostFacts;
use crate::mount_options::MountOptions;

/// Where a pod's containers share memory.
const SHM: &str = "/dev/shm";
/// The option of an overlay that lists its lower directories.
const LOWER: &str = "lowerdir";

/// What mounts depend on besides the list.
pub(crate) struct Surroundings<'a> {
    pub(crate) cgroup: &'a CgroupPath,
    pub(crate) cgroup_namespace: bool,
    /// Whether /dev/shm is the pod's.
    pub(crate) shares_shm: bool,
    pub(crate) facts: &'a HostFacts,
}

/// Compiles the list.
pub(crate) fn mounts(spec: &Spec, around: &Surroundings<'_>) -> Result<Vec<wire::Mount>, CompileError> {
    let mounts = spec.mounts().iter().flatten().enumerate();
    mounts.map(|(index, it)| mount(it, &format!("mounts[{index}]"), around)).collect()
}

/// Tells whether a host's directory takes the place of the container's /dev: its nodes are then there already.
pub(crate) fn binds_dev(mounts: &[wire::Mount]) -> bool {
    mounts.iter().any(|mount| mount.target == "/dev" && matches!(mount.kind, Some(Kind::Bind(_))))
}

fn mount(mount: &Mount, field: &str, around: &Surroundings<'_>) -> Result<wire::Mount, CompileError> {
    for (name, mappings) in [("uidMappings", mount.uid_mappings()), ("gidMappings", mount.gid_mappings())] {
        if mappings.as_ref().is_some_and(|mappings| !mappings.is_empty()) {
            return Err(unsupported(format!("{field}.{name}")));
        }
    }
    let target = absolute(mount.destination(), &format!("{field}.destination"))?;
    let options = MountOptions::parse(mount, field)?;
    let kind = match mount.typ().as_deref() {
        _ if options.bind.is_some() => bind(mount, field, &options)?,
        Some("bind") => bind(mount, field, &options)?,
        Some("cgroup" | "cgroup2") => {
            // The hierarchies' own options are the host's; a container cannot set them.
            refuse_fs_options(&options, field)?;
            Kind::Cgroup(cgroup::mount(around.cgroup, &around.facts.cgroup, around.cgroup_namespace))
        }
        // Size and mode are the pod's: it was mounted when the pod was made.
        Some("tmpfs") if around.shares_shm && target == SHM => Kind::Shm(wire::ShmMount {}),
        Some("overlay") if options.fs.iter().any(|option| option.key == LOWER) => overlay(options.fs.clone(), field)?,
        Some("" | "none") | None => return Err(missing(format!("{field}.type"))),
        Some(fs_type) => Kind::Fs(file_system(mount, field, fs_type, &options)?),
    };
    Ok(wire::Mount { target, attrs: Some(options.attrs), propagation: options.propagation.into(), kind: Some(kind) })
}

fn bind(mount: &Mount, field: &str, options: &MountOptions) -> Result<Kind, CompileError> {
    refuse_fs_options(options, field)?;
    let source = mount.source().as_ref().ok_or_else(|| missing(format!("{field}.source")))?;
    let source = absolute(source, &format!("{field}.source"))?;
    Ok(Kind::Bind(wire::BindMount { source, recursive: options.bind.unwrap_or(false) }))
}

/// An overlay's lower directories are taken apart: together they may be longer than what the kernel takes as one option.
fn overlay(options: Vec<wire::FsOption>, field: &str) -> Result<Kind, CompileError> {
    let (lower, others): (Vec<_>, Vec<_>) = options.into_iter().partition(|option| option.key == LOWER);
    let lower: Vec<String> = lower.iter().flat_map(|option| split_lower(&option.value)).collect();
    for path in &lower {
        absolute(Path::new(path), &format!("{field}.options[{LOWER}]"))?;
    }
    Ok(Kind::Overlay(wire::OverlayMount { lower, options: others }))
}

/// Splits a list of directories at its colons; a backslash takes the meaning from what follows it.
fn split_lower(list: &str) -> Vec<String> {
    let (mut paths, mut path) = (Vec::new(), String::new());
    let mut chars = list.chars();
    while let Some(char) = chars.next() {
        match char {
            ':' => paths.push(std::mem::take(&mut path)),
            '\\' => path.extend(chars.next()),
            other => path.push(other),
        }
    }
    paths.push(path);
    paths
}

fn file_system(
    mount: &Mount,
    field: &str,
    fs_type: &str,
    options: &MountOptions,
) -> Result<wire::FsMount, CompileError> {
    if options.attrs.recursive_readonly {
        return Err(invalid(format!("{field}.options"), "rro", "is for bind mounts"));
    }
    let source = mount.source().as_deref().map(|source| text(source, &format!("{field}.source"))).transpose()?;
    Ok(wire::FsMount {
        fs_type: fs_type.to_owned(),
        options: options.fs.clone(),
        source: source.unwrap_or_else(|| fs_type.to_owned()),
    })
}

fn refuse_fs_options(options: &MountOptions, field: &str) -> Result<(), CompileError> {
    match options.fs.first() {
        Some(option) => Err(invalid(format!("{field}.options"), &option.key, "is no option of such a mount")),
        None => Ok(()),
    }
}

/// Takes an absolute path.
pub(crate) fn absolute(path: &Path, field: &str) -> Result<String, CompileError> {
    let path = text(path, field)?;
    if path.starts_with('/') { Ok(path) } else { Err(invalid(field, path, "is not absolute")) }
}

/// Takes a path that can stand in a plan.
pub(crate) fn text(path: &Path, field: &str) -> Result<String, CompileError> {
    match path.to_str() {
        Some(text) if !text.contains('\0') => Ok(text.to_owned()),
        Some(text) => Err(invalid(field, text, "has a NUL")),
        None => Err(invalid(field, path.to_string_lossy(), "is not UTF-8")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::tests::unified;

    fn compile(json: &str, shares_shm: bool) -> Result<wire::Mount, String> {
        let it: Mount = serde_json::from_str(json).unwrap();
        let path: CgroupPath = "/a".parse().unwrap();
        let facts = unified();
        let around = Surroundings { cgroup: &path, cgroup_namespace: true, shares_shm, facts: &facts };
        mount(&it, "mounts[3]", &around).map_err(|error| error.to_string())
    }

    #[test]
    fn a_volume() {
        let json = r#"{"destination": "/data", "source": "/var/x", "options": ["rbind", "rprivate", "ro"]}"#;
        let mount = compile(json, true).unwrap();
        assert_eq!(mount.kind, Some(Kind::Bind(wire::BindMount { source: "/var/x".into(), recursive: true })));
        assert!(mount.attrs.unwrap().readonly);
        assert!(compile(&json.replace("\"ro\"", "\"mode=1\""), true).unwrap_err().contains("\"mode\""));
        assert!(compile(&json.replace("/var/x", "var/x"), true).unwrap_err().contains("mounts[3].source"));
    }

    #[test]
    fn shared_memory_is_the_pods_only_where_it_has_one() {
        let json = r#"{"destination": "/dev/shm", "type": "tmpfs", "source": "shm",
            "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]}"#;
        assert_eq!(compile(json, true).unwrap().kind, Some(Kind::Shm(wire::ShmMount {})));
        let Some(Kind::Fs(tmpfs)) = compile(json, false).unwrap().kind else { panic!("a tmpfs of its own") };
        assert_eq!((tmpfs.source.as_str(), tmpfs.options.len()), ("shm", 2));
    }

    #[test]
    fn an_overlay_is_taken_apart() {
        let json = r#"{"destination": "/data", "type": "overlay", "source": "overlay",
            "options": ["ro", "lowerdir=/l/a\\:b:/l/c\\\\d/e", "index=off", "userxattr"]}"#;
        let mount = compile(json, true).unwrap();
        let Some(Kind::Overlay(overlay)) = mount.kind else { panic!("an overlay") };
        assert_eq!(overlay.lower, ["/l/a:b", r"/l/c\d/e"]);
        assert_eq!(overlay.options.iter().map(|option| &*option.key).collect::<Vec<_>>(), ["index", "userxattr"]);
        assert!(mount.attrs.unwrap().readonly);
        let relative = compile(&json.replace(":/l/c", ":l/c"), true).unwrap_err();
        assert!(relative.contains("mounts[3].options[lowerdir]") && relative.contains("not absolute"), "{relative}");
        let json = json.replace("lowerdir", "upperdir");
        assert!(matches!(compile(&json, true).unwrap().kind, Some(Kind::Fs(_))), "the kernel says what it needs");
    }

    #[test]
    fn what_is_missing_or_not_done_is_named() {
        let json = r#"{"destination": "/data", "source": "/x"}"#;
        assert_eq!(compile(json, true).unwrap_err(), "mounts[3].type is missing");
        let json = r#"{"destination": "/d", "type": "bind", "source": "/x",
            "uidMappings": [{"containerID": 0, "hostID": 1, "size": 1}]}"#;
        assert_eq!(compile(json, true).unwrap_err(), "mounts[3].uidMappings is not supported by this version");
        let json = r#"{"destination": "/t", "type": "tmpfs", "options": ["rro"]}"#;
        assert!(compile(json, true).unwrap_err().contains("is for bind mounts"));
    }
}
