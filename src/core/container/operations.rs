//! What a pod's driver does with its containers: checks the state, hands the slow part out, applies its result.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use podwright_base::ContainerId;
use podwright_plan::wire::{self, ContainerPlan};
use podwright_spec::ContainerConfig;
use podwright_spec::container::ContainerMetadata;
use prost::Message;
use tokio::sync::oneshot;
use tracing::{info, warn};

use super::create::{self, Prepared};
use super::entry::{Container, Starting};
use super::state::Event;
use super::stop::{self, Stopping, Target};
use crate::cgroups;
use crate::clock;
use crate::error::{Error, chain};
use crate::pod::driver::{Done, Driver, Name, answer_all, blocking, shim_failed};
use crate::pod::handle::Reply;
use crate::pod::teardown::remove_tree;
use crate::registry::shared;
use crate::session::Access;
use crate::shim::ShimClient;
use crate::view::ContainerState;

impl Driver {
    /// Creates a container, or joins the creation of the same one.
    pub(crate) fn create_container(&mut self, config: ContainerConfig, reply: Reply<ContainerId>) {
        let shim_pid = match self.ready_shim() {
            Ok(shim) => shim.pid(),
            Err(error) => return drop(reply.send(Err(error))),
        };
        let name = config.metadata.clone();
        match self.names.get_mut(&name) {
            Some(Name::Creating(same, waiting)) if **same == config => return waiting.push(reply),
            Some(Name::Taken(id)) if self.containers.get(id).is_some_and(|owner| owner.is_what(&config)) => {
                return drop(reply.send(Ok(id.clone())));
            }
            Some(owner) => {
                let id = match owner {
                    Name::Taken(id) => id.to_string(),
                    Name::Creating(..) => "a container being created".to_owned(),
                };
                return drop(reply.send(Err(Error::NameInUse { what: "container", name: name.name, id })));
            }
            None => {}
        }
        let config = Arc::new(config);
        self.names.insert(name.clone(), Name::Creating(Arc::clone(&config), vec![reply]));
        let (node, pod) = (Arc::clone(&self.node), create::Pod { record: self.record.clone(), shim_pid });
        let creation = async move { create::create(node, pod, config).await.map(Box::new) };
        self.hand_out("create a container", creation, |created| Done::Created(name, created));
    }

    /// Takes a created container in.
    pub(crate) fn container_created(&mut self, name: ContainerMetadata, result: Result<Box<Prepared>, Error>) {
        let Some(Name::Creating(_, replies)) = self.names.remove(&name) else { return };
        match result {
            Ok(prepared) => {
                let id = prepared.record.id.clone();
                info!(pod.id = %self.record.id, container.id = %id, container.name = %name.name, "container is created");
                self.names.insert(name, Name::Taken(id.clone()));
                let container = Container::new(&self.node.layout, &self.record, prepared.record, prepared.lease);
                self.containers.insert(id.clone(), container);
                self.node.registry.add_container(&id, &self.record.id);
                self.publish();
                for reply in replies {
                    drop(reply.send(Ok(id.clone())));
                }
            }
            Err(error) => {
                let error = Arc::new(error);
                for reply in replies {
                    drop(reply.send(Err(shared(&error))));
                }
            }
        }
    }

    /// Starts a container, joins its start, or finds it started.
    pub(crate) fn start_container(&mut self, id: &ContainerId, reply: Reply<()>) {
        let shim = self.ready_shim();
        let Some(container) = self.containers.get_mut(id) else { return missing(id, reply) };
        if let Some(starting) = &mut container.starting {
            return starting.replies.push(reply);
        }
        match (&container.record.state, shim) {
            (ContainerState::Running { .. }, _) => drop(reply.send(Ok(()))),
            (ContainerState::Exited(_), _) => drop(reply.send(Err(wrong(id, "it has exited: create another one")))),
            (ContainerState::Created, Err(error)) => drop(reply.send(Err(error))),
            (ContainerState::Created, Ok(_)) if container.removing.is_some() => {
                drop(reply.send(Err(wrong(id, "it is being removed"))));
            }
            (ContainerState::Created, Ok(_)) => self.begin_start(id, vec![reply]),
        }
    }

    /// Has the shim start a container, or joins a start that an earlier daemon has begun.
    pub(crate) fn begin_start(&mut self, id: &ContainerId, replies: Vec<Reply<()>>) {
        let (Some(container), Some(shim)) = (self.containers.get_mut(id), self.shim.clone()) else { return };
        container.starting = Some(Starting { replies, deferred: Vec::new() });
        let (id, node) = (id.clone(), Arc::clone(&self.node));
        let path = node.layout.container_plan(&self.record.id, &id);
        let cgroup = self.record.container_cgroup(&id);
        let starting = id.clone();
        let work = async move {
            let started = launch(&shim, &id, &path).await;
            if started.is_err()
                && let Err(error) = cgroups::clear(&node, cgroup).await
            {
                warn!(container.id = %id, error = %chain(&error), "a failed start may have left something behind");
            }
            started
        };
        self.hand_out("start a container", work, |started| Done::Started(starting, started));
    }

    /// Applies the end of a start.
    pub(crate) fn container_started(&mut self, id: &ContainerId, result: Result<wire::Started, Error>) {
        let Some(container) = self.containers.get_mut(id) else { return };
        let starting = container.starting.take().unwrap_or_default();
        let (event, answer) = match result {
            Ok(wire::Started { pid, started_at }) => (Event::Started { pid, started_at }, Ok(())),
            Err(error) => (Event::StartFailed { at: clock::now(), message: chain(&error) }, Err(Arc::new(error))),
        };
        self.change(id, event);
        answer_all(starting.replies, &answer);
        self.resume(starting.deferred);
    }

    /// Stops a container that runs; any other one is stopped already.
    pub(crate) fn stop_container(&mut self, id: &ContainerId, timeout: Duration, reply: Reply<()>) {
        let shim = self.connected_shim();
        let Some(container) = self.containers.get_mut(id) else { return drop(reply.send(Ok(()))) };
        match (&container.record.state, shim) {
            (ContainerState::Running { .. }, Ok(shim)) => begin_stop(container, &shim, timeout),
            (ContainerState::Running { .. }, Err(error)) => return drop(reply.send(Err(error))),
            _ => return drop(reply.send(Ok(()))),
        }
        let (id, exited) = (id.clone(), container.exited());
        tokio::spawn(async move { drop(reply.send(stop::stopped(id, timeout, exited).await)) });
    }

    /// Removes a container; one that runs is killed.
    pub(crate) fn remove_container(&mut self, id: &ContainerId, reply: Reply<()>) {
        let shim = self.connected_shim();
        let Some(container) = self.containers.get_mut(id) else { return drop(reply.send(Ok(()))) };
        if let Some(waiting) = &mut container.removing {
            return waiting.push(reply);
        }
        let running = container.pid().is_some();
        match (running, shim) {
            (true, Ok(shim)) => begin_stop(container, &shim, Duration::ZERO),
            (true, Err(error)) => return drop(reply.send(Err(error))),
            (false, _) => {}
        }
        container.removing = Some(vec![reply]);
        let (id, exited, shim) = (id.clone(), container.exited(), self.shim.clone());
        let dir = self.node.layout.container(&self.record.id, &id);
        let record = self.node.layout.container_record(&self.record.id, &id);
        let removing = id.clone();
        let work = async move {
            if running {
                stop::stopped(id.clone(), Duration::ZERO, exited).await?;
            }
            if let Some(shim) = shim {
                stop::release(&shim, &id).await?;
            }
            blocking(move || remove_files(&record, &dir)).await
        };
        self.hand_out("remove a container", work, |removed| Done::ContainerRemoved(removing, removed));
    }

    /// Lets go of a removed container.
    pub(crate) fn container_removed(&mut self, id: &ContainerId, result: Result<(), Error>) {
        let Some(container) = self.containers.get_mut(id) else { return };
        let replies = container.removing.take().unwrap_or_default();
        if result.is_ok() {
            self.names.remove(&container.record.config.metadata);
            self.containers.remove(id);
            self.node.registry.forget_container(id);
            self.publish();
            info!(pod.id = %self.record.id, container.id = %id, "container is removed");
        }
        answer_all(replies, &result.map_err(Arc::new));
    }

    /// Has a running container's log opened anew.
    pub(crate) fn reopen_log(&mut self, id: &ContainerId, reply: Reply<()>) {
        match self.running(id) {
            Err(error) => drop(reply.send(Err(error))),
            Ok(shim) => {
                let id = id.clone();
                tokio::spawn(async move {
                    let reopened = shim.reopen_log(id.as_str()).await;
                    drop(reply.send(reopened.map_err(shim_failed(format!("reopen the log of container {id}")))));
                });
            }
        }
    }

    /// Lets a caller into a running container.
    ///
    /// # Errors
    /// When it does not run.
    pub(crate) fn enter_container(&mut self, id: &ContainerId) -> Result<Access, Error> {
        let shim = self.running(id)?;
        let container = self.containers.get(id).ok_or_else(|| Error::ContainerNotFound { id: id.to_string() })?;
        let (exited, tty) = (container.exited(), container.record.config.tty);
        let exec = ContainerId::random().short().to_owned();
        let (told, exit) = oneshot::channel();
        self.execs.retain(|_, waiting| !waiting.is_closed());
        self.execs.insert(exec.clone(), told);
        Ok(Access { shim, pod: self.record.id.clone(), container: id.clone(), exec, exit, exited, tty })
    }

    /// Applies the end of a container's process.
    pub(crate) fn container_exited(&mut self, exited: &wire::ContainerExited) {
        let (Ok(id), Some(exit)) = (exited.container_id.parse::<ContainerId>(), &exited.exit) else { return };
        self.change(&id, ended(exit));
    }

    /// Compares a recovered container with what the shim knows of it.
    pub(crate) fn reconcile(&mut self, known: &wire::ContainerState) {
        let Ok(id) = known.id.parse::<ContainerId>() else { return };
        if known.started_at != 0 {
            self.change(&id, Event::Started { pid: known.pid, started_at: known.started_at });
        }
        if let Some(exit) = &known.exit {
            self.change(&id, ended(exit));
        }
    }

    /// Changes a container's state: in memory, on disk, for the outside.
    pub(crate) fn change(&mut self, id: &ContainerId, event: Event) {
        let (layout, record) = (&self.node.layout, &self.record);
        let Some(container) = self.containers.get_mut(id) else { return };
        if !container.apply(layout, record, event) {
            return;
        }
        if let Err(error) = container.persist(layout, record) {
            // The shim keeps it too, until the container is removed.
            warn!(container.id = %id, error = %chain(&error), "a container's state could not be recorded");
        }
        info!(pod.id = %record.id, container.id = %id, state = ?container.record.state, "container");
        self.publish();
        // Whoever waits for the exit may look at the state at once.
        if let Some(container) = self.containers.get(id) {
            container.announce();
        }
    }

    fn running(&self, id: &ContainerId) -> Result<ShimClient, Error> {
        let container = self.containers.get(id).ok_or_else(|| Error::ContainerNotFound { id: id.to_string() })?;
        match container.record.state {
            ContainerState::Running { .. } => self.ready_shim(),
            ContainerState::Created => Err(wrong(id, "it is created, not running: start it first")),
            ContainerState::Exited(_) => Err(wrong(id, "it is not running: it has exited")),
        }
    }
}

fn ended(exit: &wire::Exit) -> Event {
    Event::Ended { at: exit.at, code: exit.code, oom_killed: exit.oom_killed }
}

fn begin_stop(container: &mut Container, shim: &ShimClient, grace: Duration) {
    match &container.stopping {
        Some(stopping) if stopping.goes_on() => stopping.shorten(grace),
        _ => {
            let target = Target { id: container.record.id.clone(), shim: shim.clone(), exited: container.exited() };
            container.stopping = Some(Stopping::begin(target, container.record.stop_signal, grace));
        }
    }
}

/// Has the shim execute a container's plan.
async fn launch(shim: &ShimClient, id: &ContainerId, path: &Path) -> Result<wire::Started, Error> {
    let unreadable = || format!("read the launch plan {}", path.display());
    let bytes = fs::read(path).map_err(|source| Error::step(unreadable(), source))?;
    let plan = ContainerPlan::decode(bytes.as_slice()).map_err(|source| Error::step(unreadable(), source))?;
    shim.start(plan).await.map_err(shim_failed(format!("start container {id}")))
}

/// Removes the record, then the rest, where a large writable layer may take its time.
fn remove_files(record: &Path, dir: &Path) -> Result<(), Error> {
    podwright_store::remove(record).map_err(|source| Error::step(format!("remove {}", record.display()), source))?;
    remove_tree(dir).map_err(|source| Error::step(format!("remove {}", dir.display()), source))
}

fn missing<T>(id: &ContainerId, reply: Reply<T>) {
    drop(reply.send(Err(Error::ContainerNotFound { id: id.to_string() })));
}

fn wrong(id: &ContainerId, problem: &str) -> Error {
    Error::WrongState { container: id.clone(), problem: problem.to_owned() }
}
