//! An exec: another process in a running container, in a cgroup leaf of its own.
//!
//! ```text
//!  Starting ──▶ Running ──▶ Exited          a process that ends by itself; what it left runs on
//!      │           └─▶ Ending ──▶ Exited    one that was killed, until its whole tree is gone
//!      ▼ failed
//!  (unknown)
//! ```

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use podwright_launch::{ExecStdio, Pending, Stdio, Target, cgroup};
use podwright_plan::wire::{self, Cause, Failure, event, reply};
use podwright_sys::signalling;
use rustix::io::Errno;

use crate::lifecycle::Event;
use crate::operations::{Answer, DONE, SIGKILL, refuse};
use crate::poll::{Serial, Timer, Token};
use crate::shim::{PodState, Shim, Waiter};
use crate::words::say;
use crate::{cgroups, clock};

/// How long a killed exec's tree may take to be gone. Only a process stuck in the kernel takes longer.
const ENDING: Duration = Duration::from_secs(10);
/// How often that is looked at.
const LOOK_AGAIN: Duration = Duration::from_millis(2);

/// An exec on its way to the user's program.
#[derive(Debug)]
struct Launch {
    pending: Pending,
    waiter: Waiter,
    failure: Option<Failure>,
    code: Option<i32>,
}

/// Where an exec is.
#[derive(Debug)]
enum Phase {
    Starting(Box<Launch>),
    Running { pid: u32, pidfd: OwnedFd },
    Ending { pid: u32, exit: wire::Exit, deadline: Instant },
    Exited { pid: u32, exit: wire::Exit },
}

/// Why an exec was killed by the shim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Killed {
    /// Its time was up.
    Timeout,
    /// The connection it was tied to is gone, or the daemon asked for it.
    Request,
}

/// An exec that was asked for.
#[derive(Debug)]
pub(crate) struct Exec {
    serial: Serial,
    /// The container it runs in.
    pub(crate) container: Serial,
    container_id: String,
    exec_id: String,
    phase: Phase,
    killed: Option<Killed>,
    /// The connection that it dies with.
    tied: Option<Serial>,
    /// Its cgroup; absent when the container has none that execs could have a leaf in.
    leaf: Option<PathBuf>,
}

impl Exec {
    /// What Inspect says; nothing while it starts.
    pub(crate) fn report(&self) -> Option<wire::ExecState> {
        let (pid, exit) = match &self.phase {
            Phase::Starting(_) => return None,
            Phase::Running { pid, .. } | Phase::Ending { pid, .. } => (*pid, None),
            Phase::Exited { pid, exit } => (*pid, Some(*exit)),
        };
        Some(wire::ExecState { container_id: self.container_id.clone(), exec_id: self.exec_id.clone(), pid, exit })
    }

    /// Whether its exit is known and final.
    pub(crate) fn over(&self) -> bool {
        matches!(self.phase, Phase::Exited { .. })
    }

    /// Kills the whole tree of an exec that is not over.
    fn kill(&mut self, why: Killed) {
        let pidfd = match &self.phase {
            Phase::Starting(launch) => Some(&launch.pending.pidfd),
            Phase::Running { pidfd, .. } => Some(pidfd),
            Phase::Ending { .. } => None,
            Phase::Exited { .. } => return,
        };
        self.killed.get_or_insert(why);
        if let Some(leaf) = &self.leaf
            && let Err(error) = cgroup::kill(leaf)
        {
            say(format_args!("cannot kill {}: {error}", leaf.display()));
        }
        if let Some(pidfd) = pidfd
            && let Err(error) = signalling::send(pidfd.as_fd(), SIGKILL)
            && error != Errno::SRCH
        {
            say(format_args!("cannot kill exec {}: {error}", self.exec_id));
        }
    }
}

impl Shim {
    /// Starts an exec.
    pub(crate) fn start_exec(
        &mut self,
        waiter: Waiter,
        plan: &wire::ExecPlan,
        stdio: ExecStdio,
    ) -> Result<Answer, Failure> {
        self.refuse_when_ending("exec")?;
        if self.execs.iter().any(|exec| exec.exec_id == plan.exec_id) {
            return Err(refuse(Cause::InvalidState, "exec", &plan.exec_id, "there is an exec of this id"));
        }
        let serial = self.serial();
        let container = self.named("exec", &plan.container_id)?;
        container.permit("exec", Event::Use)?;
        let container_serial = container.serial;
        let leaf = container.facts.exec_dir(&plan.exec_id);
        let pending = self.fork_exec(plan, stdio)?;
        let watched = self.poll.add(pending.status(), Token::ExecLaunch(serial));
        let failure = watched.err().map(|errno| Failure {
            errno: errno.raw_os_error(),
            ..refuse(Cause::Internal, "watch launch", &plan.exec_id, "")
        });
        let given_up = failure.is_some();
        let mut exec = Exec {
            serial,
            container: container_serial,
            container_id: plan.container_id.clone(),
            exec_id: plan.exec_id.clone(),
            phase: Phase::Starting(Box::new(Launch { pending, waiter, failure, code: None })),
            killed: None,
            tied: plan.tied_to_connection.then_some(waiter.connection),
            leaf,
        };
        if given_up {
            exec.kill(Killed::Request);
        }
        self.execs.push(exec);
        if plan.timeout_ms != 0 {
            self.timers.set(Timer::ExecTimeout(serial), Duration::from_millis(plan.timeout_ms));
        }
        Ok(Answer::Later)
    }

    fn fork_exec(&self, plan: &wire::ExecPlan, stdio: ExecStdio) -> Result<Pending, Failure> {
        self.held("exec")?;
        let container = self.containers.iter().find(|container| container.id == plan.container_id);
        let target = container
            .and_then(|container| Some(Target { pidfd: container.pidfd.as_ref()?.as_fd(), facts: &container.facts }));
        let Some(target) = target else {
            return Err(refuse(Cause::InvalidState, "exec", &plan.container_id, "its init is gone"));
        };
        Ok(podwright_launch::exec(target, plan, stdio)?)
    }

    fn exec_at(&self, serial: Serial) -> Option<usize> {
        self.execs.iter().position(|exec| exec.serial == serial)
    }

    /// A launch has something to say.
    pub(crate) fn on_exec_launch(&mut self, serial: Serial) {
        let Some(place) = self.exec_at(serial) else { return };
        let exec = &mut self.execs[place];
        let Phase::Starting(launch) = &mut exec.phase else { return };
        if launch.failure.is_some() {
            return;
        }
        let Some(outcome) = launch.pending.outcome() else { return };
        if let Err(error) = self.poll.remove(launch.pending.status()) {
            say(format_args!("cannot stop watching a launch: {error}"));
        }
        match outcome {
            Ok(()) => self.exec_runs(place),
            Err(failure) => {
                launch.failure = Some(failure.into());
                if launch.code.is_some() { self.give_up_exec(place) } else { exec.kill(Killed::Request) }
            }
        }
    }

    /// The user's program runs. With a terminal its master goes to the daemon, which serves it.
    fn exec_runs(&mut self, place: usize) {
        let exec = &mut self.execs[place];
        let exited = Phase::Exited { pid: 0, exit: wire::Exit::default() };
        let Phase::Starting(launch) = std::mem::replace(&mut exec.phase, exited) else { return };
        let Launch { pending, waiter, code, .. } = *launch;
        let console = match pending.stdio {
            Stdio::Console(master) => Some(master),
            Stdio::Pipes { .. } | Stdio::AwaitsConsole | Stdio::Passed => None,
        };
        exec.phase = Phase::Running { pid: pending.pid, pidfd: pending.pidfd };
        self.reply(waiter, reply::Result::Execed(wire::Execed { pid: pending.pid }), console);
        if let Some(code) = code {
            self.exec_ended(place, code);
        }
    }

    /// A failed exec is undone, told and forgotten.
    fn give_up_exec(&mut self, place: usize) {
        let mut exec = self.execs.swap_remove(place);
        self.timers.cancel(Timer::ExecTimeout(exec.serial));
        exec.kill(Killed::Request);
        self.leave_leaf(exec.container, exec.leaf.as_deref());
        let Phase::Starting(launch) = exec.phase else { return };
        let Some(mut failure) = launch.failure else { return };
        if exec.killed == Some(Killed::Timeout) {
            failure.cause = Cause::TimedOut.into();
        }
        self.reply(launch.waiter, reply::Result::Failure(failure), None);
    }

    /// Removes an exec's cgroup, or leaves that to the container's end when processes are still in it.
    fn leave_leaf(&mut self, container: Serial, leaf: Option<&Path>) {
        let Some(leaf) = leaf else { return };
        if cgroups::remove_empty(leaf) {
            return;
        }
        if let Some(container) = self.containers.iter_mut().find(|other| other.serial == container) {
            // Whatever else has become empty by now goes too: execs that leave processes do so again and again.
            container.remains.retain(|dir| !cgroups::remove_empty(dir));
            container.remains.push(leaf.to_owned());
        }
    }

    /// A child that was reaped may be an exec's process; whether it was.
    pub(crate) fn exec_child_ended(&mut self, child: u32, code: i32) -> bool {
        let found = self.execs.iter().position(|exec| match &exec.phase {
            Phase::Starting(launch) => launch.pending.pid == child,
            Phase::Running { pid, .. } => *pid == child,
            Phase::Ending { .. } | Phase::Exited { .. } => false,
        });
        let Some(place) = found else { return false };
        let exec = &mut self.execs[place];
        match &mut exec.phase {
            Phase::Starting(launch) => {
                launch.code = Some(code);
                if launch.failure.is_some() {
                    self.give_up_exec(place);
                } else {
                    let serial = exec.serial;
                    self.on_exec_launch(serial);
                }
            }
            _ => self.exec_ended(place, code),
        }
        true
    }

    fn exec_ended(&mut self, place: usize, code: i32) {
        let exec = &mut self.execs[place];
        let Phase::Running { pid, .. } = exec.phase else { return };
        let timed_out = exec.killed == Some(Killed::Timeout);
        let exit = wire::Exit { code, at: clock::now(), oom_killed: false, timed_out };
        let serial = exec.serial;
        exec.phase = Phase::Ending { pid, exit, deadline: Instant::now() + ENDING };
        self.check_exec_ending(serial);
    }

    /// Reports an exec's exit: at once when it ended by itself, else when nothing of its tree is left.
    pub(crate) fn check_exec_ending(&mut self, serial: Serial) {
        let Some(place) = self.exec_at(serial) else { return };
        let exec = &mut self.execs[place];
        let Phase::Ending { pid, exit, deadline } = exec.phase else { return };
        let alive = exec.killed.is_some() && exec.leaf.as_deref().is_some_and(cgroups::populated);
        if alive && Instant::now() < deadline {
            return self.timers.set(Timer::ExecEnding(serial), LOOK_AGAIN);
        }
        exec.phase = Phase::Exited { pid, exit };
        let (container, leaf, tied) = (exec.container, exec.leaf.take(), exec.tied);
        let exited = wire::ExecExited {
            container_id: exec.container_id.clone(),
            exec_id: exec.exec_id.clone(),
            exit: Some(exit),
        };
        self.timers.cancel(Timer::ExecTimeout(serial));
        self.leave_leaf(container, leaf.as_deref());
        self.publish(event::Kind::ExecExited(exited));
        // Nobody will ask for it again, or forget it.
        let orphan = tied.is_some_and(|tied| self.connection(tied).is_none());
        if orphan || !self.containers.iter().any(|other| other.serial == container) {
            self.execs.swap_remove(place);
        }
    }

    /// An exec's time is up.
    pub(crate) fn exec_timed_out(&mut self, serial: Serial) {
        if let Some(place) = self.exec_at(serial) {
            self.execs[place].kill(Killed::Timeout);
        }
    }

    /// Kills the execs that are tied to a connection which is gone, and forgets those that are over.
    pub(crate) fn kill_tied(&mut self, connection: Serial) {
        self.execs.retain_mut(|exec| {
            if exec.tied != Some(connection) {
                return true;
            }
            exec.kill(Killed::Request);
            !exec.over()
        });
    }

    /// Signals an exec's process, or kills its whole tree.
    pub(crate) fn signal_exec(&mut self, id: &str, signal: i32, all: bool) -> Result<Answer, Failure> {
        let exec = self.execs.iter_mut().find(|exec| exec.exec_id == id);
        let exec = exec.ok_or_else(|| refuse(Cause::NotFound, "signal", id, "no such exec"))?;
        match &exec.phase {
            Phase::Exited { .. } => return Err(refuse(Cause::InvalidState, "signal", id, "it has ended")),
            Phase::Starting(_) if signal != SIGKILL => {
                return Err(refuse(Cause::InvalidState, "signal", id, "it is being started"));
            }
            Phase::Running { pidfd, .. } if !all => {
                signalling::send(pidfd.as_fd(), signal).map_err(|errno| Failure {
                    errno: errno.raw_os_error(),
                    ..refuse(Cause::Internal, "signal", id, "")
                })?;
            }
            Phase::Starting(_) | Phase::Running { .. } => exec.kill(Killed::Request),
            Phase::Ending { .. } => {}
        }
        Ok(DONE)
    }

    /// Forgets an exec that is over.
    pub(crate) fn forget_exec(&mut self, id: &str) -> Result<Answer, Failure> {
        let place = self.execs.iter().position(|exec| exec.exec_id == id);
        let place = place.ok_or_else(|| refuse(Cause::NotFound, "forget", id, "no such exec"))?;
        if !self.execs[place].over() {
            return Err(refuse(Cause::InvalidState, "forget", id, "it has not ended"));
        }
        self.execs.swap_remove(place);
        Ok(DONE)
    }

    /// Kills every exec.
    pub(crate) fn kill_execs(&mut self) {
        for exec in &mut self.execs {
            exec.kill(Killed::Request);
        }
    }

    /// The init of the shared pid namespace is gone, and every process in it.
    pub(crate) fn reaper_ended(&mut self, pid: u32) {
        if let PodState::Ready(held) = &mut self.pod
            && held.reaper == Some(pid)
        {
            held.reaper = None;
            if self.shutdown.is_none() {
                say(format_args!("the init of the pod's pid namespace has ended"));
            }
        }
    }
}
