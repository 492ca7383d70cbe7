//! The container's init on its way from the fork to the user's program.
//!
//! The order of its steps is that of their needs:
//!
//! | while | steps |
//! |---|---|
//! | on the host | streams, cgroups, labels: their files are the host's |
//! | in the host's mount namespace | sources of mounts, so that they stay peers of the host's |
//! | in its own, above the old root | root, mounts, devices, terminal, sysctls, masks |
//! | in its root | user, capabilities, seccomp, program |

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use nix::sched::CloneFlags;
use podwright_plan::wire::{Cause, ContainerPlan, Process, Rootfs};
use podwright_sys::mount::{Change, change};
use rustix::fs::Mode;
use rustix::mount::{MountAttrFlags, MountPropagationFlags};

use crate::console::{self, Console};
use crate::failure::{Failure, Named};
use crate::inroot::{Kind, Root};
use crate::pod::{self, Pod};
use crate::program::{self, Program};
use crate::sources::{self, Source};
use crate::status::Reporter;
use crate::streams::Streams;
use crate::sysctl::{self, Own};
use crate::{cgroup, devices, masks, mounts, rootfs};

/// All that the forked process works from.
pub(crate) struct Init<'a> {
    pub(crate) pod: &'a Pod,
    pub(crate) plan: &'a ContainerPlan,
    pub(crate) process: &'a Process,
    pub(crate) rootfs: &'a Rootfs,
    pub(crate) program: Program,
    pub(crate) streams: Streams,
    pub(crate) reporter: Reporter,
}

impl Init<'_> {
    /// Runs every step; returns only with the one that failed.
    pub(crate) fn run(&self) -> Failure {
        match self.set_up() {
            Ok(()) => program::run(self.process, &self.program, &self.reporter),
            Err(failure) => failure,
        }
    }

    fn set_up(&self) -> Result<(), Failure> {
        self.leave_shim()?;
        let sources = sources::open_all(self.pod, self.plan)?;
        self.isolate()?;
        let root = rootfs::assemble(self.rootfs)?;
        let console = self.furnish(&root, sources)?;
        self.close_up(&root)?;
        rootfs::pivot(&root).in_child("pivot_root", "/")?;
        self.finish_root(&root)?;
        console.map_or(Ok(()), Console::take)
    }

    /// What is done by files of the host.
    fn leave_shim(&self) -> Result<(), Failure> {
        // Its own session: signals to the shim's process group are not for it, and a terminal can become its own.
        rustix::process::setsid().in_child("start a session", "")?;
        self.streams.install(uid(self.process))?;
        // The limits hold for the set-up already. v2 is joined by the fork.
        let group = self.plan.cgroup.iter();
        group.flat_map(|group| &group.join).try_for_each(|dir| cgroup::join(Path::new(dir), Cause::LaunchFailed))?;
        if let Some(score) = self.process.oom_score_adj {
            pod::adjust_oom_score(score).in_child("set oom_score_adj", score)?;
        }
        program::label(self.process)?;
        // Modes of what is made in the root are as written.
        rustix::process::umask(Mode::empty());
        Ok(())
    }

    /// Leaves the namespaces that a container has to itself. The pid namespace came with the fork, the pod's with the shim.
    fn isolate(&self) -> Result<(), Failure> {
        let mut flags = CloneFlags::CLONE_NEWNS;
        // After the cgroups were joined: where a process is becomes its namespace's root.
        flags.set(CloneFlags::CLONE_NEWCGROUP, self.plan.cgroup_namespace);
        flags.set(CloneFlags::CLONE_NEWUTS, self.has_own_uts());
        nix::sched::unshare(flags).in_child("unshare namespaces", format!("{flags:?}"))?;
        if self.has_own_uts() {
            nix::unistd::sethostname(&self.plan.hostname).in_child("set hostname", &self.plan.hostname)?;
        }
        // Nothing that is mounted or unmounted from here on reaches the host, and pivot_root wants no shared parent.
        rootfs::propagate(MountPropagationFlags::DOWNSTREAM).in_child("make mounts receive only", "/")
    }

    fn has_own_uts(&self) -> bool {
        !self.plan.hostname.is_empty()
    }

    /// Mounts and makes all that is inside the root.
    fn furnish(&self, root: &OwnedFd, sources: Vec<Source>) -> Result<Option<Console>, Failure> {
        let place = Root::new(root);
        self.plan.mounts.iter().zip(sources).try_for_each(|(mount, source)| mounts::make(place, mount, source))?;
        self.plan.devices.iter().try_for_each(|device| devices::make(place, device))?;
        self.plan.symlinks.iter().try_for_each(|link| devices::link(place, link))?;
        place.ensure(&self.process.cwd, Kind::Directory).in_child("make working directory", &self.process.cwd)?;
        if !self.process.terminal {
            return Ok(None);
        }
        let console = console::open(place, self.process.console_size.as_ref(), uid(self.process))?;
        console.bind(place)?;
        self.reporter.console(console.master.as_fd()).in_child("hand over terminal", "")?;
        Ok(Some(console))
    }

    /// Takes away what the container must not change, now that everything is in place.
    fn close_up(&self, root: &OwnedFd) -> Result<(), Failure> {
        let place = Root::new(root);
        let own = Own { uts: self.pod.own().uts || self.has_own_uts(), ..self.pod.own() };
        sysctl::write_all(&self.plan.sysctls, own, Cause::LaunchFailed)?;
        // A read-only copy taken after the masks keeps them; the other way round it would be below them.
        masks::make_read_only(place, &self.plan.readonly_paths)?;
        masks::mask(place, &self.plan.masked_paths)
    }

    /// Gives the root itself its attributes: pivot_root takes no shared mount.
    fn finish_root(&self, root: &OwnedFd) -> Result<(), Failure> {
        let mut last = Change::default();
        last.set.set(MountAttrFlags::MOUNT_ATTR_RDONLY, self.rootfs.readonly);
        if self.rootfs.shared_propagation {
            last.propagation = MountPropagationFlags::SHARED;
        }
        if last.is_empty() { Ok(()) } else { change(root, last).in_child("finish root file system", "/") }
    }
}

fn uid(process: &Process) -> u32 {
    process.user.as_ref().map_or(0, |user| user.uid)
}
