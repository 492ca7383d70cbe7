//! Container Network Interface, versions 0.3.0 to 1.1.0, as a runtime speaks it.
//!
//! [`Cni`] is the face: [`Cni::network`] says what is configured now, [`Cni::add`] attaches a pod to it, [`Cni::del`]
//! detaches a pod from what it was attached to. A pod's record is written before the first plugin runs and kept until
//! the last has undone what it did, so an attachment outlives daemons, configurations and reboots, and is always undone
//! by what made it.
//!
//! Layers, each using those below: `attach`, `upkeep`, `generate` (the operations) · `directory`, `record` (files) · `plugin`, `orphan`
//! (executions) · `config`, `result`, `capability`, `annotation`,
//! `template`, `version` (pure).
//!
//! Nothing here knows of pods, Kubernetes or the daemon; every wait for a plugin is bounded.

mod annotation;
mod attach;
mod capability;
mod config;
mod directory;
mod generate;
mod orphan;
mod plugin;
mod record;
mod result;
pub mod template;
mod upkeep;
mod version;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::{Map, Value};
use tokio::sync::RwLock;

pub use crate::annotation::{AnnotationError, Bandwidth, Limit};
pub use crate::attach::{AddError, AddFailure, CheckError, DelError, Failures, Request};
pub use crate::capability::{POD_ANNOTATIONS, PORT_MAPPINGS, PortMapping, Wishes};
pub use crate::config::{NetworkConfig, Problem};
pub use crate::directory::{ConfigError, Rejected};
pub use crate::generate::GenerateError;
pub use crate::plugin::{Failure, Operation, PluginError, Told, Words};
pub use crate::record::{Key, RecordError};
pub use crate::result::{AddResult, Dns, Interface, Ip, Route};
pub use crate::upkeep::Swept;
pub use crate::version::Version;

use crate::config::Plugin;
use crate::plugin::Executor;
use crate::record::Records;
use crate::upkeep::Stamp;

/// Where everything is.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The directory of configurations.
    pub conf_dir: PathBuf,
    /// Directories of plugins, in the order in which they are searched.
    pub bin_dirs: Vec<PathBuf>,
    /// The directory of attachments' records, for this runtime alone; made when needed.
    pub records: PathBuf,
    /// How long one execution of a plugin may take.
    pub plugin_limit: Duration,
}

/// The networks of one runtime. Clones are the same.
#[derive(Debug, Clone)]
pub struct Cni(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    conf_dir: PathBuf,
    executor: Executor,
    records: Records,
    /// Held shared by ADD and DEL, exclusively by GC: the specification forbids GC beside them.
    turn: RwLock<()>,
    /// What has been logged of files that are not valid; they are read at each use, and told once.
    told: Mutex<Vec<Rejected>>,
    /// What executables have said of the versions that they speak.
    spoken: Mutex<HashMap<Stamp, Vec<Version>>>,
}

impl Cni {
    /// Takes the settings; nothing is read or made.
    pub fn new(settings: Settings) -> Self {
        Self(Arc::new(Inner {
            conf_dir: settings.conf_dir,
            executor: Executor { dirs: settings.bin_dirs, limit: settings.plugin_limit },
            records: Records(settings.records),
            turn: RwLock::default(),
            told: Mutex::default(),
            spoken: Mutex::default(),
        }))
    }

    /// Reads what is configured now: the first valid file by name, `None` when there is none at all.
    ///
    /// # Errors
    /// When the directory cannot be read, or has files of which none is valid.
    pub fn network(&self) -> Result<Option<NetworkConfig>, ConfigError> {
        let found = directory::read(&self.0.conf_dir)?;
        let mut told = self.0.told.lock().unwrap_or_else(PoisonError::into_inner);
        for one in found.rejected.iter().filter(|one| !told.contains(one)) {
            tracing::warn!(file = %one.file.display(), problem = %one.problem, "a CNI configuration is left out");
        }
        *told = found.rejected;
        Ok(found.network)
    }
}

/// Makes what a plugin reads: its configuration with what the runtime adds (CNI specification, section 3).
fn request(
    plugin: &Plugin,
    network: &str,
    version: Version,
    additions: impl IntoIterator<Item = (&'static str, Value)>,
) -> Map<String, Value> {
    let mut conf = plugin.conf.clone();
    // The runtime's own: what the administrator declares here is said by `runtimeConfig`.
    conf.retain(|key, _| key != "capabilities" && !key.starts_with("cni.dev/"));
    conf.insert("name".to_owned(), network.into());
    conf.insert("cniVersion".to_owned(), version.as_str().into());
    conf.extend(additions.into_iter().map(|(key, value)| (key.to_owned(), value)));
    conf
}

/// The capability arguments that a plugin declares; `None` when there are none.
fn runtime_config(plugin: &Plugin, arguments: &Map<String, Value>) -> Option<Value> {
    let declared = arguments.iter().filter(|(name, _)| plugin.has_capability(name));
    let chosen: Map<String, Value> = declared.map(|(name, value)| (name.clone(), value.clone())).collect();
    (!chosen.is_empty()).then(|| chosen.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_plugin_reads_its_configuration_and_what_it_declared() {
        let conf = json!({
            "type": "portmap", "snat": true, "name": "old", "cni.dev/attachments": [],
            "capabilities": {"portMappings": true, "mac": false, "dns": true},
        });
        let plugin = Plugin::parse("plugins[0]", conf).unwrap();
        let arguments = json!({"portMappings": [1], "mac": "x", "bandwidth": {}});
        let runtime = runtime_config(&plugin, arguments.as_object().unwrap());
        let request = request(&plugin, "net", Version::V1_0_0, runtime.map(|value| ("runtimeConfig", value)));
        assert_eq!(
            Value::from(request),
            json!({
                "type": "portmap", "snat": true, "name": "net", "cniVersion": "1.0.0",
                "runtimeConfig": {"portMappings": [1]},
            })
        );
        assert_eq!(runtime_config(&plugin, &Map::new()), None);
    }
}
