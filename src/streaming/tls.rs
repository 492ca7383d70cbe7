//! TLS from files, which are read again when they change.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use podwright_base::config::Streaming;
use rustls::crypto::ring::default_provider;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{VerifierBuilderError, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig};

/// Why there is no TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A certificate without a key, a key without a certificate, or clients' authorities without both.
    #[error("streaming.tls_cert and streaming.tls_key are needed together, and by streaming.tls_client_ca")]
    Incomplete,
    /// A file is not there or not readable.
    #[error("look at {}", path.display())]
    Stat {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file holds no PEM of its kind.
    #[error("read {}", path.display())]
    Pem {
        /// The file.
        path: PathBuf,
        /// Why.
        source: pem::Error,
    },
    /// A file of certificates has none.
    #[error("{} holds no certificate", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// A client authority's certificate cannot be used.
    #[error("take a client authority from {}", path.display())]
    Authority {
        /// The file.
        path: PathBuf,
        /// Why.
        source: rustls::Error,
    },
    /// The client authorities together cannot be used.
    #[error("verify clients by {}", path.display())]
    Verifier {
        /// The file.
        path: PathBuf,
        /// Why.
        source: VerifierBuilderError,
    },
    /// The certificate and its key do not fit each other, or rustls.
    #[error("serve with the certificate {}", path.display())]
    Certificate {
        /// The certificate's file.
        path: PathBuf,
        /// Why.
        source: rustls::Error,
    },
}

/// The files.
#[derive(Debug, Clone)]
struct Files {
    cert: PathBuf,
    key: PathBuf,
    client_ca: Option<PathBuf>,
}

/// What tells one state of a file from another: device, inode, size, seconds and nanoseconds of its last change.
type Stamp = Vec<(u64, u64, u64, i64, i64)>;

/// A server's side of TLS.
#[derive(Debug)]
pub(crate) struct Tls {
    files: Files,
    current: Mutex<(Stamp, Arc<ServerConfig>)>,
}

impl Tls {
    /// Reads the files that the configuration names; none when it names none.
    ///
    /// # Errors
    /// When it names too few, or they cannot be used.
    pub(crate) fn load(config: &Streaming) -> Result<Option<Self>, TlsError> {
        let files = match (&config.tls_cert, &config.tls_key, &config.tls_client_ca) {
            (None, None, None) => return Ok(None),
            (Some(cert), Some(key), client_ca) => {
                Files { cert: cert.clone(), key: key.clone(), client_ca: client_ca.clone() }
            }
            _ => return Err(TlsError::Incomplete),
        };
        let current = Mutex::new((files.stamp()?, files.read()?));
        Ok(Some(Self { files, current }))
    }

    /// Returns what the files hold now. Files that cannot be used, as when only half of them are replaced, leave what
    /// was; they are tried again when they change again. It reads files: not for an async thread.
    pub(crate) fn config(&self) -> Arc<ServerConfig> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        // The stamp is taken first: a change while the files are read makes them read once more.
        let reread = match self.files.stamp() {
            Ok(stamp) if stamp == current.0 => return Arc::clone(&current.1),
            Ok(stamp) => {
                current.0 = stamp;
                self.files.read()
            }
            Err(error) => Err(error),
        };
        match reread {
            Ok(config) => current.1 = config,
            Err(error) => {
                let cause = std::error::Error::source(&error).map(ToString::to_string);
                tracing::warn!(%error, cause, "the streaming server goes on with its former certificate");
            }
        }
        Arc::clone(&current.1)
    }
}

impl Files {
    fn stamp(&self) -> Result<Stamp, TlsError> {
        let stamp = |path: &PathBuf| {
            let meta = fs::metadata(path).map_err(|source| TlsError::Stat { path: path.clone(), source })?;
            Ok((meta.dev(), meta.ino(), meta.size(), meta.ctime(), meta.ctime_nsec()))
        };
        [Some(&self.cert), Some(&self.key), self.client_ca.as_ref()].into_iter().flatten().map(stamp).collect()
    }

    fn read(&self) -> Result<Arc<ServerConfig>, TlsError> {
        let provider = Arc::new(default_provider());
        let chain = certificates(&self.cert)?;
        let key = PrivateKeyDer::from_pem_file(&self.key)
            .map_err(|source| TlsError::Pem { path: self.key.clone(), source })?;
        let unusable = |source| TlsError::Certificate { path: self.cert.clone(), source };
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider));
        let builder = builder.with_safe_default_protocol_versions().map_err(unusable)?;
        let builder = match &self.client_ca {
            None => builder.with_no_client_auth(),
            Some(path) => {
                let mut roots = RootCertStore::empty();
                for certificate in certificates(path)? {
                    let add = roots.add(certificate);
                    add.map_err(|source| TlsError::Authority { path: path.clone(), source })?;
                }
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
                let verifier = verifier.map_err(|source| TlsError::Verifier { path: path.clone(), source })?;
                builder.with_client_cert_verifier(verifier)
            }
        };
        let mut config = builder.with_single_cert(chain, key).map_err(unusable)?;
        // Upgrades are a matter of HTTP/1.1.
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let failed = |source| TlsError::Pem { path: path.to_owned(), source };
    let certificates = CertificateDer::pem_file_iter(path).map_err(failed)?;
    let certificates = certificates.collect::<Result<Vec<_>, _>>().map_err(failed)?;
    if certificates.is_empty() { Err(TlsError::Empty { path: path.to_owned() }) } else { Ok(certificates) }
}
