//! Attaching a pod to a network, detaching it from those it was attached to, and looking whether it still is.

use std::fmt;
use std::path::Path;

use podwright_base::chain;
use rustix::fs::{FsWord, statfs};
use serde_json::{Map, Value};
use tokio::time::{Instant, timeout_at};

use crate::config::{NetworkConfig, Plugin};
use crate::plugin::{Failure, Operation, PluginError, Words};
use crate::record::{Key, Record, RecordError};
use crate::result::AddResult;
use crate::{Cni, orphan, request, runtime_config};

/// The kernel's mark of the file system that namespaces are in.
const NSFS_MAGIC: FsWord = 0x6e73_6673;
/// The error code that says that there is nothing to undo.
const CODE_UNKNOWN_CONTAINER: u32 = 3;

/// A pod that is to be attached.
#[derive(Debug, Clone)]
pub struct Request<'a> {
    /// `CNI_CONTAINERID`: letters and digits.
    pub container: &'a str,
    /// `CNI_IFNAME`: letters and digits.
    pub interface: &'a str,
    /// `CNI_NETNS`
    pub netns: &'a Path,
    /// `CNI_ARGS`
    pub args: &'a [(&'static str, &'a str)],
    /// Of which each plugin is given those that it declares.
    pub capabilities: Map<String, Value>,
}

/// Why a pod was not attached.
#[derive(Debug)]
pub struct AddError {
    /// What went wrong.
    pub failure: AddFailure,
    /// What could not be undone; it is tried again when the pod is detached.
    pub undone: Failures,
}

impl fmt::Display for AddError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.failure)?;
        if self.undone.0.is_empty() {
            return Ok(());
        }
        // The source has the first cause; this is another, so it is told here.
        write!(f, " (and it is not wholly undone: {})", self.undone)
    }
}

impl std::error::Error for AddError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        std::error::Error::source(&self.failure)
    }
}

/// What went wrong with an attachment.
#[derive(Debug, thiserror::Error)]
pub enum AddFailure {
    /// A word of `CNI_ARGS` would be taken for several.
    #[error("{name} {value:?} cannot be told to CNI plugins: it has one of ';' and '=' in it")]
    Argument {
        /// Its name.
        name: &'static str,
        /// Its value.
        value: String,
    },
    /// Plugins are cleaning up, or an earlier operation has not ended.
    #[error("CNI plugins are still cleaning up")]
    Busy,
    /// An earlier attachment of the pod is still there.
    #[error("undo an earlier attachment of the pod: {0}")]
    Earlier(Failures),
    /// The attachment cannot be recorded, so it was not made, or undone.
    #[error("record the attachment")]
    Record(#[source] RecordError),
    /// A plugin failed.
    #[error(transparent)]
    Plugin(#[from] PluginError),
}

/// Why a part of an attachment was not undone.
#[derive(Debug, thiserror::Error)]
pub enum DelError {
    /// Plugins are cleaning up.
    #[error("CNI plugins are still cleaning up")]
    Busy,
    /// The records cannot be read or removed.
    #[error("look up what the pod was attached by")]
    Record(#[source] RecordError),
    /// A plugin failed.
    #[error(transparent)]
    Plugin(#[from] PluginError),
}

/// All that went wrong, each with its causes.
#[derive(Debug, Default)]
pub struct Failures(pub Vec<DelError>);

impl fmt::Display for Failures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, failure) in self.0.iter().enumerate() {
            write!(f, "{}{}", if index == 0 { "" } else { "; " }, chain(failure))?;
        }
        Ok(())
    }
}

/// Why it cannot be said that a pod is attached.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// The records cannot be read.
    #[error("look up what the pod was attached by")]
    Record(#[source] RecordError),
    /// It was not attached, or not wholly.
    #[error("no attachment of {container} to a CNI network is recorded")]
    NotAttached {
        /// The container's id.
        container: String,
    },
    /// A plugin says that it is not attached as it should be.
    #[error(transparent)]
    Plugin(#[from] PluginError),
}

impl Cni {
    /// Attaches a pod: every plugin of the chain in turn, each with the result of the one before. On failure all of
    /// them undo it. What an earlier attempt for the same pod left is undone first.
    ///
    /// # Errors
    /// The plugin that failed, in its own words, and what could not be undone; within twice the limit of one plugin,
    /// and as long again for undoing it.
    pub async fn add(&self, network: &NetworkConfig, pod: &Request<'_>) -> Result<AddResult, AddError> {
        self.add_chain(network, pod).await.map_err(|(failure, undone)| AddError { failure, undone })
    }

    async fn add_chain(&self, network: &NetworkConfig, pod: &Request<'_>) -> Result<AddResult, (AddFailure, Failures)> {
        let only = |failure| (failure, Failures::default());
        let args = args(pod.args).map_err(only)?;
        let deadline = Instant::now() + self.0.executor.limit * 2;
        let _turn = timeout_at(deadline, self.0.turn.read()).await.map_err(|_| only(AddFailure::Busy))?;
        let earlier = self.del_all(pod.container).await;
        if !earlier.0.is_empty() {
            return Err(only(AddFailure::Earlier(earlier)));
        }
        let version = self.negotiate(network, deadline).await;
        let mut record = Record::new(network, version, pod.container, pod.interface);
        (record.netns, record.args, record.capabilities) = (pod.netns.to_owned(), args, pod.capabilities.clone());
        self.0.records.write(&record).map_err(|source| only(AddFailure::Record(source)))?;
        let (mut result, mut failure) = (None, None);
        for plugin in &network.plugins {
            match self.add_one(&record, plugin, result.as_ref(), deadline).await {
                Ok(next) => result = Some(next),
                Err(error) => {
                    failure = Some(AddFailure::Plugin(error));
                    break;
                }
            }
        }
        record.result = result;
        if failure.is_none() {
            failure = self.0.records.write(&record).map_err(AddFailure::Record).err();
        }
        match failure {
            None => Ok(record.result.unwrap_or_default()),
            Some(failure) => Err((failure, self.del_record(&record).await)),
        }
    }

    async fn add_one(
        &self,
        record: &Record,
        plugin: &Plugin,
        previous: Option<&AddResult>,
        deadline: Instant,
    ) -> Result<AddResult, PluginError> {
        let failed = |failure| error(record, plugin, Operation::Add, failure);
        let output = self.execute(record, plugin, Operation::Add, previous, deadline).await?;
        AddResult::parse(&output).map_err(|source| failed(Failure::Garbage { words: Words::of(&output), source }))
    }

    /// Detaches a pod from everything that it was attached to: every plugin, in reverse, by what the pod was attached
    /// with. Idempotent; works when the network namespace or the configuration is gone. Tells whether there was
    /// anything to undo.
    ///
    /// # Errors
    /// All that could not be undone, after everything was tried; within the limit of one plugin for each of them.
    pub async fn del(&self, container: &str) -> Result<bool, Failures> {
        let records = |source| Failures(vec![DelError::Record(source)]);
        if self.0.records.list(Some(container)).map_err(records)?.is_empty() {
            return Ok(false);
        }
        let deadline = Instant::now() + self.0.executor.limit * 2;
        let turn = timeout_at(deadline, self.0.turn.read()).await;
        let _turn = turn.map_err(|_| Failures(vec![DelError::Busy]))?;
        let failures = self.del_all(container).await;
        if failures.0.is_empty() { Ok(true) } else { Err(failures) }
    }

    async fn del_all(&self, container: &str) -> Failures {
        match self.0.records.list(Some(container)) {
            Ok(keys) => self.del_keys(keys).await,
            Err(source) => Failures(vec![DelError::Record(source)]),
        }
    }

    /// Undoes attachments, whoever holds the turn.
    pub(crate) async fn del_keys(&self, keys: Vec<Key>) -> Failures {
        let mut failures = Failures::default();
        for key in keys {
            match self.find_record(&key) {
                Ok(Some(record)) => failures.0.extend(self.del_record(&record).await.0),
                Ok(None) => {}
                Err(source) => failures.0.push(DelError::Record(source)),
            }
        }
        failures
    }

    /// Reads a record. For one that is damaged, the configuration of its network takes its place; without that nothing
    /// can be undone, and it is removed.
    fn find_record(&self, key: &Key) -> Result<Option<Record>, RecordError> {
        if let Some(record) = self.0.records.read(key)? {
            return Ok(Some(record));
        }
        let network = self.network().ok().flatten().filter(|network| network.name == key.network);
        let newest = network.as_ref().and_then(|network| network.versions.last().copied());
        if let (Some(network), Some(version)) = (network, newest) {
            return Ok(Some(Record::new(&network, version, &key.container, &key.interface)));
        }
        tracing::warn!(error = %self.0.records.damaged(key), "an attachment to a CNI network may be left");
        self.0.records.remove(key).map(|()| None)
    }

    async fn del_record(&self, record: &Record) -> Failures {
        let mut failures = Failures::default();
        if record.result.is_none() && !record.netns.as_os_str().is_empty() {
            let (container, netns) = (record.container.clone(), record.netns.clone());
            // It waits for processes to die; a panic of it is a defect that the detachment need not suffer from.
            drop(tokio::task::spawn_blocking(move || orphan::end(&container, &netns)).await);
        }
        for plugin in record.plugins().iter().rev() {
            let previous = record.result.as_ref().filter(|_| record.version.has_result_on_del());
            // Each has its own time: one that hangs must not take the others' chance.
            let deadline = Instant::now() + self.0.executor.limit;
            match self.execute(record, plugin, Operation::Del, previous, deadline).await {
                Ok(_) => {}
                Err(PluginError { failure: Failure::Told(told), .. }) if told.code == CODE_UNKNOWN_CONTAINER => {}
                Err(error) => failures.0.push(DelError::Plugin(error)),
            }
        }
        if failures.0.is_empty() {
            failures.0.extend(self.0.records.remove(&record.key()).map_err(DelError::Record).err());
        }
        failures
    }

    /// Asks every plugin whether a pod is attached as it was; a network that says `disableCheck`, or is older than
    /// CHECK, is not asked.
    ///
    /// # Errors
    /// The first plugin that says no, in its own words.
    pub async fn check(&self, container: &str) -> Result<(), CheckError> {
        let keys = self.0.records.list(Some(container)).map_err(CheckError::Record)?;
        let not_attached = || CheckError::NotAttached { container: container.to_owned() };
        if keys.is_empty() {
            return Err(not_attached());
        }
        for key in keys {
            let record = self.0.records.read(&key).map_err(CheckError::Record)?.ok_or_else(not_attached)?;
            let result = record.result.as_ref().ok_or_else(not_attached)?;
            if record.disable_check || !record.version.has_check() {
                continue;
            }
            let deadline = Instant::now() + self.0.executor.limit;
            for plugin in record.plugins() {
                self.execute(&record, &plugin, Operation::Check, Some(result), deadline).await?;
            }
        }
        Ok(())
    }

    /// What plugins made for a pod; `None` when it is not attached.
    ///
    /// # Errors
    /// When the records cannot be read.
    pub fn result(&self, container: &str) -> Result<Option<AddResult>, RecordError> {
        let Some(key) = self.0.records.list(Some(container))?.into_iter().next() else { return Ok(None) };
        Ok(self.0.records.read(&key)?.and_then(|record| record.result))
    }

    async fn execute(
        &self,
        record: &Record,
        plugin: &Plugin,
        operation: Operation,
        previous: Option<&AddResult>,
        deadline: Instant,
    ) -> Result<Vec<u8>, PluginError> {
        let failed = |failure| error(record, plugin, operation, failure);
        let mut additions = Vec::new();
        if let Some(value) = runtime_config(plugin, &record.capabilities) {
            additions.push(("runtimeConfig", value));
        }
        if let Some(previous) = previous {
            let value = previous.to_value(record.version).map_err(|source| failed(Failure::Encode(source)))?;
            additions.push(("prevResult", value));
        }
        let conf = request(plugin, &record.network, record.version, additions);
        let input = serde_json::to_vec(&conf).map_err(|source| failed(Failure::Encode(source)))?;
        // A namespace that is gone is told by an empty path: plugins fail at one that leads to something else.
        let gone = operation == Operation::Del && !is_namespace(&record.netns);
        let netns = if gone { "".into() } else { record.netns.to_string_lossy() };
        let parameters = [
            ("CNI_CONTAINERID", record.container.as_str()),
            ("CNI_NETNS", &netns),
            ("CNI_IFNAME", &record.interface),
            ("CNI_ARGS", &record.args),
        ];
        self.0.executor.run(&plugin.kind, operation, &parameters, input, deadline).await.map_err(failed)
    }
}

fn error(record: &Record, plugin: &Plugin, operation: Operation, failure: Failure) -> PluginError {
    PluginError { network: record.network.clone(), plugin: plugin.kind.clone(), operation, failure }
}

/// Whether a path leads to a namespace; that of a pin leads to an empty file once the pin is unmounted.
fn is_namespace(path: &Path) -> bool {
    statfs(path).is_ok_and(|file_system| file_system.f_type == NSFS_MAGIC)
}

fn args(pairs: &[(&'static str, &str)]) -> Result<String, AddFailure> {
    if let Some((name, value)) = pairs.iter().find(|(_, value)| value.contains([';', '='])) {
        return Err(AddFailure::Argument { name, value: (*value).to_owned() });
    }
    Ok(pairs.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(";"))
}
