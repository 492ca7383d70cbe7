//! A container: launched, used, logged, and seen to its end.
//!
//! The rules of its life are in [`crate::lifecycle`]; here is what they do to processes, cgroups and files.

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use podwright_launch::{Facts, Pending, Stdio, cgroup};
use podwright_plan::wire::{self, Cause, Failure, event, reply};
use podwright_sys::signalling;
use rustix::io::Errno;

use crate::cgroups;
use crate::clients::Clients;
use crate::clock;
use crate::input::Input;
use crate::lifecycle::{Event, Next, State};
use crate::lines::Stream;
use crate::operations::{Answer, DONE, SIGKILL, refuse};
use crate::output::Output;
use crate::poll::{Serial, Timer, Token};
use crate::shim::{Shim, Waiter};
use crate::words::say;

/// How long the end of a container waits for processes that do not die, and for a terminal to deliver.
const ENDING: Duration = Duration::from_secs(2);
/// How often it looks.
const LOOK_AGAIN: Duration = Duration::from_millis(3);

/// A container on its way to the user's program.
#[derive(Debug)]
pub(crate) struct Launch {
    pending: Pending,
    /// Who wants to know how it goes: all that asked for this start.
    waiters: Vec<Waiter>,
    /// Why it will not come to anything, once that is known; the child is still to be reaped then.
    failure: Option<Failure>,
    /// How the child ended, when that was seen before the outcome.
    code: Option<i32>,
}

/// A container that was started.
#[derive(Debug)]
pub(crate) struct Container {
    pub(crate) serial: Serial,
    pub(crate) id: String,
    pub(crate) state: State,
    pub(crate) facts: Facts,
    /// The cgroup directories that its processes are in.
    cgroups: Vec<PathBuf>,
    launch: Option<Launch>,
    /// The init, from its start until it is reaped.
    pub(crate) pidfd: Option<OwnedFd>,
    /// Whether it has a terminal.
    pub(crate) terminal: bool,
    pub(crate) input: Input,
    /// Absent once all is logged after the end.
    pub(crate) output: Option<Output>,
    pub(crate) clients: Clients,
    /// Whether the output waits for a log that cannot be written.
    pub(crate) held: bool,
    /// What was last said of the log's problems.
    pub(crate) log_problem: String,
    /// What the OOM killer had done before anything that would count now.
    oom_kills: u64,
    /// When the end is reported at the latest.
    deadline: Option<Instant>,
    /// Cgroups that could not be removed yet: of execs that left processes, then the container's own.
    pub(crate) remains: Vec<PathBuf>,
}

impl Container {
    /// What Inspect says; nothing while it starts.
    pub(crate) fn report(&self) -> Option<wire::ContainerState> {
        let started = self.state.started()?;
        Some(wire::ContainerState {
            id: self.id.clone(),
            pid: started.pid,
            started_at: started.started_at,
            exit: self.state.exit(),
            log_problem: self.log_problem.clone(),
        })
    }

    /// Lets an operation go on, or says why not.
    pub(crate) fn permit(&self, step: &str, event: Event) -> Result<(), Failure> {
        match self.state.on(event) {
            Next::Deny(reason) => Err(refuse(Cause::InvalidState, step, &self.id, reason)),
            Next::To(_) | Next::Gone | Next::Allow | Next::Ignore => Ok(()),
        }
    }

    /// Whether nothing of it runs any more.
    pub(crate) fn over(&self) -> bool {
        matches!(self.state, State::Exited(..))
    }

    /// Kills every process of the container.
    pub(crate) fn kill(&self) {
        if let Some(dir) = self.facts.kill_dir()
            && let Err(error) = cgroup::kill(dir)
        {
            say(format_args!("cannot kill {}: {error}", dir.display()));
        }
        // Besides the cgroup: a plan may name none, and a launch may not have come there yet.
        let pidfd = self.launch.as_ref().map(|launch| &launch.pending.pidfd).or(self.pidfd.as_ref());
        if let Some(pidfd) = pidfd
            && let Err(error) = signalling::send(pidfd.as_fd(), SIGKILL)
            && error != Errno::SRCH
        {
            say(format_args!("cannot kill the init of {}: {error}", self.id));
        }
    }

    /// How many processes the OOM killer has killed in it so far. A count that cannot be read tells of none.
    fn count_oom_kills(&self) -> u64 {
        self.facts.memory_events().and_then(|file| cgroup::oom_kills(file).ok()).unwrap_or(0)
    }

    /// Removes the container's own cgroups, or leaves them for a later sweep.
    pub(crate) fn abandon_cgroups(&mut self) {
        self.remains.append(&mut self.cgroups);
        self.sweep();
    }

    /// Removes the cgroups that let themselves be removed.
    pub(crate) fn sweep(&mut self) {
        self.remains.retain(|dir| cgroup::remove(dir).is_err());
    }
}

impl Shim {
    /// Finds a container by its id.
    pub(crate) fn named(&mut self, step: &str, id: &str) -> Result<&mut Container, Failure> {
        let place = self.named_place(step, id)?;
        Ok(&mut self.containers[place])
    }

    /// Finds a container's place by its id.
    pub(crate) fn named_place(&self, step: &str, id: &str) -> Result<usize, Failure> {
        let found = self.containers.iter().position(|container| container.id == id);
        found.ok_or_else(|| refuse(Cause::NotFound, step, id, "no such container"))
    }

    /// Finds a container's place by its serial number.
    pub(crate) fn place(&self, serial: Serial) -> Option<usize> {
        self.containers.iter().position(|container| container.serial == serial)
    }

    /// Starts a container, or joins the start that is under way or done.
    pub(crate) fn start_container(&mut self, waiter: Waiter, plan: &wire::ContainerPlan) -> Result<Answer, Failure> {
        self.refuse_when_ending("start")?;
        self.held("start")?;
        if plan.id.is_empty() {
            return Err(refuse(Cause::InvalidPlan, "start", "", "the container has no id"));
        }
        if let Ok(container) = self.named("start", &plan.id) {
            container.permit("start", Event::Launch)?;
            if let Some(started) = container.state.started() {
                return Ok(Answer::Now(reply::Result::Started(started)));
            }
            if let Some(launch) = &mut container.launch {
                launch.waiters.push(waiter);
            }
            return Ok(Answer::Later);
        }
        let container = self.launch(waiter, plan)?;
        self.containers.push(container);
        Ok(Answer::Later)
    }

    fn launch(&mut self, waiter: Waiter, plan: &wire::ContainerPlan) -> Result<Container, Failure> {
        let serial = self.serial();
        let log = plan.log.clone().unwrap_or_default();
        if log.max_bytes > 0 && log.max_files == 0 {
            return Err(refuse(Cause::InvalidPlan, "open log", &log.path, "a rotation that keeps no file"));
        }
        // Before anything that would have to be undone.
        let output = Output::open(serial, &log).map_err(|errno| Failure {
            errno: errno.raw_os_error(),
            ..refuse(Cause::LaunchFailed, "open log", &log.path, "")
        })?;
        let pending = podwright_launch::start(&self.held("start")?.pod, plan)?;
        let mut container = Container {
            serial,
            id: plan.id.clone(),
            state: State::Starting,
            facts: Facts::of(plan),
            cgroups: plan.cgroup.as_ref().map(cgroups::leaves).unwrap_or_default(),
            launch: None,
            pidfd: None,
            terminal: plan.process.as_ref().is_some_and(|process| process.terminal),
            input: Input::of(serial, plan),
            output: Some(output),
            clients: Clients::new(),
            held: false,
            log_problem: String::new(),
            oom_kills: 0,
            deadline: None,
            remains: Vec::new(),
        };
        container.oom_kills = container.count_oom_kills();
        let watched = self.poll.add(pending.status(), Token::ContainerLaunch(serial));
        let failure = watched.err().map(|errno| Failure {
            errno: errno.raw_os_error(),
            ..refuse(Cause::Internal, "watch launch", &plan.id, "")
        });
        let given_up = failure.is_some();
        container.launch = Some(Launch { pending, waiters: vec![waiter], failure, code: None });
        if given_up {
            container.kill();
        }
        Ok(container)
    }

    /// A launch has something to say.
    pub(crate) fn on_container_launch(&mut self, serial: Serial) {
        let Some(place) = self.place(serial) else { return };
        let container = &mut self.containers[place];
        let Some(launch) = &mut container.launch else { return };
        if launch.failure.is_some() {
            return;
        }
        let Some(outcome) = launch.pending.outcome() else { return };
        if let Err(error) = self.poll.remove(launch.pending.status()) {
            say(format_args!("cannot stop watching a launch: {error}"));
        }
        match outcome {
            Ok(()) => self.executed(place),
            Err(failure) => {
                launch.failure = Some(failure.into());
                if launch.code.is_some() { self.give_up(place) } else { container.kill() }
            }
        }
    }

    /// The user's program runs.
    fn executed(&mut self, place: usize) {
        let container = &mut self.containers[place];
        let Some(launch) = container.launch.take() else { return };
        let Launch { mut pending, waiters, code, .. } = launch;
        let started = wire::Started { pid: pending.pid, started_at: clock::now() };
        if let Next::To(state) = container.state.on(Event::Executed(started)) {
            container.state = state;
        }
        let output = container.output.as_mut();
        let attached = match (pending.take_stdio(), output) {
            (Stdio::Pipes { stdin, stdout, stderr }, Some(output)) => {
                if let Some(stdin) = stdin {
                    container.input.open(stdin);
                }
                output.attach_pipes(&self.poll, stdout, stderr)
            }
            (Stdio::Console(master), Some(output)) => {
                container.input.open_console(&master).and_then(|()| output.attach_console(&self.poll, master))
            }
            (Stdio::Pipes { .. } | Stdio::Console(_) | Stdio::AwaitsConsole | Stdio::Passed, _) => Ok(()),
        };
        if let Err(error) = attached {
            say(format_args!("cannot use the streams of {}: {error}", container.id));
        }
        container.pidfd = Some(pending.pidfd);
        self.settle_clients(place);
        for waiter in waiters {
            self.reply(waiter, reply::Result::Started(started), None);
        }
        if let Some(code) = code {
            self.init_ended(place, code);
        }
    }

    /// A failed start is undone, told to all who wait, and forgotten: it may be tried again.
    fn give_up(&mut self, place: usize) {
        if self.containers[place].state.on(Event::Failed) != Next::Gone {
            return;
        }
        let mut container = self.containers.swap_remove(place);
        container.kill();
        container.abandon_cgroups();
        for dir in &container.remains {
            say(format_args!("cannot remove {} after a failed start", dir.display()));
        }
        let Some(launch) = container.launch else { return };
        let Some(failure) = launch.failure else { return };
        for waiter in launch.waiters {
            self.reply(waiter, reply::Result::Failure(failure.clone()), None);
        }
    }

    /// A child that was reaped may be a container's init; whether it was.
    pub(crate) fn container_child_ended(&mut self, pid: u32, code: i32) -> bool {
        let found = self.containers.iter().position(|container| match (&container.launch, &container.state) {
            (Some(launch), _) => launch.pending.pid == pid,
            (None, State::Running(started)) => started.pid == pid,
            (None, _) => false,
        });
        let Some(place) = found else { return false };
        let container = &mut self.containers[place];
        match &mut container.launch {
            None => self.init_ended(place, code),
            Some(launch) => {
                launch.code = Some(code);
                if launch.failure.is_some() {
                    self.give_up(place);
                } else {
                    let serial = container.serial;
                    // Its last word is in the status pipe by now.
                    self.on_container_launch(serial);
                }
            }
        }
        true
    }

    /// The init is gone. What it leaves is killed: it would run on in a pid namespace that is the pod's or the host's.
    fn init_ended(&mut self, place: usize, code: i32) {
        let container = &mut self.containers[place];
        // Read before anything is told or removed. Only a SIGKILL that nobody asked for since is the OOM killer's.
        let oom_killed = code == 128 + SIGKILL && container.count_oom_kills() > container.oom_kills;
        let exit = wire::Exit { code, at: clock::now(), oom_killed, timed_out: false };
        if let Next::To(state) = container.state.on(Event::InitEnded(exit)) {
            container.state = state;
        }
        container.pidfd = None;
        container.input.close(&self.poll);
        container.kill();
        container.deadline = Some(Instant::now() + ENDING);
        let serial = container.serial;
        self.settle_clients(place);
        self.check_ending(serial);
    }

    /// Ends the end: once all processes are gone, what they wrote is in the pipes, and the pipes' content is taken.
    pub(crate) fn check_ending(&mut self, serial: Serial) {
        let Some(place) = self.place(serial) else { return };
        let container = &mut self.containers[place];
        if !matches!(container.state, State::Ending(..)) {
            return;
        }
        let last = container.deadline.is_none_or(|deadline| deadline <= Instant::now());
        let alive = container.facts.kill_dir().is_some_and(cgroups::populated);
        if alive && !last {
            return self.timers.set(Timer::ContainerEnding(serial), LOOK_AGAIN);
        }
        let Container { output, clients, .. } = container;
        let drained = output.as_mut().is_none_or(|output| output.drain(last, clients, &self.poll, &mut self.scratch));
        self.after_output(place);
        let container = &mut self.containers[place];
        if (drained && !container.held) || last {
            self.exited(place);
        } else {
            self.timers.set(Timer::ContainerEnding(serial), LOOK_AGAIN);
        }
    }

    fn exited(&mut self, place: usize) {
        let container = &mut self.containers[place];
        if let Next::To(state) = container.state.on(Event::Drained) {
            container.state = state;
        }
        container.output.take_if(|output| output.finished());
        container.abandon_cgroups();
        let exited = wire::ContainerExited { container_id: container.id.clone(), exit: container.state.exit() };
        self.publish(event::Kind::ContainerExited(exited));
    }

    /// One of a container's streams can be read.
    pub(crate) fn on_output(&mut self, serial: Serial, stream: Stream) {
        let Some(place) = self.place(serial) else { return };
        let Container { output, clients, .. } = &mut self.containers[place];
        if let Some(output) = output {
            output.pump(stream, clients, &self.poll, &mut self.scratch);
            self.after_output(place);
        }
    }

    /// Signals a container's init, or kills all of it.
    pub(crate) fn signal_container(&mut self, id: &str, signal: i32, all: bool) -> Result<Answer, Failure> {
        let container = self.named("signal", id)?;
        container.permit("signal", Event::Signal { kill: signal == SIGKILL })?;
        if signal == SIGKILL {
            // From here on a death by SIGKILL is ours, unless the OOM killer is counted again.
            container.oom_kills = container.count_oom_kills();
        }
        if all || container.launch.is_some() {
            container.kill();
        } else if let Some(pidfd) = &container.pidfd {
            signalling::send(pidfd.as_fd(), signal).map_err(|errno| Failure {
                errno: errno.raw_os_error(),
                ..refuse(Cause::Internal, "signal", id, "")
            })?;
        }
        Ok(DONE)
    }

    /// Forgets an exited container and the execs that ended in it.
    pub(crate) fn drop_container(&mut self, serial: Serial) {
        self.retry_log(serial);
        let Some(place) = self.place(serial) else { return };
        let mut container = self.containers.swap_remove(place);
        // Those that have not read the end by now.
        container.clients.close(&self.poll);
        self.execs.retain(|exec| exec.container != serial || !exec.over());
        container.sweep();
        for dir in &container.remains {
            say(format_args!("cannot remove {}", dir.display()));
        }
        if let Some(problem) = container.output.as_ref().and_then(Output::problem) {
            say(format_args!("the end of the log of {} could not be written: {problem}", container.id));
        }
    }
}
