//! What happens between TLS and plain HTTP on this host.

use std::io::Read;
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use super::registry::{Node, Registry, chain};

/// A certificate for 127.0.0.1 that signs itself, and its key: nobody trusts it.
const CERTIFICATE: &str = "MIIBizCCATCgAwIBAgIUWFrqvUTZeF/XYbdqVCjqV/hXJ+0wCgYIKoZIzj0EAwIwETEPMA0GA1UEAwwGbm9ib2R5MCAXDTI2MTEy\
     NDIzMTAyNloYDzIxMjYxMDMxMjMxMDI2WjARMQ8wDQYDVQQDDAZub2JvZHkwWTATBgcqhkjOPQIBBggqhkjOPQMBBwNCAARmlctZ\
     G60aw1HDd4a16H9fvAZQAbkTpxkXNAwZgPKOyyU3VYinhOKU5mPEy9H6sITtPbMfJ+mVHPGb8SAL8AXFo2QwYjAdBgNVHQ4EFgQU\
     fmuOZO3LmtKlrQG8v3zFnCKUjnAwHwYDVR0jBBgwFoAUfmuOZO3LmtKlrQG8v3zFnCKUjnAwDwYDVR0TAQH/BAUwAwEB/zAPBgNV\
     HREECDAGhwR/AAABMAoGCCqGSM49BAMCA0kAMEYCIQDJnQN8JNE7DxcoPhn1khDBFh+yaae0lftolXtHibBOlgIhAKPt4QRTS1aY\
     miTkdqu1qBsauLPFJahMJYheIBuxzqz4";
const KEY: &str = "MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQglCBxaFCyDAdhEV803KeK0TztlaO31gvN8BoU+h+rjkShRANCAARm\
     lctZG60aw1HDd4a16H9fvAZQAbkTpxkXNAwZgPKOyyU3VYinhOKU5mPEy9H6sITtPbMfJ+mVHPGb8SAL8AXF";

/// Serves handshakes only, and counts connections that begin with a plain request.
fn untrusted() -> (u16, Arc<AtomicUsize>) {
    let key = PrivatePkcs8KeyDer::from(STANDARD.decode(KEY).unwrap());
    let certificate = CertificateDer::from(STANDARD.decode(CERTIFICATE).unwrap());
    let config = rustls::ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], PrivateKeyDer::Pkcs8(key))
        .unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (port, plain) = (listener.local_addr().unwrap().port(), Arc::new(AtomicUsize::new(0)));
    let (config, counter) = (Arc::new(config), Arc::clone(&plain));
    // Ends with the process of the tests.
    std::thread::spawn(move || {
        for socket in listener.incoming() {
            let mut socket = socket.unwrap();
            let mut first = [0; 1];
            if socket.peek(&mut first).is_ok() && first == *b"G" {
                counter.fetch_add(1, Ordering::SeqCst);
                continue;
            }
            let mut server = rustls::ServerConnection::new(Arc::clone(&config)).unwrap();
            // The client ends it.
            let _ = server.complete_io(&mut socket);
            let _ = socket.read(&mut first);
        }
    });
    (port, plain)
}

#[tokio::test]
async fn a_bad_certificate_is_no_reason_to_speak_plain_http() {
    // Brings the TLS provider.
    Registry::start().await;
    let node = Node::new();
    let (port, plain) = untrusted();
    let error = node.pull(&format!("127.0.0.1:{port}/x:v")).await.unwrap_err();
    assert!(chain(&error).contains("certificate"), "{}", chain(&error));
    assert_eq!(plain.load(Ordering::SeqCst), 0);
    assert_eq!(node.residue(), Vec::<String>::new());
}

#[tokio::test]
async fn the_errors_of_a_plain_registry_do_not_speak_of_tls() {
    let (registry, node) = (Registry::start().await, Node::new());
    let error = node.pull(&registry.name("none", "v")).await.unwrap_err();
    assert!(!chain(&error).contains("https"), "{}", chain(&error));
}
