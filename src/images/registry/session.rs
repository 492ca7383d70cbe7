//! The distribution protocol, as far as pulls need it: manifests and blobs from the first endpoint that has them.
//!
//! A request is tried at each endpoint in turn. When the last one failed for a reason that may pass (no connection, a
//! broken or stalled one, 429, 5xx), all are tried again after a pause, up to the configured number of attempts. A
//! blob's stream goes on where it broke off, at whichever endpoint answers.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderValue, RANGE, RETRY_AFTER};
use podwright_base::Digest;
use podwright_base::config::Registry as Config;
use reqwest::{Response, Url};

use crate::auth::{Answers, AuthError, Realm};
use crate::client::Clients;
use crate::credentials::Credentials;
use crate::error::{RegistryError, What};
use crate::hosts::Endpoint;
use crate::limits::Limits;
use crate::reference::Reference;
use crate::transfer::Ranges;

/// What a registry is told that we understand.
const ACCEPT_MANIFESTS: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json, */*;q=0.1";
/// Bound on a manifest (the distribution specification's).
const LONGEST_MANIFEST: usize = 4 << 20;
/// Bound on the body of an error.
const LONGEST_ERROR: usize = 64 << 10;
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(20);

/// What all pulls share: connections, tokens, patience.
pub struct Transport {
    clients: Clients,
    answers: Answers,
    attempts: u32,
    stall: Duration,
    pub(crate) ranges: Ranges,
    pub(crate) limits: Limits,
}

/// One pull's conversation with a registry and its mirrors.
pub struct Session {
    transport: Arc<Transport>,
    pub(crate) reference: Reference,
    credentials: Option<Credentials>,
    endpoints: Vec<Endpoint>,
    /// Endpoints that were out of reach while a later one answered.
    passed_over: Mutex<HashSet<usize>>,
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

/// One request.
pub(crate) struct Ask<'a> {
    pub(crate) what: &'a What,
    /// Below the endpoint's base.
    pub(crate) path: String,
    pub(crate) accept: Option<&'static str>,
    /// The first byte wanted.
    pub(crate) offset: u64,
    /// Where to stop, before that byte.
    pub(crate) end: Option<u64>,
    /// A tag is to be resolved.
    pub(crate) resolve: bool,
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
        Self { transport, reference, credentials, endpoints, passed_over: Mutex::default() }
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
            resolve: digest.is_none(),
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
        let ask = Ask { what: &what, path: self.blob_path(blob), accept: None, offset: 0, end: None, resolve: false };
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

    async fn body(
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
            .map_err(|source| RegistryError::Broken { host: host.to_owned(), source: source.without_url() })
    }

    async fn bounded<T>(&self, host: &str, work: impl Future<Output = T>) -> Result<T, RegistryError> {
        let stall = self.transport.stall;
        tokio::time::timeout(stall, work)
            .await
            .map_err(|_| RegistryError::Stalled { host: host.to_owned(), seconds: stall.as_secs() })
    }

    /// Tries each endpoint once.
    pub(crate) async fn round(&self, ask: &Ask<'_>) -> Result<(String, Response), RegistryError> {
        let mut errors: Vec<RegistryError> = Vec::new();
        let mut out_of_reach = Vec::new();
        for (index, endpoint) in self.endpoints.iter().enumerate() {
            let allowed = if ask.resolve { endpoint.resolve } else { endpoint.pull };
            let is_last = index + 1 == self.endpoints.len();
            if !allowed || !is_last && self.is_passed_over(index) {
                continue;
            }
            // The endpoint before a plain fallback is the same host in TLS.
            if endpoint.is_plain_fallback && errors.last().is_some_and(|error| !error.may_be_plain_http()) {
                break;
            }
            match self.ask(endpoint, ask).await {
                Ok(response) => {
                    let mut passed_over = self.passed_over.lock().unwrap_or_else(PoisonError::into_inner);
                    passed_over.extend(out_of_reach);
                    return Ok((host_of(&endpoint.base), response));
                }
                Err(error) => {
                    if error.is_out_of_reach() {
                        out_of_reach.push(index);
                    } else if endpoint.is_plain_fallback {
                        // It answers in plain HTTP: that it does not in TLS explains nothing.
                        errors.pop();
                    }
                    errors.push(error);
                }
            }
        }
        RegistryError::of_all(errors, self.reference.registry())
    }

    fn is_passed_over(&self, index: usize) -> bool {
        self.passed_over.lock().unwrap_or_else(PoisonError::into_inner).contains(&index)
    }

    async fn ask(&self, endpoint: &Endpoint, ask: &Ask<'_>) -> Result<Response, RegistryError> {
        let host = host_of(&endpoint.base);
        let client = self.transport.clients.get(endpoint);
        let client = client.map_err(|source| RegistryError::Client { host: host.clone(), source })?;
        let registry = host_and_port(&endpoint.base);
        let credentials = self.credentials.clone().filter(|known| {
            known.are_for(&registry, endpoint.is_upstream)
                || endpoint.is_upstream && known.are_for(self.reference.registry(), true)
        });
        let realm = Realm {
            endpoint: endpoint.base.origin().ascii_serialization(),
            repository: self.reference.repository().to_owned(),
            credentials,
        };
        let send = async |header: Option<HeaderValue>| {
            let request = self.request(&client, endpoint, ask, &host, header)?;
            let response = self.bounded(&host, request.send()).await?;
            response.map_err(|source| RegistryError::Request { host: host.clone(), source: source.without_url() })
        };
        let auth = |source| RegistryError::Auth { host: host.clone(), source: Box::new(source) };
        let answers = &self.transport.answers;
        let mut response = send(answers.get(&realm)).await?;
        if response.status() == StatusCode::UNAUTHORIZED {
            answers.forget(&realm);
            let answer = self.bounded(&host, answers.answer(&client, &realm, &response)).await?.map_err(auth)?;
            response = send(Some(answer)).await?;
            if response.status() == StatusCode::UNAUTHORIZED {
                answers.forget(&realm);
                return Err(auth(AuthError::Refused));
            }
        }
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status().as_u16();
        let retry_after = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
        // A body that does not come is no reason to lose the status.
        let body = self.body(&host, ask.what, &mut response, LONGEST_ERROR).await.unwrap_or_default();
        Err(RegistryError::of_status(host, ask.what, status, retry_after, &body))
    }

    fn request(
        &self,
        client: &reqwest::Client,
        endpoint: &Endpoint,
        ask: &Ask<'_>,
        host: &str,
        header: Option<HeaderValue>,
    ) -> Result<reqwest::RequestBuilder, RegistryError> {
        let mut url = endpoint
            .base
            .join(&ask.path)
            .map_err(|_| RegistryError::Url { host: host.to_owned(), path: ask.path.clone() })?;
        if !endpoint.is_upstream {
            // How a mirror of several registries knows which one is meant; containerd does the same.
            url.query_pairs_mut().append_pair("ns", self.reference.registry());
        }
        let mut request = client.get(url).headers(endpoint.headers.clone());
        if let Some(accept) = ask.accept {
            request = request.header(ACCEPT, accept);
        }
        match ask.end {
            Some(end) => request = request.header(RANGE, format!("bytes={}-{}", ask.offset, end - 1)),
            None if ask.offset > 0 => request = request.header(RANGE, format!("bytes={}-", ask.offset)),
            None => {}
        }
        if let Some(header) = header {
            request = request.header(AUTHORIZATION, header);
        }
        Ok(request)
    }
}

fn host_of(url: &Url) -> String {
    url.origin().ascii_serialization()
}

fn host_and_port(url: &Url) -> String {
    match (url.host_str().unwrap_or_default(), url.port()) {
        (host, Some(port)) => format!("{host}:{port}"),
        (host, None) => host.to_owned(),
    }
}
