//! Registries: where an image is, who asks for it, and the bytes that come.
//!
//! ```text
//!   reference ──► hosts (mirrors, TLS) ──► session (retries) ──► manifests, blobs
//!                                             ├── transfer (a blob in order, resumed, in ranges)
//!                                             │      └── limits (bodies in flight)
//!                                             ├── attached (signatures, referrers)
//!                                             └── exchange (one request, at each endpoint in turn)
//!                                                    ├── client (connections, proxies)
//!                                                    ├── auth (challenges, tokens)
//!                                                    └── credentials ◄── keyring (configuration, Docker's, helpers)
//! ```
//! It knows nothing of what manifests and layers hold: documents come verified by digest where there is one, blobs as
//! streams of a checked length.

mod attached;
mod auth;
mod cause;
mod client;
mod credentials;
mod docker_config;
mod error;
mod exchange;
mod helper;
mod hosts;
mod hosts_file;
mod keyring;
mod limits;
mod pattern;
mod reference;
mod session;
mod transfer;

pub use auth::AuthError;
pub use cause::Cause;
pub use client::ClientError;
pub use credentials::{Credentials, CredentialsError};
pub use error::{RegistryError, What};
pub use helper::HelperError;
pub use hosts::{Endpoint, HostsError, Identity, Tls, endpoints};
pub use keyring::KeyringError;
pub use limits::{Limits, Permit};
pub use reference::{Reference, ReferenceError, normalize};
pub use session::{Blob, Document, Session, Transport};
pub use transfer::{Piece, Reader, Stop};
