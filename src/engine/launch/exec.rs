//! Runs another process in a running container.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use podwright_plan::wire::{Cause, ContainerPlan, ExecPlan, IdMap, NamespaceKind, NamespaceMode, Process};
use podwright_sys::clone::{Child, Fork};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use rustix::thread::{ThreadNameSpaceType, move_into_thread_name_spaces};

use crate::failure::{Failure, Named};
use crate::inroot::Root;
use crate::namespaces::PidNamespace;
use crate::pending::{Pending, Stdio};
use crate::pod;
use crate::program::{self, Program};
use crate::progress::{Progress, pid_of};
use crate::start::{open_unified, tell};
use crate::status::{self, Reporter};
use crate::streams::Streams;
use crate::{attributes, cgroup, console, pid_namespace, user_namespace};

/// What has to be remembered of a container's plan to exec into it, kill it and clean up after it.
#[derive(Debug, Clone)]
pub struct Facts {
    own_pid_namespace: bool,
    /// The others to enter, all at once.
    namespaces: ThreadNameSpaceType,
    uid_maps: Vec<IdMap>,
    unified: Option<PathBuf>,
    join: Vec<PathBuf>,
    exec_parent: Option<PathBuf>,
    memory_events: Option<PathBuf>,
}

impl Facts {
    /// Keeps the facts of a plan.
    pub fn of(plan: &ContainerPlan) -> Self {
        let group = plan.cgroup.clone().unwrap_or_default();
        let path = |path: String| (!path.is_empty()).then(|| PathBuf::from(path));
        Self {
            own_pid_namespace: plan.pid() != NamespaceMode::NamespaceHost,
            namespaces: namespaces_of(plan),
            uid_maps: plan.uid_maps.clone(),
            unified: path(group.unified),
            join: group.join.into_iter().map(PathBuf::from).collect(),
            exec_parent: path(group.exec_parent),
            memory_events: group.memory_events.and_then(|events| path(events.path)),
        }
    }

    /// The cgroup that holds every process of the container and can be killed whole; `None` when the plan names none.
    pub fn kill_dir(&self) -> Option<&Path> {
        self.exec_parent.as_deref().or(self.unified.as_deref())
    }

    /// The cgroup that holds an exec's processes, below [`Facts::kill_dir`]; removed by the caller after the exec's end.
    /// `None` when the plan names no place for it.
    pub fn exec_dir(&self, exec_id: &str) -> Option<PathBuf> {
        Some(self.exec_parent.as_ref()?.join(format!("exec-{exec_id}")))
    }

    /// The container's own cgroups, one in each hierarchy, for [`crate::cgroup::remove`]. Their parents are others' too.
    pub fn cgroup_dirs(&self) -> Vec<&Path> {
        let mut dirs: Vec<&Path> = Vec::new();
        for dir in self.join.iter().chain(&self.unified).chain(&self.exec_parent) {
            if !dirs.contains(&&**dir) {
                dirs.push(dir);
            }
        }
        dirs
    }

    /// Where the container's OOM kills are counted, for [`crate::cgroup::oom_kills`].
    pub fn memory_events(&self) -> Option<&Path> {
        self.memory_events.as_deref()
    }

    /// The v2 cgroup that an exec is cloned into.
    fn exec_unified(&self, leaf: Option<&Path>) -> Option<PathBuf> {
        if self.exec_parent == self.unified { leaf.map(Path::to_owned) } else { self.unified.clone() }
    }

    /// The v1 cgroups that an exec joins: the container's, but the leaf in the hierarchy that has it.
    fn exec_joins(&self, leaf: Option<&Path>) -> Vec<PathBuf> {
        let others = self.join.iter().filter(|dir| Some(*dir) != self.exec_parent.as_ref()).cloned();
        let leaf = leaf.filter(|_| self.exec_parent != self.unified).map(Path::to_owned);
        others.chain(leaf).collect()
    }
}

/// Which namespaces a container's process is entered by. To enter the user namespace that one is in is an error to the
/// kernel, to enter another one is none; and there may be no time namespaces.
fn namespaces_of(plan: &ContainerPlan) -> ThreadNameSpaceType {
    let listed = |kind: NamespaceKind| plan.namespaces.iter().any(|it| it.kind() == kind);
    let mut namespaces = ThreadNameSpaceType::MOUNT
        | ThreadNameSpaceType::CONTROL_GROUP
        | ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME
        | ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION
        | ThreadNameSpaceType::NETWORK;
    namespaces.set(ThreadNameSpaceType::USER, listed(NamespaceKind::User));
    namespaces.set(ThreadNameSpaceType::TIME, listed(NamespaceKind::Time));
    namespaces
}

/// A running container.
#[derive(Debug, Clone, Copy)]
pub struct Target<'a> {
    /// The container's init.
    pub pidfd: BorrowedFd<'a>,
    /// What was kept of its plan.
    pub facts: &'a Facts,
}

/// The descriptors that become an exec's standard streams; what is absent is /dev/null. Not used with a terminal.
#[derive(Debug, Default)]
pub struct ExecStdio {
    /// Becomes descriptor 0.
    pub stdin: Option<OwnedFd>,
    /// Becomes descriptor 1.
    pub stdout: Option<OwnedFd>,
    /// Becomes descriptor 2.
    pub stderr: Option<OwnedFd>,
}

/// Forks a process into the container's namespaces and a cgroup of its own ([`Facts::exec_dir`]), and returns at once.
///
/// The descriptors are closed in the calling process. With `process.terminal` the console's master comes by
/// [`Pending::stdio`].
///
/// # Errors
/// When the plan cannot be followed, the cgroup cannot be made, the container is gone (`ESRCH`), or the kernel refuses
/// the fork. No cgroup is left then.
pub fn exec(container: Target<'_>, plan: &ExecPlan, stdio: ExecStdio) -> Result<Pending, Failure> {
    let process = plan.process.as_ref().ok_or_else(|| Failure::plan("exec", "process", "missing"))?;
    if plan.exec_id.is_empty() || plan.exec_id.contains('/') {
        return Err(Failure::plan("exec", &plan.exec_id, "an exec id is a file name"));
    }
    let program = Program::of(process)?;
    let (streams, stdio) = match process.terminal {
        true => (Streams::default(), Stdio::AwaitsConsole),
        false => (Streams { stdin: stdio.stdin, stdout: stdio.stdout, stderr: stdio.stderr }, Stdio::Passed),
    };
    let (receiver, reporter) = status::pair().in_shim("make status socket", "")?;
    let leaf = container.facts.exec_dir(&plan.exec_id);
    if let Some(leaf) = &leaf {
        rustix::fs::mkdir(leaf, Mode::from_raw_mode(0o755)).in_shim("make cgroup", leaf.display())?;
    }
    let unified = container.facts.exec_unified(leaf.as_deref());
    let joins = container.facts.exec_joins(leaf.as_deref());
    let joining = Joining { container, unified, joins, process, program, streams, reporter };
    let forked = init_of(container, process).and_then(|init| Ok((joining.fork()?, init)));
    match forked {
        Ok((child, init)) => {
            Ok(Pending::new(child, stdio, receiver).with_listener(process.seccomp_listener.clone(), init))
        }
        Err(failure) => {
            // The failure is the one to tell; a directory that stays goes with the container's.
            let _ = leaf.as_deref().map(cgroup::remove);
            Err(failure)
        }
    }
}

/// The pid of the container's init, which only the listener of a system call filter is told.
fn init_of(container: Target<'_>, process: &Process) -> Result<u32, Failure> {
    if process.seccomp_listener.is_none() {
        return Ok(0);
    }
    pid_of(container.pidfd).in_shim("find the container's process", "")
}

/// Forks a process into a standalone container's namespaces and its cgroup, or one below that, and returns at once. It has
/// the calling process's standard streams, or a terminal of the container's.
///
/// The calling process has one thread and is non-dumpable from here on.
///
/// # Errors
/// When the plan cannot be followed, the container is gone (`ESRCH`), or the kernel refuses the fork.
pub fn enter(container: Target<'_>, process: &Process, below: Option<&Path>) -> Result<Progress, Failure> {
    let program = Program::of(process)?;
    let streams = match process.terminal {
        true => Streams::default(),
        false => Streams::inherited().in_shim("copy standard streams", "")?,
    };
    if rustix::process::geteuid().is_root() {
        // What is in the container must not trace the process before it has become the user's program. Without root its own
        // files of /proc would be closed to it: it does this as it enters.
        set_dumpable_behavior(DumpableBehavior::NotDumpable).in_shim("become non-dumpable", "")?;
    }
    let (receiver, reporter) = status::pair().in_shim("make status socket", "")?;
    let lower = |dir: &PathBuf| below.map_or_else(|| dir.clone(), |below| dir.join(below));
    let unified = container.facts.unified.as_ref().map(lower);
    let joins = container.facts.join.iter().map(lower).collect();
    let joining = Joining { container, unified, joins, process, program, streams, reporter };
    let init = init_of(container, process)?;
    let child = joining.fork()?;
    Ok(Progress::of_child(child, receiver).with_listener(process.seccomp_listener.clone(), init))
}

/// A process on its way into a container.
struct Joining<'a> {
    container: Target<'a>,
    /// The v2 cgroup to start in.
    unified: Option<PathBuf>,
    /// The v1 cgroups to join.
    joins: Vec<PathBuf>,
    process: &'a Process,
    program: Program,
    streams: Streams,
    reporter: Reporter,
}

impl Joining<'_> {
    fn fork(&self) -> Result<Child, Failure> {
        // Where the way into the cgroup has processors of its own, it is gone on foot: a fork into it is on the cgroup's.
        let group = self.unified.as_deref().filter(|_| self.process.cpus_initial.is_empty());
        match self.fork_into(group) {
            // A v2 cgroup with controllers for its children has no process of its own: the container has moved on below it.
            Err(failure) if failure.kernel_error() == Some(Errno::BUSY) && group.is_some() => {
                let init = pid_of(self.container.pidfd).in_shim("find the container's process", "")?;
                let lower = group.and_then(|group| cgroup::find(group, init)).ok_or(failure)?;
                self.fork_into(Some(&lower))
            }
            forked => forked,
        }
    }

    fn fork_into(&self, group: Option<&Path>) -> Result<Child, Failure> {
        let group = group.map(|group| group.display().to_string()).unwrap_or_default();
        let unified = open_unified(&group)?;
        let keep = self.descriptors();
        let fork = Fork {
            cgroup: unified.as_ref().map(AsFd::as_fd),
            keep: &keep,
            keep_first: self.process.preserve_fds,
            ..Fork::default()
        };
        // A process never changes its own pid namespace: the launcher forks into the container's, so that the child is its
        // own and needs no second fork.
        let pid_namespace = match self.container.facts.own_pid_namespace && !self.takes_two_steps() {
            true => PidNamespace::Of(self.container.pidfd),
            false => PidNamespace::Inherited,
        };
        pid_namespace::fork(pid_namespace, &fork, &group, || self.run())
    }

    fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        self.streams.descriptors().chain([self.reporter.as_fd(), self.container.pidfd]).collect()
    }

    /// Without the host's root, the pid namespace is open to who is in the user namespace that owns it.
    fn takes_two_steps(&self) -> bool {
        self.container.facts.namespaces.contains(ThreadNameSpaceType::USER) && !rustix::process::geteuid().is_root()
    }

    fn run(&self) -> i32 {
        let entered = match self.takes_two_steps() {
            true => return self.hand_on(),
            false => self.leave_host().and_then(|()| self.enter(self.container.facts.namespaces)),
        };
        self.finish(entered)
    }

    fn finish(&self, entered: Result<(), Failure>) -> i32 {
        match entered {
            Ok(()) => tell(&self.reporter, program::run(self.process, &self.program, &self.reporter)),
            Err(failure) => tell(&self.reporter, failure),
        }
    }

    /// Enters the user namespace, and has a new process go on there.
    fn hand_on(&self) -> i32 {
        let pidfd = self.leave_host().and_then(|()| self.fork_again());
        match pidfd.and_then(|pidfd| self.reporter.init(pidfd.as_fd()).in_child("report", "init")) {
            Ok(()) => 0,
            Err(failure) => tell(&self.reporter, failure),
        }
    }

    fn fork_again(&self) -> Result<OwnedFd, Failure> {
        set_dumpable_behavior(DumpableBehavior::NotDumpable).in_child("become non-dumpable", "")?;
        move_into_thread_name_spaces(self.container.pidfd, ThreadNameSpaceType::USER)
            .in_child("enter namespaces", "user")?;
        user_namespace::become_root("the container's user namespace")?;
        let keep = self.descriptors();
        let fork = Fork { sibling: true, keep: &keep, keep_first: self.process.preserve_fds, ..Fork::default() };
        let pid_namespace = match self.container.facts.own_pid_namespace {
            true => PidNamespace::Of(self.container.pidfd),
            false => PidNamespace::Inherited,
        };
        let left = self.container.facts.namespaces.difference(ThreadNameSpaceType::USER);
        pid_namespace::fork(pid_namespace, &fork, "", || self.finish(self.enter(left))).map(|child| child.pidfd)
    }

    /// What is done by files of the host, before it is out of sight.
    fn leave_host(&self) -> Result<(), Failure> {
        let user = self.process.user.as_ref().map_or(0, |user| user.uid);
        self.streams.install(user_namespace::outside(&self.container.facts.uid_maps, user))?;
        attributes::bind_before_join(self.process)?;
        let unified = self.unified.iter().filter(|_| !self.process.cpus_initial.is_empty());
        self.joins.iter().chain(unified).try_for_each(|dir| cgroup::join(dir, Cause::LaunchFailed))?;
        attributes::bind_after_join(self.process)?;
        if let Some(score) = self.process.oom_score_adj {
            pod::adjust_oom_score(score).in_child("set oom_score_adj", score)?;
        }
        program::label(self.process)
    }

    fn enter(&self, namespaces: ThreadNameSpaceType) -> Result<(), Failure> {
        // Its own session: signals to the launcher's process group are not for it, and a terminal can become its own.
        rustix::process::setsid().in_child("start a session", "")?;
        // All at once; the root directory becomes the container's with the mount namespace.
        move_into_thread_name_spaces(self.container.pidfd, namespaces).in_child("enter namespaces", "")?;
        if namespaces.contains(ThreadNameSpaceType::USER) {
            user_namespace::become_root("the container's user namespace")?;
        }
        if !self.process.terminal {
            return Ok(());
        }
        let root = rustix::fs::open("/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .in_child("open root directory", "/")?;
        let user = self.process.user.as_ref().map_or(0, |user| user.uid);
        let console = console::open(Root::new(&root), self.process.console_size.as_ref(), user)?;
        self.reporter.console(console.master.as_fd()).in_child("hand over terminal", "")?;
        console.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use podwright_plan::wire::CgroupPlan;

    fn facts(unified: &str, join: &[&str], exec_parent: &str) -> Facts {
        let join = join.iter().map(|dir| (*dir).to_owned()).collect();
        let cgroup =
            CgroupPlan { unified: unified.into(), join, exec_parent: exec_parent.into(), ..CgroupPlan::default() };
        Facts::of(&ContainerPlan { cgroup: Some(cgroup), ..ContainerPlan::default() })
    }

    #[test]
    fn an_exec_has_a_leaf_in_one_hierarchy() {
        let v2 = facts("/cg/c", &[], "/cg/c");
        let leaf = v2.exec_dir("1");
        assert_eq!(leaf.as_deref(), Some(Path::new("/cg/c/exec-1")));
        assert_eq!(v2.exec_unified(leaf.as_deref()), leaf);
        assert!(v2.exec_joins(leaf.as_deref()).is_empty());

        let hybrid = facts("/cg/unified/c", &["/cg/cpu/c", "/cg/freezer/c"], "/cg/freezer/c");
        let leaf = hybrid.exec_dir("1");
        assert_eq!(hybrid.cgroup_dirs(), ["/cg/cpu/c", "/cg/freezer/c", "/cg/unified/c"].map(Path::new));
        assert_eq!(hybrid.exec_unified(leaf.as_deref()).as_deref(), Some(Path::new("/cg/unified/c")));
        assert_eq!(hybrid.exec_joins(leaf.as_deref()), [Path::new("/cg/cpu/c"), Path::new("/cg/freezer/c/exec-1")]);
    }

    #[test]
    fn without_a_place_for_it_an_exec_joins_the_container() {
        let flat = facts("/cg/c", &[], "");
        assert_eq!(flat.exec_dir("1"), None);
        assert_eq!(flat.exec_unified(None).as_deref(), Some(Path::new("/cg/c")));
        assert_eq!(flat.kill_dir(), Some(Path::new("/cg/c")));
    }
}
