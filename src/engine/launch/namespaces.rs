//! A container's namespaces: which it has to itself, which it joins by path, which it inherits.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::sched::CloneFlags;
use podwright_plan::wire::{ContainerPlan, Namespace, NamespaceKind};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::failure::{Failure, Named};
use crate::sysctl::Own;

/// The pid namespace that a process is forked into.
#[derive(Debug, Clone, Copy)]
pub(crate) enum PidNamespace<'a> {
    /// The caller's own.
    Inherited,
    /// A new one.
    New,
    /// That of the process behind a pidfd, or that a namespace descriptor refers to.
    Of(BorrowedFd<'a>),
}

/// What the container's process does on its own; its pid namespace comes with the fork.
#[derive(Debug)]
pub(crate) struct Namespaces {
    new: CloneFlags,
    joined: Vec<Joined>,
    pid: Option<Joined>,
    own: Own,
}

/// One that is there already.
#[derive(Debug)]
struct Joined {
    kind: LinkNameSpaceType,
    path: String,
    namespace: OwnedFd,
}

impl Namespaces {
    /// Those of a container of a pod, whose network, IPC and UTS namespaces the shim is in.
    pub(crate) fn in_pod(plan: &ContainerPlan, pod: Own) -> Self {
        let uts = !plan.hostname.is_empty();
        let mut new = CloneFlags::CLONE_NEWNS;
        new.set(CloneFlags::CLONE_NEWCGROUP, plan.cgroup_namespace);
        new.set(CloneFlags::CLONE_NEWUTS, uts);
        Self { new, joined: Vec::new(), pid: None, own: Own { uts: pod.uts || uts, ..pod } }
    }

    /// Those that a plan lists; the ones to join are opened.
    pub(crate) fn listed(plan: &ContainerPlan) -> Result<Self, Failure> {
        let listed = |kind: NamespaceKind| plan.namespaces.iter().any(|it| it.kind() == kind);
        let own = Own {
            network: listed(NamespaceKind::Network),
            ipc: listed(NamespaceKind::Ipc),
            uts: listed(NamespaceKind::Uts),
        };
        let mut namespaces = Self { new: CloneFlags::empty(), joined: Vec::new(), pid: None, own };
        for namespace in &plan.namespaces {
            if namespace.path.is_empty() {
                namespaces.new |= flag_of(namespace.kind());
                continue;
            }
            let joined = Joined::open(namespace)?;
            match joined.kind {
                LinkNameSpaceType::ProcessID => namespaces.pid = Some(joined),
                _ => namespaces.joined.push(joined),
            }
        }
        // Afterwards paths are another namespace's.
        namespaces.joined.sort_by_key(|joined| joined.kind == LinkNameSpaceType::Mount);
        Ok(namespaces)
    }

    /// The pid namespace to fork into.
    pub(crate) fn pid(&self) -> PidNamespace<'_> {
        match &self.pid {
            Some(joined) => PidNamespace::Of(joined.namespace.as_fd()),
            None if self.new.contains(CloneFlags::CLONE_NEWPID) => PidNamespace::New,
            None => PidNamespace::Inherited,
        }
    }

    /// The namespaces that a parameter may be set in without a change to the host.
    pub(crate) fn own(&self) -> Own {
        self.own
    }

    /// What a forked process needs to keep.
    pub(crate) fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.joined.iter().map(|joined| joined.namespace.as_fd())
    }

    /// Moves the calling process into them. The cgroups were joined before: where a process is becomes its cgroup
    /// namespace's root.
    pub(crate) fn enter(&self) -> Result<(), Failure> {
        for joined in &self.joined {
            move_into_link_name_space(joined.namespace.as_fd(), Some(joined.kind))
                .in_child("join namespace", &joined.path)?;
        }
        let new = self.new - CloneFlags::CLONE_NEWPID;
        nix::sched::unshare(new).in_child("unshare namespaces", format!("{new:?}"))?;
        if new.contains(CloneFlags::CLONE_NEWNET) {
            podwright_sys::loopback::up().in_child("set network device up", "lo")?;
        }
        Ok(())
    }
}

impl Joined {
    fn open(namespace: &Namespace) -> Result<Self, Failure> {
        let path = namespace.path.clone();
        let opened = rustix::fs::openat(CWD, &*path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
            .in_shim("open namespace", &path)?;
        Ok(Self { kind: link_of(namespace.kind()), path, namespace: opened })
    }
}

fn flag_of(kind: NamespaceKind) -> CloneFlags {
    match kind {
        NamespaceKind::Mount => CloneFlags::CLONE_NEWNS,
        NamespaceKind::Pid => CloneFlags::CLONE_NEWPID,
        NamespaceKind::Network => CloneFlags::CLONE_NEWNET,
        NamespaceKind::Ipc => CloneFlags::CLONE_NEWIPC,
        NamespaceKind::Uts => CloneFlags::CLONE_NEWUTS,
        NamespaceKind::Cgroup => CloneFlags::CLONE_NEWCGROUP,
        NamespaceKind::User => CloneFlags::CLONE_NEWUSER,
        // CLONE_NEWTIME, which nix does not name.
        NamespaceKind::Time => CloneFlags::from_bits_retain(0x80),
    }
}

fn link_of(kind: NamespaceKind) -> LinkNameSpaceType {
    match kind {
        NamespaceKind::Mount => LinkNameSpaceType::Mount,
        NamespaceKind::Pid => LinkNameSpaceType::ProcessID,
        NamespaceKind::Network => LinkNameSpaceType::Network,
        NamespaceKind::Ipc => LinkNameSpaceType::InterProcessCommunication,
        NamespaceKind::Uts => LinkNameSpaceType::HostNameAndNISDomainName,
        NamespaceKind::Cgroup => LinkNameSpaceType::ControlGroup,
        NamespaceKind::User => LinkNameSpaceType::User,
        NamespaceKind::Time => LinkNameSpaceType::Time,
    }
}
