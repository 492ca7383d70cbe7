//! Who this node is to registries, where a request does not say: by its own configuration, else by Docker's.
//!
//! Files are read and helpers are asked at each look-up: what changes on disk counts from the next pull on. There is
//! none until a registry asks for credentials.

use std::io;
use std::path::{Path, PathBuf};

use podwright_base::config::{Registry as Config, RegistryAuth};

use crate::credentials::Credentials;
use crate::docker_config;
use crate::helper::HelperError;
use crate::pattern::Pattern;

/// Why the node's credentials cannot be had. Nothing of them is in it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeyringError {
    /// A file cannot be read.
    #[error("read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is no JSON, or has a value of the wrong kind.
    #[error("{}: line {line}, column {column}: it is no configuration as Docker writes it", path.display())]
    DockerConfig {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// Counted from 1.
        column: usize,
    },
    /// An entry's `auth` is malformed.
    #[error("{place}.auth is no base64 of username:password")]
    Malformed {
        /// The file and the key.
        place: String,
    },
    /// A credential helper.
    #[error("ask the credential helper {name:?}")]
    Helper {
        /// Its name.
        name: String,
        /// Why it did not answer.
        source: HelperError,
    },
}

/// The node's credentials.
pub(crate) struct Keyring {
    auth: Vec<(String, RegistryAuth)>,
    docker_config: Option<PathBuf>,
    mirrors: Vec<Pattern>,
}

impl Keyring {
    pub(crate) fn new(config: &Config) -> Self {
        Self {
            auth: config.auth.clone().into_iter().collect(),
            docker_config: config.docker_config.clone(),
            mirrors: config.auth_mirrors.iter().map(|mirror| Pattern::new(mirror)).collect(),
        }
    }

    /// Tells whether a mirror may see the credentials of the registry that it stands in for.
    pub(crate) fn is_trusted(&self, mirror: &str) -> bool {
        self.mirrors.iter().any(|pattern| pattern.covers(mirror, ""))
    }

    /// Finds the credentials for a repository of the first of these registries that has any.
    pub(crate) async fn find(
        &self,
        registries: &[&str],
        repository: &str,
    ) -> Result<Option<Credentials>, KeyringError> {
        for registry in registries {
            let entries = self.auth.iter().map(|(key, auth)| (key, (key, auth)));
            if let Some((key, auth)) = docker_config::best(entries, registry, repository) {
                return credentials(key, auth).await.map(Some);
            }
        }
        match &self.docker_config {
            Some(path) => docker_config::find(path, registries, repository).await,
            None => Ok(None),
        }
    }
}

async fn credentials(key: &str, auth: &RegistryAuth) -> Result<Credentials, KeyringError> {
    let password = match &auth.password_file {
        Some(path) => password(path).await?,
        None => auth.password.reveal().to_owned(),
    };
    let found = Credentials {
        username: auth.username.clone(),
        password,
        auth: auth.auth.reveal().to_owned(),
        identity_token: auth.identity_token.reveal().to_owned(),
        ..Credentials::default()
    };
    found.basic().map_err(|_| KeyringError::Malformed { place: format!("registry.auth.{key:?}") })?;
    Ok(found)
}

/// A file's last line end is no part of the password.
async fn password(path: &Path) -> Result<String, KeyringError> {
    let text = tokio::fs::read_to_string(path).await;
    let text = text.map_err(|source| KeyringError::Read { path: path.to_owned(), source })?;
    Ok(text.trim_end_matches(['\r', '\n']).to_owned())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use podwright_base::config::Secret;

    use super::*;

    fn auth(username: &str) -> RegistryAuth {
        RegistryAuth { username: username.to_owned(), password: Secret::new("p"), ..RegistryAuth::default() }
    }

    #[tokio::test]
    async fn the_configuration_comes_before_dockers() {
        let dir = tempfile::tempdir().unwrap();
        let docker = dir.path().join("config.json");
        std::fs::write(&docker, r#"{"auths": {"a.io": {"auth": "ZG9ja2VyOnA="}, "b.io": {"auth": "ZG9ja2VyOnA="}}}"#)
            .unwrap();
        let auth = BTreeMap::from([("a.io".to_owned(), auth("config")), ("m.io:5000".to_owned(), auth("mirror"))]);
        let keyring = Keyring::new(&Config {
            auth,
            docker_config: Some(docker.clone()),
            auth_mirrors: vec!["M.io:5000".to_owned()],
            ..Config::default()
        });
        let user = async |registries: &[&str]| {
            let found = keyring.find(registries, "x").await.unwrap()?;
            Some(found.basic().unwrap().unwrap().0)
        };
        assert_eq!(user(&["a.io"]).await.as_deref(), Some("config"));
        assert_eq!(user(&["b.io"]).await.as_deref(), Some("docker"));
        assert_eq!(user(&["m.io:5000", "a.io"]).await.as_deref(), Some("mirror"));
        assert_eq!(user(&["none.io"]).await, None);
        assert!(keyring.is_trusted("m.io:5000") && !keyring.is_trusted("m.io"));
        std::fs::write(&docker, "{}").unwrap();
        assert_eq!(user(&["b.io"]).await, None, "the file is read again");
    }

    #[tokio::test]
    async fn a_password_may_be_in_a_file_of_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("password");
        std::fs::write(&path, "from file\n").unwrap();
        let entry = RegistryAuth { password_file: Some(path.clone()), ..auth("u") };
        let keyring = Keyring::new(&Config { auth: BTreeMap::from([("a.io".to_owned(), entry)]), ..Config::default() });
        let found = keyring.find(&["a.io"], "x").await.unwrap().unwrap();
        assert_eq!(found.basic().unwrap(), Some(("u".to_owned(), "from file".to_owned())));
        std::fs::remove_file(path).unwrap();
        assert!(keyring.find(&["a.io"], "x").await.unwrap_err().to_string().contains("password"));
    }

    #[tokio::test]
    async fn a_malformed_entry_is_named_without_its_value() {
        let entry = RegistryAuth { auth: Secret::new("s3cret"), ..RegistryAuth::default() };
        let keyring = Keyring::new(&Config { auth: BTreeMap::from([("a.io".to_owned(), entry)]), ..Config::default() });
        let error = keyring.find(&["a.io"], "x").await.unwrap_err().to_string();
        assert!(error.contains("registry.auth.\"a.io\"") && !error.contains("s3cret"), "{error}");
    }
}
