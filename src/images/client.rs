//! HTTP clients, one for each way of trusting servers, kept so that connections are used again.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use reqwest::redirect::{Attempt, Policy};
use reqwest::{Certificate, Client};

use crate::hosts::Tls;

const MOST_REDIRECTS: usize = 10;
const CONNECT: Duration = Duration::from_secs(10);
/// Bound on remembered clients: certificates that change on disk leave old ones behind.
const MOST_CLIENTS: usize = 64;

/// Why no client can be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// The process has not installed one.
    #[error("no TLS provider is installed in this process")]
    NoProvider,
    /// A CA file holds no certificate.
    #[error("the configured CA is no PEM certificate")]
    Authority(#[source] reqwest::Error),
    /// The TLS library refuses the configuration.
    #[error("set up TLS")]
    Build(#[source] reqwest::Error),
}

/// Makes and keeps clients.
#[derive(Debug, Default)]
pub(crate) struct Clients {
    known: Mutex<HashMap<(Tls, bool), Client>>,
}

impl Clients {
    /// Returns a client for endpoints that are trusted this way. `direct` ones pass by the environment's proxies, as
    /// this host's own addresses always do.
    pub(crate) fn get(&self, tls: &Tls, direct: bool) -> Result<Client, ClientError> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (tls.clone(), direct);
        if let Some(client) = known.get(&key) {
            return Ok(client.clone());
        }
        let client = build(tls, direct)?;
        if known.len() >= MOST_CLIENTS {
            known.clear();
        }
        known.insert(key, client.clone());
        Ok(client)
    }
}

fn build(tls: &Tls, direct: bool) -> Result<Client, ClientError> {
    if rustls::crypto::CryptoProvider::get_default().map(Arc::as_ref).is_none() {
        return Err(ClientError::NoProvider);
    }
    let mut builder = Client::builder()
        .user_agent(concat!("podwright/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(CONNECT)
        .redirect(Policy::custom(redirect))
        .referer(false)
        .tls_danger_accept_invalid_certs(tls.skip_verify);
    if direct {
        builder = builder.no_proxy();
    }
    let mut certificates = Vec::new();
    for bundle in &tls.authorities {
        certificates.extend(Certificate::from_pem_bundle(bundle).map_err(ClientError::Authority)?);
    }
    if !certificates.is_empty() {
        builder = builder.tls_certs_merge(certificates);
    }
    builder.build().map_err(ClientError::Build)
}

/// Registries send blobs to their storage. What began in TLS stays in TLS.
fn redirect(attempt: Attempt<'_>) -> reqwest::redirect::Action {
    if attempt.previous().len() > MOST_REDIRECTS {
        return attempt.error("too many redirects");
    }
    let was_secure = attempt.previous().last().is_some_and(|url| url.scheme() == "https");
    if was_secure && attempt.url().scheme() != "https" {
        return attempt.error("the registry redirects from HTTPS to plain HTTP");
    }
    attempt.follow()
}
