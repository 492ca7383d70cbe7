//! A token server, as Docker's registries have one: it sells signed tokens for repositories to one user.

use std::convert::Infallible;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use rcgen::{CertificateParams, KeyPair};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::task::AbortOnDropHandle;

use super::distribution::USER;

/// What it calls itself, and whom its tokens are for.
pub(crate) const SERVICE: &str = "lab";

/// A token server on a loopback port, gone when dropped.
pub(crate) struct TokenServer {
    address: SocketAddr,
    certificate: PathBuf,
    sold: Arc<AtomicUsize>,
    _server: AbortOnDropHandle<()>,
}

struct Signer {
    key: EcdsaKeyPair,
    /// Base64 of the certificate.
    certificate: String,
    sold: Arc<AtomicUsize>,
}

impl TokenServer {
    /// Starts one; the certificate of its key is put into `dir`.
    pub(crate) async fn start(dir: &Path) -> Self {
        let key = KeyPair::generate().expect("a key");
        let certificate = CertificateParams::default().self_signed(&key).expect("a certificate");
        let path = dir.join("token.pem");
        fs::write(&path, certificate.pem()).expect("the certificate is written");
        let sold = Arc::new(AtomicUsize::new(0));
        let signer = Arc::new(Signer {
            key: EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, key.serialized_der(), &SystemRandom::new())
                .expect("rcgen makes such keys"),
            certificate: STANDARD.encode(certificate.der()),
            sold: Arc::clone(&sold),
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a loopback port");
        let address = listener.local_addr().expect("a bound socket has an address");
        let serve = async move {
            loop {
                let (stream, _) = listener.accept().await.expect("a connection");
                let signer = Arc::clone(&signer);
                tokio::spawn(async move {
                    let answer = service_fn(move |request: Request<Incoming>| {
                        let response = signer.answer(&request);
                        async move { Ok::<_, Infallible>(response) }
                    });
                    // A client that goes away in the middle is its own affair.
                    let _ =
                        hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), answer).await;
                });
            }
        };
        Self { address, certificate: path, sold, _server: AbortOnDropHandle::new(tokio::spawn(serve)) }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}/token", self.address)
    }

    /// The certificate that its tokens are verified by.
    pub(crate) fn certificate(&self) -> PathBuf {
        self.certificate.clone()
    }

    /// How many tokens it has given.
    pub(crate) fn sold(&self) -> usize {
        self.sold.load(Ordering::SeqCst)
    }
}

impl Signer {
    fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        let given = request.headers().get("authorization").and_then(|value| value.to_str().ok());
        let wanted = format!("Basic {}", STANDARD.encode(format!("{}:{}", USER.0, USER.1)));
        let query = request.uri().query().unwrap_or_default();
        let scope = query.split('&').find_map(|pair| pair.strip_prefix("scope=")).unwrap_or_default();
        let scope = scope.replace("%3A", ":").replace("%2F", "/");
        let parts: Vec<&str> = scope.split(':').collect();
        let [kind, name, actions] = parts.as_slice() else { return status(StatusCode::BAD_REQUEST) };
        if given != Some(&wanted) {
            return status(StatusCode::UNAUTHORIZED);
        }
        self.sold.fetch_add(1, Ordering::SeqCst);
        let actions: Vec<&str> = actions.split(',').collect();
        let access = json!([{"type": kind, "name": name, "actions": actions}]);
        Response::new(Full::from(json!({"token": self.token(&access), "expires_in": 300}).to_string()))
    }

    /// RFC 7519, as the registry's token authentication wants it.
    fn token(&self, access: &Value) -> String {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock after 1970").as_secs();
        let header = json!({"typ": "JWT", "alg": "ES256", "x5c": [self.certificate]});
        let claims = json!({"iss": SERVICE, "aud": SERVICE, "sub": USER.0, "jti": format!("{}", self.sold.load(Ordering::SeqCst)),
            "iat": now, "nbf": now - 60, "exp": now + 300, "access": access});
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!("{}.{}", part(&header), part(&claims));
        let signature = self.key.sign(&SystemRandom::new(), signed.as_bytes()).expect("a signature");
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
    }
}

fn status(status: StatusCode) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::default());
    *response.status_mut() = status;
    response
}
