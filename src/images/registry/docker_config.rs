//! Docker's `config.json`, as far as it says who a node is to registries.
//!
//! Of what it has for a repository, a helper of its own (`credHelpers`) comes first, then the store for all
//! (`credsStore`), then what the file itself holds (`auths`); one that has nothing leaves it to the next.

use std::collections::HashMap;
use std::path::Path;

use serde::Deserialize;

use crate::credentials::Credentials;
use crate::helper;
use crate::keyring::KeyringError;
use crate::pattern::Pattern;

/// Nulls are written for what is absent.
#[derive(Deserialize)]
struct DockerConfig {
    auths: Option<HashMap<String, Option<Entry>>>,
    #[serde(rename = "credHelpers")]
    helpers: Option<HashMap<String, String>>,
    #[serde(rename = "credsStore")]
    store: Option<String>,
}

#[derive(Deserialize)]
struct Entry {
    username: Option<String>,
    password: Option<String>,
    auth: Option<String>,
    identitytoken: Option<String>,
    registrytoken: Option<String>,
}

/// Finds the credentials for a repository in the file, which is read anew each time.
pub(crate) async fn find(
    path: &Path,
    registries: &[&str],
    repository: &str,
) -> Result<Option<Credentials>, KeyringError> {
    let text = tokio::fs::read(path).await;
    let text = text.map_err(|source| KeyringError::Read { path: path.to_owned(), source })?;
    // The parser's own words may show a value.
    let config: DockerConfig = serde_json::from_slice(&text).map_err(|error| KeyringError::DockerConfig {
        path: path.to_owned(),
        line: error.line(),
        column: error.column(),
    })?;
    for registry in registries {
        if let Some(found) = config.find(path, registry, repository).await? {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

impl DockerConfig {
    async fn find(&self, path: &Path, registry: &str, repository: &str) -> Result<Option<Credentials>, KeyringError> {
        let own = self.helpers.as_ref().and_then(|helpers| best(helpers.iter(), registry, repository));
        for name in own.into_iter().chain(&self.store).filter(|name| !name.is_empty()) {
            let found = helper::get(name, registry).await;
            let found = found.map_err(|source| KeyringError::Helper { name: name.clone(), source })?;
            if found.is_some() {
                return Ok(found);
            }
        }
        // A store leaves empty entries behind.
        let entries = self.auths.iter().flatten();
        let entries = entries.filter_map(|(key, entry)| Some((key, (key, entry.as_ref()?.credentials()?))));
        let Some((key, credentials)) = best(entries, registry, repository) else { return Ok(None) };
        let malformed = |_| KeyringError::Malformed { place: format!("{}: auths.{key:?}", path.display()) };
        credentials.basic().map_err(malformed)?;
        Ok(Some(credentials))
    }
}

impl Entry {
    fn credentials(&self) -> Option<Credentials> {
        let text = |field: &Option<String>| field.clone().unwrap_or_default();
        let found = Credentials {
            username: text(&self.username),
            password: text(&self.password),
            auth: text(&self.auth),
            identity_token: text(&self.identitytoken),
            registry_token: text(&self.registrytoken),
            server_address: String::new(),
        };
        (found != Credentials::default()).then_some(found)
    }
}

/// Returns what the key that says most about a repository stands for.
pub(crate) fn best<'a, T>(
    entries: impl Iterator<Item = (&'a String, T)>,
    registry: &str,
    repository: &str,
) -> Option<T> {
    let covering = entries.filter_map(|(key, value)| {
        let pattern = Pattern::new(key);
        pattern.covers(registry, repository).then(|| (pattern.rank(), key, value))
    });
    // Of two ways to write the same, always the same one.
    covering.max_by(|(one, key, _), (other, other_key, _)| (one, key).cmp(&(other, other_key))).map(|found| found.2)
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn find_in(text: &str, registry: &str, repository: &str) -> Result<Option<Credentials>, KeyringError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        std::fs::write(&path, text).unwrap();
        find(&path, &[registry], repository).await
    }

    #[tokio::test]
    async fn the_most_specific_key_is_taken() {
        let text = r#"{"auths": {
            "https://index.docker.io/v1/": {"auth": "aHViOnA="},
            "r.io": {"username": "all", "password": "p", "auth": null},
            "r.io/team": {"identitytoken": "team"},
            "r.io/team/app": {},
            "https://q.io/v2/": {"registrytoken": "q"}
        }, "credsStore": ""}"#;
        let user = async |registry, repository| {
            let found = find_in(text, registry, repository).await.unwrap()?;
            let (user, _) = found.basic().unwrap().unwrap_or_default();
            Some(user + &found.identity_token + &found.registry_token)
        };
        for (registry, repository, expected) in [
            ("docker.io", "library/x", Some("hub")),
            ("r.io", "x", Some("all")),
            ("r.io", "team/app", Some("team")),
            ("q.io", "x", Some("q")),
            ("z.io", "x", None),
        ] {
            assert_eq!(user(registry, repository).await.as_deref(), expected, "{registry}/{repository}");
        }
    }

    #[tokio::test]
    async fn errors_show_no_values() {
        for (text, word) in [
            (r#"{"auths": {"r.io": {"password": 5}}}"#, "line 1"),
            (r#"{"auths": {"r.io": {"auth": "s3cret!"}}}"#, "auths.\"r.io\""),
            ("s3cret", "config.json"),
        ] {
            let error = podwright_base::chain(&find_in(text, "r.io", "x").await.unwrap_err());
            assert!(error.contains(word) && !error.contains("s3cret"), "{error}");
        }
        let missing = find(Path::new("/no/such.json"), &["r.io"], "x").await.unwrap_err();
        assert!(missing.to_string().contains("/no/such.json"));
    }

    #[tokio::test]
    async fn a_helper_that_cannot_be_asked_is_named() {
        let text = r#"{"credHelpers": {"r.io": "no-such-helper-here"}, "auths": {"z.io": {"auth": "dTpw"}}}"#;
        let error = podwright_base::chain(&find_in(text, "r.io", "x").await.unwrap_err());
        assert!(error.contains("no-such-helper-here"), "{error}");
        assert!(find_in(text, "z.io", "x").await.unwrap().is_some());
    }
}
