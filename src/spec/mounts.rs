//! A container's mounts: what every container has, the pod's files, and the request's volumes, in the order they are made.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use oci_spec::runtime::Mount;

use crate::container::{self, Propagation};
use crate::error::SpecError;
use crate::input::{ContainerInput, VolumeSource};
use crate::pod::NamespaceMode;

const DEV_SHM: &str = "/dev/shm";

/// Mounts, and what the root's own propagation must be for theirs to work.
#[derive(Debug)]
pub(crate) struct Mounts {
    pub(crate) list: Vec<Mount>,
    pub(crate) root_propagation: Option<&'static str>,
}

/// Lists a container's mounts, parents before what lies below them.
///
/// `/dev/shm` is a tmpfs here, so that any OCI runtime can run the result; Podwright's engine puts the pod's shared
/// one in its place, which lives in a mount namespace that no path leads to.
pub(crate) fn mounts(input: &ContainerInput<'_>) -> Result<Mounts, SpecError> {
    let volumes = volumes(&input.container.mounts, input.image_volumes)?;
    let covered = |place: &Path| volumes.iter().any(|volume| volume.destination() == place);
    // A volume at /dev brings all of /dev with it.
    let own_dev = covered(Path::new("/dev"));

    let mut list: Vec<Mount> = every_container(input)
        .into_iter()
        .chain(pod_files(input))
        .filter(|mount| !covered(mount.destination()))
        .filter(|mount| !(own_dev && mount.destination().starts_with("/dev")))
        .collect();
    list.extend(volumes);
    // Stable: among mounts of one depth the request's order stands, and its volumes come after the runtime's mounts.
    list.sort_by_key(|mount| mount.destination().components().count());
    Ok(Mounts { list, root_propagation: root_propagation(&input.container.mounts) })
}

fn every_container(input: &ContainerInput<'_>) -> Vec<Mount> {
    let kernel = if input.container.security.privileged { "rw" } else { "ro" };
    let mut list = vec![
        mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount(
            "/dev/pts",
            "devpts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        mount("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", kernel]),
        mount("/sys/fs/cgroup", "cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", kernel]),
    ];
    list.push(match input.pod.linux.ipc {
        NamespaceMode::Node => bind(DEV_SHM, Path::new(DEV_SHM), &["rprivate", "rw"]),
        _ => mount(DEV_SHM, "tmpfs", "shm", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
    });
    list
}

fn pod_files(input: &ContainerInput<'_>) -> impl Iterator<Item = Mount> {
    // The files belong to the pod, not to the root file system, but a program that finds that one read-only
    // expects these to be so too.
    let mode = if input.container.security.readonly_rootfs { "ro" } else { "rw" };
    let files = input.files;
    [("/etc/hostname", files.hostname), ("/etc/hosts", files.hosts), ("/etc/resolv.conf", files.resolv_conf)]
        .into_iter()
        .filter_map(move |(place, source)| Some(bind(place, source?, &["rprivate", mode])))
}

/// Checks the request's mounts one by one.
fn volumes(requested: &[container::Mount], images: &BTreeMap<usize, VolumeSource>) -> Result<Vec<Mount>, SpecError> {
    requested.iter().enumerate().map(|(index, volume)| self::volume(index, volume, images.get(&index))).collect()
}

fn volume(index: usize, volume: &container::Mount, image: Option<&VolumeSource>) -> Result<Mount, SpecError> {
    let path = &volume.container_path;
    let refuse = |problem| SpecError::MountTarget { index, path: path.clone(), problem };
    let place = absolute(path).ok_or_else(|| refuse("is no absolute path"))?;
    if place == Path::new("/") {
        return Err(refuse("is the root file system itself: mount below it"));
    }
    if volume.image.is_some() {
        return image_volume(index, volume, &place, image);
    }
    if !volume.host_path.is_absolute() || has_nul(&volume.host_path) {
        return Err(SpecError::MountSource { index, path: volume.host_path.clone() });
    }
    let refuse = |needs| Err(SpecError::RecursiveReadOnly { index, path: path.clone(), needs });
    let mode = match (volume.readonly, volume.recursive_read_only) {
        (false, true) => return refuse("needs readonly set too"),
        (true, true) if volume.propagation != Propagation::Private => return refuse("needs private propagation"),
        (true, true) => "rro",
        (true, false) => "ro",
        (false, false) => "rw",
    };
    let propagation = match volume.propagation {
        Propagation::Private => "rprivate",
        Propagation::HostToContainer => "rslave",
        Propagation::Bidirectional => "rshared",
    };
    Ok(bind(&place, &volume.host_path, &[propagation, mode]))
}

/// Every volume of an image is read-only: others have the same layers. Nothing is mounted in it, so that this is all of it,
/// and nothing travels.
fn image_volume(
    index: usize,
    volume: &container::Mount,
    place: &Path,
    source: Option<&VolumeSource>,
) -> Result<Mount, SpecError> {
    let refuse = |field, problem| Err(SpecError::ImageVolume { index, field, problem });
    if !volume.host_path.as_os_str().is_empty() {
        return refuse("host_path", "has no host_path: leave it or the image out");
    }
    if !volume.readonly {
        return refuse("readonly", "is always read-only: set readonly");
    }
    if volume.propagation != Propagation::Private {
        return refuse("propagation", "has private propagation: nothing can be mounted in it");
    }
    match source {
        None => refuse("image", "needs an image that is on this node"),
        Some(VolumeSource::File(path)) => Ok(bind(place, path, &["rprivate", "ro"])),
        Some(VolumeSource::Directories(directories)) => match directories.as_slice() {
            [] => refuse("image", "needs an image that has layers"),
            // overlayfs without a writable directory wants two.
            [only] => Ok(bind(place, only, &["rprivate", "ro"])),
            several => match several.iter().map(|path| path.to_str().map(escaped)).collect::<Option<Vec<_>>>() {
                Some(lower) => {
                    let lower = format!("lowerdir={}", lower.join(":"));
                    Ok(mount(place, "overlay", "overlay", &["rprivate", "ro", &lower]))
                }
                None => refuse("image_sub_path", "has a path in UTF-8"),
            },
        },
    }
}

/// Writes a path of a list that colons divide, as overlayfs reads it.
fn escaped(path: &str) -> String {
    path.replace('\\', "\\\\").replace(':', "\\:")
}

/// A mount only passes on what its parent lets through: the root is as open as the most open of its mounts.
fn root_propagation(requested: &[container::Mount]) -> Option<&'static str> {
    let any = |propagation| requested.iter().any(|volume| volume.propagation == propagation);
    if any(Propagation::Bidirectional) {
        Some("rshared")
    } else if any(Propagation::HostToContainer) {
        Some("rslave")
    } else {
        None
    }
}

/// Cleans an absolute path of `.`, `..` and doubled slashes, by its text: what it names in the container is decided
/// there, inside the root.
pub(crate) fn absolute(path: &str) -> Option<PathBuf> {
    if !path.starts_with('/') || path.contains('\0') {
        return None;
    }
    let mut clean = PathBuf::from("/");
    for component in Path::new(path).components() {
        match component {
            Component::Normal(name) => clean.push(name),
            Component::ParentDir => {
                clean.pop();
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    Some(clean)
}

fn has_nul(path: &Path) -> bool {
    path.as_os_str().as_encoded_bytes().contains(&0)
}

fn bind(place: impl AsRef<Path>, source: &Path, options: &[&str]) -> Mount {
    mount(place, "bind", source, &[&["rbind"], options].concat())
}

fn mount(place: impl AsRef<Path>, kind: &str, source: impl AsRef<Path>, options: &[&str]) -> Mount {
    let mut mount = Mount::default();
    mount.set_destination(place.as_ref().to_owned());
    mount.set_typ(Some(kind.to_owned()));
    mount.set_source(Some(source.as_ref().to_owned()));
    mount.set_options(Some(options.iter().map(|option| (*option).to_owned()).collect()));
    mount
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::tests::{Fixture, image_volume as image_at, volume as at};

    fn made(volumes: Vec<container::Mount>) -> Result<Vec<(String, String)>, SpecError> {
        let mut fixture = Fixture::default();
        fixture.container.mounts = volumes;
        let text = |path: &Path| path.display().to_string();
        let list = mounts(&fixture.input())?.list;
        Ok(list.iter().map(|mount| (text(mount.destination()), text(mount.source().as_ref().unwrap()))).collect())
    }

    fn source_of(list: &[(String, String)], place: &str) -> Vec<String> {
        list.iter().filter(|(at, _)| at == place).map(|(_, source)| source.clone()).collect()
    }

    #[test]
    fn a_volume_takes_the_place_of_what_the_runtime_would_mount() {
        let list = made(vec![at("/etc/hosts", "/vol/hosts"), at("//sys/./", "/vol/sys"), at("/dev/shm", "/vol/shm")]);
        let list = list.unwrap();
        assert_eq!(source_of(&list, "/etc/hosts"), ["/vol/hosts"]);
        assert_eq!(source_of(&list, "/sys"), ["/vol/sys"]);
        assert_eq!(source_of(&list, "/dev/shm"), ["/vol/shm"]);
        assert_eq!(source_of(&list, "/etc/hostname"), ["/run/pod/hostname"]);
        assert_eq!(source_of(&list, "/sys/fs/cgroup"), ["cgroup"]);

        let list = made(vec![at("/dev", "/dev")]).unwrap();
        let below: Vec<_> = list.iter().filter(|(place, _)| place.starts_with("/dev")).collect();
        assert_eq!(below, [&("/dev".to_owned(), "/dev".to_owned())]);
    }

    #[test]
    fn places_that_cannot_be_are_refused() {
        for (place, problem) in [
            ("data", "no absolute path"),
            ("", "no absolute path"),
            ("/a\0b", "no absolute path"),
            ("/", "root file system itself"),
            ("/a/..", "root file system itself"),
        ] {
            let error = made(vec![at("/fine", "/vol"), at(place, "/vol")]).unwrap_err();
            assert_eq!(error.field(), "mounts[1].container_path");
            assert!(error.to_string().contains(problem), "{error}");
        }
        for source in ["", "vol", "/vol\0"] {
            assert_eq!(made(vec![at("/data", source)]).unwrap_err().field(), "mounts[0].host_path");
        }
    }

    #[test]
    fn options_follow_mode_and_propagation() {
        use Propagation::{Bidirectional, HostToContainer, Private};
        for (readonly, recursive, propagation, want) in [
            (false, false, Private, Ok(["rbind", "rprivate", "rw"])),
            (true, false, HostToContainer, Ok(["rbind", "rslave", "ro"])),
            (false, false, Bidirectional, Ok(["rbind", "rshared", "rw"])),
            (true, true, Private, Ok(["rbind", "rprivate", "rro"])),
            (false, true, Private, Err("readonly set too")),
            (true, true, HostToContainer, Err("private propagation")),
        ] {
            let asked =
                container::Mount { readonly, recursive_read_only: recursive, propagation, ..at("/data", "/vol") };
            match (volume(0, &asked, None), want) {
                (Ok(mount), Ok(want)) => assert_eq!(mount.options().as_deref().unwrap(), want),
                (Err(error), Err(words)) => assert!(error.to_string().contains(words), "{error}"),
                (got, want) => panic!("{got:?}, not {want:?}"),
            }
        }
    }

    #[test]
    fn an_image_volume_is_a_read_only_view() {
        use VolumeSource::{Directories, File};
        let asked = container::Mount { readonly: true, recursive_read_only: true, ..image_at("/data", "") };
        let made = |source: &VolumeSource| {
            let mount = volume(0, &asked, Some(source)).unwrap();
            (mount.typ().clone().unwrap(), mount.source().clone().unwrap(), mount.options().clone().unwrap())
        };
        let (kind, source, options) = made(&Directories(vec!["/l/a".into(), "/l/b:c\\d".into()]));
        assert_eq!((kind.as_str(), source), ("overlay", "overlay".into()));
        assert_eq!(options, ["rprivate", "ro", r"lowerdir=/l/a:/l/b\:c\\d"]);
        for one in [Directories(vec!["/l/a".into()]), File("/l/a".into())] {
            let (kind, source, options) = made(&one);
            assert_eq!((kind.as_str(), source), ("bind", "/l/a".into()));
            assert_eq!(options, ["rbind", "rprivate", "ro"]);
        }
    }

    #[test]
    fn an_image_volume_is_nothing_else() {
        let fine = container::Mount { readonly: true, ..image_at("/data", "etc") };
        let source = VolumeSource::File("/l/a".into());
        let empty = VolumeSource::Directories(Vec::new());
        for (field, asked, source) in [
            ("host_path", container::Mount { host_path: "/vol".into(), ..fine.clone() }, Some(&source)),
            ("readonly", container::Mount { readonly: false, ..fine.clone() }, Some(&source)),
            (
                "propagation",
                container::Mount { propagation: Propagation::HostToContainer, ..fine.clone() },
                Some(&source),
            ),
            ("image", fine.clone(), None),
            ("image", fine.clone(), Some(&empty)),
        ] {
            assert_eq!(volume(4, &asked, source).unwrap_err().field(), format!("mounts[4].{field}"));
        }
    }

    fn place() -> impl Strategy<Value = String> {
        prop::collection::vec("(a|b|dev|sys|etc|\\.|\\.\\.)", 1..5).prop_map(|names| format!("/{}", names.join("/")))
    }

    proptest! {
        /// No mount hides one that was made before it, except at its very own place, and none is lost.
        #[test]
        fn parents_come_first(places in prop::collection::vec(place(), 0..8)) {
            let places: Vec<_> = places.into_iter().filter(|place| absolute(place) != Some(PathBuf::from("/"))).collect();
            let volumes: Vec<_> = places.iter().zip(0..).map(|(place, n)| at(place, &format!("/vol/{n}"))).collect();
            let list = made(volumes.clone()).unwrap();
            for (earlier, (hidden, _)) in list.iter().enumerate() {
                for (later, _) in &list[earlier + 1..] {
                    prop_assert!(hidden == later || !Path::new(hidden).starts_with(later), "{} then {}", hidden, later);
                }
            }
            for volume in &volumes {
                let want = absolute(&volume.container_path).unwrap();
                let source = volume.host_path.display().to_string();
                prop_assert!(list.contains(&(want.display().to_string(), source)));
            }
            // The request's order stands among mounts of one place.
            for place in &places {
                let sources = source_of(&list, &absolute(place).unwrap().display().to_string());
                prop_assert!(sources.is_sorted());
            }
        }
    }
}
