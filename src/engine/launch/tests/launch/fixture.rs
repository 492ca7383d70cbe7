//! A pod of the calling process with a busybox image, plans to start from, and the run of a process to its end.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use podwright_launch::{Facts, Failure, Pending, Pod, Stdio, Target, cgroup};
use podwright_plan::wire::{
    BindMount, CgroupDir, CgroupMount, CgroupPlan, CgroupView, CgroupWrite, ContainerPlan, Device, DeviceKind,
    ExecPlan, FsMount, FsOption, Mount, MountAttrs, NamespaceMode, PodPlan, Process, Propagation, Rootfs, ShmMount,
    Symlink, User, mount,
};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::{Pid, WaitOptions, waitpid};

/// Debian's static build.
const BUSYBOX: &str = "/bin/busybox";
const PROGRAMS: [&str; 32] = [
    "awk", "cat", "chmod", "cut", "df", "dd", "echo", "env", "false", "grep", "head", "hostname", "id", "ifconfig",
    "ionice", "kill", "ls", "mkdir", "mknod", "mount", "ps", "pwd", "readlink", "sh", "sleep", "stat", "stty", "test",
    "touch", "tty", "uname", "wc",
];
/// Hierarchies of a v1 or hybrid host that test containers are placed in.
const V1: [&str; 4] = ["memory", "pids", "cpu", "freezer"];
const CGROUPS: &str = "/sys/fs/cgroup";

/// A pod that was set up in the calling process.
pub(crate) struct Fixture {
    pub(crate) pod: Pod,
    pub(crate) dir: tempfile::TempDir,
    mounts_before: BTreeSet<String>,
}

/// How a process ended, and what it wrote.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Fixture {
    pub(crate) fn new() -> Self {
        Self::with(|_| {})
    }

    /// A pod from a plan that was changed.
    pub(crate) fn with(change: impl FnOnce(&mut PodPlan)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().join("layers/base/bin");
        std::fs::create_dir_all(&base).unwrap();
        std::fs::copy(BUSYBOX, base.join("busybox")).expect("busybox-static is installed");
        PROGRAMS.iter().for_each(|program| symlink("busybox", base.join(program)).unwrap());
        std::fs::create_dir_all(dir.path().join("layers/top/etc")).unwrap();
        std::fs::write(dir.path().join("layers/top/etc/layer"), "top").unwrap();
        std::fs::create_dir_all(dir.path().join("layers/base/etc")).unwrap();
        std::fs::write(dir.path().join("layers/base/etc/layer"), "base").unwrap();
        let mut plan = PodPlan {
            pod_id: "pod".into(),
            hostname: "thepod".into(),
            shm_size: 1 << 20,
            cgroup: Some(group("pod")),
            ..PodPlan::default()
        };
        change(&mut plan);
        let mounts_before = mounts();
        let pod = Pod::set_up(&plan).unwrap();
        Self { pod, dir, mounts_before }
    }

    /// A directory that exists.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::create_dir_all(&path).unwrap();
        path
    }

    /// A container that runs a shell script the way the daemon would have it.
    pub(crate) fn plan(&self, id: &str, script: &str) -> ContainerPlan {
        let writable = self.path(&format!("writable-{id}"));
        std::fs::create_dir_all(writable.join("upper")).unwrap();
        std::fs::create_dir_all(writable.join("work")).unwrap();
        ContainerPlan {
            id: id.into(),
            cgroup_namespace: true,
            rootfs: Some(Rootfs {
                layers_dir: self.path("layers").to_str().unwrap().into(),
                lower: vec!["top".into(), "base".into()],
                writable_dir: writable.to_str().unwrap().into(),
                ..Rootfs::default()
            }),
            mounts: standard_mounts(id),
            devices: vec![device("/dev/null", 1, 3), device("/dev/zero", 1, 5), device("/dev/tty", 5, 0)],
            symlinks: vec![
                link("/proc/self/fd", "/dev/fd"),
                link("/proc/self/fd/1", "/dev/stdout"),
                link("pts/ptmx", "/dev/ptmx"),
            ],
            masked_paths: vec!["/proc/kcore".into(), "/proc/acpi".into(), "/sys/firmware".into(), "/no/such".into()],
            readonly_paths: vec!["/proc/sys".into(), "/proc/bus".into(), "/no/such".into()],
            cgroup: Some(group(id)),
            process: Some(process(script)),
            ..ContainerPlan::default()
        }
    }

    /// Starts a container and waits until its program runs.
    pub(crate) fn start(&self, plan: &ContainerPlan) -> Result<Running, Failure> {
        let pending = podwright_launch::start(&self.pod, plan)?;
        let facts = Facts::of(plan);
        settle(pending, facts).inspect_err(|_| remove_groups(&Facts::of(plan)))
    }

    /// Runs a container to its end and cleans up after it.
    pub(crate) fn run(&self, plan: &ContainerPlan) -> Ended {
        self.start(plan).unwrap().end()
    }

    /// The failure of a container that does not start.
    pub(crate) fn fail(&self, plan: &ContainerPlan) -> Failure {
        match self.start(plan) {
            Ok(running) => panic!("it started: {:?}", running.end()),
            Err(failure) => failure,
        }
    }

    /// Checks that nothing is left of what the case did. The pod's own cgroup goes with this process.
    pub(crate) fn finish(self) {
        self.pod.kill_reaper().unwrap();
        while let Ok(Some(_)) = rustix::process::wait(WaitOptions::empty()) {}
        let own = self.dir.path().to_str().unwrap();
        let new: Vec<_> = mounts().difference(&self.mounts_before).cloned().collect();
        assert!(new.is_empty(), "mounts are left: {new:?} ({own})");
    }

    /// Checks that the host's mount table shows nothing new.
    pub(crate) fn assert_no_mounts(&self) {
        let new: Vec<_> = mounts().difference(&self.mounts_before).cloned().collect();
        assert!(new.is_empty(), "mounts in the host's namespace: {new:?}");
    }
}

/// A container or exec whose program runs.
pub(crate) struct Running {
    pub(crate) pid: u32,
    pub(crate) pidfd: OwnedFd,
    pub(crate) stdio: Stdio,
    pub(crate) facts: Facts,
}

impl Running {
    pub(crate) fn target(&self) -> Target<'_> {
        Target { pidfd: self.pidfd.as_fd(), facts: &self.facts }
    }

    /// Waits for the end of output and of the process, and removes the cgroups.
    pub(crate) fn end(mut self) -> Ended {
        let (stdout, stderr) = match std::mem::replace(&mut self.stdio, Stdio::Passed) {
            Stdio::Pipes { stdin, stdout, stderr } => {
                drop(stdin);
                (read_all(&stdout), read_all(&stderr))
            }
            Stdio::Console(master) => (read_all(&master), String::new()),
            Stdio::Passed => (String::new(), String::new()),
            Stdio::AwaitsConsole => panic!("the console never came"),
        };
        let code = reap(self.pid);
        remove_groups(&self.facts);
        Ended { code, stdout, stderr }
    }

    /// Kills every process of the container and removes its cgroups.
    pub(crate) fn kill(self) -> Ended {
        cgroup::kill(self.facts.kill_dir().unwrap()).unwrap();
        self.end()
    }
}

/// Waits for the outcome of a launch; a process that did not make it is reaped.
pub(crate) fn settle(mut pending: Pending, facts: Facts) -> Result<Running, Failure> {
    loop {
        if let Some(outcome) = pending.outcome() {
            if let Err(failure) = outcome {
                reap(pending.pid);
                return Err(failure);
            }
            let stdio = pending.take_stdio();
            return Ok(Running { pid: pending.pid, pidfd: pending.pidfd, stdio, facts });
        }
        wait_readable(&pending.status());
    }
}

/// Waits until something can be read.
pub(crate) fn wait_readable(fd: &impl AsFd) {
    poll(&mut [PollFd::new(fd, PollFlags::IN)], None).unwrap();
}

/// Reads to the end, of a pipe or of a terminal that was hung up.
pub(crate) fn read_all(fd: &OwnedFd) -> String {
    let mut bytes = Vec::new();
    let mut part = [0; 4096];
    loop {
        match rustix::io::read(fd, &mut part) {
            Ok(0) | Err(Errno::IO) => return String::from_utf8(bytes).unwrap(),
            Ok(length) => bytes.extend_from_slice(&part[..length]),
            Err(Errno::AGAIN) => wait_readable(fd),
            Err(errno) => panic!("read: {errno}"),
        }
    }
}

/// The exit code of a child, 128 and the signal when it was killed.
pub(crate) fn reap(pid: u32) -> i32 {
    let pid = Pid::from_raw(i32::try_from(pid).unwrap());
    let (_, status) = waitpid(pid, WaitOptions::empty()).unwrap().unwrap();
    status.exit_status().unwrap_or_else(|| 128 + status.terminating_signal().unwrap())
}

/// Removes a container's cgroups, which must be empty.
pub(crate) fn remove_groups(facts: &Facts) {
    facts.cgroup_dirs().iter().rev().for_each(|dir| cgroup::remove(dir).unwrap());
    let left: Vec<_> = facts.cgroup_dirs().into_iter().filter(|dir| dir.exists()).collect();
    assert!(left.is_empty(), "cgroups are left: {left:?}");
}

/// Removes what was a pod's own; the process was the last one in there, unless its case failed. Says whether nothing is
/// left.
pub(crate) fn sweep(id: u32, passed: bool) -> bool {
    let tops = hierarchies().into_iter().map(|hierarchy| hierarchy.join(format!("podwright-launch-{id}")));
    tops.fold(true, |clean, dir| {
        let ended = if passed { Ok(()) } else { cgroup::kill(&dir) };
        match ended.and_then(|()| cgroup::remove(&dir)) {
            Ok(()) => clean,
            Err(errno) => {
                println!("{} is left: {errno}", dir.display());
                false
            }
        }
    })
}

/// Where the v2 tree is.
pub(crate) fn unified() -> PathBuf {
    if has_v1() { Path::new(CGROUPS).join("unified") } else { PathBuf::from(CGROUPS) }
}

/// Whether controllers are on v1 hierarchies.
pub(crate) fn has_v1() -> bool {
    Path::new(CGROUPS).join("memory/memory.limit_in_bytes").exists()
}

fn hierarchies() -> Vec<PathBuf> {
    let v1 = V1.iter().filter(|_| has_v1()).map(|name| Path::new(CGROUPS).join(name));
    v1.chain([unified()]).collect()
}

/// The cgroups of a container of this process's pod, in every hierarchy.
pub(crate) fn group(id: &str) -> CgroupPlan {
    let top = format!("podwright-launch-{}", std::process::id());
    let dir = |hierarchy: &Path, name: &str| hierarchy.join(&top).join(name).to_str().unwrap().to_owned();
    let hierarchies = hierarchies();
    let made = |path: String| CgroupDir { path, writes: Vec::new() };
    // The pod's directory is made by its own plan.
    let parents = hierarchies.iter().filter(|_| id == "pod").map(|hierarchy| {
        let path = hierarchy.join(&top).to_str().unwrap().to_owned();
        // v2 alone has controllers to give, and only to children.
        let file = "cgroup.subtree_control".into();
        let enable = CgroupWrite { file, value: "+memory".into(), lenient: has_v1(), ..CgroupWrite::default() };
        let writes = if *hierarchy == self::unified() { vec![enable] } else { Vec::new() };
        CgroupDir { path, writes }
    });
    let own = hierarchies.iter().map(|hierarchy| made(dir(hierarchy, id)));
    let unified = dir(&unified(), id);
    let exec_parent = if has_v1() { dir(&Path::new(CGROUPS).join("freezer"), id) } else { unified.clone() };
    CgroupPlan {
        dirs: parents.chain(own).collect(),
        join: V1.iter().filter(|_| has_v1()).map(|name| dir(&Path::new(CGROUPS).join(name), id)).collect(),
        unified,
        exec_parent,
        ..CgroupPlan::default()
    }
}

/// What a v1 host shows a container of its cgroups.
fn views(id: &str) -> Vec<CgroupView> {
    let view = |name: &&str, source: &String| CgroupView { name: (*name).into(), source: source.clone() };
    V1.iter().zip(&group(id).join).map(|(name, source)| view(name, source)).collect()
}

/// The default capabilities of a container, as everyone has them.
pub(crate) const DEFAULT_CAPABILITIES: u64 = 0xa804_25fb;

/// A shell script as root.
pub(crate) fn process(script: &str) -> Process {
    let set = DEFAULT_CAPABILITIES;
    Process {
        args: ["sh", "-c", script].map(|arg| arg.as_bytes().to_vec()).to_vec(),
        env: vec![b"PATH=/bin".to_vec()],
        cwd: "/".into(),
        user: Some(User::default()),
        capabilities: Some(podwright_plan::wire::Capabilities {
            bounding: set,
            effective: set,
            permitted: set,
            ..Default::default()
        }),
        no_new_privileges: true,
        ..Process::default()
    }
}

/// A shell script in a running container.
pub(crate) fn exec_plan(id: &str, script: &str) -> ExecPlan {
    ExecPlan { exec_id: id.into(), process: Some(process(script)), ..ExecPlan::default() }
}

fn standard_mounts(id: &str) -> Vec<Mount> {
    let safe = MountAttrs { nosuid: true, nodev: true, noexec: true, ..MountAttrs::default() };
    let read_only = MountAttrs { readonly: true, ..safe };
    let value = |key: &str, value: &str| FsOption { key: key.into(), value: value.into(), flag: false };
    let fs = |fs_type: &str, options: Vec<FsOption>| {
        mount::Kind::Fs(FsMount { fs_type: fs_type.into(), options, source: String::new() })
    };
    let at = |kind: mount::Kind, target: &str, attrs: MountAttrs| Mount {
        kind: Some(kind),
        target: target.into(),
        attrs: Some(attrs),
        propagation: Propagation::Private.into(),
    };
    let dev = MountAttrs { nosuid: true, atime: 2, ..MountAttrs::default() };
    vec![
        at(fs("proc", vec![]), "/proc", safe),
        at(fs("tmpfs", vec![value("mode", "755"), value("size", "65536k")]), "/dev", dev),
        at(
            fs("devpts", vec![value("ptmxmode", "0666"), value("mode", "0620"), value("gid", "5")]),
            "/dev/pts",
            MountAttrs { nodev: false, ..safe },
        ),
        at(mount::Kind::Shm(ShmMount {}), "/dev/shm", safe),
        at(fs("mqueue", vec![]), "/dev/mqueue", safe),
        at(fs("sysfs", vec![]), "/sys", read_only),
        at(mount::Kind::Cgroup(CgroupMount { views: views(id) }), "/sys/fs/cgroup", read_only),
    ]
}

/// A private, recursive bind.
pub(crate) fn bind(source: &Path, target: &str) -> Mount {
    Mount {
        kind: Some(mount::Kind::Bind(BindMount { source: source.to_str().unwrap().into(), recursive: true })),
        target: target.into(),
        ..Mount::default()
    }
}

fn device(path: &str, major: u32, minor: u32) -> Device {
    Device { path: path.into(), kind: DeviceKind::DeviceChar.into(), major, minor, mode: 0o666, uid: 0, gid: 0 }
}

fn link(target: &str, path: &str) -> Symlink {
    Symlink { target: target.into(), path: path.into() }
}

/// The mounts of this process's namespace; other programs' network namespaces come and go there.
fn mounts() -> BTreeSet<String> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    table.lines().filter(|line| !line.contains(" - nsfs ")).map(str::to_owned).collect()
}

/// Shares the pod's pid namespace.
pub(crate) fn shared(mut plan: ContainerPlan) -> ContainerPlan {
    plan.pid = NamespaceMode::NamespacePod.into();
    plan
}
