//! Requests: each is answered at once, or by what happens later.

use std::os::fd::OwnedFd;

use podwright_launch::Pod;
use podwright_plan::wire::request::Op;
use podwright_plan::wire::{self, Cause, Done, Failure, reply};
use podwright_plan::{MAJOR, MINOR};

use crate::connection::ConnectionError;
use crate::lifecycle::{Event, Next, State};
use crate::poll::{Serial, Timer};
use crate::shim::{Held, PodState, Shim, Waiter};
use crate::shutdown::Shutdown;

/// The number of the signal that nothing survives.
pub(crate) const SIGKILL: i32 = 9;

/// What a request comes to.
pub(crate) enum Answer {
    /// This result.
    Now(reply::Result),
    /// This result, and a descriptor with it.
    With(reply::Result, OwnedFd),
    /// A reply will be sent when it is known.
    Later,
}

/// The answer of an operation that has nothing more to say.
pub(crate) const DONE: Answer = Answer::Now(reply::Result::Done(Done {}));

/// Makes a failure that no kernel call caused.
pub(crate) fn refuse(cause: Cause, step: &str, subject: &str, detail: &str) -> Failure {
    Failure { cause: cause.into(), step: step.into(), subject: subject.into(), errno: 0, detail: detail.into() }
}

impl Shim {
    /// Handles one request. An error ends the connection.
    pub(crate) fn on_request(&mut self, connection: Serial, request: wire::Request) -> Result<(), ConnectionError> {
        let waiter = Waiter { connection, request: request.id };
        let answer = match request.op {
            Some(Op::Hello(hello)) => self.hello(&hello),
            Some(Op::SetupPod(plan)) => self.setup_pod(&plan),
            Some(Op::Start(plan)) => self.start_container(waiter, &plan),
            Some(Op::Exec(plan)) => {
                let stdio = self.take_stdio(connection, plan.stdio)?;
                self.start_exec(waiter, &plan, stdio)
            }
            Some(Op::Signal(signal)) => self.signal(&signal),
            Some(Op::ReopenLog(reopen)) => self.reopen_log(&reopen.container_id),
            Some(Op::Forget(forget)) => self.forget(&forget),
            Some(Op::Inspect(_)) => Ok(self.inspect()),
            Some(Op::Subscribe(_)) => {
                if let Some(connection) = self.connection(connection) {
                    connection.subscribed = true;
                }
                Ok(self.inspect())
            }
            Some(Op::Update(update)) => self.update(&update),
            Some(Op::Attach(attach)) => {
                let stdio = self.take_stdio(connection, attach.stdio)?;
                self.attach(&attach.container_id, stdio)
            }
            Some(Op::Resize(resize)) => self.resize(&resize),
            Some(Op::Shutdown(_)) => Ok(self.begin_shutdown(waiter)),
            None => Err(refuse(Cause::InvalidPlan, "request", "", "no operation that this shim knows")),
        };
        match answer {
            Ok(Answer::Now(result)) => self.reply(waiter, result, None),
            Ok(Answer::With(result, fd)) => self.reply(waiter, result, Some(fd)),
            Ok(Answer::Later) => {}
            Err(failure) => self.reply(waiter, reply::Result::Failure(failure), None),
        }
        Ok(())
    }

    fn hello(&self, hello: &wire::Hello) -> Result<Answer, Failure> {
        if hello.major != MAJOR {
            let detail = format!("the shim speaks {MAJOR}.{MINOR}, the daemon {}.{}", hello.major, hello.minor);
            return Err(refuse(Cause::UnsupportedVersion, "hello", &self.pod_id, &detail));
        }
        if hello.pod_id != self.pod_id {
            return Err(refuse(Cause::NotFound, "hello", &hello.pod_id, "the shim is another pod's"));
        }
        Ok(Answer::Now(reply::Result::Hello(wire::HelloReply {
            major: MAJOR,
            minor: MINOR,
            pod_id: self.pod_id.clone(),
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").into(),
        })))
    }

    fn setup_pod(&mut self, plan: &wire::PodPlan) -> Result<Answer, Failure> {
        if plan.pod_id != self.pod_id {
            return Err(refuse(Cause::InvalidPlan, "set up pod", &plan.pod_id, "the shim is another pod's"));
        }
        self.refuse_when_ending("set up pod")?;
        if matches!(self.pod, PodState::Absent) {
            self.timers.cancel(Timer::Alone);
            let pod = Pod::set_up(plan).inspect_err(|_| self.pod = PodState::Failed)?;
            self.pod = PodState::Ready(Held { reaper: pod.reaper_pid(), pod });
        }
        let held = self.held("set up pod")?;
        let netns = held.pod.netns().try_clone_to_owned().map_err(|error| Failure {
            errno: error.raw_os_error().unwrap_or(0),
            ..refuse(Cause::Internal, "duplicate network namespace", &plan.pod_id, "")
        })?;
        let ready = wire::PodReady { pid: std::process::id(), reaper_pid: held.reaper.unwrap_or(0) };
        Ok(Answer::With(reply::Result::PodReady(ready), netns))
    }

    /// The pod, which containers need.
    pub(crate) fn held(&self, step: &str) -> Result<&Held, Failure> {
        match &self.pod {
            PodState::Ready(held) => Ok(held),
            PodState::Absent => Err(refuse(Cause::InvalidState, step, &self.pod_id, "the pod is not set up")),
            PodState::Failed => Err(refuse(Cause::InvalidState, step, &self.pod_id, "the pod could not be set up")),
        }
    }

    /// Refuses what would start something new while the pod goes away.
    pub(crate) fn refuse_when_ending(&self, step: &str) -> Result<(), Failure> {
        match self.shutdown {
            Some(_) => Err(refuse(Cause::InvalidState, step, &self.pod_id, "the pod is being shut down")),
            None => Ok(()),
        }
    }

    fn signal(&mut self, request: &wire::Signal) -> Result<Answer, Failure> {
        let signal = i32::try_from(request.signal).unwrap_or(0);
        if signal == 0 {
            return Err(refuse(Cause::InvalidPlan, "signal", &request.container_id, "no signal has this number"));
        }
        if request.all && signal != SIGKILL {
            return Err(refuse(Cause::InvalidPlan, "signal", &request.container_id, "only SIGKILL goes to all"));
        }
        if request.exec_id.is_empty() {
            self.signal_container(&request.container_id, signal, request.all)
        } else {
            self.signal_exec(&request.exec_id, signal, request.all)
        }
    }

    fn update(&mut self, request: &wire::UpdateResources) -> Result<Answer, Failure> {
        let container = self.named("update resources", &request.container_id)?;
        container.permit("update resources", Event::Use)?;
        podwright_launch::cgroup::update(request)?;
        Ok(DONE)
    }

    fn forget(&mut self, request: &wire::Forget) -> Result<Answer, Failure> {
        if !request.exec_id.is_empty() {
            return self.forget_exec(&request.exec_id);
        }
        let container = self.named("forget", &request.container_id)?;
        match container.state.on(Event::Forget) {
            Next::Deny(reason) => Err(refuse(Cause::InvalidState, "forget", &request.container_id, reason)),
            _ => {
                let serial = container.serial;
                self.drop_container(serial);
                Ok(DONE)
            }
        }
    }

    fn inspect(&self) -> Answer {
        let held = self.held("inspect").ok();
        Answer::Now(reply::Result::Inspected(wire::Inspected {
            pod_id: self.pod_id.clone(),
            pod_ready: held.is_some(),
            reaper_pid: held.and_then(|held| held.reaper).unwrap_or(0),
            containers: self.containers.iter().filter_map(|container| container.report()).collect(),
            execs: self.execs.iter().filter_map(|exec| exec.report()).collect(),
            starting: self.containers.iter().filter(|it| it.state == State::Starting).map(|it| it.id.clone()).collect(),
        }))
    }

    fn begin_shutdown(&mut self, waiter: Waiter) -> Answer {
        match &mut self.shutdown {
            Some(shutdown) => shutdown.waiters.push(waiter),
            None => {
                self.shutdown = Some(Shutdown::begin(waiter));
                self.kill_everything();
            }
        }
        Answer::Later
    }
}
