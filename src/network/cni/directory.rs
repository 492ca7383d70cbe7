//! The directory of configurations: the first valid file in the order of names is the network.
//!
//! It is read at each use, some 50 µs: nothing can be stale, and no watcher can be overrun or lost.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::config::{self, NetworkConfig, Plugin, Problem};

/// Why no network can be had from a directory that has configurations.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The directory cannot be listed.
    #[error("list the CNI configurations of {}", dir.display())]
    Directory {
        /// The directory.
        dir: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// None of the files is valid.
    #[error("CNI configuration {}: {}", first.file.display(), first.problem)]
    Invalid {
        /// The first of them by name.
        first: Rejected,
    },
}

/// A file that is no valid configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejected {
    /// The file.
    pub file: PathBuf,
    /// What is wrong.
    pub problem: Problem,
}

/// What a directory holds.
#[derive(Debug)]
pub(crate) struct Found {
    /// The network; `None` when there is no configuration at all.
    pub(crate) network: Option<NetworkConfig>,
    /// Files before it that are not valid.
    pub(crate) rejected: Vec<Rejected>,
}

/// Finds the network of a directory; a missing directory has none.
pub(crate) fn read(dir: &Path) -> Result<Found, ConfigError> {
    let failed = |source| ConfigError::Directory { dir: dir.to_owned(), source };
    let mut rejected = Vec::new();
    for file in files(dir, &["conflist", "conf", "json"]).map_err(failed)? {
        match load(&file) {
            Ok(network) => return Ok(Found { network: Some(network), rejected }),
            Err(problem) => rejected.push(Rejected { file, problem }),
        }
    }
    match rejected.first() {
        Some(first) => Err(ConfigError::Invalid { first: first.clone() }),
        None => Ok(Found { network: None, rejected }),
    }
}

fn load(file: &Path) -> Result<NetworkConfig, Problem> {
    let read = |path: &Path| {
        fs::read(path).map_err(|error| Problem::Unreadable { path: path.to_owned(), why: error.to_string() })
    };
    let mut network = config::parse(file.to_owned(), &read(file)?)?;
    let folder = file.with_file_name(&network.name);
    if !network.only_inlined && folder.is_dir() {
        let unreadable = |error: io::Error| Problem::Unreadable { path: folder.clone(), why: error.to_string() };
        for path in files(&folder, &["conf"]).map_err(unreadable)? {
            let value = serde_json::from_slice(&read(&path)?)
                .map_err(|error| Problem::Json { why: format!("{}: {error}", path.display()) })?;
            network.plugins.push(Plugin::parse(&path.display().to_string(), value)?);
        }
    }
    if network.plugins.is_empty() { Err(Problem::NoPlugins { folder }) } else { Ok(network) }
}

/// Lists the files of a directory with one of the endings, by name.
fn files(dir: &Path, endings: &[&str]) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let named = path.extension().is_some_and(|end| endings.iter().any(|known| end == *known));
        // Followed: configurations are often symbolic links. One that leads nowhere is told when it is read.
        if named && !path.is_dir() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(name: &str, plugins: &str) -> String {
        format!(r#"{{"cniVersion":"1.0.0","name":"{name}","plugins":[{plugins}]}}"#)
    }

    fn name(dir: &Path) -> Option<String> {
        read(dir).unwrap().network.map(|network| network.name)
    }

    #[test]
    fn the_first_valid_file_by_name_is_the_network() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path();
        assert_eq!(name(&path.join("missing")), None);
        fs::write(path.join("README"), "").unwrap();
        fs::create_dir(path.join("00-dir.conflist")).unwrap();
        assert_eq!(name(path), None);
        fs::write(path.join("20-b.conflist"), list("b", r#"{"type":"x"}"#)).unwrap();
        assert_eq!(name(path).as_deref(), Some("b"));
        fs::write(path.join("10-a.json"), r#"{"cniVersion":"0.4.0","name":"a","type":"x"}"#).unwrap();
        assert_eq!(name(path).as_deref(), Some("a"));
        // Half written, as by a program that does not rename.
        fs::write(path.join("05-bad.conf"), "{").unwrap();
        let found = read(path).unwrap();
        assert_eq!(found.network.unwrap().name, "a");
        assert_eq!(found.rejected[0].file, path.join("05-bad.conf"));
        fs::remove_file(path.join("10-a.json")).unwrap();
        fs::remove_file(path.join("20-b.conflist")).unwrap();
        let error = read(path).unwrap_err().to_string();
        assert!(error.contains("05-bad.conf: it is not valid JSON"), "{error}");
    }

    #[test]
    fn plugins_of_the_networks_folder_are_appended() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path();
        let file = path.join("10.conflist");
        fs::write(&file, r#"{"cniVersion":"1.1.0","name":"n"}"#).unwrap();
        assert!(read(path).unwrap_err().to_string().contains("it names no plugins"));
        fs::create_dir(path.join("n")).unwrap();
        fs::write(path.join("n/20.conf"), r#"{"type":"b"}"#).unwrap();
        fs::write(path.join("n/10.conf"), r#"{"type":"a"}"#).unwrap();
        let kinds = || {
            let network = read(path).unwrap().network.unwrap();
            network.plugins.into_iter().map(|plugin| plugin.kind).collect::<Vec<_>>()
        };
        assert_eq!(kinds(), ["a", "b"]);
        fs::write(&file, list("n", r#"{"type":"z"}"#)).unwrap();
        assert_eq!(kinds(), ["z", "a", "b"]);
        let alone = list("n", r#"{"type":"z"}"#).replace('{', r#"{"loadOnlyInlinedPlugins":true,"#);
        fs::write(&file, alone.replace(r#"[{"loadOnlyInlinedPlugins":true,"#, "[{")).unwrap();
        assert_eq!(kinds(), ["z"]);
    }
}
