//! How conversations with registries fail.

use std::fmt;
use std::time::Duration;

use oci_client::errors::OciEnvelope;
use podwright_base::{Digest, chain};

use crate::auth::AuthError;
use crate::cause::Cause;
use crate::client::ClientError;
use crate::keyring::KeyringError;

/// What was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum What {
    /// A manifest or an index, by tag or digest.
    Manifest(String),
    /// A layer or a configuration.
    Blob(Digest),
    /// The list of what was attached to a manifest.
    Referrers(Digest),
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Manifest(named) => write!(f, "the manifest {named}"),
            Self::Blob(digest) => write!(f, "the blob {digest}"),
            Self::Referrers(digest) => write!(f, "the referrers of {digest}"),
        }
    }
}

/// A registry, or all its mirrors and itself, did not give what was asked for. `host` is scheme, host and port.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RegistryError {
    /// No connection, or it broke before an answer.
    #[error("ask {host}")]
    Request {
        /// The endpoint.
        host: String,
        /// Why.
        source: Cause,
    },
    /// The answer broke off.
    #[error("{host} broke off")]
    Broken {
        /// The endpoint.
        host: String,
        /// Why.
        source: Cause,
    },
    /// No byte came for too long.
    #[error("{host} has sent nothing for {seconds}s")]
    Stalled {
        /// The endpoint.
        host: String,
        /// The configured bound.
        seconds: u64,
    },
    /// It has no such thing.
    #[error("{host} does not have {what}{message}")]
    NotFound {
        /// The endpoint.
        host: String,
        /// What.
        what: What,
        /// The registry's own words, after a colon.
        message: String,
    },
    /// 403.
    #[error("{host} denies {what}{message}")]
    Denied {
        /// The endpoint.
        host: String,
        /// What.
        what: What,
        /// The registry's own words, after a colon.
        message: String,
    },
    /// Its challenge could not be answered.
    #[error("authenticate to {host}")]
    Auth {
        /// The endpoint.
        host: String,
        /// Why.
        source: Box<AuthError>,
    },
    /// Any other status.
    #[error("{host} answers {status} for {what}{message}")]
    Status {
        /// The endpoint.
        host: String,
        /// What.
        what: What,
        /// HTTP status.
        status: u16,
        /// The registry's own words, after a colon.
        message: String,
        /// When it wants to be asked again.
        retry_after: Option<Duration>,
    },
    /// The body is longer than any good one.
    #[error("{what} at {host} is longer than {limit} bytes")]
    TooLong {
        /// The endpoint.
        host: String,
        /// What.
        what: What,
        /// The bound.
        limit: usize,
    },
    /// The blob has another length than its descriptor.
    #[error("{what} at {host} is {found} bytes long, not {expected}")]
    Length {
        /// The endpoint.
        host: String,
        /// What.
        what: What,
        /// What the manifest says.
        expected: u64,
        /// What came, or was announced.
        found: u64,
    },
    /// The bytes are not those that were asked for.
    #[error("{what} at {host} has the digest {found}, not {expected}")]
    Digest {
        /// The endpoint.
        host: String,
        /// What.
        what: What,
        /// What was asked for.
        expected: Digest,
        /// What came.
        found: Digest,
    },
    /// A resumed transfer goes on somewhere else.
    #[error("{host} resumes {what} at the wrong byte")]
    Range {
        /// The endpoint.
        host: String,
        /// What.
        what: What,
    },
    /// No HTTP client for this endpoint.
    #[error("prepare to ask {host}")]
    Client {
        /// The endpoint.
        host: String,
        /// Why.
        source: ClientError,
    },
    /// The path makes no URL there.
    #[error("{path:?} makes no URL below {host}")]
    Url {
        /// The endpoint.
        host: String,
        /// The path.
        path: String,
    },
    /// The configuration allows no endpoint to be asked for this.
    #[error("hosts.toml of {registry} leaves no endpoint with the capability that this takes")]
    NoEndpoint {
        /// The registry.
        registry: String,
    },
    /// The node's own credentials for this endpoint cannot be had.
    #[error("find the credentials for {host}")]
    Credentials {
        /// The endpoint.
        host: String,
        /// Why.
        source: KeyringError,
    },
    /// None of several endpoints gave it. The last one, which is the registry itself, decides what kind of failure this is.
    #[error("no endpoint gives it: {}; {}", before(.0), chain(.1))]
    Several(Vec<RegistryError>, Box<RegistryError>),
}

impl RegistryError {
    pub(crate) fn of_status(
        host: String,
        what: &What,
        status: u16,
        retry_after: Option<Duration>,
        body: &[u8],
    ) -> Self {
        let (what, message) = (what.clone(), registry_words(body));
        match status {
            404 => Self::NotFound { host, what, message },
            403 => Self::Denied { host, what, message },
            _ => Self::Status { host, what, status, message, retry_after },
        }
    }

    /// Makes one error of all endpoints' errors.
    pub(crate) fn of_all<T>(mut errors: Vec<Self>, registry: &str) -> Result<T, Self> {
        let Some(last) = errors.pop() else {
            return Err(Self::NoEndpoint { registry: registry.to_owned() });
        };
        if errors.is_empty() {
            return Err(last);
        }
        Err(Self::Several(errors, Box::new(last)))
    }

    /// The error that decides.
    pub fn decisive(&self) -> &Self {
        match self {
            Self::Several(_, last) => last.decisive(),
            other => other,
        }
    }

    /// Tells whether another attempt may succeed.
    pub fn is_transient(&self) -> bool {
        match self.decisive() {
            Self::Request { source, .. } => !source.is_final(),
            Self::Broken { .. } | Self::Stalled { .. } => true,
            Self::Status { status, .. } => *status == 429 || *status == 408 || *status >= 500,
            Self::Auth { source, .. } => source.is_transient(),
            _ => false,
        }
    }

    /// Tells whether the endpoint did not even answer.
    pub(crate) fn is_out_of_reach(&self) -> bool {
        matches!(self, Self::Request { .. } | Self::Stalled { .. })
    }

    /// Tells whether a host that was asked in TLS may speak plain HTTP: no connection came about, and not because its
    /// certificate is bad.
    pub(crate) fn may_be_plain_http(&self) -> bool {
        matches!(self, Self::Request { source, .. } if source.is_connect() && !source.is_certificate())
    }

    pub(crate) fn retry_after(&self) -> Option<Duration> {
        match self.decisive() {
            Self::Status { retry_after, .. } => *retry_after,
            Self::Auth { source, .. } => source.retry_after(),
            _ => None,
        }
    }
}

/// What each of the earlier endpoints said.
fn before(errors: &[RegistryError]) -> String {
    errors.iter().map(|error| chain(error)).collect::<Vec<_>>().join("; ")
}

/// The first error of the registry's own error document, bounded, after a colon.
fn registry_words(body: &[u8]) -> String {
    let Ok(envelope) = serde_json::from_slice::<OciEnvelope>(body) else { return String::new() };
    let Some(error) = envelope.errors.into_iter().find(|error| !error.message.is_empty()) else { return String::new() };
    let words: String = error.message.chars().filter(|character| !character.is_control()).take(300).collect();
    format!(": {words}")
}
