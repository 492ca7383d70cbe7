//! The one task that owns a pod: it takes commands from callers, events from the shim and results from the work it has
//! handed out, and changes the pod's state. It never waits itself, so that a slow step holds up nothing else.

use std::collections::{BTreeMap, HashMap};
use std::future::pending;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Instant;

use podwright_base::ContainerId;
use podwright_plan::wire::{self, event::Kind};
use podwright_spec::container::ContainerMetadata;
use podwright_spec::pod::NamespaceMode;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tracing::{Instrument, error, info, warn};

use super::create::{self, SetUp};
use super::handle::{Command, Creation, DriverEnds, Reply};
use super::state::{Event, Step};
use super::teardown;
use crate::container::create::Prepared;
use crate::container::entry::Container;
use crate::error::{Error, chain};
use crate::node::Node;
use crate::record::PodRecord;
use crate::registry::shared;
use crate::shim::{ShimClient, ShimError, Subscription};
use crate::view::PodView;

/// Owns a pod.
pub(crate) struct Driver {
    pub(crate) node: Arc<Node>,
    pub(crate) record: PodRecord,
    pub(crate) containers: BTreeMap<ContainerId, Container>,
    /// Who has a container's name, or waits for the creation under it.
    pub(crate) names: HashMap<ContainerMetadata, Name>,
    pub(crate) shim: Option<ShimClient>,
    /// Who waits for an exec's end.
    pub(crate) execs: HashMap<String, oneshot::Sender<wire::Exit>>,
    pub(crate) tasks: JoinSet<Done>,
    events: Option<mpsc::Receiver<wire::Event>>,
    ends: DriverEnds,
    /// A tear-down under way: who waits for it.
    stopping: Option<Vec<Reply<()>>>,
    /// A removal asked for: who waits for it.
    removing: Option<Vec<Reply<()>>>,
}

/// The owner of a container's name.
pub(crate) enum Name {
    /// A creation under way, with its configuration and who waits for it.
    Creating(Arc<podwright_spec::ContainerConfig>, Vec<Reply<ContainerId>>),
    /// A container.
    Taken(ContainerId),
}

/// Work that has ended.
pub(crate) enum Done {
    /// The sandbox's creation.
    SetUp(Result<Box<SetUp>, Error>),
    /// An attempt to reach the shim again.
    Reconnected(Result<Box<Subscription>, ShimError>),
    /// The undoing of a failed creation.
    Undone(Arc<Error>, Result<(), Error>),
    /// The sandbox's tear-down.
    TornDown(Result<(), Error>),
    /// The removal of the sandbox's directory.
    Removed(Result<(), Error>),
    /// A container's creation.
    Created(ContainerMetadata, Result<Box<Prepared>, Error>),
    /// A container's start.
    Started(ContainerId, Result<wire::Started, Error>),
    /// The removal of a container's directory.
    ContainerRemoved(ContainerId, Result<(), Error>),
}

impl Driver {
    /// Makes the driver of a pod, new or recovered.
    pub(crate) fn new(node: Arc<Node>, record: PodRecord, ends: DriverEnds) -> Self {
        Self {
            node,
            record,
            containers: BTreeMap::new(),
            names: HashMap::new(),
            shim: None,
            execs: HashMap::new(),
            tasks: JoinSet::new(),
            events: None,
            ends,
            stopping: None,
            removing: None,
        }
    }

    /// Creates the sandbox, then serves it to its end.
    pub(crate) async fn create(mut self) {
        let (node, record, stage) = (Arc::clone(&self.node), self.record.clone(), self.ends.creation.clone());
        let enter = move |name| drop(stage.send_replace(Creation::Underway(name, Instant::now())));
        let span = tracing::info_span!("create", pod.id = %self.record.id);
        let creation = async move { create::set_up(&node, &record, enter).await.map(Box::new) };
        self.hand_out("create a pod sandbox", creation.instrument(span), Done::SetUp);
        self.serve().await;
    }

    /// Serves the pod until it is removed.
    pub(crate) async fn serve(mut self) {
        loop {
            let flow = tokio::select! {
                Some(command) = self.ends.commands.recv() => { self.command(command); ControlFlow::Continue(()) }
                event = next(&mut self.events) => { self.heard(event); ControlFlow::Continue(()) }
                Some(done) = self.tasks.join_next() => match done {
                    Ok(done) => self.done(done),
                    // What is handed out catches its own panics: this is the runtime going down.
                    Err(error) => { error!(pod.id = %self.record.id, error = %error, "a step of a pod was lost"); ControlFlow::Break(()) }
                },
            };
            if flow.is_break() {
                return;
            }
        }
    }

    /// Takes over the connection to the pod's shim.
    pub(crate) fn adopt(&mut self, subscription: Subscription) {
        self.shim = Some(subscription.client);
        self.events = Some(subscription.events);
    }

    /// Lets go of the connection. Who waits for an exec learns that its end will not be told.
    pub(crate) fn disconnect(&mut self) {
        self.shim = None;
        self.events = None;
        self.execs.clear();
    }

    /// Whether a stop is under way.
    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.is_some()
    }

    /// Hands work out; its outcome comes back to [`Driver::done`]. Even a panic is an outcome: somebody waits for it.
    pub(crate) fn hand_out<T: Send + 'static>(
        &mut self,
        what: &'static str,
        work: impl Future<Output = Result<T, Error>> + Send + 'static,
        done: impl FnOnce(Result<T, Error>) -> Done + Send + 'static,
    ) {
        self.tasks
            .spawn(async move { done(tokio::spawn(work).await.unwrap_or_else(|panic| Err(Error::step(what, panic)))) });
    }

    fn command(&mut self, command: Command) {
        let Some(command) = self.defer(command) else { return };
        match command {
            Command::Create { config, reply } => self.create_container(*config, reply),
            Command::Start { id, reply } => self.start_container(&id, reply),
            Command::Stop { id, timeout, reply } => self.stop_container(&id, timeout, reply),
            Command::Remove { id, reply } => self.remove_container(&id, reply),
            Command::ReopenLog { id, reply } => self.reopen_log(&id, reply),
            Command::Enter { id, reply } => drop(reply.send(self.enter_container(&id))),
            Command::StopPod { reply } => self.stop_pod(reply),
            Command::RemovePod { reply } => self.remove_pod(reply),
        }
    }

    /// Keeps back what was asked of a container that is being started, until its start has ended.
    fn defer(&mut self, command: Command) -> Option<Command> {
        let id = match &command {
            Command::Stop { id, .. }
            | Command::Remove { id, .. }
            | Command::ReopenLog { id, .. }
            | Command::Enter { id, .. } => id,
            _ => return Some(command),
        };
        match self.containers.get_mut(id).and_then(|container| container.starting.as_mut()) {
            Some(starting) => {
                starting.deferred.push(command);
                None
            }
            None => Some(command),
        }
    }

    /// Does again what was kept back.
    pub(crate) fn resume(&mut self, deferred: Vec<Command>) {
        for command in deferred {
            self.command(command);
        }
    }

    fn done(&mut self, done: Done) -> ControlFlow<()> {
        match done {
            Done::SetUp(result) => self.set_up(result),
            Done::Reconnected(result) => self.reconnected(result),
            Done::Undone(cause, result) => return self.undone(&cause, result),
            Done::TornDown(result) => self.torn_down(result),
            Done::Removed(result) => return self.removed(result),
            Done::Created(name, result) => self.container_created(name, result),
            Done::Started(id, result) => self.container_started(&id, result),
            Done::ContainerRemoved(id, result) => self.container_removed(&id, result),
        }
        ControlFlow::Continue(())
    }

    fn set_up(&mut self, result: Result<Box<SetUp>, Error>) {
        let result = result.and_then(|set_up| {
            self.adopt(set_up.subscription);
            self.record.ips = set_up.ips;
            self.record.reaper_pid = set_up.reaper_pid;
            self.enter(Event::SetUp)
        });
        match result {
            Ok(()) => {
                info!(pod.id = %self.record.id, pod.name = %self.record.config.metadata.name, "pod sandbox is ready");
                self.publish();
                self.ends.creation.send_replace(Creation::Done);
            }
            Err(cause) => {
                let (node, record, shim) = (Arc::clone(&self.node), self.record.clone(), self.shim.clone());
                self.hand_out("undo a creation", async move { teardown::undo(&node, &record, shim).await }, |undone| {
                    Done::Undone(Arc::new(cause), undone)
                });
            }
        }
    }

    fn undone(&mut self, cause: &Arc<Error>, result: Result<(), Error>) -> ControlFlow<()> {
        if let Err(error) = result {
            warn!(pod.id = %self.record.id, error = %chain(&error), "a failed creation left something behind");
            // Its name is free all the same; what it still holds must not wait for the next daemon's sweep.
            tokio::spawn(teardown::give_back_at_last(Arc::clone(&self.node), self.record.clone()));
        }
        self.node.registry.forget(&self.record.id);
        self.ends.creation.send_replace(Creation::Failed(Arc::clone(cause)));
        ControlFlow::Break(())
    }

    fn stop_pod(&mut self, reply: Reply<()>) {
        if self.record.phase == super::state::Phase::Stopped {
            return drop(reply.send(Ok(())));
        }
        match &mut self.stopping {
            Some(waiting) => waiting.push(reply),
            None => {
                self.stopping = Some(vec![reply]);
                self.tear_down();
            }
        }
    }

    /// Begins to give back what the pod holds. That stops are intended is on disk first.
    fn tear_down(&mut self) {
        if let Err(error) = self.enter(Event::StopRequested) {
            warn!(pod.id = %self.record.id, error = %chain(&error), "stopped without a record of the intent");
        }
        self.publish();
        let (node, record, shim) = (Arc::clone(&self.node), self.record.clone(), self.shim.clone());
        let alive =
            self.containers.values().filter(|container| container.pid().is_some() || container.starting.is_some());
        let running: Vec<_> = alive.map(|container| (container.record.id.clone(), container.exited())).collect();
        let containers: Vec<_> = self.containers.keys().cloned().collect();
        let work = async move {
            if let Some(shim) = &shim {
                teardown::kill_containers(shim, running).await;
            }
            teardown::give_back(&node, &record, &containers, shim).await
        };
        self.hand_out("tear a pod sandbox down", work, Done::TornDown);
    }

    fn torn_down(&mut self, result: Result<(), Error>) {
        self.drain_events();
        self.lose_containers("the pod sandbox was stopped");
        if result.is_ok() {
            self.disconnect();
            if let Err(error) = self.enter(Event::TornDown) {
                // Everything is given back all the same; a later daemon tears down again what is not there.
                warn!(pod.id = %self.record.id, error = %chain(&error), "the end of a stop could not be recorded");
            }
        }
        self.publish();
        let replies = self.stopping.take().unwrap_or_default();
        match result {
            Ok(()) => {
                answer_all(replies, &Ok(()));
                if self.removing.is_some() {
                    self.begin_removal();
                }
            }
            Err(error) => {
                let result = Err(Arc::new(error));
                answer_all(replies, &result);
                answer_all(self.removing.take().unwrap_or_default(), &result);
            }
        }
    }

    fn remove_pod(&mut self, reply: Reply<()>) {
        match &mut self.removing {
            Some(waiting) => waiting.push(reply),
            None => {
                self.removing = Some(vec![reply]);
                if self.record.phase == super::state::Phase::Stopped {
                    self.begin_removal();
                } else if self.stopping.is_none() {
                    self.stopping = Some(Vec::new());
                    self.tear_down();
                }
            }
        }
    }

    fn begin_removal(&mut self) {
        let (node, record) = (Arc::clone(&self.node), self.record.clone());
        let work = async move { blocking(move || teardown::remove_pod_files(&node, &record)).await };
        self.hand_out("remove a pod sandbox", work, Done::Removed);
    }

    fn removed(&mut self, result: Result<(), Error>) -> ControlFlow<()> {
        let replies = self.removing.take().unwrap_or_default();
        match result {
            Ok(()) => {
                self.containers.clear();
                self.node.registry.forget(&self.record.id);
                self.ends.view.send_replace(None);
                answer_all(replies, &Ok(()));
                ControlFlow::Break(())
            }
            Err(error) => {
                answer_all(replies, &Err(Arc::new(error)));
                ControlFlow::Continue(())
            }
        }
    }

    /// Hears the shim: an event, or that its connection has ended.
    fn heard(&mut self, event: Option<wire::Event>) {
        match event.map(|event| event.kind) {
            Some(Some(Kind::ContainerExited(exited))) => self.container_exited(&exited),
            Some(Some(Kind::ExecExited(exited))) => {
                if let (Some(waiting), Some(exit)) = (self.execs.remove(&exited.exec_id), exited.exit) {
                    // Whoever asked for it may have gone.
                    let _ = waiting.send(exit);
                }
            }
            Some(Some(Kind::OomKill(kill))) => {
                info!(pod.id = %self.record.id, container.id = kill.container_id, "the kernel killed a process for want of memory");
            }
            Some(Some(Kind::LogProblem(problem))) => {
                warn!(pod.id = %self.record.id, container.id = problem.container_id, problem = problem.problem, "container log");
            }
            Some(None) => {}
            None => self.connection_ended(),
        }
    }

    /// Goes on with a stop that the death of an earlier daemon cut short.
    pub(crate) fn resume_stop(&mut self) {
        self.stopping = Some(Vec::new());
        self.tear_down();
    }

    fn drain_events(&mut self) {
        while let Some(event) = self.events.as_mut().and_then(|events| events.try_recv().ok()) {
            self.heard(Some(event));
        }
    }

    /// Changes the phase, on disk first.
    pub(crate) fn enter(&mut self, event: Event) -> Result<(), Error> {
        let Step::Next(phase) = self.record.phase.on(event) else { return Ok(()) };
        let old = std::mem::replace(&mut self.record.phase, phase);
        let written = podwright_store::write(&self.node.layout.pod_record(&self.record.id), &self.record);
        written.map_err(|source| {
            // A stop goes on without a record of it; a creation does not.
            if old == super::state::Phase::Creating {
                self.record.phase = old;
            }
            Error::step(format!("record pod sandbox {}", self.record.id), source)
        })
    }

    /// Shows the outside what has changed.
    pub(crate) fn publish(&self) {
        let record = &self.record;
        let mut containers: Vec<_> = self.containers.values().map(|container| Arc::clone(&container.view)).collect();
        containers.sort_by_key(|container| container.created_at);
        let private_network = record.config.linux.network != NamespaceMode::Node;
        let view = PodView {
            id: record.id.clone(),
            config: Arc::clone(&record.config),
            ready: record.phase.is_ready(),
            reason: record.phase.reason(),
            created_at: record.created_at,
            shim_pid: self.shim.as_ref().map(ShimClient::pid),
            ips: record.ips.clone(),
            netns: private_network.then(|| self.node.layout.netns(&record.id)),
            cgroup: record.cgroup.clone(),
            containers,
        };
        self.ends.view.send_replace(Some(Arc::new(view)));
    }

    /// Returns the connection to the shim, whether or not the pod is being stopped.
    ///
    /// # Errors
    /// [`Error::PodNotReady`] while it is being made again.
    pub(crate) fn connected_shim(&self) -> Result<ShimClient, Error> {
        self.shim.clone().ok_or_else(|| self.not_ready())
    }

    /// Returns the connection to the shim of a pod that is ready.
    ///
    /// # Errors
    /// [`Error::PodNotReady`] with the reason.
    pub(crate) fn ready_shim(&self) -> Result<ShimClient, Error> {
        match &self.shim {
            Some(shim) if self.record.phase.is_ready() && self.stopping.is_none() => Ok(shim.clone()),
            _ => Err(self.not_ready()),
        }
    }

    fn not_ready(&self) -> Error {
        let reason = match self.record.phase.reason() {
            ready if ready.is_empty() => "the connection to its shim is being made again".to_owned(),
            reason => reason,
        };
        Error::PodNotReady { pod: self.record.id.clone(), reason }
    }
}

async fn next(events: &mut Option<mpsc::Receiver<wire::Event>>) -> Option<wire::Event> {
    match events {
        Some(events) => events.recv().await,
        None => pending().await,
    }
}

/// Runs what may block for long where it holds up nobody. A panic in it is the caller's.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => pending().await,
        },
    }
}

/// Tells everyone who waits for the same thing.
pub(crate) fn answer_all(replies: Vec<Reply<()>>, result: &Result<(), Arc<Error>>) {
    for reply in replies {
        // Whoever does not wait any more needs no answer.
        drop(reply.send(match result {
            Ok(()) => Ok(()),
            Err(error) => Err(shared(error)),
        }));
    }
}

/// Words a shim's failure to do something to a container.
pub(crate) fn shim_failed(what: impl Into<String>) -> impl FnOnce(ShimError) -> Error {
    let what = what.into();
    |error| Error::step(what, error)
}
