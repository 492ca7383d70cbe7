//! HTTP clients, one for each way of trusting servers, kept so that connections are used again.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::header::LOCATION;
use hyper_util::client::proxy::matcher::Matcher;
use reqwest::redirect::{Attempt, Policy};
use reqwest::{Certificate, Client, ClientBuilder, Identity, Response, Url};

use crate::hosts::{self, Endpoint, Tls};

pub(crate) const MOST_REDIRECTS: usize = 10;
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
    /// A client certificate's file holds none, or no key for it.
    #[error("{} holds no certificate with its private key", path.display())]
    Identity {
        /// The certificate's file.
        path: PathBuf,
        /// Why.
        source: reqwest::Error,
    },
    /// The TLS library refuses the configuration.
    #[error("set up TLS")]
    Build(#[source] reqwest::Error),
}

/// Makes and keeps clients. What they trust is kept by content: a certificate file that changes makes another client.
#[derive(Debug)]
pub(crate) struct Clients {
    known: Mutex<HashMap<(Tls, Reach), Client>>,
    /// As the clients read them from the environment.
    proxies: Matcher,
}

impl Default for Clients {
    fn default() -> Self {
        Self { known: Mutex::default(), proxies: Matcher::from_env() }
    }
}

/// What an endpoint says about the way to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Reach {
    /// Passes by the environment's proxies, as this host's own addresses always do.
    direct: bool,
    /// May turn out not to need any certificate: plain HTTP, or a local port that is tried with TLS first.
    may_be_plain: bool,
    /// Bound on making a connection.
    dial_timeout: Duration,
    /// Its requests bear headers that are for nobody else.
    has_headers: bool,
}

impl Clients {
    /// Names a server for errors: scheme, host and port, and the proxy on the way to it.
    pub(crate) fn way(&self, base: &Url) -> String {
        let origin = base.origin().ascii_serialization();
        let proxy = base.as_str().parse().ok().and_then(|uri| self.proxies.intercept(&uri));
        match proxy.filter(|_| !hosts::is_loopback(base)) {
            // Its user and password are not part of its URI.
            Some(proxy) => format!("{origin} through the proxy {}", proxy.uri().to_string().trim_end_matches('/')),
            None => origin,
        }
    }

    /// Returns a client for an endpoint.
    pub(crate) fn get(&self, endpoint: &Endpoint) -> Result<Client, ClientError> {
        let (tls, base) = (&endpoint.tls, &endpoint.base);
        let direct = hosts::is_loopback(base);
        let may_be_plain = direct || base.scheme() == "http";
        let reach = Reach {
            direct,
            may_be_plain,
            dial_timeout: endpoint.dial_timeout.unwrap_or(CONNECT),
            has_headers: !endpoint.headers.is_empty(),
        };
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (tls.clone(), reach);
        if let Some(client) = known.get(&key) {
            return Ok(client.clone());
        }
        let client = build(tls, reach)?;
        if known.len() >= MOST_CLIENTS {
            known.clear();
        }
        known.insert(key, client.clone());
        Ok(client)
    }
}

fn build(tls: &Tls, reach: Reach) -> Result<Client, ClientError> {
    if rustls::crypto::CryptoProvider::get_default().map(Arc::as_ref).is_none() {
        return Err(ClientError::NoProvider);
    }
    let mut certificates = Vec::new();
    for bundle in &tls.authorities {
        certificates.extend(Certificate::from_pem_bundle(bundle).map_err(ClientError::Authority)?);
    }
    let identity = |builder: ClientBuilder| match &tls.identity {
        None => Ok(builder),
        Some(identity) => match Identity::from_pem(&identity.pem) {
            Ok(both) => Ok(builder.identity(both)),
            Err(source) => Err(ClientError::Identity { path: identity.path.clone(), source }),
        },
    };
    let built = identity(configure(tls, reach))?.tls_certs_merge(certificates.clone()).build();
    let built = match built {
        // The system's certificates cannot be had, on a minimal host because there are none. What may need none is asked
        // all the same; a server that does, say one that it redirects to, is then not trusted.
        Err(_) if reach.may_be_plain => identity(configure(tls, reach))?.tls_certs_only(certificates).build(),
        built => built,
    };
    built.map_err(ClientError::Build)
}

fn configure(tls: &Tls, reach: Reach) -> ClientBuilder {
    let builder = Client::builder()
        .user_agent(concat!("podwright/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(reach.dial_timeout)
        .redirect(Policy::custom(move |attempt| redirect(attempt, reach.has_headers)))
        .referer(false)
        .tls_danger_accept_invalid_certs(tls.skip_verify);
    if reach.direct { builder.no_proxy() } else { builder }
}

/// Registries send blobs to their storage. What began in TLS stays in TLS; where headers must not go along, [`elsewhere`]
/// tells where to.
fn redirect(attempt: Attempt<'_>, has_headers: bool) -> reqwest::redirect::Action {
    if attempt.previous().len() > MOST_REDIRECTS {
        return attempt.error("too many redirects");
    }
    let was_secure = attempt.previous().last().is_some_and(|url| url.scheme() == "https");
    if was_secure && attempt.url().scheme() != "https" {
        return attempt.error("the registry redirects from HTTPS to plain HTTP");
    }
    let is_elsewhere = attempt.previous().last().is_some_and(|url| url.origin() != attempt.url().origin());
    if has_headers && is_elsewhere { attempt.stop() } else { attempt.follow() }
}

/// Tells where a redirect leads that the client did not follow.
pub(crate) fn elsewhere(response: &Response) -> Option<Url> {
    if !response.status().is_redirection() {
        return None;
    }
    response.url().join(response.headers().get(LOCATION)?.to_str().ok()?).ok()
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// In the environment of the test's own process, which sees no certificates of the system's.
    const CASE: &str = "PODWRIGHT_WITHOUT_CERTIFICATES";

    #[test]
    fn without_certificates_only_what_needs_them_is_refused() {
        if std::env::var_os(CASE).is_none() {
            let own = std::env::current_exe().unwrap();
            let mut case = Command::new(own);
            case.args(["--exact", "client::tests::without_certificates_only_what_needs_them_is_refused"]);
            case.env(CASE, "1").env("SSL_CERT_FILE", "/dev/null").env_remove("SSL_CERT_DIR");
            let output = case.output().unwrap();
            let told = String::from_utf8_lossy(&output.stdout);
            assert!(output.status.success() && told.contains("1 passed"), "{told}");
            return;
        }
        rustls::crypto::ring::default_provider().install_default().unwrap();
        let get = |base: &str| {
            let endpoint = hosts::default_endpoints("registry.example").unwrap().remove(0);
            Clients::default().get(&Endpoint { base: base.parse().unwrap(), ..endpoint })
        };
        for base in ["http://registry.example/v2/", "http://127.0.0.1:5000/v2/", "https://localhost:5000/v2/"] {
            assert!(get(base).is_ok(), "{base}");
        }
        assert!(matches!(get("https://registry.example/v2/"), Err(ClientError::Build(_))));
    }

    #[test]
    fn the_proxy_on_the_way_is_named_without_its_password() {
        let proxies = Matcher::builder().all("http://anna:s3cret@proxy.example:3128").no("192.0.2.0/24,.near.example");
        let clients = Clients { known: Mutex::default(), proxies: proxies.build() };
        let way = |base: &str| clients.way(&base.parse().unwrap());
        let proxy = "through the proxy http://proxy.example:3128";
        assert_eq!(way("https://r.example/v2/"), format!("https://r.example {proxy}"));
        assert_eq!(way("http://198.51.100.1:5000/v2/"), format!("http://198.51.100.1:5000 {proxy}"));
        for direct in ["https://192.0.2.7", "http://r.near.example", "http://127.0.0.1:5000", "https://localhost"] {
            assert_eq!(way(direct), direct);
        }
    }
}
