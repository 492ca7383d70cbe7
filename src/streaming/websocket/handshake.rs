//! The upgrade from HTTP (RFC 6455, 4.2).

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, HeaderValue, Method, header};
use sha1::{Digest, Sha1};

/// 1.3: what a key is hashed with.
const SALT: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// Why a request is not upgraded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum HandshakeError {
    /// Only GET can be upgraded.
    #[error("a WebSocket is asked for by GET")]
    Method,
    /// A version other than that of the RFC.
    #[error("the WebSocket version must be 13")]
    Version,
    /// No key, or one that is not of 16 bytes.
    #[error("Sec-WebSocket-Key is missing or malformed")]
    Key,
}

/// Checks a request and returns the answer to its key.
///
/// # Errors
/// Says what is wrong with it.
pub(crate) fn accept(method: &Method, headers: &HeaderMap) -> Result<HeaderValue, HandshakeError> {
    if method != Method::GET {
        return Err(HandshakeError::Method);
    }
    if headers.get(header::SEC_WEBSOCKET_VERSION).is_none_or(|version| version != "13") {
        return Err(HandshakeError::Version);
    }
    let key = headers.get(header::SEC_WEBSOCKET_KEY).map(HeaderValue::as_bytes).unwrap_or_default();
    if STANDARD.decode(key).map(|key| key.len()) != Ok(16) {
        return Err(HandshakeError::Key);
    }
    let answer = STANDARD.encode(Sha1::new().chain_update(key).chain_update(SALT).finalize());
    HeaderValue::try_from(answer).map_err(|_| HandshakeError::Key)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(version: &'static str, key: &'static str) -> HeaderMap {
        [(header::SEC_WEBSOCKET_VERSION, version), (header::SEC_WEBSOCKET_KEY, key)]
            .map(|(name, value)| (name, HeaderValue::from_static(value)))
            .into_iter()
            .collect()
    }

    #[test]
    fn the_key_of_the_rfc_is_answered_as_there() {
        let key = "dGhlIHNhbXBsZSBub25jZQ==";
        assert_eq!(accept(&Method::GET, &request("13", key)).unwrap(), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        assert_eq!(accept(&Method::POST, &request("13", key)), Err(HandshakeError::Method));
        assert_eq!(accept(&Method::GET, &request("8", key)), Err(HandshakeError::Version));
        assert_eq!(accept(&Method::GET, &request("13", "c2hvcnQ=")), Err(HandshakeError::Key));
    }
}
