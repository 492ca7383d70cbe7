//! The container's root file system: an overlay made detached, attached, and pivoted into.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use podwright_plan::wire::Rootfs;
use podwright_sys::mount::{Change, change};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    MountAttrFlags, MountFlags, MountPropagationFlags, MoveMountFlags, UnmountFlags, move_mount, unmount,
};

use crate::failure::{Failure, Named};
use crate::fscontext::FsContext;
use crate::sources;

/// The longest data that mount(2) takes: a page.
pub(crate) const PAGE: usize = 4096;

/// Gives every mount of the calling process's namespace a propagation type.
pub(crate) fn propagate(propagation: MountPropagationFlags) -> Result<(), Errno> {
    let root = rustix::fs::open("/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    change(root, Change { propagation, recursive: true, ..Change::default() })
}

/// Clones the directory that a plan has as its root, while the process is in the host's mount namespace; `None` for layers.
pub(crate) fn open(plan: &Rootfs) -> Result<Option<OwnedFd>, Failure> {
    if plan.path.is_empty() {
        return Ok(None);
    }
    sources::clone_tree(Path::new(&plan.path), "open root file system", true).map(Some)
}

/// Attaches the new root in the calling process's mount namespace; the descriptor is the root. A directory becomes a mount
/// where it is, since that is where hooks look for it. An overlay of a plan's layers goes over the root of the namespace,
/// where paths of the process do not go: its own root is below.
pub(crate) fn assemble(plan: &Rootfs, directory: Option<&OwnedFd>) -> Result<OwnedFd, Failure> {
    if let Some(tree) = directory {
        // Cloned in the host's namespace it would be the host's peer.
        let receives = Change { propagation: MountPropagationFlags::DOWNSTREAM, recursive: true, ..Change::default() };
        change(tree, receives).in_child("make mounts receive only", &plan.path)?;
        let attached = match move_mount(tree, "", CWD, &*plan.path, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH) {
            // A directory above it is closed to the root of the container's user namespace.
            Err(Errno::ACCESS) => cover_root(tree),
            attached => attached,
        };
        attached.in_child("attach root file system", &plan.path)?;
        return tree.try_clone().in_child("copy a descriptor", &plan.path);
    }
    // Before 6.7 there is no "lowerdir+", and "lowerdir" in a single fsconfig call is limited to 255 bytes.
    match detached(plan)? {
        Some(overlay) => {
            cover_root(&overlay).in_child("attach root file system", "/")?;
            Ok(overlay)
        }
        None => classic(plan),
    }
}

/// The detached way; `None` when the kernel does not know lower layers one by one.
fn detached(plan: &Rootfs) -> Result<Option<OwnedFd>, Failure> {
    let context = FsContext::open("overlay").in_child("open file system", "overlay")?;
    context.set_string("source", "overlay").in_child("set overlay option", "source")?;
    // Layer names are relative: one string of fsconfig has 255 bytes at most.
    rustix::process::chdir(&*plan.layers_dir).in_child("enter layers", &plan.layers_dir)?;
    for (position, lower) in plan.lower.iter().enumerate() {
        match context.set_string("lowerdir+", lower) {
            Ok(()) => {}
            Err(Errno::INVAL) if position == 0 => return Ok(None),
            Err(errno) => return Err(context.refused("add layer", lower, errno)),
        }
    }
    rustix::process::chdir(&*plan.writable_dir).in_child("enter writable layer", &plan.writable_dir)?;
    for (key, dir) in [("upperdir", "upper"), ("workdir", "work")] {
        context.set_string(key, dir).map_err(|errno| context.refused("set overlay option", key, errno))?;
    }
    match context.mount(MountAttrFlags::empty()) {
        Ok(overlay) => Ok(Some(overlay)),
        Err(errno) => Err(context.refused("mount overlay", &plan.writable_dir, errno)),
    }
}

/// mount(2) in the container's own namespace, on the directory of the writable layer, which nothing there needs by name.
fn classic(plan: &Rootfs) -> Result<OwnedFd, Failure> {
    rustix::process::chdir(&*plan.layers_dir).in_child("enter layers", &plan.layers_dir)?;
    let data = classic_options(plan);
    if data.len() >= PAGE {
        return Err(Failure::launch("mount overlay", &plan.writable_dir, Errno::TOOBIG)
            .with_detail(format!("{} layers are more than this kernel takes", plan.lower.len())));
    }
    let data = std::ffi::CString::new(data).map_err(|_| Failure::plan("mount overlay", "options", "a NUL byte"))?;
    rustix::mount::mount("overlay", &*plan.writable_dir, "overlay", MountFlags::empty(), Some(&*data))
        .in_child("mount overlay", &plan.writable_dir)?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(&*plan.writable_dir, flags, Mode::empty()).in_child("open root file system", &plan.writable_dir)
}

fn classic_options(plan: &Rootfs) -> String {
    let lower: Vec<_> = plan.lower.iter().map(|name| escaped(name)).collect();
    let writable = escaped(&plan.writable_dir);
    format!("lowerdir={},upperdir={writable}/upper,workdir={writable}/work", lower.join(":"))
}

/// Writes a value so that neither mount(2) nor overlayfs ends it early.
pub(crate) fn escaped(value: &str) -> String {
    value.chars().fold(String::new(), |mut text, c| {
        if matches!(c, '\\' | ':' | ',') {
            text.push('\\');
        }
        text.push(c);
        text
    })
}

/// Attaches a mount over the root of the calling process's mount namespace.
pub(crate) fn cover_root(mount: impl AsFd) -> Result<(), Errno> {
    move_mount(mount, "", CWD, "/", MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
}

/// Makes the mount at `root` the root of the namespace and drops what was there before.
pub(crate) fn pivot(root: impl AsFd) -> Result<(), Errno> {
    rustix::process::fchdir(root)?;
    // The old root lands on top of the new one: no directory is needed for it, and the one at "." is the old.
    rustix::process::pivot_root(".", ".")?;
    unmount(".", UnmountFlags::DETACH)?;
    // The working directory is the new root still, but by a reference from before it was one.
    rustix::process::chdir(Path::new("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What only kernels before 6.7 take, tried on any: a thread may have a mount namespace of its own.
    #[test]
    fn the_classic_way_mounts_the_same_root() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        for name in ["layers/top", "layers/base", "writable/upper", "writable/work"] {
            std::fs::create_dir_all(path(name)).unwrap();
        }
        std::fs::write(path("layers/base/from"), "base").unwrap();
        std::fs::write(path("layers/top/from"), "top").unwrap();
        std::fs::write(path("layers/base/below"), "base").unwrap();
        let text = |name: &str| path(name).to_str().unwrap().to_owned();
        let plan = Rootfs {
            layers_dir: text("layers"),
            lower: vec!["top".into(), "base".into()],
            writable_dir: text("writable"),
            ..Rootfs::default()
        };
        let look = std::thread::spawn(move || {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
            propagate(MountPropagationFlags::PRIVATE).unwrap();
            let root = classic(&plan).unwrap();
            rustix::process::fchdir(&root).unwrap();
            std::fs::write("new", "").unwrap();
            ["from", "below"].map(|name| std::fs::read_to_string(name).unwrap())
        });
        assert_eq!(look.join().unwrap(), ["top", "base"]);
        assert!(path("writable/upper/new").exists());
    }

    #[test]
    fn separators_in_names_are_escaped() {
        let plan = Rootfs {
            layers_dir: "/layers".into(),
            lower: vec!["a:b".into(), "c".into()],
            writable_dir: "/run/x,y".into(),
            ..Rootfs::default()
        };
        assert_eq!(classic_options(&plan), r"lowerdir=a\:b:c,upperdir=/run/x\,y/upper,workdir=/run/x\,y/work");
    }
}
