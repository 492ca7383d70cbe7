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
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_RANGE, CONTENT_TYPE, HeaderValue, RANGE, RETRY_AFTER};
use podwright_base::Digest;
use podwright_base::config::Registry as Config;
use reqwest::{Response, Url};
use tokio::sync::mpsc;

use crate::auth::{Answers, AuthError, Realm};
use crate::client::Clients;
use crate::credentials::Credentials;
use crate::error::{RegistryError, What};
use crate::hosts::Endpoint;
use crate::reference::Reference;

/// What a registry is told that we understand.
const ACCEPT_MANIFESTS: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json, */*;q=0.1";
/// Bound on a manifest (the distribution specification's).
const LONGEST_MANIFEST: usize = 4 << 20;
/// Bound on the body of an error.
const LONGEST_ERROR: usize = 64 << 10;
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(20);
/// A transfer that brought this much before it broke is as good as new.
const PROGRESS: u64 = 1 << 20;

/// What all pulls share: connections, tokens, patience.
pub struct Transport {
    clients: Clients,
    answers: Answers,
    attempts: u32,
    stall: Duration,
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

/// A piece of a blob on its way to its reader; a channel that closes before the end is a transfer given up.
#[derive(Debug)]
pub enum Piece {
    /// The next bytes.
    Bytes(Bytes),
    /// All have come.
    End,
}

/// Why a stream stopped.
#[derive(Debug)]
pub enum Stop {
    /// The reader takes no more: it knows why.
    Refused,
    /// The registry, or the way to it.
    Registry(RegistryError),
}

impl From<RegistryError> for Stop {
    fn from(error: RegistryError) -> Self {
        Self::Registry(error)
    }
}

pub(crate) struct Ask<'a> {
    pub(crate) what: &'a What,
    /// Below the endpoint's base.
    pub(crate) path: String,
    pub(crate) accept: Option<&'static str>,
    /// The first byte wanted.
    pub(crate) offset: u64,
    /// A tag is to be resolved.
    pub(crate) resolve: bool,
}

/// Counts failures and pauses between them.
struct Patience {
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
        }
    }

    fn patience(&self) -> Patience {
        Patience { left: self.attempts, pause: FIRST_PAUSE }
    }
}

impl Patience {
    /// Waits before the next attempt; `false` when there is none to be made.
    async fn again(&mut self, error: &RegistryError) -> bool {
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
        let ask = self.blob_ask(&what, blob, 0);
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

    /// Streams a blob and tells `progress` the number of bytes that have come; the length is checked here, the digest by
    /// who reads it.
    ///
    /// # Errors
    /// When no endpoint gives it to its end, or the reader has dropped its end of the channel.
    pub async fn stream(
        &self,
        blob: &Blob,
        sink: mpsc::Sender<Piece>,
        progress: &(dyn Fn(u64) + Sync),
    ) -> Result<(), Stop> {
        let mut received = 0;
        let mut patience = self.transport.patience();
        loop {
            let before = received;
            match self.stream_once(blob, &mut received, &sink, progress).await {
                Ok(()) => break,
                Err(Stop::Registry(error)) => {
                    if received - before >= PROGRESS {
                        patience = self.transport.patience();
                    }
                    if !patience.again(&error).await {
                        return Err(error.into());
                    }
                }
                refused @ Err(Stop::Refused) => return refused,
            }
        }
        sink.send(Piece::End).await.map_err(|_| Stop::Refused)
    }

    async fn stream_once(
        &self,
        blob: &Blob,
        received: &mut u64,
        sink: &mpsc::Sender<Piece>,
        progress: &(dyn Fn(u64) + Sync),
    ) -> Result<(), Stop> {
        let what = What::Blob(blob.digest.clone());
        let (host, mut response) = self.round(&self.blob_ask(&what, blob, *received)).await?;
        let length =
            |found| RegistryError::Length { host: host.clone(), what: what.clone(), expected: blob.size, found };
        let partial = response.status() == StatusCode::PARTIAL_CONTENT;
        let start = if partial { range_start(&response) } else { Some(0) };
        // A server may send all of it again: what has come already is passed over.
        let mut skip = match start {
            Some(start) if start <= *received => *received - start,
            _ => return Err(RegistryError::Range { host, what }.into()),
        };
        if let Some(announced) = response.content_length().filter(|_| !partial)
            && announced != blob.size
        {
            return Err(length(announced).into());
        }
        while let Some(mut chunk) = self.chunk(&host, &mut response).await? {
            let skipped = skip.min(chunk.len() as u64);
            skip -= skipped;
            let chunk = chunk.split_off(usize::try_from(skipped).unwrap_or(chunk.len()));
            if chunk.is_empty() {
                continue;
            }
            *received += chunk.len() as u64;
            if *received > blob.size {
                return Err(length(*received).into());
            }
            progress(*received);
            sink.send(Piece::Bytes(chunk)).await.map_err(|_| Stop::Refused)?;
        }
        // A connection that broke says so; this answer just ended.
        if *received < blob.size { Err(length(*received).into()) } else { Ok(()) }
    }

    fn blob_ask<'a>(&self, what: &'a What, blob: &Blob, offset: u64) -> Ask<'a> {
        let path = format!("{}/blobs/{}", self.reference.repository(), blob.digest);
        Ask { what, path, accept: None, offset, resolve: false }
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

    async fn chunk(&self, host: &str, response: &mut Response) -> Result<Option<Bytes>, RegistryError> {
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
    async fn round(&self, ask: &Ask<'_>) -> Result<(String, Response), RegistryError> {
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
        let client = self.transport.clients.get(&endpoint.tls, &endpoint.base);
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
        let mut request = client.get(url);
        if let Some(accept) = ask.accept {
            request = request.header(ACCEPT, accept);
        }
        if ask.offset > 0 {
            request = request.header(RANGE, format!("bytes={}-", ask.offset));
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

/// `Content-Range: bytes 5-9/10` begins at 5.
fn range_start(response: &Response) -> Option<u64> {
    let range = response.headers().get(CONTENT_RANGE)?.to_str().ok()?;
    range.strip_prefix("bytes ")?.split('-').next()?.trim().parse().ok()
}
