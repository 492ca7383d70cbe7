//! An HTTP proxy that wants a password, and brings whoever has it to one server, whatever name was asked for.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::task::AbortOnDropHandle;

/// What a client must know.
const USER: &str = "proxy-user:pr0xy-pass";
/// No real request's head is longer.
const LONGEST_HEAD: usize = 64 << 10;

/// A proxy on a loopback port, gone when dropped.
pub(crate) struct Proxy {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<String>>>,
    _server: AbortOnDropHandle<()>,
}

impl Proxy {
    /// Starts one in front of a server.
    pub(crate) async fn start(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a loopback port");
        let address = listener.local_addr().expect("a bound socket has an address");
        let asked = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&asked);
        let serve = async move {
            loop {
                let (client, _) = listener.accept().await.expect("a connection");
                let log = Arc::clone(&log);
                // A client that goes away in the middle is its own affair.
                tokio::spawn(async move { drop(pass(client, server, &log).await) });
            }
        };
        Self { address, asked, _server: AbortOnDropHandle::new(tokio::spawn(serve)) }
    }

    /// Its URL, with the password.
    pub(crate) fn url(&self) -> String {
        format!("http://{USER}@{}", self.address)
    }

    /// Its URL for somebody who has none.
    pub(crate) fn url_of_a_stranger(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The first line of the first request on each connection that was let through.
    pub(crate) fn asked(&self) -> Vec<String> {
        self.asked.lock().expect("no holder panics").clone()
    }
}

async fn pass(mut client: TcpStream, server: SocketAddr, log: &Mutex<Vec<String>>) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        if client.read_buf(&mut head).await? == 0 || head.len() > LONGEST_HEAD {
            return Ok(());
        }
    }
    let text = String::from_utf8_lossy(&head).into_owned();
    let wanted = format!("proxy-authorization: basic {}", STANDARD.encode(USER)).to_ascii_lowercase();
    if !text.lines().any(|line| line.to_ascii_lowercase() == wanted) {
        let refusal = b"HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic realm=\"lab\"\r\n\
            Content-Length: 0\r\nConnection: close\r\n\r\n";
        return client.write_all(refusal).await;
    }
    let line = text.lines().next().unwrap_or_default().to_owned();
    let is_tunnel = line.starts_with("CONNECT ");
    log.lock().expect("no holder panics").push(line);
    let mut server = TcpStream::connect(server).await?;
    if is_tunnel {
        client.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await?;
    } else {
        // Servers understand a request in a proxy's form.
        server.write_all(&head).await?;
    }
    tokio::io::copy_bidirectional(&mut client, &mut server).await?;
    Ok(())
}
