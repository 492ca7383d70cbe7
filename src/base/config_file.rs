//! The configuration file: read strictly, and printed with every key explained.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::config::{Config, RegistryAuth};

/// The file with every key, its default and what it means; `podwright config default` prints it.
pub const DOCUMENTED: &str = include_str!("config.toml");

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("read the configuration {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is no TOML, has a key that does not exist, or a value of the wrong kind.
    #[error("the configuration {} is not valid: {problem}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Where, and what; a line that may hold a secret is not shown.
        problem: String,
    },
    /// A value is of the right kind and makes no sense.
    #[error("the configuration: {key} = {value}: {remedy}")]
    Unusable {
        /// The key with its tables.
        key: String,
        /// What it was set to.
        value: String,
        /// What it takes.
        remedy: &'static str,
    },
}

/// Reads a configuration file. One that is not there is an error only where it is `required`; without it every key has
/// its default.
///
/// # Errors
/// Names file, line and key.
pub fn load(path: &Path, required: bool) -> Result<Config, ConfigError> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound && !required => return Ok(Config::default()),
        Err(source) => return Err(ConfigError::Read { path: path.to_owned(), source }),
    };
    toml::from_str(&text)
        .map_err(|error| ConfigError::Malformed { path: path.to_owned(), problem: problem(&text, &error) })
}

/// Tells what is wrong with the text, with the line unless that is about secrets.
fn problem(text: &str, error: &toml::de::Error) -> String {
    let start = error.span().map_or(0, |span| span.start);
    let before = text.get(..start).unwrap_or_default();
    let index = before.matches('\n').count();
    let line = text.lines().nth(index).unwrap_or_default();
    let table = before.lines().rfind(|line| line.trim_start().starts_with('[')).unwrap_or_default();
    if [table, line].iter().any(|text| text.contains("auth")) {
        return format!("line {}: {}", index + 1, error.message());
    }
    error.to_string()
}

/// Checks what types cannot: called once the command line has had its say.
///
/// # Errors
/// Names the first key whose value cannot be used.
pub fn check(config: &Config) -> Result<(), ConfigError> {
    let unusable = |key: &str, value, remedy| Err(ConfigError::Unusable { key: key.to_owned(), value, remedy });
    for (key, path) in [("root", &config.root), ("state", &config.state)] {
        if !path.is_absolute() {
            return unusable(key, format!("{path:?}"), "it takes an absolute path");
        }
    }
    if let Some(path) = &config.registry.signature_policy
        && !path.is_absolute()
    {
        return unusable("registry.signature_policy", format!("{path:?}"), "it takes an absolute path");
    }
    if config.registry.max_concurrent_layers == 0 {
        return unusable("registry.max_concurrent_layers", "0".to_owned(), "it takes 1 or more");
    }
    for (key, limit) in [
        ("registry.max_concurrent_transfers", config.registry.max_concurrent_transfers),
        ("registry.max_concurrent_transfers_per_registry", config.registry.max_concurrent_transfers_per_registry),
    ] {
        if limit == 0 {
            return unusable(key, "0".to_owned(), "it takes 1 or more");
        }
    }
    for (host, auth) in &config.registry.auth {
        check_auth(host, auth)?;
    }
    if config.registry.attempts == 0 {
        return unusable("registry.attempts", "0".to_owned(), "it takes 1 or more");
    }
    if config.registry.stall_timeout_seconds == 0 {
        return unusable("registry.stall_timeout_seconds", "0".to_owned(), "it takes 1 or more");
    }
    if config.network.cni_plugin_timeout_seconds == 0 {
        return unusable("network.cni_plugin_timeout_seconds", "0".to_owned(), "it takes 1 or more");
    }
    if config.container_log.max_bytes > 0 && config.container_log.max_files == 0 {
        return unusable("container_log.max_files", "0".to_owned(), "it takes 1 or more where logs are rotated");
    }
    match &config.network.bridge {
        Some(name) if name.is_empty() || name.len() > 15 || name.contains(['/', ' ', ':']) => {
            unusable("network.bridge", format!("{name:?}"), "it takes an interface name of 1 to 15 characters")
        }
        _ => Ok(()),
    }
}

/// An entry says who the node is in one way.
fn check_auth(host: &str, auth: &RegistryAuth) -> Result<(), ConfigError> {
    let ways = [!auth.password.is_empty(), auth.password_file.is_some(), !auth.auth.is_empty()];
    let ways = ways.into_iter().chain([!auth.identity_token.is_empty()]).filter(|is_set| *is_set).count();
    let takes_user = !auth.password.is_empty() || auth.password_file.is_some();
    let remedy = if ways != 1 {
        "it takes one of password, password_file, auth and identity_token"
    } else if takes_user == auth.username.is_empty() {
        "a password takes a username, auth and identity_token take none"
    } else {
        return Ok(());
    };
    Err(ConfigError::Unusable { key: format!("registry.auth.{host:?}"), value: "(not shown)".to_owned(), remedy })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A commented-out key stands for an unset one: its line becomes valid once the mark is taken away.
    fn with_all_keys() -> String {
        let uncomment = |line: &str| match line.strip_prefix("#") {
            Some(key) if key.starts_with(|c: char| c.is_ascii_lowercase()) && key.contains(" = ") => key.to_owned(),
            Some(table) if table.starts_with('[') => table.to_owned(),
            _ => line.to_owned(),
        };
        DOCUMENTED.lines().map(uncomment).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn the_documented_file_is_the_default() {
        assert_eq!(toml::from_str::<Config>(DOCUMENTED).unwrap(), Config::default());
    }

    #[test]
    fn the_documented_file_names_every_key() {
        let documented: toml::Table = toml::from_str(&with_all_keys()).unwrap();
        let mut set: Config = toml::from_str(&with_all_keys()).unwrap();
        for auth in set.registry.auth.values_mut() {
            // Its keys exclude each other.
            let all = toml::Table::try_from(&*auth).unwrap();
            assert!(all.len() == 5 && all.values().all(|value| value.as_str() != Some("")), "{all:?}");
            *auth = RegistryAuth { identity_token: auth.identity_token.clone(), ..RegistryAuth::default() };
        }
        check(&set).unwrap();
        let all = toml::Table::try_from(set).unwrap();
        for (key, value) in &all {
            let known = documented.get(key).unwrap_or_else(|| panic!("{key} is not documented"));
            for inner in value.as_table().into_iter().flat_map(toml::Table::keys) {
                assert!(known.get(inner).is_some(), "{key}.{inner} is not documented");
            }
        }
        assert!(all.len() >= 7, "{all:?}");
    }

    #[test]
    fn an_unknown_key_and_a_wrong_value_are_named_with_their_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.toml");
        for (text, named) in [
            ("root = \"/x\"\n\n[network]\nbrdige = \"x\"\n", "brdige"),
            ("root = \"/x\"\n\n[network]\nmtu = \"big\"\n", "mtu"),
        ] {
            fs::write(&path, text).unwrap();
            let error = load(&path, true).unwrap_err().to_string();
            assert!(error.contains("line 4") && error.contains(named), "{error}");
        }
    }

    #[test]
    fn only_a_named_file_must_exist() {
        let path = Path::new("/no/such/config.toml");
        assert_eq!(load(path, false).unwrap(), Config::default());
        assert!(matches!(load(path, true), Err(ConfigError::Read { .. })));
    }

    #[test]
    fn secrets_are_in_no_error_and_no_dump() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.toml");
        for text in [
            "[registry.auth.\"r.io\"]\nusername = \"u\"\npassword = s3cret\n",
            "[registry.auth.\"r.io\"]\nusername = \"u\"\npassword = [\"s3cret\"]\n",
            "[registry.auth.\"r.io\"]\nusername = \"u\"\npasswort = \"s3cret\"\n",
            "[registry]\n\nauth = { \"r.io\" = { identity_token = \"s3cret\", user = \"x\" } }\n",
        ] {
            fs::write(&path, text).unwrap();
            let error = crate::chain(&load(&path, true).unwrap_err());
            assert!(error.contains("line 3") && !error.contains("s3cret"), "{error}");
        }
        fs::write(&path, "[registry.auth.\"r.io\"]\nusername = \"u\"\npassword = \"s3cret\"\n").unwrap();
        let config = load(&path, true).unwrap();
        check(&config).unwrap();
        let dump = format!("{config:?} {:?}", toml::Table::try_from(&config).unwrap());
        assert!(dump.contains("***") && !dump.contains("s3cret"), "{dump}");
    }

    #[test]
    fn an_entry_of_credentials_says_one_thing() {
        for (entry, word) in [
            ("username = \"u\"", "it takes one of"),
            ("username = \"u\"\npassword = \"s3cret\"\nauth = \"s3cret\"", "it takes one of"),
            ("password = \"s3cret\"", "takes a username"),
            ("username = \"u\"\nauth = \"s3cret\"", "take none"),
        ] {
            let config: Config = toml::from_str(&format!("[registry.auth.\"r.io\"]\n{entry}\n")).unwrap();
            let error = check(&config).unwrap_err().to_string();
            assert!(error.contains("registry.auth.\"r.io\"") && error.contains(word), "{error}");
            assert!(!error.contains("s3cret"), "{error}");
        }
    }
}
