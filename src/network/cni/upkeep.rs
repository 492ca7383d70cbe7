//! What concerns a network as a whole: which version its plugins speak, whether they are ready, and what belongs to no
//! pod any more.

use std::collections::HashSet;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio::time::{Instant, timeout_at};

use crate::attach::{DelError, Failures};
use crate::config::{NetworkConfig, Plugin};
use crate::plugin::{Failure, Operation, PluginError};
use crate::record::{Record, RecordError};
use crate::version::Version;
use crate::{Cni, request};

/// One state of an executable: path, inode, seconds and nanoseconds of its last change, bytes.
pub(crate) type Stamp = (PathBuf, u64, i64, i64, u64);

/// What a sweep undid, and what it could not.
#[derive(Debug, Default)]
pub struct Swept {
    /// Containers whose attachments are undone now.
    pub detached: Vec<String>,
    /// What is still there.
    pub failures: Failures,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Spoken {
    supported_versions: Vec<String>,
}

impl Cni {
    /// Tells whether pods can be attached to a network: its plugins are there and, since version 1.1.0, say so.
    ///
    /// # Errors
    /// The first plugin that is missing or says no, in its own words; within the limit of one plugin.
    pub async fn status(&self, network: &NetworkConfig) -> Result<(), PluginError> {
        let deadline = Instant::now() + self.0.executor.limit;
        for plugin in &network.plugins {
            let missing = self.0.executor.find(&plugin.kind).map(drop);
            missing.map_err(|failure| error(network, plugin, Operation::Status, failure))?;
        }
        let version = self.negotiate(network, deadline).await;
        if version.has_status_and_gc() {
            for plugin in &network.plugins {
                let conf = request(plugin, &network.name, version, []);
                self.order(network, plugin, Operation::Status, conf, deadline).await?;
            }
        }
        Ok(())
    }

    /// Has plugins remove what belongs to no pod (GC, since version 1.1.0), unless the network says `disableGC`. `None`
    /// when nothing was asked: pods are being attached or detached, or the version has no GC.
    pub async fn gc(&self, network: &NetworkConfig) -> Option<Vec<DelError>> {
        let _turn = self.0.turn.try_write().ok()?;
        self.collect(network).await
    }

    /// Records an attachment of a container to a network, if none of it is recorded: for one that is no more and may have
    /// been attached, so that a sweep has the network's plugins undo whatever they did for it.
    ///
    /// # Errors
    /// When the records cannot be read or written.
    pub async fn recall(
        &self,
        network: &NetworkConfig,
        container: &str,
        interface: &str,
        netns: &Path,
        capabilities: Map<String, Value>,
    ) -> Result<(), RecordError> {
        if !self.0.records.list(Some(container))?.is_empty() {
            return Ok(());
        }
        let version = self.negotiate(network, Instant::now() + self.0.executor.limit).await;
        let mut record = Record::new(network, version, container, interface);
        (record.netns, record.capabilities) = (netns.to_owned(), capabilities);
        self.0.records.write(&record)
    }

    /// Undoes attachments of containers that are not live, then has the plugins of the present network, if there is one,
    /// remove what belongs to none. For the runtime's start.
    pub async fn sweep(&self, live: &HashSet<String>, network: Option<&NetworkConfig>) -> Swept {
        let mut swept = Swept::default();
        let deadline = Instant::now() + self.0.executor.limit * 2;
        let Ok(_turn) = timeout_at(deadline, self.0.turn.write()).await else {
            swept.failures.0.push(DelError::Busy);
            return swept;
        };
        let mut strays = match self.0.records.list(None) {
            Ok(keys) => keys,
            Err(source) => {
                swept.failures.0.push(DelError::Record(source));
                return swept;
            }
        };
        strays.retain(|key| !live.contains(&key.container));
        for key in strays {
            let container = key.container.clone();
            let failures = self.del_keys(vec![key]).await;
            if failures.0.is_empty() {
                swept.detached.push(container);
            } else {
                swept.failures.0.extend(failures.0);
            }
        }
        if let Some(network) = network {
            swept.failures.0.extend(self.collect(network).await.unwrap_or_default());
        }
        swept
    }

    /// GC, by whoever holds the turn alone: what is recorded is all there is.
    async fn collect(&self, network: &NetworkConfig) -> Option<Vec<DelError>> {
        let deadline = Instant::now() + self.0.executor.limit;
        let version = self.negotiate(network, deadline).await;
        if network.disable_gc || !version.has_status_and_gc() {
            return None;
        }
        let valid = match self.valid_attachments(network) {
            Ok(valid) => valid,
            Err(source) => return Some(vec![DelError::Record(source)]),
        };
        let mut errors = Vec::new();
        for plugin in &network.plugins {
            // Plugins look for the second name, which the specification had for a while.
            let additions = [("cni.dev/valid-attachments", valid.clone()), ("cni.dev/attachments", valid.clone())];
            let conf = request(plugin, &network.name, version, additions);
            let deadline = Instant::now() + self.0.executor.limit;
            let done = self.order(network, plugin, Operation::Gc, conf, deadline).await;
            errors.extend(done.map_err(DelError::Plugin).err());
        }
        Some(errors)
    }

    fn valid_attachments(&self, network: &NetworkConfig) -> Result<Value, RecordError> {
        let keys = self.0.records.list(None)?.into_iter().filter(|key| key.network == network.name);
        Ok(keys.map(|key| json!({ "containerID": key.container, "ifname": key.interface })).collect())
    }

    /// The version that a network is spoken to in: the newest of those that it states which all its plugins speak.
    /// Plugins are asked only when there is a choice, and once as long as their files stay as they are.
    pub(crate) async fn negotiate(&self, network: &NetworkConfig, deadline: Instant) -> Version {
        let newest = network.versions.last().copied().unwrap_or(Version::V0_3_0);
        let mut common = network.versions.clone();
        if common.len() < 2 {
            return newest;
        }
        for plugin in &network.plugins {
            // One that cannot say it fails at what it is told to do, and says why there.
            if let Some(spoken) = self.spoken(network, plugin, newest, deadline).await {
                common.retain(|version| spoken.contains(version));
            }
        }
        common.last().copied().unwrap_or(newest)
    }

    async fn spoken(
        &self,
        network: &NetworkConfig,
        plugin: &Plugin,
        newest: Version,
        deadline: Instant,
    ) -> Option<Vec<Version>> {
        let path = self.0.executor.find(&plugin.kind).ok()?;
        let file = path.metadata().ok()?;
        let stamp = (path, file.ino(), file.mtime(), file.mtime_nsec(), file.len());
        if let Some(known) = self.0.spoken.lock().ok()?.get(&stamp) {
            return Some(known.clone());
        }
        let conf = json!({ "cniVersion": newest.as_str() }).as_object().cloned().unwrap_or_default();
        let output = match self.order(network, plugin, Operation::Version, conf, deadline).await {
            Ok(output) => output,
            Err(error) => {
                let cause = &error.failure;
                tracing::debug!(%error, %cause, "a CNI plugin does not say which versions it speaks");
                return None;
            }
        };
        let spoken: Spoken = serde_json::from_slice(&output).ok()?;
        let versions: Vec<_> = spoken.supported_versions.iter().filter_map(|text| Version::parse(text)).collect();
        let mut known = self.0.spoken.lock().ok()?;
        // An executable that was replaced is not asked for again.
        known.retain(|(path, ..), _| *path != stamp.0);
        known.insert(stamp, versions.clone());
        Some(versions)
    }

    /// Gives a plugin an order that is about no pod.
    async fn order(
        &self,
        network: &NetworkConfig,
        plugin: &Plugin,
        operation: Operation,
        conf: Map<String, Value>,
        deadline: Instant,
    ) -> Result<Vec<u8>, PluginError> {
        let failed = |failure| error(network, plugin, operation, failure);
        let input = serde_json::to_vec(&conf).map_err(|source| failed(Failure::Encode(source)))?;
        self.0.executor.run(&plugin.kind, operation, &[], input, deadline).await.map_err(failed)
    }
}

fn error(network: &NetworkConfig, plugin: &Plugin, operation: Operation, failure: Failure) -> PluginError {
    PluginError { network: network.name.clone(), plugin: plugin.kind.clone(), operation, failure }
}
