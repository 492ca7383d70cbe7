//! Who the puller is to a registry (CRI `AuthConfig`).

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::reference::DOCKER_HUB;

/// What Docker and its helpers call Docker Hub.
pub(crate) const DOCKER_HUB_KEY: &str = "https://index.docker.io/v1/";

/// A request's credentials, as the CRI has them: empty strings are absent. Secrets are never printed.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct Credentials {
    /// User name for basic authentication, or for a token request.
    pub username: String,
    /// Password or access token that goes with it.
    pub password: String,
    /// `username:password` in base64, in place of the two.
    pub auth: String,
    /// OAuth2 refresh token for the registry's token server.
    pub identity_token: String,
    /// Bearer token that is sent as it is.
    pub registry_token: String,
    /// The registry that all this is for; empty: the one that is pulled from.
    pub server_address: String,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("server_address", &self.server_address).finish_non_exhaustive()
    }
}

/// The credentials are malformed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("auth.auth is no base64 of username:password")]
pub struct CredentialsError;

impl Credentials {
    /// Returns user name and password for basic authentication, if there are any.
    ///
    /// # Errors
    /// When `auth` is no pair in base64.
    pub fn basic(&self) -> Result<Option<(String, String)>, CredentialsError> {
        if !self.username.is_empty() {
            return Ok(Some((self.username.clone(), self.password.clone())));
        }
        if self.auth.is_empty() {
            return Ok(None);
        }
        let decoded = STANDARD.decode(self.auth.trim()).map_err(|_| CredentialsError)?;
        let decoded = String::from_utf8(decoded).map_err(|_| CredentialsError)?;
        // Docker pads the pair with NULs.
        let (username, password) = decoded.trim_end_matches('\0').split_once(':').ok_or(CredentialsError)?;
        Ok(Some((username.to_owned(), password.to_owned())))
    }

    /// Tells whether they may be sent to an endpoint: the host they name, else the registry of the reference and
    /// what stands in for it.
    pub(crate) fn are_for(&self, host: &str, stands_in: bool) -> bool {
        let named = self.server_address.trim();
        let named = named.split_once("://").map_or(named, |(_, rest)| rest);
        let named = named.split('/').next().unwrap_or_default();
        if named.is_empty() {
            return stands_in;
        }
        canonical(named) == canonical(host)
    }
}

/// Returns the one name of a registry; Docker Hub has several.
pub(crate) fn canonical(registry: &str) -> String {
    match registry.to_ascii_lowercase().as_str() {
        "index.docker.io" | "registry-1.docker.io" => DOCKER_HUB.to_owned(),
        other => other.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_not_printed() {
        let secret = "s3cret".to_owned();
        let credentials = Credentials {
            username: secret.clone(),
            password: secret.clone(),
            auth: secret.clone(),
            identity_token: secret.clone(),
            registry_token: secret,
            server_address: "r.io".to_owned(),
        };
        let shown = format!("{credentials:?}");
        assert!(shown.contains("r.io") && !shown.contains("s3cret"), "{shown}");
    }

    #[test]
    fn the_pair_comes_in_two_forms() {
        let auth = |auth: &str| Credentials { auth: auth.to_owned(), ..Credentials::default() };
        assert_eq!(auth("dTpwOng=").basic(), Ok(Some(("u".to_owned(), "p:x".to_owned()))));
        assert_eq!(auth("dTpwAAA=").basic(), Ok(Some(("u".to_owned(), "p".to_owned()))));
        assert_eq!(auth("!").basic(), Err(CredentialsError));
        assert_eq!(auth("dXA=").basic(), Err(CredentialsError));
        assert_eq!(Credentials::default().basic(), Ok(None));
    }

    #[test]
    fn they_go_to_the_registry_they_are_for() {
        let named = |address: &str| Credentials { server_address: address.to_owned(), ..Credentials::default() };
        for (address, host, stands_in, sent) in [
            ("", "r.io", true, true),
            ("", "mirror", false, false),
            ("https://index.docker.io/v1/", "registry-1.docker.io", true, true),
            ("r.io", "other.io", true, false),
            ("http://mirror:5000", "mirror:5000", false, true),
        ] {
            assert_eq!(named(address).are_for(host, stands_in), sent, "{address} {host}");
        }
    }
}
