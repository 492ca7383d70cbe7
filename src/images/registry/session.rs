//! The distribution protocol, as far as pulls need it: manifests and blobs from the first endpoint that has them.
//!
//! A request is tried at each endpoint in turn. When the last one failed for a reason that may pass (no connection, a
//! broken or stalled one, 429, 5xx), all are tried again after a pause, up to the configured number of attempts. A
//! blob's stream goes on where it broke off, at whichever endpoint answers.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue};
use podwright_base::Digest;
use podwright_base::config::Registry as Config;
use reqwest::Response;

use crate::auth::Answers;
use crate::client::Clients;
use crate::credentials::Credentials;
use crate::error::{RegistryError, What};
use crate::exchange::{Ask, Capability, Contact};
use crate::hosts::Endpoint;
use crate::keyring::Keyring;
use crate::limits::Limits;
use crate::reference::Reference;
use crate::transfer::Ranges;

/// What a registry is told that we understand.
const ACCEPT_MANIFESTS: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json, */*;q=0.1";
/// Bound on a manifest (the distribution specification's).
const LONGEST_MANIFEST: usize = 4 << 20;
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(20);

/// What all pulls share: connections, tokens, patience.
pub struct Transport {
    pub(crate) clients: Clients,
    pub(crate) answers: Answers,
    pub(crate) keyring: Keyring,
    attempts: u32,
    stall: Duration,
    pub(crate) ranges: Ranges,
    pub(crate) limits: Limits,
}

/// One pull's conversation with a registry and its mirrors.
pub struct Session {
    transport: Arc<Transport>,
    pub(crate) reference: Reference,
    /// The request's.
    pub(crate) given: Option<Credentials>,
    pub(crate) contacts: Vec<Contact>,
}

/// A manifest or an index as it came, verified where there was a digest to verify it by.
#[derive(Debug)]
pub struct Document {
    /// The document.
    pub bytes: Bytes,
    /// Its type, as the registry's header says it.
    pub media_type: Option<String>,
    /// Its digest, computed.
    pub digest: Digest,
}

/// A blob, as a manifest names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blob {
    /// Of its bytes as they are transferred.
    pub digest: Digest,
    /// Their number.
    pub size: u64,
}

/// Counts failures and pauses between them.
pub(crate) struct Patience {
    left: u32,
    pause: Duration,
}

impl Transport {
    /// Takes the configuration's limits.
    pub fn new(config: &Config) -> Self {
        Self {
            clients: Clients::default(),
            answers: Answers::default(),
            keyring: Keyring::new(config),
            attempts: config.attempts.max(1),
            stall: Duration::from_secs(config.stall_timeout_seconds.max(1)),
            ranges: Ranges { bytes: config.range_bytes, most: config.max_ranges_per_layer.max(1) },
            limits: Limits::new(config),
        }
    }

    pub(crate) fn patience(&self) -> Patience {
        Patience { left: self.attempts, pause: FIRST_PAUSE }
    }
}

impl Patience {
    /// Waits before the next attempt; `false` when there is none to be made.
    pub(crate) async fn again(&mut self, error: &RegistryError) -> bool {
        self.left = self.left.saturating_sub(1);
        if self.left == 0 || !error.is_transient() {
            return false;
        }
        tokio::time::sleep(error.retry_after().unwrap_or(self.pause).min(LONGEST_PAUSE)).await;
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        true
    }
}

impl Session {
    /// Begins a conversation about one repository.
    pub fn new(
        transport: Arc<Transport>,
        reference: Reference,
        credentials: Option<Credentials>,
        endpoints: Vec<Endpoint>,
    ) -> Self {
        Self { transport, reference, given: credentials, contacts: endpoints.into_iter().map(Contact::new).collect() }
    }

    /// Fetches what a digest, or else the reference's tag, names.
    ///
    /// # Errors
    /// When no endpoint gives it, or what comes is not what the digest says.
    pub async fn manifest(&self, digest: Option<&Digest>) -> Result<Document, RegistryError> {
        let named = match digest {
            Some(digest) => digest.as_str(),
            None => self.reference.tag().unwrap_or_default(),
        };
        self.document(named, digest).await
    }

    /// Fetches what a tag or a digest names; a digest is verified.
    pub(crate) async fn document(&self, named: &str, digest: Option<&Digest>) -> Result<Document, RegistryError> {
        let what = What::Manifest(named.to_owned());
        let ask = Ask {
            what: &what,
            path: format!("{}/manifests/{named}", self.reference.repository()),
            accept: Some(ACCEPT_MANIFESTS),
            offset: 0,
            end: None,
            takes: if digest.is_none() { Capability::Resolve } else { Capability::Pull },
        };
        let (host, response, bytes) = self.whole(&ask, LONGEST_MANIFEST).await?;
        let header = |name| response.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
        let found = Digest::of(&bytes);
        let stated = header("docker-content-digest").and_then(|stated| stated.parse().ok());
        if let Some(expected) = digest.cloned().or(stated)
            && expected != found
        {
            return Err(RegistryError::Digest { host, what, expected, found });
        }
        let media_type = header(CONTENT_TYPE.as_str()).map(|value| value.split(';').next().unwrap_or_default());
        let media_type = media_type.map(|value| value.trim().to_ascii_lowercase());
        Ok(Document { bytes, media_type, digest: found })
    }

    /// Fetches a small blob, as a configuration is, and verifies it.
    ///
    /// # Errors
    /// When no endpoint gives it, or what comes is not what the manifest names.
    pub async fn blob(&self, blob: &Blob, limit: usize) -> Result<Bytes, RegistryError> {
        let what = What::Blob(blob.digest.clone());
        let ask = Ask {
            what: &what,
            path: self.blob_path(blob),
            accept: None,
            offset: 0,
            end: None,
            takes: Capability::Pull,
        };
        let (host, _, bytes) = self.whole(&ask, limit).await?;
        if bytes.len() as u64 != blob.size {
            return Err(RegistryError::Length { host, what, expected: blob.size, found: bytes.len() as u64 });
        }
        let found = Digest::of(&bytes);
        if found != blob.digest {
            return Err(RegistryError::Digest { host, what, expected: blob.digest.clone(), found });
        }
        Ok(bytes)
    }

    pub(crate) fn blob_path(&self, blob: &Blob) -> String {
        format!("{}/blobs/{}", self.reference.repository(), blob.digest)
    }

    pub(crate) fn transport(&self) -> &Transport {
        &self.transport
    }

    /// The registry of the reference, whichever endpoint stands in for it.
    pub(crate) fn registry(&self) -> &str {
        self.reference.registry()
    }

    /// Fetches a whole body of bounded length.
    pub(crate) async fn whole(
        &self,
        ask: &Ask<'_>,
        limit: usize,
    ) -> Result<(String, http::HeaderMap, Bytes), RegistryError> {
        let mut patience = self.transport.patience();
        loop {
            let result = async {
                let (host, mut response) = self.round(ask).await?;
                let body = self.body(&host, ask.what, &mut response, limit).await?;
                Ok((host, std::mem::take(response.headers_mut()), body))
            };
            match result.await {
                Err(error) if patience.again(&error).await => {}
                result => return result,
            }
        }
    }

    pub(crate) async fn body(
        &self,
        host: &str,
        what: &What,
        response: &mut Response,
        limit: usize,
    ) -> Result<Bytes, RegistryError> {
        let too_long = || RegistryError::TooLong { host: host.to_owned(), what: what.clone(), limit };
        if response.content_length().is_some_and(|length| length > limit as u64) {
            return Err(too_long());
        }
        let mut body = Vec::new();
        while let Some(chunk) = self.chunk(host, response).await? {
            if body.len() + chunk.len() > limit {
                return Err(too_long());
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body.into())
    }

    pub(crate) async fn chunk(&self, host: &str, response: &mut Response) -> Result<Option<Bytes>, RegistryError> {
        self.bounded(host, response.chunk())
            .await?
            .map_err(|source| RegistryError::Broken { host: host.to_owned(), source: source.into() })
    }

    pub(crate) async fn bounded<T>(&self, host: &str, work: impl Future<Output = T>) -> Result<T, RegistryError> {
        let stall = self.transport.stall;
        tokio::time::timeout(stall, work)
            .await
            .map_err(|_| RegistryError::Stalled { host: host.to_owned(), seconds: stall.as_secs() })
    }
}
