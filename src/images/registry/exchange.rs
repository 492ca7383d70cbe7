//! One request: to which endpoint, as whom, and what became of it.
//!
//! Endpoints are asked in turn until one gives what was asked for: whatever goes wrong with a mirror, the next one may
//! do. The last one is the registry itself, and its error decides what kind of failure it is; all are told.

use std::sync::atomic::{AtomicBool, Ordering};

use http::header::{ACCEPT, AUTHORIZATION, HeaderName, HeaderValue, RANGE};
use http::{HeaderMap, StatusCode};
use reqwest::{Client, Response, Url};
use tokio::sync::OnceCell;

use crate::auth::{self, Asker, AuthError};
use crate::client;
use crate::credentials::Credentials;
use crate::error::{RegistryError, What};
use crate::hosts::Endpoint;
use crate::session::Session;

/// Bound on the body of an error.
const LONGEST_ERROR: usize = 64 << 10;

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
    pub(crate) takes: Capability,
}

impl Ask<'_> {
    /// What is to be said whoever answers.
    fn headers(&self) -> impl Iterator<Item = (HeaderName, String)> {
        let range = match self.end {
            Some(end) => Some(format!("bytes={}-{}", self.offset, end - 1)),
            None => (self.offset > 0).then(|| format!("bytes={}-", self.offset)),
        };
        let accept = self.accept.map(|accept| (ACCEPT, accept.to_owned()));
        accept.into_iter().chain(range.map(|range| (RANGE, range)))
    }
}

/// What an endpoint must be trusted with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Capability {
    /// Serve what a digest names.
    Pull,
    /// Say what a tag names.
    Resolve,
    /// Say what refers to an image.
    Referrers,
}

/// An endpoint in the course of a session.
pub(crate) struct Contact {
    endpoint: Endpoint,
    /// Looked for when it asks for them.
    credentials: OnceCell<Option<Credentials>>,
    /// It was out of reach while a later one answered.
    is_passed_over: AtomicBool,
}

impl Contact {
    pub(crate) fn new(endpoint: Endpoint) -> Self {
        Self { endpoint, credentials: OnceCell::new(), is_passed_over: AtomicBool::new(false) }
    }

    fn can(&self, capability: Capability) -> bool {
        match capability {
            Capability::Pull => self.endpoint.pull,
            Capability::Resolve => self.endpoint.pull && self.endpoint.resolve,
            Capability::Referrers => self.endpoint.referrers,
        }
    }
}

impl Session {
    /// Tries each endpoint once.
    pub(crate) async fn round(&self, ask: &Ask<'_>) -> Result<(String, Response), RegistryError> {
        let mut errors: Vec<RegistryError> = Vec::new();
        let mut out_of_reach: Vec<&Contact> = Vec::new();
        // Of the endpoint before, when it was asked: whether it may speak plain HTTP.
        let mut may_be_plain = None;
        for (index, contact) in self.contacts.iter().enumerate() {
            let is_last = index + 1 == self.contacts.len();
            let is_passed_over = contact.is_passed_over.load(Ordering::Relaxed);
            if !contact.can(ask.takes) || !is_last && is_passed_over {
                may_be_plain = None;
                continue;
            }
            let is_fallback = contact.endpoint.is_plain_fallback;
            if is_fallback && may_be_plain == Some(false) {
                out_of_reach.push(contact);
                continue;
            }
            match self.ask(contact, ask).await {
                Ok(answer) => {
                    out_of_reach.iter().for_each(|contact| contact.is_passed_over.store(true, Ordering::Relaxed));
                    return Ok(answer);
                }
                Err(error) => {
                    if error.is_out_of_reach() {
                        out_of_reach.push(contact);
                    } else if is_fallback && may_be_plain.is_some() {
                        // It answers in plain HTTP: that it does not in TLS explains nothing.
                        errors.pop();
                    }
                    may_be_plain = Some(error.may_be_plain_http());
                    errors.push(error);
                }
            }
        }
        RegistryError::of_all(errors, self.reference.registry())
    }

    async fn ask(&self, contact: &Contact, ask: &Ask<'_>) -> Result<(String, Response), RegistryError> {
        let endpoint = &contact.endpoint;
        let clients = &self.transport().clients;
        let host = clients.way(&endpoint.base);
        let client = clients.get(endpoint);
        let client = client.map_err(|source| RegistryError::Client { host: host.clone(), source })?;
        let mut response = self.convince(contact, ask, &client, &host).await?;
        if response.status().is_success() {
            return Ok((host, response));
        }
        let status = response.status().as_u16();
        let retry_after = auth::retry_after(response.headers());
        // A body that does not come is no reason to lose the status.
        let body = self.body(&host, ask.what, &mut response, LONGEST_ERROR).await.unwrap_or_default();
        Err(RegistryError::of_status(host, ask.what, status, retry_after, &body))
    }

    /// Sends a request, with what the endpoint wants to know of the asker.
    async fn convince(
        &self,
        contact: &Contact,
        ask: &Ask<'_>,
        client: &Client,
        host: &str,
    ) -> Result<Response, RegistryError> {
        let origin = contact.endpoint.base.origin().ascii_serialization();
        let answers = &self.transport().answers;
        let failed = |source| RegistryError::Auth { host: host.to_owned(), source: Box::new(source) };
        let asker = async || {
            Ok::<_, RegistryError>(Asker {
                client,
                endpoint: &origin,
                repository: self.reference.repository(),
                credentials: self.credentials(contact, host).await?,
                headers: &contact.endpoint.headers,
            })
        };
        let mut header = None;
        if answers.is_challenged(&origin, self.reference.repository()) {
            header = self.bounded(host, answers.header(&asker().await?)).await?.map_err(failed)?;
        }
        let response = self.send(contact, ask, client, host, header.clone()).await?;
        if response.status() != StatusCode::UNAUTHORIZED {
            return Ok(response);
        }
        let asker = asker().await?;
        let answer = answers.answer(&asker, response.headers(), header.as_ref());
        let answer = self.bounded(host, answer).await?.map_err(failed)?;
        let response = self.send(contact, ask, client, host, Some(answer)).await?;
        if response.status() == StatusCode::UNAUTHORIZED { Err(failed(AuthError::Refused)) } else { Ok(response) }
    }

    async fn send(
        &self,
        contact: &Contact,
        ask: &Ask<'_>,
        client: &Client,
        host: &str,
        header: Option<HeaderValue>,
    ) -> Result<Response, RegistryError> {
        let endpoint = &contact.endpoint;
        let mut url = endpoint
            .base
            .join(&ask.path)
            .map_err(|_| RegistryError::Url { host: host.to_owned(), path: ask.path.clone() })?;
        if !endpoint.is_upstream {
            // How a mirror of several registries knows which one is meant; containerd does the same.
            url.query_pairs_mut().append_pair("ns", self.reference.registry());
        }
        let mut headers = endpoint.headers.clone();
        if let Some(header) = header {
            headers.insert(AUTHORIZATION, header);
        }
        let request = async |url: Url, headers| {
            let request = ask
                .headers()
                .fold(client.get(url).headers(headers), |request, (name, value)| request.header(name, value));
            let response = self.bounded(host, request.send()).await?;
            response.map_err(|source| RegistryError::Request { host: host.to_owned(), source: source.into() })
        };
        let mut response = request(url, headers).await?;
        // What the headers say is for this endpoint alone.
        for _ in 0..client::MOST_REDIRECTS {
            let Some(url) = client::elsewhere(&response) else { break };
            response = request(url, HeaderMap::new()).await?;
        }
        Ok(response)
    }

    /// The request's credentials where they are for this endpoint, else the node's.
    async fn credentials<'a>(
        &self,
        contact: &'a Contact,
        host: &str,
    ) -> Result<Option<&'a Credentials>, RegistryError> {
        let found = contact.credentials.get_or_try_init(async || {
            let (registry, keyring) = (self.reference.registry(), &self.transport().keyring);
            let address = host_and_port(&contact.endpoint.base);
            let is_upstream = contact.endpoint.is_upstream;
            let stands_in = is_upstream || keyring.is_trusted(&address);
            let is_for_it =
                |given: &&Credentials| given.are_for(&address, stands_in) || stands_in && given.are_for(registry, true);
            if let Some(given) = self.given.as_ref().filter(is_for_it) {
                return Ok(Some(given.clone()));
            }
            let registries: &[&str] = match (is_upstream, stands_in) {
                (true, _) => &[registry, &address],
                (false, true) => &[&address, registry],
                (false, false) => &[&address],
            };
            let found = keyring.find(registries, self.reference.repository()).await;
            found.map_err(|source| RegistryError::Credentials { host: host.to_owned(), source })
        });
        Ok(found.await?.as_ref())
    }
}

fn host_and_port(url: &Url) -> String {
    match (url.host_str().unwrap_or_default(), url.port()) {
        (host, Some(port)) => format!("{host}:{port}"),
        (host, None) => host.to_owned(),
    }
}
