//! How a registry is convinced: its challenge is answered with basic credentials or with a token from its token server.
//!
//! Challenges are remembered, so that later requests for the repository bear their answer at once. A token is kept by its
//! scope for as long as it is good; whoever needs one that is being asked for waits for it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::header::{AUTHORIZATION, HeaderMap, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use reqwest::{Client, RequestBuilder, Url};
use serde::Deserialize;

use crate::cause::Cause;
use crate::credentials::{Credentials, CredentialsError};

/// Life of a token whose server does not say (the distribution specification's default).
const DEFAULT_LIFE: Duration = Duration::from_secs(60);
/// A token is asked for anew at least this often, whatever its server says.
const LONGEST_LIFE: Duration = Duration::from_secs(24 * 60 * 60);
/// A token is not used in the last tenth of its life, within these bounds: the request takes some time, and so does a
/// server's clock that is ahead.
const SHORTEST_MARGIN: Duration = Duration::from_secs(5);
const LONGEST_MARGIN: Duration = Duration::from_secs(60);
/// Bound on remembered challenges; one that was forgotten costs a request.
const MOST_CHALLENGES: usize = 4096;
/// Bound on a token server's answer.
const LONGEST_ANSWER: usize = 1 << 20;

/// Why a registry cannot be convinced.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AuthError {
    /// 401, and no way to answer.
    #[error("it asks for credentials in no known way ({0:?})")]
    Challenge(String),
    /// It wants a user, and there is none.
    #[error(
        "it asks for a user name and password, and neither the request nor this node's configuration has any for it"
    )]
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
        source: Cause,
    },
    /// The token server has answered something else.
    #[error("the token server {url} answers {status}")]
    Status {
        /// The server.
        url: Url,
        /// HTTP status.
        status: u16,
        /// When it wants to be asked again.
        retry_after: Option<Duration>,
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

    pub(crate) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Status { retry_after, .. } => *retry_after,
            _ => None,
        }
    }
}

/// Who asks whom for what.
pub(crate) struct Asker<'a> {
    pub(crate) client: &'a Client,
    /// Scheme, host and port of the endpoint.
    pub(crate) endpoint: &'a str,
    pub(crate) repository: &'a str,
    pub(crate) credentials: Option<&'a Credentials>,
    /// What the endpoint's configuration has sent with each request, to its token server too.
    pub(crate) headers: &'a HeaderMap,
}

/// Remembers challenges, and the tokens that answer them.
#[derive(Default)]
pub(crate) struct Answers {
    /// By endpoint and repository.
    challenges: Mutex<HashMap<(String, String), Challenge>>,
    tokens: Mutex<HashMap<TokenKey, Arc<Slot>>>,
}

/// What a token is good for, and who got it.
#[derive(Clone, PartialEq, Eq, Hash)]
struct TokenKey {
    server: Url,
    service: Option<String>,
    scope: String,
    credentials: Option<Credentials>,
}

/// Locked while its token is being asked for: others wait, and take that one.
type Slot = tokio::sync::Mutex<Option<Token>>;

struct Token {
    header: HeaderValue,
    /// When it is to be asked for anew, before it ends.
    until: Instant,
}

#[derive(Deserialize)]
struct Answer {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<u64>,
}

#[derive(Clone)]
enum Challenge {
    Basic,
    Bearer { realm: Url, service: Option<String>, scope: Option<String> },
}

impl Answers {
    /// Tells whether an endpoint is known to want an answer.
    pub(crate) fn is_challenged(&self, endpoint: &str, repository: &str) -> bool {
        self.challenge(endpoint, repository).is_some()
    }

    /// Returns what convinces an endpoint that has asked before; nothing when there is nothing to say.
    pub(crate) async fn header(&self, asker: &Asker<'_>) -> Result<Option<HeaderValue>, AuthError> {
        match self.challenge(asker.endpoint, asker.repository) {
            None => Ok(None),
            Some(Challenge::Basic) => Ok(basic(asker.credentials)?),
            Some(challenge) => self.convince(asker, challenge, None).await.map(Some),
        }
    }

    /// Answers a 401 to a request that bore `refused`.
    pub(crate) async fn answer(
        &self,
        asker: &Asker<'_>,
        headers: &HeaderMap,
        refused: Option<&HeaderValue>,
    ) -> Result<HeaderValue, AuthError> {
        let challenge = challenge(headers)?;
        {
            let mut known = self.challenges.lock().unwrap_or_else(PoisonError::into_inner);
            if known.len() >= MOST_CHALLENGES {
                known.clear();
            }
            known.insert((asker.endpoint.to_owned(), asker.repository.to_owned()), challenge.clone());
        }
        let header = self.convince(asker, challenge, refused).await?;
        if refused == Some(&header) { Err(AuthError::Refused) } else { Ok(header) }
    }

    fn challenge(&self, endpoint: &str, repository: &str) -> Option<Challenge> {
        let known = self.challenges.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(&(endpoint.to_owned(), repository.to_owned())).cloned()
    }

    async fn convince(
        &self,
        asker: &Asker<'_>,
        challenge: Challenge,
        refused: Option<&HeaderValue>,
    ) -> Result<HeaderValue, AuthError> {
        let Challenge::Bearer { realm: server, service, scope } = challenge else {
            return basic(asker.credentials)?.ok_or(AuthError::Missing);
        };
        if let Some(known) = asker.credentials.filter(|known| !known.registry_token.is_empty()) {
            return sensitive(format!("Bearer {}", known.registry_token)).ok_or(AuthError::NoToken(server));
        }
        let is_secure = asker.endpoint.starts_with("https:");
        if is_secure && server.scheme() != "https" && asker.credentials.is_some() {
            return Err(AuthError::Plain(server));
        }
        let scope = scope.unwrap_or_else(|| format!("repository:{}:pull", asker.repository));
        self.token(asker, TokenKey { server, service, scope, credentials: asker.credentials.cloned() }, refused).await
    }

    /// Returns a token that is good and not the one that was refused, from here or from its server.
    async fn token(
        &self,
        asker: &Asker<'_>,
        key: TokenKey,
        refused: Option<&HeaderValue>,
    ) -> Result<HeaderValue, AuthError> {
        let slot = self.slot(&key);
        let mut slot = slot.lock().await;
        if let Some(token) = slot.as_ref().filter(|token| token.is_good() && refused != Some(&token.header)) {
            return Ok(token.header.clone());
        }
        let (token, life) = key.ask(asker).await?;
        let header = sensitive(format!("Bearer {token}")).ok_or(AuthError::NoToken(key.server))?;
        let life = life.min(LONGEST_LIFE);
        let until = Instant::now() + life.saturating_sub((life / 10).clamp(SHORTEST_MARGIN, LONGEST_MARGIN));
        *slot = Some(Token { header: header.clone(), until });
        Ok(header)
    }

    fn slot(&self, key: &TokenKey) -> Arc<Slot> {
        let mut tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        tokens.retain(|_, slot| {
            // Only the map has it, so the lock is free.
            Arc::strong_count(slot) > 1 || slot.try_lock().is_ok_and(|token| token.as_ref().is_some_and(Token::is_good))
        });
        Arc::clone(tokens.entry(key.clone()).or_default())
    }
}

impl Token {
    fn is_good(&self) -> bool {
        Instant::now() < self.until
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

impl TokenKey {
    /// Asks the token server, for a token and how long it is good.
    async fn ask(&self, asker: &Asker<'_>) -> Result<(String, Duration), AuthError> {
        let unreachable = |source| AuthError::Unreachable { url: self.server.clone(), source: Cause::from(source) };
        let mut response = self.request(asker)?.send().await.map_err(unreachable)?;
        match response.status().as_u16() {
            200 => {}
            401 | 403 => return Err(AuthError::Refused),
            status => {
                let retry_after = retry_after(response.headers());
                return Err(AuthError::Status { url: self.server.clone(), status, retry_after });
            }
        }
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(unreachable)? {
            if body.len() + chunk.len() > LONGEST_ANSWER {
                return Err(AuthError::NoToken(self.server.clone()));
            }
            body.extend_from_slice(&chunk);
        }
        let answer: Answer = serde_json::from_slice(&body).map_err(|_| AuthError::NoToken(self.server.clone()))?;
        let token = answer.token.filter(|token| !token.is_empty()).or(answer.access_token);
        let token = token.filter(|token| !token.is_empty()).ok_or_else(|| AuthError::NoToken(self.server.clone()))?;
        Ok((token, answer.expires_in.map_or(DEFAULT_LIFE, Duration::from_secs)))
    }

    fn request(&self, asker: &Asker<'_>) -> Result<RequestBuilder, AuthError> {
        let mut parameters = vec![("scope", self.scope.as_str())];
        if let Some(service) = &self.service {
            parameters.push(("service", service));
        }
        let refresh = self.credentials.as_ref().map(|known| known.identity_token.as_str());
        if let Some(token) = refresh.filter(|token| !token.is_empty()) {
            let grant = [("grant_type", "refresh_token"), ("client_id", "podwright"), ("refresh_token", token)];
            parameters.extend(grant);
            let request = asker.client.post(self.server.clone()).headers(asker.headers.clone());
            return Ok(request.form(&parameters));
        }
        let request = asker.client.get(self.server.clone()).headers(asker.headers.clone()).query(&parameters);
        Ok(match basic(self.credentials.as_ref())? {
            Some(header) => request.header(AUTHORIZATION, header),
            None => request,
        })
    }
}

/// Reads when a server wants to be asked again.
pub(crate) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds))
}
