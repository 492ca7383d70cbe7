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

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use podwright_plan::wire::{Cause, ContainerPlan, Process, Rootfs};
use podwright_sys::clone::Fork;
use podwright_sys::mount::{Change, change};
use rustix::fs::Mode;
use rustix::mount::{MountAttrFlags, MountPropagationFlags};
use rustix::process::{DumpableBehavior, set_dumpable_behavior};

use crate::console::{self, Console};
use crate::failure::{Failure, Named};
use crate::inroot::{Kind, Root};
use crate::masks::Masks;
use crate::namespaces::{Namespaces, PidNamespace};
use crate::pod;
use crate::program::{self, Program};
use crate::shared_mounts::SharedMounts;
use crate::sources::{self, Source};
use crate::standalone::{Phase, Standalone};
use crate::start::tell;
use crate::status::Reporter;
use crate::streams::Streams;
use crate::time_namespace::Offsets;
use crate::user_namespace::{self, UserNamespace};
use crate::{attributes, cgroup, devices, hooks, mounts, pid_namespace, rootfs, sysctl};

/// All that the forked process works from.
pub(crate) struct Init<'a> {
    /// What its pod's containers share.
    pub(crate) shared: Option<&'a SharedMounts>,
    pub(crate) namespaces: Namespaces,
    pub(crate) plan: &'a ContainerPlan,
    pub(crate) process: &'a Process,
    pub(crate) rootfs: &'a Rootfs,
    pub(crate) program: Program,
    pub(crate) streams: Streams,
    pub(crate) reporter: Reporter,
    /// For a container outside of a pod.
    pub(crate) standalone: Option<Standalone<'a>>,
}

/// What the process has when it leaves the host's namespaces.
#[derive(Default)]
struct Begun {
    /// `None`: only the container's own process may open anything.
    opened: Option<Opened>,
}

/// Mounts that are copies of the host's.
struct Opened {
    sources: Vec<Source>,
    root: Option<OwnedFd>,
}

impl Begun {
    fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let opened = self.opened.iter();
        opened.flat_map(|it| it.sources.iter().flat_map(Source::descriptors).chain(it.root.iter().map(AsFd::as_fd)))
    }
}

impl Init<'_> {
    /// What the forked process needs to keep.
    pub(crate) fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let shared = self.shared.iter().flat_map(|shared| shared.descriptors());
        let door = self.standalone.iter().map(|standalone| standalone.door.as_fd());
        let own = self.streams.descriptors().chain(self.namespaces.descriptors());
        own.chain(shared).chain(door).chain([self.reporter.as_fd()])
    }

    /// Runs every step; returns only after one has failed and was told of, with the process's exit code, or once another
    /// process has taken this one's place.
    pub(crate) fn run(&self) -> i32 {
        match self.begin() {
            Ok(begun) if self.namespaces.takes_two_steps() => self.hand_on(&begun),
            Ok(begun) => self.finish(&begun),
            Err(failure) => tell(&self.reporter, failure),
        }
    }

    /// All that wants the host's privileges.
    fn begin(&self) -> Result<Begun, Failure> {
        if self.standalone.is_some() {
            self.reporter.wait_for_go()?;
        }
        self.leave_shim()?;
        if !self.is_privileged() {
            return Ok(Begun::default());
        }
        let opened = self.open()?;
        // Whoever owns them: a root of the host may enter them, one of another user namespace only its own.
        self.namespaces.join()?;
        Ok(Begun { opened: Some(opened) })
    }

    /// The pid namespace that the launcher forks into.
    pub(crate) fn first_pid(&self) -> PidNamespace<'_> {
        match self.namespaces.pid() {
            // It belongs to the user namespace that its maker is in.
            PidNamespace::New if self.namespaces.takes_two_steps() => PidNamespace::Inherited,
            PidNamespace::Of(_) if !self.is_privileged() => PidNamespace::Inherited,
            pid => pid,
        }
    }

    /// Without the host's root, nothing is permitted before the container's user namespace is entered.
    fn is_privileged(&self) -> bool {
        rustix::process::geteuid().is_root() || self.namespaces.user().is_none()
    }

    fn open(&self) -> Result<Opened, Failure> {
        Ok(Opened { sources: sources::open_all(self.shared, self.plan)?, root: rootfs::open(self.rootfs)? })
    }

    /// Enters the user namespace, and has a new process go on there.
    fn hand_on(&self, begun: &Begun) -> i32 {
        let pidfd = self.fork_init(begun);
        match pidfd.and_then(|pidfd| self.reporter.init(pidfd.as_fd()).in_child("report", "init")) {
            Ok(()) => 0,
            Err(failure) => tell(&self.reporter, failure),
        }
    }

    fn fork_init(&self, begun: &Begun) -> Result<OwnedFd, Failure> {
        let offsets = self.namespaces.has_new_time().then(Offsets::open).transpose()?;
        // What is in a user namespace that is joined must not trace this process. Not earlier: then the file above would be
        // root's.
        set_dumpable_behavior(DumpableBehavior::NotDumpable).in_child("become non-dumpable", "")?;
        self.namespaces.user().map_or(Ok(()), UserNamespace::enter)?;
        offsets.map_or(Ok(()), |offsets| offsets.unshare(&self.plan.time_offsets))?;
        let mut keep: Vec<_> = self.descriptors().collect();
        keep.extend(begun.descriptors());
        let fork = Fork { sibling: true, keep: &keep, keep_first: self.process.preserve_fds, ..Fork::default() };
        let pid = match self.namespaces.pid() {
            // The launcher has forked into it.
            PidNamespace::Of(_) if self.is_privileged() => PidNamespace::Inherited,
            pid => pid,
        };
        pid_namespace::fork(pid, &fork, "", || self.finish(begun)).map(|child| child.pidfd)
    }

    fn become_program(&self, reporter: &Reporter) -> i32 {
        tell(reporter, program::run(self.process, &self.program, reporter))
    }

    /// The way from the container's own process to the user's program.
    fn finish(&self, begun: &Begun) -> i32 {
        match (self.set_up(begun), &self.standalone) {
            (Err(failure), _) => tell(&self.reporter, failure),
            (Ok(()), None) => self.become_program(&self.reporter),
            (Ok(()), Some(standalone)) => self.wait_for_start(standalone),
        }
    }

    fn set_up(&self, begun: &Begun) -> Result<(), Failure> {
        // Its own session: signals to the launcher's process group are not for it, and a terminal can become its own.
        rustix::process::setsid().in_child("start a session", "")?;
        let here;
        let opened = match &begun.opened {
            Some(opened) => {
                self.isolate()?;
                opened
            }
            None => {
                self.namespaces.join()?;
                self.isolate()?;
                here = self.open()?;
                &here
            }
        };
        let root = rootfs::assemble(self.rootfs, opened.root.as_ref())?;
        let console = self.furnish(&root, &opened.sources)?;
        self.standalone.as_ref().map_or(Ok(()), |standalone| self.show_environment(standalone))?;
        self.close_up(&root)?;
        rootfs::pivot(&root).in_child("pivot_root", "/")?;
        self.finish_root(&root)?;
        console.map_or(Ok(()), Console::take)
    }

    /// What is done by files of the host.
    fn leave_shim(&self) -> Result<(), Failure> {
        self.streams.install(user_namespace::outside(&self.plan.uid_maps, uid(self.process)))?;
        // The limits hold for the set-up already. v2 is joined by the fork.
        let group = self.plan.cgroup.iter();
        group.flat_map(|group| &group.join).try_for_each(|dir| cgroup::join(Path::new(dir), Cause::LaunchFailed))?;
        attributes::bind_after_join(self.process)?;
        if let Some(score) = self.process.oom_score_adj {
            pod::adjust_oom_score(score).in_child("set oom_score_adj", score)?;
        }
        program::label(self.process)?;
        // Modes of what is made in the root are as written.
        rustix::process::umask(Mode::empty());
        Ok(())
    }

    /// Enters the container's namespaces. The pid namespace came with the fork, the pod's with the shim.
    fn isolate(&self) -> Result<(), Failure> {
        self.namespaces.unshare()?;
        if !self.plan.hostname.is_empty() {
            nix::unistd::sethostname(&self.plan.hostname).in_child("set hostname", &self.plan.hostname)?;
        }
        if !self.plan.domainname.is_empty() {
            rustix::system::setdomainname(self.plan.domainname.as_bytes())
                .in_child("set domainname", &self.plan.domainname)?;
        }
        // Nothing that is mounted or unmounted from here on reaches the host, and pivot_root wants no shared parent.
        rootfs::propagate(MountPropagationFlags::DOWNSTREAM).in_child("make mounts receive only", "/")
    }

    /// Gives hooks their turn, of the launcher and of the container, while paths are still the host's.
    fn show_environment(&self, standalone: &Standalone<'_>) -> Result<(), Failure> {
        self.reporter.environment().in_child("report", "environment")?;
        self.reporter.wait_for_go()?;
        let Some(hooks) = &self.plan.hooks else { return Ok(()) };
        hooks::run("createContainer", &hooks.create_container, &|| {
            (standalone.state)(Phase::Creating, std::process::id())
        })
    }

    /// Tells the creator that all is done, waits for the one who starts the program, and reports to them from then on.
    fn wait_for_start(&self, standalone: &Standalone<'_>) -> i32 {
        let created = self.reporter.created().in_child("report", "created");
        let starter = match created.and_then(|()| standalone.door.wait()) {
            Ok(starter) => starter,
            Err(failure) => return tell(&self.reporter, failure),
        };
        match self.start_hooks(standalone) {
            Ok(()) => self.become_program(&starter),
            Err(failure) => tell(&starter, failure),
        }
    }

    fn start_hooks(&self, standalone: &Standalone<'_>) -> Result<(), Failure> {
        let Some(hooks) = &self.plan.hooks else { return Ok(()) };
        hooks::run("startContainer", &hooks.start_container, &|| (standalone.state)(Phase::Created, std::process::id()))
    }

    /// Mounts and makes all that is inside the root.
    fn furnish(&self, root: &OwnedFd, sources: &[Source]) -> Result<Option<Console>, Failure> {
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
        sysctl::write_all(&self.plan.sysctls, self.namespaces.own(), Cause::LaunchFailed)?;
        // A read-only copy taken after the masks keeps them; the other way round it would be below them.
        let masks = Masks { root: Root::new(root), plan: self.plan };
        masks.make_read_only()?;
        masks.mask()
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
