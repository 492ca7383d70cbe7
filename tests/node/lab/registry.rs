//! A registry inside the test, for what a real one never does: lies, demands and multi-platform indexes made to measure.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::net::TcpListener;
use tokio_util::task::AbortOnDropHandle;

use super::archive::{Image, digest};

/// What a client must bring.
#[derive(Debug, Clone)]
pub(crate) enum Access {
    Open,
    /// User and password with every request.
    Basic(&'static str, &'static str),
    /// A token, which user and password buy.
    Bearer(&'static str, &'static str),
    /// A header with every request, else 403.
    Header(&'static str, &'static str),
}

/// A registry on a loopback port, gone when dropped.
pub(crate) struct Registry {
    address: SocketAddr,
    shelf: Arc<Mutex<Shelf>>,
    _server: AbortOnDropHandle<()>,
}

struct Shelf {
    access: Access,
    /// Media type and bytes by repository and tag or digest.
    manifests: HashMap<(String, String), (String, Bytes)>,
    blobs: HashMap<String, Bytes>,
    /// Method and path of each request, in order.
    requests: Vec<String>,
}

const TOKEN: &str = "a-token-of-the-lab";

impl Registry {
    pub(crate) async fn start(access: Access) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a loopback port");
        let address = listener.local_addr().expect("a bound socket has an address");
        let shelf = Shelf { access, manifests: HashMap::new(), blobs: HashMap::new(), requests: Vec::new() };
        let shelf = Arc::new(Mutex::new(shelf));
        let served = Arc::clone(&shelf);
        let server = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.expect("a connection");
                let shelf = Arc::clone(&served);
                tokio::spawn(async move {
                    let answer = service_fn(move |request: Request<Incoming>| {
                        let response = answer(&mut shelf.lock().expect("no holder panics"), address, &request);
                        async move { Ok::<_, Infallible>(response) }
                    });
                    // A client that goes away in the middle is its own affair.
                    let _ =
                        hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), answer).await;
                });
            }
        });
        Self { address, shelf, _server: AbortOnDropHandle::new(server) }
    }

    /// Its base URL.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Publishes an image under a tag; returns the manifest's digest.
    pub(crate) fn publish(&self, repository: &str, tag: &str, image: &Image) -> String {
        self.lock().blobs.extend(image.blobs.iter().map(|(digest, blob)| (digest.clone(), Bytes::from(blob.clone()))));
        self.put_manifest(repository, tag, image.media_type(), &image.manifest)
    }

    /// Publishes any manifest under a tag and under its digest, which it returns.
    pub(crate) fn put_manifest(&self, repository: &str, tag: &str, media_type: &str, manifest: &[u8]) -> String {
        let digest = digest(manifest);
        let mut shelf = self.lock();
        for reference in [tag, &digest] {
            let key = (repository.to_owned(), reference.to_owned());
            shelf.manifests.insert(key, (media_type.to_owned(), Bytes::copy_from_slice(manifest)));
        }
        digest
    }

    /// Serves other bytes under a blob's digest from now on.
    pub(crate) fn forge_blob(&self, digest: &str, bytes: &[u8]) {
        self.lock().blobs.insert(digest.to_owned(), Bytes::copy_from_slice(bytes));
    }

    /// How many requests had this method and a path with this part.
    pub(crate) fn count(&self, method: &str, part: &str) -> usize {
        let wanted = |request: &&String| request.starts_with(method) && request.contains(part);
        self.lock().requests.iter().filter(wanted).count()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Shelf> {
        self.shelf.lock().expect("no holder panics")
    }
}

fn answer(shelf: &mut Shelf, address: SocketAddr, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    let path = request.uri().path();
    shelf.requests.push(format!("{} {path}", request.method()));
    let given = request.headers().get("authorization").and_then(|value| value.to_str().ok()).unwrap_or_default();
    if path == "/token" {
        return token(&shelf.access, given);
    }
    let demand = match &shelf.access {
        Access::Open => None,
        Access::Header(name, value) => {
            if request.headers().get(*name).is_none_or(|given| given != value) {
                return error(StatusCode::FORBIDDEN, "DENIED", "not without the header");
            }
            None
        }
        Access::Basic(user, password) => (given != basic(user, password)).then(|| "Basic realm=\"lab\"".to_owned()),
        Access::Bearer(..) => (given != format!("Bearer {TOKEN}"))
            .then(|| format!("Bearer realm=\"http://{address}/token\",service=\"lab\",scope=\"repository:any:pull\"")),
    };
    if let Some(demand) = demand {
        let mut response = error(StatusCode::UNAUTHORIZED, "UNAUTHORIZED", "authentication required");
        response.headers_mut().insert("www-authenticate", demand.parse().expect("a header's value"));
        return response;
    }
    let Some(path) = path.strip_prefix("/v2/") else {
        return error(StatusCode::NOT_FOUND, "UNSUPPORTED", "only the distribution API is here");
    };
    if path.is_empty() {
        return Response::new(Full::from("{}"));
    }
    if let Some((repository, reference)) = path.split_once("/manifests/") {
        let key = (repository.to_owned(), reference.to_owned());
        return match shelf.manifests.get(&key) {
            Some((media_type, manifest)) => content(request.method(), media_type, manifest),
            None => error(StatusCode::NOT_FOUND, "MANIFEST_UNKNOWN", "manifest unknown"),
        };
    }
    match path.split_once("/blobs/").and_then(|(_, digest)| shelf.blobs.get(digest)) {
        Some(blob) => content(request.method(), "application/octet-stream", blob),
        None => error(StatusCode::NOT_FOUND, "BLOB_UNKNOWN", "blob unknown"),
    }
}

fn token(access: &Access, given: &str) -> Response<Full<Bytes>> {
    match access {
        Access::Bearer(user, password) if given == basic(user, password) => {
            Response::new(Full::from(json!({"token": TOKEN, "expires_in": 300}).to_string()))
        }
        _ => error(StatusCode::UNAUTHORIZED, "UNAUTHORIZED", "no token for you"),
    }
}

fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}")))
}

fn content(method: &Method, media_type: &str, bytes: &Bytes) -> Response<Full<Bytes>> {
    let body = if method == Method::HEAD { Bytes::new() } else { bytes.clone() };
    Response::builder()
        .header("content-type", media_type)
        .header("content-length", bytes.len())
        .header("docker-content-digest", digest(bytes))
        .body(Full::from(body))
        .expect("valid headers")
}

fn error(status: StatusCode, code: &str, message: &str) -> Response<Full<Bytes>> {
    let body = json!({"errors": [{"code": code, "message": message}]}).to_string();
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = status;
    response
}
