//! `create`: a container's process is made ready, up to the program, and waits for its start.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxResources, Spec};
use podwright_compile::Standalone as Given;
use podwright_launch::{Creating, Door, Phase, Progress, Stage, Standalone, hooks};
use podwright_plan::wire::ContainerPlan;
use rustix::process::{Pid, Signal, WaitOptions};

use crate::args::{Create, Globals};
use crate::console;
use crate::error::Error;
use crate::state::{Container, Home, Record, began};
use crate::{driver, net_devices, own_binary};

/// What was made.
#[derive(Debug)]
pub(crate) struct Created {
    pub(crate) container: Container,
    /// Refers to its process.
    pub(crate) pidfd: Option<OwnedFd>,
    /// The master of its terminal, where no socket was given for it.
    pub(crate) console: Option<OwnedFd>,
}

/// What there is to work from.
struct Bundle {
    specification: Vec<u8>,
    plan: ContainerPlan,
    record: Record,
}

/// Does `create`.
pub(crate) fn create(globals: &Globals, args: &Create) -> Result<(), Error> {
    own_binary::protect()?;
    make(globals, args, false).map(drop)
}

/// Makes a container; with `foreground` its terminal may be the caller's to serve.
pub(crate) fn make(globals: &Globals, args: &Create, foreground: bool) -> Result<Created, Error> {
    check_descriptors(args.preserve_fds)?;
    // Before the working directory changes.
    let pid_file = absolute(args.pid_file.as_deref())?;
    let console_socket = absolute(args.console_socket.as_deref())?;
    let bundle = read_bundle(args, globals.systemd_cgroup)?;
    check_terminal(&bundle.plan, console_socket.as_deref(), foreground)?;
    let home = Home::make(&globals.root, &args.id)?;
    let made = launch(bundle, home, console_socket.as_deref())?;
    if let Some(path) = &pid_file {
        let pid = made.container.record.pid.to_string();
        podwright_base::replace(path, pid.as_bytes()).map_err(Error::file("write", path))?;
    }
    Ok(made)
}

/// A descriptor that is promised to the program must be there, or a file of ours might get its number.
pub(crate) fn check_descriptors(preserve_fds: u32) -> Result<(), Error> {
    for fd in 3..3_u32.saturating_add(preserve_fds) {
        if fs::symlink_metadata(format!("/proc/self/fd/{fd}")).is_err() {
            return Err(Error::argument("--preserve-fds", preserve_fds, "is more than there are"));
        }
    }
    Ok(())
}

pub(crate) fn absolute(path: Option<&Path>) -> Result<Option<PathBuf>, Error> {
    path.map(|path| std::path::absolute(path).map_err(Error::file("resolve", path))).transpose()
}

fn read_bundle(args: &Create, systemd: bool) -> Result<Bundle, Error> {
    let given = args.bundle.as_deref().unwrap_or(Path::new("."));
    let bundle = fs::canonicalize(given).map_err(Error::file("find bundle", given))?;
    // Hooks run in it, and relative paths are meant from it.
    std::env::set_current_dir(&bundle).map_err(Error::file("enter bundle", &bundle))?;
    let path = bundle.join("config.json");
    let specification = fs::read(&path).map_err(Error::file("read", &path))?;
    let spec: Spec =
        serde_json::from_slice(&specification).map_err(|source| Error::Json { path: path.clone(), source })?;
    let facts = podwright_host::facts()?;
    let manager = driver::manager(systemd)?;
    let given = Given {
        id: &args.id,
        bundle: &bundle,
        preserve_fds: args.preserve_fds,
        cgroup_driver: driver::driver(systemd, manager.as_ref()),
    };
    let mut plan = podwright_compile::standalone(&spec, &given, &facts)
        .map_err(|source| Error::Specification { path: path.clone(), source })?;
    if !rustix::process::geteuid().is_root() && !limits(&spec) {
        // Cgroups are the host's root's to make, and nothing is wanted of them.
        plan.cgroup = None;
    }
    let record = Record::new(&args.id, &bundle, &plan, &spec);
    Ok(Bundle { specification, plan, record })
}

/// Whether a specification asks for limits. Devices are none: without root nobody makes nodes.
fn limits(spec: &Spec) -> bool {
    let resources = spec.linux().as_ref().and_then(|linux| linux.resources().clone());
    let mut none = LinuxResources::default();
    none.set_devices(None);
    resources.is_some_and(|mut resources| {
        resources.set_devices(None);
        resources != none
    })
}

fn check_terminal(plan: &ContainerPlan, socket: Option<&Path>, foreground: bool) -> Result<(), Error> {
    let terminal = plan.process.as_ref().is_some_and(|process| process.terminal);
    match (terminal, socket) {
        (true, None) if !foreground => {
            Err(Error::argument("--console-socket", "", "is missing: process.terminal is true"))
        }
        (false, Some(path)) => {
            Err(Error::argument("--console-socket", path.display(), "is of no use: process.terminal is false"))
        }
        _ => Ok(()),
    }
}

fn launch(bundle: Bundle, home: Home, console_socket: Option<&Path>) -> Result<Created, Error> {
    let Bundle { specification, plan, mut record } = bundle;
    let _lock = home.lock()?;
    // Without a process it passes for one that has stopped: should this one be killed, what it made can be deleted.
    let kept = home.keep(&specification, &plan).and_then(|()| home.record(&record));
    let made = kept.and_then(|()| {
        let door = Door::make(home.directory())?;
        let for_hooks = record.clone();
        let state = |phase: Phase, pid: u32| for_hooks.for_hooks(phase, pid);
        let mut creating = podwright_launch::create(&plan, Standalone { door: &door, state: &state })?;
        // From here on the container's process alone holds it: its end is seen by who knocks.
        drop(door);
        let console = match follow(&mut creating, &home, &mut record, &plan, console_socket) {
            Ok(console) => console,
            Err(error) => {
                give_up(creating, &plan);
                return Err(error);
            }
        };
        Ok((creating.progress.into_pidfd(), console))
    });
    match made {
        Ok((pidfd, console)) => Ok(Created { container: Container { home, record }, pidfd, console }),
        Err(error) => {
            // The first error is the one to tell; what stays is seen as a stopped container.
            let _ = home.remove();
            Err(error)
        }
    }
}

/// Goes with the process until it waits for its start.
fn follow(
    creating: &mut Creating,
    home: &Home,
    record: &mut Record,
    plan: &ContainerPlan,
    console_socket: Option<&Path>,
) -> Result<Option<OwnedFd>, Error> {
    place(creating, plan)?;
    let progress = &mut creating.progress;
    let mut console = None;
    progress.go()?;
    loop {
        match progress.advance()? {
            Stage::Console(master) => console = console::hand_over(master, console_socket)?,
            Stage::Environment => {
                record.pid = progress.pid();
                record.began = began(progress.pid()).unwrap_or_default();
                home.record(record)?;
                net_devices::give(&plan.net_devices, record.pid)?;
                if let Some(hooks) = &plan.hooks {
                    let state = || record.for_hooks(Phase::Creating, record.pid);
                    hooks::run("prestart", &hooks.prestart, &state)?;
                    hooks::run("createRuntime", &hooks.create_runtime, &state)?;
                }
                progress.go()?;
            }
            Stage::Created | Stage::Running => return Ok(console),
        }
    }
}

/// Has systemd put the process, which waits for a word, into its unit.
fn place(creating: &mut Creating, plan: &ContainerPlan) -> Result<(), Error> {
    let Some(group) = &plan.cgroup else { return Ok(()) };
    let Some(unit) = &group.systemd else { return Ok(()) };
    podwright_systemd::start(unit, Some(creating.progress.pid()))?;
    Ok(creating.make_cgroups(group)?)
}

fn give_up(creating: Creating, plan: &ContainerPlan) {
    // It has failed: the failure is the one to tell.
    kill(&creating.progress);
    if let Some(unit) = plan.cgroup.as_ref().and_then(|group| group.systemd.as_ref()) {
        let _ = podwright_systemd::stop(&unit.name, unit.user);
    }
    creating.undo();
}

/// Ends a process that did not become what it should, and reaps it; a failure of its own is the one to tell.
pub(crate) fn kill(progress: &Progress) {
    if let Some(pidfd) = progress.pidfd() {
        let _ = rustix::process::pidfd_send_signal(pidfd, Signal::KILL);
    }
    if let Some(pid) = i32::try_from(progress.pid()).ok().and_then(Pid::from_raw) {
        let _ = rustix::process::waitpid(Some(pid), WaitOptions::empty());
    }
}
