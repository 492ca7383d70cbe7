//! A client's side of a plain TCP conversation with a server in a pod.

use std::net::{IpAddr, SocketAddr};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::cri::eventually;

/// Connects as soon as the server listens, sends a request and returns the answer once it holds `end`, or all of it.
pub(crate) async fn ask(ip: IpAddr, port: u16, request: &str, end: &str) -> String {
    let address = SocketAddr::new(ip, port);
    let mut stream = eventually("the server listens", async || TcpStream::connect(address).await.ok()).await;
    stream.write_all(request.as_bytes()).await.expect("the request is sent");
    let mut answer = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let length = stream.read(&mut buffer).await.expect("an answer");
        answer.extend(&buffer[..length]);
        let text = String::from_utf8_lossy(&answer);
        if length == 0 || text.contains(end) {
            return text.into_owned();
        }
    }
}

/// Fetches `/` from a web server.
pub(crate) async fn get(ip: IpAddr, port: u16) -> String {
    ask(ip, port, "GET / HTTP/1.1\r\nHost: pod\r\nConnection: close\r\n\r\n", "</html-that-never-comes>").await
}
