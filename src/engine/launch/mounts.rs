//! A plan's mounts, one by one, in the container's own namespaces.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use podwright_plan::wire::{Atime, FsMount, Mount, MountAttrs, Propagation, mount};
use podwright_sys::mount::{Change, change};
use rustix::fs::{FileType, Mode};
use rustix::io::Errno;
use rustix::mount::{MountAttrFlags, MountPropagationFlags, MoveMountFlags, move_mount};

use crate::failure::{Failure, Named};
use crate::fscontext::FsContext;
use crate::inroot::{Kind, Root};
use crate::overlay;
use crate::sources::Source;

/// Makes one mount of a plan and attaches it at its target.
pub(crate) fn make(root: Root<'_>, mount: &Mount, source: &Source) -> Result<(), Failure> {
    if Path::new(&mount.target).components().count() < 2 {
        return Err(Failure::plan("mount", &mount.target, "the target is not a path inside the root"));
    }
    let wanted = mount.attrs.unwrap_or_default();
    match source {
        Source::Tree(tree) => {
            let flags = flags_of(&wanted);
            restrict(tree, flags, &wanted, mount.propagation()).in_child("set mount attributes", &mount.target)?;
            attach(root, tree, &mount.target)
        }
        Source::Made => {
            let propagation = Change { propagation: propagation_of(mount.propagation()), ..Change::default() };
            let made = match &mount.kind {
                Some(mount::Kind::Fs(fs)) => make_fs(fs, &wanted, &mount.target)?,
                Some(mount::Kind::Overlay(overlay)) => {
                    let attributes = Change { set: flags_of(&wanted), ..propagation };
                    return overlay::make(root, overlay, &mount.target, attributes);
                }
                _ => make_fs(&FsMount { fs_type: "cgroup2".into(), ..FsMount::default() }, &wanted, &mount.target)?,
            };
            change(&made, propagation).in_child("set mount propagation", &mount.target)?;
            attach(root, &made, &mount.target)
        }
        Source::Views(views) => make_views(root, &mount.target, &wanted, views),
    }
}

/// Tells whether a mount is a procfs of the container's own.
pub(crate) fn is_proc(mount: &Mount) -> bool {
    matches!(&mount.kind, Some(mount::Kind::Fs(fs)) if fs.fs_type == "proc")
}

/// Attaches a detached mount at a path inside the root, which is made if it is missing.
pub(crate) fn attach(root: Root<'_>, tree: &OwnedFd, target: &str) -> Result<(), Failure> {
    let kind = kind_of(tree).in_child("look at mount", target)?;
    let place = root.ensure(target, kind).in_child("make mount target", target)?;
    attach_at(tree, &place).in_child("attach mount", target)
}

/// Attaches a detached mount over a place that is open already.
pub(crate) fn attach_at(tree: impl AsFd, place: impl AsFd) -> Result<(), Errno> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(tree, "", place, "", flags)
}

fn kind_of(tree: &OwnedFd) -> Result<Kind, Errno> {
    let stat = rustix::fs::fstat(tree)?;
    let directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
    Ok(if directory { Kind::Directory } else { Kind::File })
}

fn make_fs(fs: &FsMount, attrs: &MountAttrs, target: &str) -> Result<OwnedFd, Failure> {
    let context = FsContext::open(&fs.fs_type).in_child("open file system", &fs.fs_type)?;
    let named = |step, subject: &str, errno| context.refused(step, subject, errno);
    let source = if fs.source.is_empty() { &fs.fs_type } else { &fs.source };
    context.set_string("source", source).map_err(|errno| named("set mount source", source, errno))?;
    for option in &fs.options {
        let set = match option.flag {
            true => context.set_flag(&option.key),
            false => context.set_string(&option.key, &option.value),
        };
        set.map_err(|errno| named("set mount option", &format!("{}: {}", fs.fs_type, option.key), errno))?;
    }
    context.mount(flags_of(attrs)).map_err(|errno| named("mount", target, errno))
}

/// cgroup v1: a tmpfs with one directory for each controller.
fn make_views(root: Root<'_>, target: &str, attrs: &MountAttrs, views: &[(String, OwnedFd)]) -> Result<(), Failure> {
    let context = FsContext::open("tmpfs").in_child("open file system", "tmpfs")?;
    context.set_string("mode", "755").in_child("set tmpfs option", "mode")?;
    let flags = flags_of(attrs);
    let tmpfs = context.mount(flags.difference(MountAttrFlags::MOUNT_ATTR_RDONLY)).in_child("mount tmpfs", target)?;
    attach(root, &tmpfs, target)?;
    for (name, tree) in views {
        restrict(tree, flags, attrs, Propagation::Private).in_child("set mount attributes", name)?;
        rustix::fs::mkdirat(&tmpfs, &**name, Mode::from_raw_mode(0o755)).in_child("make cgroup directory", name)?;
        move_mount(tree, "", &tmpfs, &**name, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
            .in_child("attach cgroup", name)?;
    }
    let read_only = flags.intersection(MountAttrFlags::MOUNT_ATTR_RDONLY);
    change(&tmpfs, Change { set: read_only, ..Change::default() }).in_child("make read-only", target)
}

/// Gives a detached tree its attributes: the plain ones on its top mount, as bind mounts have always had it, the recursive
/// ones and the propagation on all.
fn restrict(tree: &OwnedFd, set: MountAttrFlags, wanted: &MountAttrs, travels: Propagation) -> Result<(), Errno> {
    let clear = match wanted.atime() {
        Atime::Default => MountAttrFlags::empty(),
        _ => MountAttrFlags::MOUNT_ATTR__ATIME,
    };
    let top = Change { set, clear, ..Change::default() };
    if !top.is_empty() {
        change(tree, top)?;
    }
    let read_only = if wanted.recursive_readonly { MountAttrFlags::MOUNT_ATTR_RDONLY } else { MountAttrFlags::empty() };
    change(tree, Change { set: read_only, propagation: propagation_of(travels), recursive: true, ..Change::default() })
}

fn propagation_of(propagation: Propagation) -> MountPropagationFlags {
    match propagation {
        Propagation::Private => MountPropagationFlags::PRIVATE,
        Propagation::Slave => MountPropagationFlags::DOWNSTREAM,
        Propagation::Shared => MountPropagationFlags::SHARED,
    }
}

fn flags_of(attrs: &MountAttrs) -> MountAttrFlags {
    let mut flags = match attrs.atime() {
        Atime::Default | Atime::Relatime => MountAttrFlags::empty(),
        Atime::Noatime => MountAttrFlags::MOUNT_ATTR_NOATIME,
        Atime::Strict => MountAttrFlags::MOUNT_ATTR_STRICTATIME,
    };
    flags.set(MountAttrFlags::MOUNT_ATTR_RDONLY, attrs.readonly || attrs.recursive_readonly);
    flags.set(MountAttrFlags::MOUNT_ATTR_NOSUID, attrs.nosuid);
    flags.set(MountAttrFlags::MOUNT_ATTR_NODEV, attrs.nodev);
    flags.set(MountAttrFlags::MOUNT_ATTR_NOEXEC, attrs.noexec);
    flags.set(MountAttrFlags::MOUNT_ATTR_NOSYMFOLLOW, attrs.nosymfollow);
    flags
}
