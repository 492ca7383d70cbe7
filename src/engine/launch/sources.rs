//! What mounts need from the host, opened while the process is still in the host's mount namespace.
//!
//! A clone made here stays a peer of the host's mount, so that later mounts travel in the directions a plan asks for; one
//! made in the container's own namespace could only ever receive. It also means that a path is the host's, whatever the
//! image looks like. This may take for ever on a dead NFS server: the process that does it is not the shim.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use podwright_plan::wire::{BindMount, CgroupView, ContainerPlan, Mount, NamespaceKind, mount};
use rustix::fs::CWD;
use rustix::mount::{OpenTreeFlags, open_tree};

use crate::failure::{Failure, Named};
use crate::shared_mounts::SharedMounts;

/// What one mount of a plan starts from.
#[derive(Debug)]
pub(crate) enum Source {
    /// A detached copy of something the host or the pod has.
    Tree(OwnedFd),
    /// A file system that is made in the container's namespaces, when its turn comes.
    Made,
    /// Directories to show side by side, by name.
    Views(Vec<(String, OwnedFd)>),
}

impl Source {
    /// What a forked process needs to keep.
    pub(crate) fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let (tree, views) = match self {
            Self::Tree(tree) => (Some(tree), &[][..]),
            Self::Made => (None, &[][..]),
            Self::Views(views) => (None, &views[..]),
        };
        tree.into_iter().chain(views.iter().map(|(_, tree)| tree)).map(AsFd::as_fd)
    }
}

/// Opens the sources of a plan's mounts, in their order.
pub(crate) fn open_all(shared: Option<&SharedMounts>, plan: &ContainerPlan) -> Result<Vec<Source>, Failure> {
    plan.mounts.iter().map(|mount| open(shared, plan, mount)).collect()
}

fn open(shared: Option<&SharedMounts>, plan: &ContainerPlan, mount: &Mount) -> Result<Source, Failure> {
    match &mount.kind {
        Some(mount::Kind::Bind(bind)) => clone_bind(bind).map(Source::Tree),
        Some(mount::Kind::Shm(_)) => match shared {
            Some(mounts) => mounts.clone_shm().map(Source::Tree),
            // The pod is in the host's IPC namespace.
            None => clone_tree(Path::new("/dev/shm"), "clone the host's shared memory", false).map(Source::Tree),
        },
        Some(mount::Kind::Cgroup(group)) => match &*group.views {
            [] if has_cgroup_namespace(plan) => Ok(Source::Made),
            // From the host's cgroup namespace it would reset the host's own mount options (nsdelegate).
            [] => Err(Failure::plan("mount", &mount.target, "cgroup2 without a cgroup namespace")),
            [CgroupView { name, source }] if name.is_empty() => {
                clone_tree(Path::new(source), "open cgroup", false).map(Source::Tree)
            }
            views => open_views(views).map(Source::Views),
        },
        Some(mount::Kind::Fs(_) | mount::Kind::Overlay(_)) => Ok(Source::Made),
        None => Err(Failure::plan("mount", &mount.target, "a mount of no kind")),
    }
}

/// A pod's container has it by a flag, one without a pod by its list.
fn has_cgroup_namespace(plan: &ContainerPlan) -> bool {
    plan.cgroup_namespace || plan.namespaces.iter().any(|it| it.kind() == NamespaceKind::Cgroup)
}

fn clone_bind(bind: &BindMount) -> Result<OwnedFd, Failure> {
    clone_tree(Path::new(&bind.source), "open bind source", bind.recursive)
}

pub(crate) fn clone_tree(path: &Path, step: &str, recursive: bool) -> Result<OwnedFd, Failure> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    flags.set(OpenTreeFlags::AT_RECURSIVE, recursive);
    open_tree(CWD, path, flags).in_child(step, path.display())
}

fn open_views(views: &[CgroupView]) -> Result<Vec<(String, OwnedFd)>, Failure> {
    let open = |view: &CgroupView| {
        if view.name.is_empty() || view.name == ".." || view.name.contains('/') {
            return Err(Failure::plan("open cgroup", &view.name, "it is not a name below the target"));
        }
        Ok((view.name.clone(), clone_tree(Path::new(&view.source), "open cgroup", false)?))
    };
    views.iter().map(open).collect()
}

/// Clones a mount that the calling process's namespace has, by a descriptor into it.
pub(crate) fn clone_place(place: impl AsFd, recursive: bool) -> Result<OwnedFd, rustix::io::Errno> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    flags.set(OpenTreeFlags::AT_RECURSIVE, recursive);
    open_tree(place, "", flags)
}
