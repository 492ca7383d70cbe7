//! From an HTTP request to the protocol that both sides speak.

use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, header};

use crate::request::{ForwardRequest, RemoteRequest, Request};
use crate::spdy;
use crate::status::Format;
use crate::websocket::{Codec, handshake};

/// Names the protocol within SPDY: asked for by the client, several in order of preference, and answered with one.
const STREAM_VERSION: HeaderName = HeaderName::from_static("x-stream-protocol-version");
/// Tells a client whose protocols are all unknown which ones are known.
const ACCEPTED_VERSIONS: HeaderName = HeaderName::from_static("x-accepted-stream-protocol-versions");

/// What exec and attach are spoken in over SPDY.
const REMOTE: [(&str, Remote); 5] = [
    ("v5.channel.k8s.io", Remote { resize: true, format: Format::Json }),
    ("v4.channel.k8s.io", Remote { resize: true, format: Format::Json }),
    ("v3.channel.k8s.io", Remote { resize: true, format: Format::Text }),
    ("v2.channel.k8s.io", Remote { resize: false, format: Format::Text }),
    ("channel.k8s.io", Remote { resize: false, format: Format::Text }),
];
/// What port-forward is spoken in over SPDY.
const FORWARD: &str = "portforward.k8s.io";
/// WebSocket's for exec and attach; the first is for clients that name none.
const REMOTE_CHANNELS: [(&str, RemoteProtocol); 6] = [
    ("", RemoteProtocol::Channels(BINARY, Format::Text)),
    ("v5.channel.k8s.io", RemoteProtocol::Channels(HALF_CLOSING, Format::Json)),
    ("v4.channel.k8s.io", RemoteProtocol::Channels(BINARY, Format::Json)),
    ("v4.base64.channel.k8s.io", RemoteProtocol::Channels(Codec::Base64, Format::Json)),
    ("channel.k8s.io", RemoteProtocol::Channels(BINARY, Format::Text)),
    ("base64.channel.k8s.io", RemoteProtocol::Channels(Codec::Base64, Format::Text)),
];
/// WebSocket's for port-forward; the first is for clients that name none.
const FORWARD_CHANNELS: [(&str, ForwardProtocol); 4] = [
    ("", ForwardProtocol::Channels(BINARY)),
    ("SPDY/3.1+portforward.k8s.io", ForwardProtocol::Tunnel),
    ("v4.channel.k8s.io", ForwardProtocol::Channels(BINARY)),
    ("v4.base64.channel.k8s.io", ForwardProtocol::Channels(Codec::Base64)),
];
/// Ports that a WebSocket's channels can tell apart.
const CHANNEL_PORTS: usize = 127;

const HALF_CLOSING: Codec = Codec::Binary { half_close: true };
const BINARY: Codec = Codec::Binary { half_close: false };

/// What differs between the versions of exec and attach over SPDY.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Remote {
    /// Whether a terminal has a stream for its sizes.
    pub(crate) resize: bool,
    /// What the error stream carries.
    pub(crate) format: Format,
}

/// What exec and attach are spoken in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RemoteProtocol {
    /// SPDY.
    Spdy(Remote),
    /// A WebSocket's channels.
    Channels(Codec, Format),
}

/// What port-forward is spoken in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ForwardProtocol {
    /// SPDY.
    Spdy,
    /// SPDY within a WebSocket.
    Tunnel,
    /// A WebSocket's channels.
    Channels(Codec),
}

/// What is done once the connection is upgraded.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Agreement {
    Remote(RemoteProtocol, RemoteRequest),
    Forward(ForwardProtocol, ForwardRequest),
}

/// Why a request is not upgraded.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NegotiationError {
    /// It does not ask for a protocol we have.
    #[error("unable to upgrade: the request asks for neither SPDY/3.1 nor websocket")]
    NoUpgrade,
    /// A SPDY client names no protocol to be spoken within.
    #[error("unable to upgrade: X-Stream-Protocol-Version is missing or empty")]
    NoVersion,
    /// None of the protocols it names is known.
    #[error("unable to upgrade: the client speaks {asked:?}, the server speaks {known:?}")]
    NoCommon { asked: Vec<String>, known: Vec<&'static str> },
    /// A WebSocket has two channels for each port, and channels are counted in a byte.
    #[error("unable to upgrade: {count} ports are asked for, a WebSocket carries 1 to {CHANNEL_PORTS}")]
    Ports { count: usize },
    /// It is no proper WebSocket request.
    #[error("unable to upgrade")]
    Handshake(#[from] handshake::HandshakeError),
}

impl NegotiationError {
    /// Returns the answer in HTTP.
    pub(crate) fn response(&self) -> Response<String> {
        let text = match self {
            Self::Handshake(cause) => format!("{self}: {cause}\n"),
            _ => format!("{self}\n"),
        };
        let status = match self {
            Self::NoUpgrade | Self::NoVersion | Self::Ports { .. } => StatusCode::BAD_REQUEST,
            Self::NoCommon { .. } => StatusCode::FORBIDDEN,
            Self::Handshake(handshake::HandshakeError::Method) => StatusCode::METHOD_NOT_ALLOWED,
            Self::Handshake(handshake::HandshakeError::Version) => StatusCode::UPGRADE_REQUIRED,
            Self::Handshake(handshake::HandshakeError::Key) => StatusCode::BAD_REQUEST,
        };
        let mut response = refusal(status, text);
        let headers = response.headers_mut();
        match self {
            Self::NoCommon { known, .. } => {
                for name in known.iter().filter(|name| !name.is_empty()) {
                    headers.append(ACCEPTED_VERSIONS, HeaderValue::from_static(name));
                }
            }
            Self::Handshake(handshake::HandshakeError::Version) => {
                headers.insert(header::SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
            }
            _ => {}
        }
        response
    }
}

/// Returns what is agreed on and the answer that switches to it.
///
/// # Errors
/// When the client asks for nothing that there is.
pub(crate) fn negotiate(
    method: &Method,
    headers: &HeaderMap,
    request: Request,
) -> Result<(Agreement, Response<String>), NegotiationError> {
    let upgrade = list(headers, &header::UPGRADE);
    let asks = |name: &str| upgrade.iter().any(|asked| asked.eq_ignore_ascii_case(name));
    let upgrades = list(headers, &header::CONNECTION).iter().any(|token| token.eq_ignore_ascii_case("upgrade"));
    if upgrades && asks("websocket") {
        websocket(method, headers, request)
    } else if upgrades && asks(spdy::NAME) {
        spdy(headers, request)
    } else {
        Err(NegotiationError::NoUpgrade)
    }
}

fn spdy(headers: &HeaderMap, request: Request) -> Result<(Agreement, Response<String>), NegotiationError> {
    let asked = list(headers, &STREAM_VERSION);
    if asked.is_empty() {
        return Err(NegotiationError::NoVersion);
    }
    let (name, agreement) = match request {
        Request::Remote(request) => {
            let (name, remote) = choose(asked, &REMOTE)?;
            (name, Agreement::Remote(RemoteProtocol::Spdy(remote), request))
        }
        Request::Forward(request) => {
            let (name, protocol) = choose(asked, &[(FORWARD, ForwardProtocol::Spdy)])?;
            (name, Agreement::Forward(protocol, request))
        }
    };
    let mut response = switching(spdy::NAME);
    response.headers_mut().insert(STREAM_VERSION, HeaderValue::from_static(name));
    Ok((agreement, response))
}

fn websocket(
    method: &Method,
    headers: &HeaderMap,
    request: Request,
) -> Result<(Agreement, Response<String>), NegotiationError> {
    let answer = handshake::accept(method, headers)?;
    let mut asked = list(headers, &header::SEC_WEBSOCKET_PROTOCOL);
    if asked.is_empty() {
        asked.push(String::new());
    }
    let (name, agreement) = match request {
        Request::Remote(request) => {
            let (name, protocol) = choose(asked, &REMOTE_CHANNELS)?;
            (name, Agreement::Remote(protocol, request))
        }
        Request::Forward(request) => {
            let (name, protocol) = choose(asked, &FORWARD_CHANNELS)?;
            let count = request.ports.len();
            if matches!(protocol, ForwardProtocol::Channels(_)) && !(1..=CHANNEL_PORTS).contains(&count) {
                return Err(NegotiationError::Ports { count });
            }
            (name, Agreement::Forward(protocol, request))
        }
    };
    let mut response = switching("websocket");
    response.headers_mut().insert(header::SEC_WEBSOCKET_ACCEPT, answer);
    if !name.is_empty() {
        response.headers_mut().insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(name));
    }
    Ok((agreement, response))
}

/// Takes the first that the client asks for and that is known: the order is the client's.
fn choose<T: Copy>(asked: Vec<String>, known: &[(&'static str, T)]) -> Result<(&'static str, T), NegotiationError> {
    let common = asked.iter().find_map(|asked| known.iter().find(|(name, _)| name == asked));
    let names = || known.iter().map(|(name, _)| *name).collect();
    common.copied().ok_or_else(|| NegotiationError::NoCommon { known: names(), asked })
}

fn switching(protocol: &'static str) -> Response<String> {
    let mut response = Response::new(String::new());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    response.headers_mut().insert(header::UPGRADE, HeaderValue::from_static(protocol));
    response
}

/// Returns an answer that ends the connection: a token is good once, and a client has no second request.
pub(crate) fn refusal(status: StatusCode, text: String) -> Response<String> {
    let mut response = Response::new(text);
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

/// Returns the parts of a header that may be repeated, hold commas, or both.
fn list(headers: &HeaderMap, name: &HeaderName) -> Vec<String> {
    let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    values
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .filter(|part| !part.is_empty())
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::AttachRequest;

    fn remote() -> Request {
        let (tty, stdin, stdout, stderr) = (false, true, true, true);
        let request = AttachRequest { container_id: "c".to_owned(), tty, stdin, stdout, stderr };
        Request::Remote(RemoteRequest::Attach(request))
    }

    fn forward(ports: &[u16]) -> Request {
        Request::Forward(ForwardRequest { pod_sandbox_id: "p".to_owned(), ports: ports.to_vec() })
    }

    type Asked = Result<(Agreement, Response<String>), NegotiationError>;

    fn ask(request: &Request, headers: &[(&str, &'static str)]) -> Asked {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(HeaderName::try_from(*name).unwrap(), HeaderValue::from_static(value));
        }
        negotiate(&Method::GET, &map, request.clone())
    }

    const SPDY: [(&str, &str); 2] = [("connection", "keep-alive, Upgrade"), ("upgrade", "SPDY/3.1")];
    const WEBSOCKET: [(&str, &str); 4] = [
        ("connection", "Upgrade"),
        ("upgrade", "WebSocket"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ];

    #[test]
    fn versions_may_be_repeated_or_listed_and_the_client_s_order_counts() {
        for versions in [
            &[("x-stream-protocol-version", "v9, v3.channel.k8s.io,v4.channel.k8s.io")][..],
            &[("x-stream-protocol-version", "v3.channel.k8s.io"), ("x-stream-protocol-version", "v4.channel.k8s.io")],
        ] {
            let (agreement, response) = ask(&remote(), &[&SPDY, versions].concat()).unwrap();
            let third = Remote { resize: true, format: Format::Text };
            assert!(matches!(agreement, Agreement::Remote(RemoteProtocol::Spdy(remote), _) if remote == third));
            assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
            assert_eq!(response.headers()[STREAM_VERSION], "v3.channel.k8s.io");
            assert_eq!(response.headers()["upgrade"], "SPDY/3.1");
        }
    }

    #[test]
    fn what_cannot_be_spoken_is_refused_with_what_can() {
        let status = |request: &Request, headers: &[(&str, &'static str)]| match ask(request, headers) {
            Err(error) => error.response(),
            Ok((agreement, _)) => panic!("{agreement:?}"),
        };
        assert_eq!(status(&remote(), &[]).status(), StatusCode::BAD_REQUEST);
        assert_eq!(status(&remote(), &SPDY).status(), StatusCode::BAD_REQUEST);
        let refused = status(&remote(), &[&SPDY[..], &[("x-stream-protocol-version", "portforward.k8s.io")]].concat());
        assert_eq!(refused.status(), StatusCode::FORBIDDEN);
        assert_eq!(refused.headers().get_all(ACCEPTED_VERSIONS).iter().count(), 5);
        let refused =
            status(&forward(&[80]), &[&WEBSOCKET[..], &[("sec-websocket-protocol", "v5.channel.k8s.io")]].concat());
        assert_eq!(refused.status(), StatusCode::FORBIDDEN);
        assert_eq!(status(&remote(), &WEBSOCKET[..3]).status(), StatusCode::BAD_REQUEST);
        assert_eq!(status(&forward(&[]), &WEBSOCKET).status(), StatusCode::BAD_REQUEST);
        assert_eq!(status(&forward(&[80; 128]), &WEBSOCKET).status(), StatusCode::BAD_REQUEST);
    }

    #[test]
    fn websocket_clients_get_what_they_name_or_the_oldest() {
        let ask = |request: Request, names: &'static str| {
            let (agreement, response) =
                ask(&request, &[&WEBSOCKET[..], &[("sec-websocket-protocol", names)]].concat()).unwrap();
            (agreement, response.headers().get("sec-websocket-protocol").cloned())
        };
        for (names, expected) in [
            ("v5.channel.k8s.io", RemoteProtocol::Channels(HALF_CLOSING, Format::Json)),
            ("base64.channel.k8s.io, v4.channel.k8s.io", RemoteProtocol::Channels(Codec::Base64, Format::Text)),
            ("", RemoteProtocol::Channels(BINARY, Format::Text)),
        ] {
            let (agreement, name) = ask(remote(), names);
            assert!(matches!(agreement, Agreement::Remote(protocol, _) if protocol == expected), "{names}");
            assert_eq!(name.is_none(), names.is_empty());
        }
        for (names, expected) in [
            ("SPDY/3.1+portforward.k8s.io", ForwardProtocol::Tunnel),
            ("v4.base64.channel.k8s.io", ForwardProtocol::Channels(Codec::Base64)),
        ] {
            let (agreement, name) = ask(forward(&[80]), names);
            assert!(matches!(agreement, Agreement::Forward(protocol, _) if protocol == expected), "{names}");
            assert_eq!(name.unwrap(), names);
        }
    }
}
