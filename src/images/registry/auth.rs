//! How a registry is convinced: its challenge is answered with basic credentials or with a token from its token
//! server, and the answer is kept for as long as it is good.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::header::{AUTHORIZATION, HeaderMap, HeaderValue, WWW_AUTHENTICATE};
use reqwest::{Client, Response, Url};
use serde::Deserialize;

use crate::credentials::{Credentials, CredentialsError};

/// Life of a token whose server does not say (the distribution specification's default).
const DEFAULT_LIFE: Duration = Duration::from_secs(60);
/// A token is asked for anew at least this often, whatever its server says.
const LONGEST_LIFE: Duration = Duration::from_secs(24 * 60 * 60);
/// A token is not used in its last seconds: the request takes some.
const MARGIN: Duration = Duration::from_secs(5);
/// Bound on a token server's answer.
const LONGEST_ANSWER: usize = 1 << 20;

/// Why a registry cannot be convinced.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AuthError {
    /// 401, and no way to answer.
    #[error("it asks for credentials in no known way ({0:?})")]
    Challenge(String),
    /// It wants a user, and the request names none.
    #[error("it asks for a user name and password, and the request has none for it")]
    Missing,
    /// The answer was given and refused.
    #[error("it refuses the credentials")]
    Refused,
    /// The request's credentials are malformed.
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    /// An HTTPS registry names a plain token server, which would see the password.
    #[error("its token server {0} is not HTTPS")]
    Plain(Url),
    /// The token server cannot be reached.
    #[error("ask the token server {url}")]
    Unreachable {
        /// The server.
        url: Url,
        /// Why.
        source: reqwest::Error,
    },
    /// The token server has answered something else.
    #[error("the token server {url} answers {status}")]
    Status {
        /// The server.
        url: Url,
        /// HTTP status.
        status: u16,
    },
    /// The token server's answer has no token.
    #[error("the token server {0} answers without a token")]
    NoToken(Url),
}

impl AuthError {
    /// Tells whether another try may help.
    pub(crate) fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable { .. } => true,
            Self::Status { status, .. } => *status == 429 || *status >= 500,
            _ => false,
        }
    }
}

/// What a known answer is good for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Realm {
    /// Scheme, host and port of the endpoint.
    pub(crate) endpoint: String,
    pub(crate) repository: String,
    pub(crate) credentials: Option<Credentials>,
}

struct Known {
    header: HeaderValue,
    until: Option<Instant>,
}

/// Remembers answers to challenges.
#[derive(Default)]
pub(crate) struct Answers {
    known: Mutex<HashMap<Realm, Known>>,
}

#[derive(Deserialize)]
struct Token {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<u64>,
}

enum Challenge {
    Basic,
    Bearer { realm: Url, service: Option<String>, scope: Option<String> },
}

impl Answers {
    /// Returns the header that convinced this endpoint before and still does.
    pub(crate) fn get(&self, realm: &Realm) -> Option<HeaderValue> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known
            .get(realm)
            .filter(|known| known.until.is_none_or(|until| Instant::now() < until))
            .map(|known| known.header.clone())
    }

    /// Answers a 401.
    pub(crate) async fn answer(
        &self,
        client: &Client,
        realm: &Realm,
        response: &Response,
    ) -> Result<HeaderValue, AuthError> {
        let (header, life) = match challenge(response.headers())? {
            Challenge::Basic => (basic(realm.credentials.as_ref())?.ok_or(AuthError::Missing)?, None),
            Challenge::Bearer { realm: server, service, scope } => {
                let secure = realm.endpoint.starts_with("https:");
                if secure && server.scheme() != "https" && realm.credentials.is_some() {
                    return Err(AuthError::Plain(server));
                }
                let scope = scope.unwrap_or_else(|| format!("repository:{}:pull", realm.repository));
                let request = TokenRequest { server, service, scope };
                let (token, life) = request.token(client, realm.credentials.as_ref()).await?;
                (sensitive(format!("Bearer {token}")).ok_or(AuthError::NoToken(request.server))?, Some(life))
            }
        };
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        known.retain(|_, known| known.until.is_none_or(|until| now < until));
        let until = life.map(|life| now + life.min(LONGEST_LIFE).saturating_sub(MARGIN));
        known.insert(realm.clone(), Known { header: header.clone(), until });
        Ok(header)
    }

    /// Forgets an answer that is no longer accepted.
    pub(crate) fn forget(&self, realm: &Realm) {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).remove(realm);
    }
}

fn sensitive(value: String) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(&value).ok()?;
    value.set_sensitive(true);
    Some(value)
}

fn basic(credentials: Option<&Credentials>) -> Result<Option<HeaderValue>, AuthError> {
    let Some((username, password)) = credentials.map(Credentials::basic).transpose()?.flatten() else {
        return Ok(None);
    };
    Ok(sensitive(format!("Basic {}", STANDARD.encode(format!("{username}:{password}")))))
}

/// Picks what can be answered; a token before a password.
fn challenge(headers: &HeaderMap) -> Result<Challenge, AuthError> {
    let mut basic = false;
    let mut seen = String::new();
    for header in headers.get_all(WWW_AUTHENTICATE) {
        let text = header.to_str().unwrap_or_default();
        seen = text.chars().take(200).collect();
        for challenge in http_auth::parse_challenges(text).unwrap_or_default() {
            let parameter = |name: &str| {
                let found = challenge.params.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
                found.map(|(_, value)| value.to_unescaped())
            };
            if challenge.scheme.eq_ignore_ascii_case("bearer") {
                let realm = parameter("realm").and_then(|realm| Url::parse(&realm).ok());
                let realm = realm.filter(|realm| matches!(realm.scheme(), "http" | "https"));
                if let Some(realm) = realm {
                    return Ok(Challenge::Bearer { realm, service: parameter("service"), scope: parameter("scope") });
                }
            }
            basic |= challenge.scheme.eq_ignore_ascii_case("basic");
        }
    }
    if basic { Ok(Challenge::Basic) } else { Err(AuthError::Challenge(seen)) }
}

struct TokenRequest {
    server: Url,
    service: Option<String>,
    scope: String,
}

impl TokenRequest {
    async fn token(&self, client: &Client, credentials: Option<&Credentials>) -> Result<(String, Duration), AuthError> {
        if let Some(known) = credentials.filter(|known| !known.registry_token.is_empty()) {
            // It is the bearer token already. Nobody says how long it is good for; a 401 asks again.
            return Ok((known.registry_token.clone(), DEFAULT_LIFE));
        }
        let mut parameters = vec![("scope", self.scope.as_str())];
        if let Some(service) = &self.service {
            parameters.push(("service", service));
        }
        let refresh = credentials.map(|known| known.identity_token.as_str()).filter(|token| !token.is_empty());
        let request = match refresh {
            Some(token) => {
                let grant = [("grant_type", "refresh_token"), ("client_id", "podwright"), ("refresh_token", token)];
                parameters.extend(grant);
                client.post(self.server.clone()).form(&parameters)
            }
            None => {
                let request = client.get(self.server.clone()).query(&parameters);
                match basic(credentials)? {
                    Some(header) => request.header(AUTHORIZATION, header),
                    None => request,
                }
            }
        };
        let unreachable = |source: reqwest::Error| AuthError::Unreachable {
            url: self.server.clone(),
            // The URL with its parameters would be there twice.
            source: source.without_url(),
        };
        let mut response = request.send().await.map_err(unreachable)?;
        match response.status().as_u16() {
            200 => {}
            401 | 403 => return Err(AuthError::Refused),
            status => return Err(AuthError::Status { url: self.server.clone(), status }),
        }
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(unreachable)? {
            if body.len() + chunk.len() > LONGEST_ANSWER {
                return Err(AuthError::NoToken(self.server.clone()));
            }
            body.extend_from_slice(&chunk);
        }
        let answer: Token = serde_json::from_slice(&body).map_err(|_| AuthError::NoToken(self.server.clone()))?;
        let token = answer.token.filter(|token| !token.is_empty()).or(answer.access_token);
        let token = token.filter(|token| !token.is_empty()).ok_or_else(|| AuthError::NoToken(self.server.clone()))?;
        Ok((token, answer.expires_in.map_or(DEFAULT_LIFE, Duration::from_secs)))
    }
}
