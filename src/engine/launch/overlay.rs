//! An overlay that a container has as one of its mounts: an image's layers, one above the other, that nobody writes to.
//!
//! Layers are named by descriptors: a sub path of an image may be longer than what one option takes (255 bytes), and all
//! of them together longer than the page that mount(2) takes. They are opened in the container's mount namespace, since
//! overlayfs takes no directory of another one.

use std::os::fd::{AsRawFd, OwnedFd};

use podwright_plan::wire::{FsOption, OverlayMount};
use podwright_sys::mount::{Change, change};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountAttrFlags, MountFlags};

use crate::failure::{Failure, Named};
use crate::fscontext::FsContext;
use crate::inroot::{Kind, Root};
use crate::mounts;
use crate::rootfs::{PAGE, escaped};

/// Mounts an overlay at a path inside the root, which is made if it is missing.
pub(crate) fn make(root: Root<'_>, plan: &OverlayMount, target: &str, attributes: Change) -> Result<(), Failure> {
    if plan.lower.is_empty() {
        return Err(Failure::plan("mount overlay", target, "it has no layers"));
    }
    let layers = plan.lower.iter().map(|path| open_layer(path)).collect::<Result<Vec<_>, _>>()?;
    match detached(&layers, plan, target)? {
        Some(overlay) => {
            change(&overlay, attributes).in_child("set mount attributes", target)?;
            mounts::attach(root, &overlay, target)
        }
        None => classic(root, &layers, &plan.options, target, attributes),
    }
}

fn open_layer(path: &str) -> Result<OwnedFd, Failure> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).in_child("open layer", path)
}

/// Names an open directory; the host's /proc is there until the root is changed.
fn name_of(place: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", place.as_raw_fd())
}

/// The detached way; `None` when the kernel does not know lower layers one by one, as before 6.7.
fn detached(layers: &[OwnedFd], plan: &OverlayMount, target: &str) -> Result<Option<OwnedFd>, Failure> {
    let context = FsContext::open("overlay").in_child("open file system", "overlay")?;
    context.set_string("source", "overlay").in_child("set overlay option", "source")?;
    for (position, (layer, path)) in layers.iter().zip(&plan.lower).enumerate() {
        match context.set_string("lowerdir+", &name_of(layer)) {
            Ok(()) => {}
            Err(Errno::INVAL) if position == 0 => return Ok(None),
            Err(errno) => return Err(context.refused("add layer", path, errno)),
        }
    }
    for option in &plan.options {
        let set = match option.flag {
            true => context.set_flag(&option.key),
            false => context.set_string(&option.key, &option.value),
        };
        set.map_err(|errno| context.refused("set overlay option", &option.key, errno))?;
    }
    match context.mount(MountAttrFlags::empty()) {
        Ok(overlay) => Ok(Some(overlay)),
        Err(errno) => Err(context.refused("mount overlay", target, errno)),
    }
}

/// mount(2) straight at the target.
fn classic(
    root: Root<'_>,
    layers: &[OwnedFd],
    options: &[FsOption],
    target: &str,
    attributes: Change,
) -> Result<(), Failure> {
    let data = classic_options(layers, options);
    if data.len() >= PAGE {
        return Err(Failure::launch("mount overlay", target, Errno::TOOBIG)
            .with_detail(format!("{} layers are more than this kernel takes", layers.len())));
    }
    let data = std::ffi::CString::new(data).map_err(|_| Failure::plan("mount overlay", target, "a NUL byte"))?;
    let place = root.ensure(target, Kind::Directory).in_child("make mount target", target)?;
    rustix::mount::mount("overlay", name_of(&place), "overlay", MountFlags::empty(), Some(&*data))
        .in_child("mount overlay", target)?;
    // The place opened before is below the new mount.
    let mounted = root.open(target, OFlags::PATH).in_child("open mount", target)?;
    change(&mounted, attributes).in_child("set mount attributes", target)
}

fn classic_options(layers: &[OwnedFd], options: &[FsOption]) -> String {
    let lower: Vec<_> = layers.iter().map(name_of).collect();
    let others = options.iter().map(|option| match option.flag {
        true => format!(",{}", option.key),
        false => format!(",{}={}", option.key, escaped(&option.value)),
    });
    format!("lowerdir={}{}", lower.join(":"), others.collect::<String>())
}

#[cfg(test)]
mod tests {
    use rustix::mount::MountPropagationFlags;

    use super::*;

    /// What only kernels before 6.7 take, tried on any: a thread may have a mount namespace of its own.
    #[test]
    fn the_classic_way_mounts_the_same_view() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        for name in ["top", "base", "root"] {
            std::fs::create_dir_all(path(name)).unwrap();
        }
        std::fs::write(path("base/from"), "base").unwrap();
        std::fs::write(path("top/from"), "top").unwrap();
        std::fs::write(path("base/below"), "base").unwrap();
        let lower = ["top", "base"].map(|name| path(name).to_str().unwrap().to_owned());
        let root = path("root");
        let look = std::thread::spawn(move || {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
            crate::rootfs::propagate(MountPropagationFlags::PRIVATE).unwrap();
            let fd = rustix::fs::open(&root, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap();
            let layers = lower.map(|path| open_layer(&path).unwrap());
            let read_only = Change { set: MountAttrFlags::MOUNT_ATTR_RDONLY, ..Change::default() };
            let option = FsOption { key: "index".into(), value: "off".into(), flag: false };
            classic(Root::new(&fd), &layers, &[option], "/made/here", read_only).unwrap();
            let place = root.join("made/here");
            let refused = std::fs::write(place.join("new"), "").unwrap_err();
            assert_eq!(refused.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
            ["from", "below"].map(|name| std::fs::read_to_string(place.join(name)).unwrap())
        });
        assert_eq!(look.join().unwrap(), ["top", "base"]);
    }
}
