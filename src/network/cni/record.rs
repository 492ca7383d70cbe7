//! Records of attachments: what a pod was attached by and what came of it, kept over reboots, so that it can be undone
//! whatever has become of the configuration, the network namespace or the daemon since.
//!
//! ```text
//! <dir>/<network>-<container id>-<interface>.json     written before the first plugin runs, and again with the result
//! ```
//!
//! Files are renamed into place, not synced. A power loss can leave one empty; its name still says what it is of.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::config::{NetworkConfig, Plugin};
use crate::result::AddResult;
use crate::version::Version;

/// The form of the files.
const FORM: u32 = 1;
const SUFFIX: &str = ".json";

/// Why a record was not written, read or removed.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The directory cannot be made or listed.
    #[error("open the directory of CNI attachments {}", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A record has no JSON form.
    #[error("encode {}", path.display())]
    Encode {
        /// The file.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
    /// A record cannot be written.
    #[error("write {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A record cannot be read.
    #[error("read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A record makes no sense, and there is no configuration of its network either.
    #[error("{} is damaged, and network {network} is not configured any more: it is removed", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The network that its name tells.
        network: String,
    },
    /// A record cannot be removed.
    #[error("remove {}", path.display())]
    Remove {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Which attachment a record is of.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Key {
    /// The network's name.
    pub network: String,
    /// `CNI_CONTAINERID`
    pub container: String,
    /// `CNI_IFNAME`
    pub interface: String,
}

impl Key {
    /// Reads a file's name: network names may have hyphens in them, ids of pods and names of interfaces here have none.
    fn parse(name: &str) -> Option<Self> {
        let (rest, interface) = name.strip_suffix(SUFFIX)?.rsplit_once('-')?;
        let (network, container) = rest.rsplit_once('-')?;
        if network.is_empty() || container.is_empty() || interface.is_empty() {
            return None;
        }
        Some(Self { network: network.to_owned(), container: container.to_owned(), interface: interface.to_owned() })
    }

    fn path(&self, dir: &Path) -> PathBuf {
        dir.join(format!("{}-{}-{}{SUFFIX}", self.network, self.container, self.interface))
    }
}

/// What a pod was attached by.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Record {
    form: u32,
    pub(crate) network: String,
    pub(crate) container: String,
    pub(crate) interface: String,
    pub(crate) netns: PathBuf,
    pub(crate) version: Version,
    pub(crate) disable_check: bool,
    plugins: Vec<Value>,
    pub(crate) args: String,
    pub(crate) capabilities: Map<String, Value>,
    /// Absent while plugins run, and after a daemon was killed meanwhile.
    pub(crate) result: Option<AddResult>,
}

impl Record {
    /// The record of an attachment that is about to be made, or of which nothing but its name is left.
    pub(crate) fn new(config: &NetworkConfig, version: Version, container: &str, interface: &str) -> Self {
        Self {
            form: FORM,
            network: config.name.clone(),
            container: container.to_owned(),
            interface: interface.to_owned(),
            netns: PathBuf::new(),
            version,
            disable_check: config.disable_check,
            plugins: config.plugins.iter().map(|plugin| Value::Object(plugin.conf.clone())).collect(),
            args: String::new(),
            capabilities: Map::new(),
            result: None,
        }
    }

    pub(crate) fn key(&self) -> Key {
        Key { network: self.network.clone(), container: self.container.clone(), interface: self.interface.clone() }
    }

    /// The chain. Only what was valid is recorded.
    pub(crate) fn plugins(&self) -> Vec<Plugin> {
        self.plugins.iter().filter_map(|conf| Plugin::parse("plugins", conf.clone()).ok()).collect()
    }
}

/// The directory of records.
#[derive(Debug, Clone)]
pub(crate) struct Records(pub(crate) PathBuf);

impl Records {
    /// Lists the attachments of a container, or of all.
    pub(crate) fn list(&self, container: Option<&str>) -> Result<Vec<Key>, RecordError> {
        let failed = |source| RecordError::Directory { path: self.0.clone(), source };
        let entries = match fs::read_dir(&self.0) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(source) => return Err(failed(source)),
        };
        let mut keys = Vec::new();
        for entry in entries {
            let name = entry.map_err(failed)?.file_name();
            let key = name.to_str().and_then(Key::parse);
            keys.extend(key.filter(|key| container.is_none_or(|container| key.container == container)));
        }
        keys.sort_by(|a, b| (&a.network, &a.interface).cmp(&(&b.network, &b.interface)));
        Ok(keys)
    }

    /// Reads a record; `None` when it is damaged or of a form that is not known.
    pub(crate) fn read(&self, key: &Key) -> Result<Option<Record>, RecordError> {
        let path = key.path(&self.0);
        let bytes = fs::read(&path).map_err(|source| RecordError::Read { path, source })?;
        let record: Option<Record> = serde_json::from_slice(&bytes).ok();
        Ok(record.filter(|record| record.form == FORM && record.key() == *key))
    }

    pub(crate) fn write(&self, record: &Record) -> Result<(), RecordError> {
        let path = record.key().path(&self.0);
        let bytes = serde_json::to_vec(record).map_err(|source| RecordError::Encode { path: path.clone(), source })?;
        fs::create_dir_all(&self.0).map_err(|source| RecordError::Directory { path: self.0.clone(), source })?;
        podwright_base::replace(&path, &bytes).map_err(|source| RecordError::Write { path, source })
    }

    pub(crate) fn remove(&self, key: &Key) -> Result<(), RecordError> {
        let path = key.path(&self.0);
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => Err(RecordError::Remove { path, source }),
            _ => Ok(()),
        }
    }

    /// The error of a record that nothing can be done with.
    pub(crate) fn damaged(&self, key: &Key) -> RecordError {
        RecordError::Damaged { path: key.path(&self.0), network: key.network.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;

    #[test]
    fn records_are_found_by_container() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records(dir.path().join("cni"));
        assert_eq!(records.list(None).unwrap(), []);
        let text = br#"{"cniVersion":"1.0.0","name":"a-b","plugins":[{"type":"x","n":1.5}]}"#;
        let config = config::parse("f".into(), text).unwrap();
        let mut record = Record::new(&config, Version::V1_0_0, "c1", "eth0");
        records.write(&record).unwrap();
        records.write(&Record { container: "c2".to_owned(), ..record.clone() }).unwrap();
        let keys = records.list(Some("c1")).unwrap();
        assert_eq!(keys, [record.key()]);
        assert_eq!((keys[0].network.as_str(), records.list(None).unwrap().len()), ("a-b", 2));
        assert_eq!(records.read(&keys[0]).unwrap().as_ref(), Some(&record));
        assert_eq!(record.plugins(), config.plugins);
        record.result = Some(AddResult::default());
        records.write(&record).unwrap();
        assert_eq!(records.read(&keys[0]).unwrap().unwrap().result, Some(AddResult::default()));
        fs::write(dir.path().join("cni/a-b-c1-eth0.json"), "").unwrap();
        assert_eq!(records.read(&keys[0]).unwrap(), None, "damaged, but known by its name");
        records.remove(&keys[0]).unwrap();
        records.remove(&keys[0]).unwrap();
        assert_eq!(records.list(Some("c1")).unwrap(), []);
    }
}
