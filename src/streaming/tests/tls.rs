//! TLS from files.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use podwright_base::config::Streaming;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::TlsConnector;

use crate::tests::backend::Fake;
use crate::tests::{connect, exec, path};
use crate::{Server, StartError, TlsError};

type Authority = CertifiedIssuer<'static, KeyPair>;

fn authority() -> Authority {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

fn leaf(authority: &Authority) -> (rcgen::Certificate, KeyPair) {
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    (params.signed_by(&key, authority).unwrap(), key)
}

fn install(dir: &Path, authority: &Authority) {
    let (certificate, key) = leaf(authority);
    fs::write(dir.join("key"), key.serialize_pem()).unwrap();
    fs::write(dir.join("cert"), certificate.pem()).unwrap();
}

fn config(dir: &Path) -> Streaming {
    Streaming { tls_cert: Some(dir.join("cert")), tls_key: Some(dir.join("key")), ..Streaming::default() }
}

/// Asks for a session over TLS and returns how the answer begins.
async fn ask(server: &Server, trusted: &Authority, own: Option<&Authority>) -> std::io::Result<String> {
    let url = server.exec(exec(&["cat"], false)).unwrap();
    assert!(url.starts_with("https://"), "{url}");
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from(trusted.der().to_vec())).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let builder = builder.with_root_certificates(roots);
    let config = match own {
        None => builder.with_no_client_auth(),
        Some(authority) => {
            let (certificate, key) = leaf(authority);
            let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
            builder.with_client_auth_cert(vec![certificate.der().clone()], key).unwrap()
        }
    };
    let name = ServerName::try_from("127.0.0.1").unwrap();
    let mut socket = TlsConnector::from(Arc::new(config)).connect(name, connect(server).await).await?;
    socket.write_all(format!("GET {} HTTP/1.1\r\nHost: x\r\n\r\n", path(&url)).as_bytes()).await?;
    let mut answer = [0; 12];
    socket.read_exact(&mut answer).await?;
    Ok(String::from_utf8(answer.to_vec()).unwrap())
}

#[tokio::test]
async fn a_changed_certificate_is_used_from_the_next_connection_on() {
    let dir = tempfile::tempdir().unwrap();
    let (old, new) = (authority(), authority());
    install(dir.path(), &old);
    let server = Server::start(&config(dir.path()), Arc::new(Fake::default())).await.unwrap();
    assert_eq!(ask(&server, &old, None).await.unwrap(), "HTTP/1.1 400");
    assert!(ask(&server, &new, None).await.is_err());
    fs::write(dir.path().join("cert"), "half written").unwrap();
    assert_eq!(ask(&server, &old, None).await.unwrap(), "HTTP/1.1 400");
    install(dir.path(), &new);
    assert_eq!(ask(&server, &new, None).await.unwrap(), "HTTP/1.1 400");
    assert!(ask(&server, &old, None).await.is_err());
}

#[tokio::test]
async fn clients_need_a_certificate_where_an_authority_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let (ours, theirs) = (authority(), authority());
    install(dir.path(), &ours);
    fs::write(dir.path().join("ca"), theirs.pem()).unwrap();
    let config = Streaming { tls_client_ca: Some(dir.path().join("ca")), ..config(dir.path()) };
    let server = Server::start(&config, Arc::new(Fake::default())).await.unwrap();
    assert_eq!(ask(&server, &ours, Some(&theirs)).await.unwrap(), "HTTP/1.1 400");
    assert!(ask(&server, &ours, Some(&ours)).await.is_err());
    assert!(ask(&server, &ours, None).await.is_err());
}

#[tokio::test]
async fn what_cannot_be_used_keeps_the_server_from_starting() {
    let dir = tempfile::tempdir().unwrap();
    install(dir.path(), &authority());
    let start = |config: Streaming| async move { Server::start(&config, Arc::new(Fake::default())).await.unwrap_err() };
    let half = Streaming { tls_key: None, ..config(dir.path()) };
    assert!(matches!(start(half).await, StartError::Tls(TlsError::Incomplete)));
    let empty = Streaming { tls_cert: Some("/dev/null".into()), ..config(dir.path()) };
    assert!(matches!(start(empty).await, StartError::Tls(TlsError::Empty { .. })));
    let missing = Streaming { tls_cert: Some(dir.path().join("no")), ..config(dir.path()) };
    assert!(matches!(start(missing).await, StartError::Tls(TlsError::Stat { .. })));
    let (_, other) = leaf(&authority());
    fs::write(dir.path().join("key"), other.serialize_pem()).unwrap();
    assert!(matches!(start(config(dir.path())).await, StartError::Tls(TlsError::Certificate { .. })));
    let taken = Server::start(&Streaming::default(), Arc::new(Fake::default())).await.unwrap();
    let again = Streaming { address: taken.address(), ..Streaming::default() };
    assert!(matches!(start(again).await, StartError::Listen { .. }));
}
