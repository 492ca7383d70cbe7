//! A registry in this process, which can misbehave.

use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, Once};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures_util::stream;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use podwright_base::Layout;
pub(crate) use podwright_base::chain;
use podwright_base::config::Registry as Config;
use tokio::net::TcpListener;
use tokio::sync::watch;

use super::image::TestImage;
use crate::progress::PullProgress;
use crate::{Credentials, Image, Images, PullError};

type Body = UnsyncBoxBody<Bytes, io::Error>;

/// Bytes of a piece of a paced answer: a client reads them at once.
const PACED: usize = 4000;

/// What goes wrong with one answer.
#[derive(Clone)]
pub(crate) enum Fault {
    /// This status, with headers.
    Status(u16, Vec<(&'static str, String)>, String),
    /// The right headers and this many bytes, then the connection breaks.
    Break(usize),
    /// The right headers and this many bytes, then nothing more.
    Stall(usize),
    /// These bytes, with their own length.
    Bytes(Vec<u8>),
    /// Everything, whatever range was asked for.
    NoRange,
    /// The right answer, each piece when this file holds all before it: slower than whoever reads, however slow.
    Pace(PathBuf),
    /// The right answer, or as much of it before the connection breaks; from then on no token is good that was given.
    Revoke(Option<usize>),
    /// The right answer, once this is true.
    Hold(watch::Receiver<bool>),
}

/// Who may ask.
#[derive(Clone)]
pub(crate) enum Door {
    Open,
    Basic(&'static str),
    /// A token from `/token`, which wants this basic pair or refresh token; empty: gives it to anybody.
    Token {
        pair: &'static str,
        refresh: &'static str,
        life: u64,
    },
    /// This bearer token, that no server gives.
    Bearer(&'static str),
}

#[derive(Default)]
struct State {
    /// By the path below `/v2/`.
    answers: HashMap<String, (String, Vec<u8>)>,
    faults: Vec<(String, Fault)>,
    log: Vec<Asked>,
    tokens: usize,
    /// The last token is no longer good.
    is_revoked: bool,
    door: Option<Door>,
}

/// One request that came.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) path: String,
    pub(crate) query: String,
    pub(crate) range: Option<String>,
    pub(crate) authorization: Option<String>,
    /// A header that a test may have sent.
    pub(crate) pass: Option<String>,
}

#[derive(Clone)]
pub(crate) struct Registry {
    pub(crate) address: SocketAddr,
    state: Arc<Mutex<State>>,
}

impl Registry {
    pub(crate) async fn start() -> Self {
        static PROVIDER: Once = Once::new();
        PROVIDER.call_once(|| rustls::crypto::ring::default_provider().install_default().unwrap());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let registry = Self { address: listener.local_addr().unwrap(), state: Arc::default() };
        let serving = registry.clone();
        tokio::spawn(async move {
            loop {
                let (socket, _) = listener.accept().await.unwrap();
                let serving = serving.clone();
                tokio::spawn(async move {
                    let service = service_fn(move |request| {
                        let serving = serving.clone();
                        async move { Ok::<_, Infallible>(serving.answer(request).await) }
                    });
                    // What asks in TLS, and answers that break, end a connection with an error.
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(socket), service)
                        .await;
                });
            }
        });
        registry
    }

    pub(crate) fn door(&self, door: Door) {
        self.state.lock().unwrap().door = Some(door);
    }

    pub(crate) fn put(&self, path: &str, media_type: &str, bytes: Vec<u8>) {
        self.state.lock().unwrap().answers.insert(path.to_owned(), (media_type.to_owned(), bytes));
    }

    /// Pushes an image and returns its reference.
    pub(crate) fn push(&self, repository: &str, tag: &str, image: &TestImage) -> String {
        let media_type = image.manifest["mediaType"].as_str().unwrap();
        for name in [tag.to_owned(), image.manifest_digest().to_string()] {
            self.put(&format!("{repository}/manifests/{name}"), media_type, image.manifest_bytes());
        }
        self.push_blob(repository, image.config.clone());
        for layer in &image.layers {
            self.push_blob(repository, layer.blob.clone());
        }
        self.name(repository, tag)
    }

    pub(crate) fn push_blob(&self, repository: &str, bytes: Vec<u8>) {
        let path = format!("{repository}/blobs/{}", podwright_base::Digest::of(&bytes));
        self.put(&path, "application/octet-stream", bytes);
    }

    pub(crate) fn name(&self, repository: &str, tag: &str) -> String {
        format!("{}/{repository}:{tag}", self.address)
    }

    /// The next answer for a path that contains `part` goes wrong.
    pub(crate) fn fault(&self, part: &str, fault: Fault) {
        self.state.lock().unwrap().faults.push((part.to_owned(), fault));
    }

    pub(crate) fn log(&self) -> Vec<Asked> {
        self.state.lock().unwrap().log.clone()
    }

    /// How often a path that contains `part` was asked for.
    pub(crate) fn count(&self, part: &str) -> usize {
        self.log().iter().filter(|asked| asked.path.contains(part)).count()
    }

    pub(crate) fn tokens(&self) -> usize {
        self.state.lock().unwrap().tokens
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        let header =
            |name| request.headers().get(name).map(|value: &http::HeaderValue| value.to_str().unwrap().to_owned());
        let (path, query) = (request.uri().path().to_owned(), request.uri().query().unwrap_or_default().to_owned());
        let asked = Asked {
            path: path.clone(),
            query,
            range: header("range"),
            authorization: header("authorization"),
            pass: header("x-pass"),
        };
        if path == "/token" {
            let fault = {
                let faults = &mut self.state.lock().unwrap().faults;
                faults.iter().position(|(part, _)| part == "/token").map(|at| faults.remove(at).1)
            };
            return match fault {
                Some(Fault::Status(status, headers, text)) => respond(status, &headers, text.into()),
                _ => self.token(request).await,
            };
        }
        let (fault, refused, answer) = {
            let mut state = self.state.lock().unwrap();
            state.log.push(asked.clone());
            let refused = self.refuse(&state, &asked);
            let at =
                if refused.is_some() { None } else { state.faults.iter().position(|(part, _)| path.contains(part)) };
            let mut fault = at.map(|at| state.faults.remove(at).1);
            if let Some(Fault::Revoke(after)) = fault {
                state.is_revoked = true;
                fault = after.map(Fault::Break);
            }
            (fault, refused, state.answers.get(path.trim_start_matches("/v2/")).cloned())
        };
        if let Some(refused) = refused {
            return refused;
        }
        let Some((media_type, bytes)) = answer else {
            let body = r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}"#;
            return respond(404, &[], body.into());
        };
        let range = asked.range.as_deref().and_then(|range| range.strip_prefix("bytes=")?.split_once('-'));
        let start = range.map_or(0, |(start, _)| start.parse().unwrap());
        let end = range.and_then(|(_, end)| end.parse().ok()).map_or(bytes.len(), |last: usize| last + 1);
        good(fault, start..end, &media_type, bytes).await
    }

    fn refuse(&self, state: &State, asked: &Asked) -> Option<Response<Body>> {
        let (wanted, challenge) = match state.door.clone().unwrap_or(Door::Open) {
            Door::Open => return None,
            Door::Basic(pair) => (format!("Basic {}", STANDARD.encode(pair)), "Basic realm=\"lab\"".to_owned()),
            Door::Token { .. } => {
                let server = format!("http://{}/token", self.address);
                (
                    if state.is_revoked { String::new() } else { format!("Bearer token-{}", state.tokens) },
                    format!("Bearer realm=\"{server}\",service=\"lab\",scope=\"repository:x:pull\""),
                )
            }
            Door::Bearer(token) => (format!("Bearer {token}"), "Bearer realm=\"http://127.0.0.1:1/token\"".to_owned()),
        };
        if asked.authorization.as_deref() == Some(&wanted) {
            return None;
        }
        Some(respond(401, &[("www-authenticate", challenge)], Bytes::new()))
    }

    async fn token(&self, request: Request<Incoming>) -> Response<Body> {
        let Some(Door::Token { pair, refresh, life }) = self.state.lock().unwrap().door.clone() else {
            return respond(404, &[], Bytes::new());
        };
        let basic = request.headers().get("authorization").map(|value| value.to_str().unwrap().to_owned());
        let wanted = if pair.is_empty() { None } else { Some(format!("Basic {}", STANDARD.encode(pair))) };
        let form = request.into_body().collect().await.unwrap().to_bytes();
        let refreshed =
            !refresh.is_empty() && String::from_utf8_lossy(&form).contains(&format!("refresh_token={refresh}"));
        if basic != wanted && !refreshed {
            return respond(401, &[], Bytes::new());
        }
        let mut state = self.state.lock().unwrap();
        state.tokens += 1;
        state.is_revoked = false;
        let body = serde_json::json!({"token": format!("token-{}", state.tokens), "expires_in": life});
        respond(200, &[], body.to_string().into())
    }
}

async fn good(fault: Option<Fault>, range: Range<usize>, media_type: &str, bytes: Vec<u8>) -> Response<Body> {
    let (mut whole, mut range) = (Bytes::from(bytes), range);
    let mut body: Option<Body> = None;
    match fault {
        Some(Fault::Status(status, headers, text)) => return respond(status, &headers, text.into()),
        Some(Fault::Bytes(bytes)) => {
            range = 0..bytes.len();
            whole = bytes.into();
        }
        Some(Fault::NoRange) => range = 0..whole.len(),
        Some(Fault::Pace(part)) => {
            let whole_to_send = whole.clone();
            let pieces = stream::unfold((range.start, range.end), move |(at, end)| {
                let piece = whole_to_send.slice(at..(at + PACED).min(end));
                let part = part.clone();
                async move {
                    if piece.is_empty() {
                        return None;
                    }
                    while std::fs::metadata(&part).is_ok_and(|part| part.len() < at as u64) {
                        tokio::task::yield_now().await;
                    }
                    let next = at + piece.len();
                    Some((Ok(Frame::data(piece)), (next, end)))
                }
            });
            body = Some(BodyExt::boxed_unsync(StreamBody::new(pieces)));
        }
        Some(Fault::Hold(mut held)) => {
            held.wait_for(|open| *open).await.unwrap();
        }
        Some(Fault::Break(length)) => {
            let part = whole.slice(range.start..(range.start + length).min(range.end));
            let pieces = stream::unfold(Some(Some(part)), async |step| match step {
                Some(Some(part)) => Some((Ok(Frame::data(part)), Some(None))),
                Some(None) => {
                    // A pause makes the server flush what it has.
                    tokio::task::yield_now().await;
                    Some((Err(io::Error::other("broken on purpose")), None))
                }
                None => None,
            });
            body = Some(BodyExt::boxed_unsync(StreamBody::new(pieces)));
        }
        Some(Fault::Stall(length)) => {
            let part = whole.slice(range.start..(range.start + length).min(range.end));
            let pieces = stream::unfold(Some(part), async |part| match part {
                Some(part) => Some((Ok(Frame::data(part)), None)),
                None => std::future::pending().await,
            });
            body = Some(BodyExt::boxed_unsync(StreamBody::new(pieces)));
        }
        Some(Fault::Revoke(_)) | None => {}
    }
    let partial = range.len() < whole.len();
    let mut response = Response::builder()
        .status(if partial { StatusCode::PARTIAL_CONTENT } else { StatusCode::OK })
        .header("content-type", media_type)
        .header("content-length", range.len());
    if partial {
        let (first, last) = (range.start, range.end - 1);
        response = response.header("content-range", format!("bytes {first}-{last}/{}", whole.len()));
    }
    response.body(body.unwrap_or_else(|| full(whole.slice(range)))).unwrap()
}

fn full(bytes: Bytes) -> Body {
    Full::new(bytes).map_err(|never| match never {}).boxed_unsync()
}

fn respond(status: u16, headers: &[(&'static str, String)], body: Bytes) -> Response<Body> {
    let mut response = Response::new(full(body));
    *response.status_mut() = StatusCode::from_u16(status).unwrap();
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        map.insert(*name, value.parse().unwrap());
    }
    *response.headers_mut() = map;
    response
}

/// A node's images in a directory of their own.
pub(crate) struct Node {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) images: Images,
    pub(crate) config: Config,
}

impl Node {
    pub(crate) fn new() -> Self {
        Self::with(|_, _| ())
    }

    /// A node whose configuration differs; what that names may be put into the node's directory.
    pub(crate) fn with(configure: impl FnOnce(&mut Config, &Path)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut config = Config {
            config_path: dir.path().join("certs.d"),
            max_concurrent_layers: 3,
            stall_timeout_seconds: 1,
            attempts: 3,
            ..Config::default()
        };
        configure(&mut config, dir.path());
        let images = Images::open(&layout(dir.path()), &config).unwrap();
        // No container is there from before.
        images.collect().unwrap();
        Self { dir, images, config }
    }

    /// As after the daemon's end and start.
    pub(crate) fn reopen(mut self) -> Self {
        self.images = Images::open(&layout(self.dir.path()), &self.config).unwrap();
        self
    }

    pub(crate) fn hosts(&self, registry: &str, text: &str) {
        let dir = self.config.config_path.join(registry);
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("hosts.toml"), text).unwrap();
    }

    pub(crate) async fn pull(&self, reference: &str) -> Result<Arc<Image>, PullError> {
        self.pull_as(reference, None).await
    }

    pub(crate) async fn pull_as(
        &self,
        reference: &str,
        credentials: Option<Credentials>,
    ) -> Result<Arc<Image>, PullError> {
        self.images.pull(reference, credentials, &watch::channel(PullProgress::default()).0).await
    }

    /// Reads a file of an image as text.
    pub(crate) fn read(&self, image: &Image, path: &str) -> String {
        String::from_utf8(self.images.read_file(image, path, 1 << 20).unwrap().unwrap()).unwrap()
    }

    /// Everything that images keep on disk, except the marker of the layout.
    pub(crate) fn residue(&self) -> Vec<String> {
        let mut found = Vec::new();
        for place in ["content/blobs/sha256", "content/ingest", "layers", "images"] {
            for entry in std::fs::read_dir(self.dir.path().join("root").join(place)).unwrap() {
                found.push(format!("{place}/{}", entry.unwrap().file_name().to_string_lossy()));
            }
        }
        found.sort();
        found
    }
}

pub(crate) fn layout(dir: &Path) -> Layout {
    Layout::new(dir.join("root"), dir.join("state"))
}
