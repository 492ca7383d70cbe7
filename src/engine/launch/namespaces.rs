//! A container's namespaces: which it has to itself, which it joins by path, which it inherits.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::sched::CloneFlags;
use podwright_plan::wire::{ContainerPlan, Namespace, NamespaceKind};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::failure::{Failure, Named};
use crate::sysctl::Own;
use crate::time_namespace::CLONE_NEWTIME;
use crate::user_namespace::UserNamespace;

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
    user: Option<UserNamespace>,
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
        Self { new, joined: Vec::new(), pid: None, user: None, own: Own { uts: pod.uts || uts, ..pod } }
    }

    /// Those that a plan lists; the ones to join are opened, and a new user namespace is made.
    pub(crate) fn listed(plan: &ContainerPlan) -> Result<Self, Failure> {
        let listed = |kind: NamespaceKind| plan.namespaces.iter().any(|it| it.kind() == kind);
        let own = Own {
            network: listed(NamespaceKind::Network),
            ipc: listed(NamespaceKind::Ipc),
            uts: listed(NamespaceKind::Uts),
        };
        let mut namespaces = Self { new: CloneFlags::empty(), joined: Vec::new(), pid: None, user: None, own };
        for namespace in &plan.namespaces {
            if namespace.path.is_empty() {
                namespaces.new |= flag_of(namespace.kind());
                continue;
            }
            let joined = Joined::open(namespace)?;
            match joined.kind {
                LinkNameSpaceType::ProcessID => namespaces.pid = Some(joined),
                LinkNameSpaceType::User => {
                    namespaces.user = Some(UserNamespace::joined(joined.namespace, &joined.path))
                }
                _ => namespaces.joined.push(joined),
            }
        }
        if namespaces.new.contains(CloneFlags::CLONE_NEWUSER) {
            namespaces.new -= CloneFlags::CLONE_NEWUSER;
            namespaces.user = Some(UserNamespace::make(&plan.uid_maps, &plan.gid_maps)?);
        }
        // Afterwards paths are another namespace's.
        namespaces.joined.sort_by_key(|joined| joined.kind == LinkNameSpaceType::Mount);
        Ok(namespaces)
    }

    /// Whether the container's process takes a second fork: a new pid namespace belongs to the user namespace that its
    /// maker is in, and a new time namespace is for children alone.
    pub(crate) fn takes_two_steps(&self) -> bool {
        self.user.is_some() || self.has_new_time()
    }

    /// The user namespace to enter.
    pub(crate) fn user(&self) -> Option<&UserNamespace> {
        self.user.as_ref()
    }

    /// Whether there is to be a new time namespace.
    pub(crate) fn has_new_time(&self) -> bool {
        self.new.contains(CLONE_NEWTIME)
    }

    /// The pid namespace of the container.
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
        let user = self.user.iter().map(AsFd::as_fd);
        self.joined.iter().chain(&self.pid).map(|joined| joined.namespace.as_fd()).chain(user)
    }

    /// Joins those that are there already.
    pub(crate) fn join(&self) -> Result<(), Failure> {
        for joined in &self.joined {
            move_into_link_name_space(joined.namespace.as_fd(), Some(joined.kind))
                .in_child("join namespace", &joined.path)?;
        }
        Ok(())
    }

    /// Leaves the caller's for new ones. The cgroups were joined before: where a process is becomes its cgroup namespace's
    /// root.
    pub(crate) fn unshare(&self) -> Result<(), Failure> {
        let new = self.new - CloneFlags::CLONE_NEWPID - CLONE_NEWTIME;
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
        NamespaceKind::Time => CLONE_NEWTIME,
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
