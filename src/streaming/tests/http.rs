//! What comes before a session: paths, methods, tokens.

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::tests::{attach, connect, exec, path, ports, server};
use crate::{AttachRequest, Server, TokenError};

async fn ask(server: &Server, method: &str, path: &str, headers: &str) -> String {
    let mut socket = connect(server).await;
    let request = format!("{method} {path} HTTP/1.1\r\nHost: x\r\n{headers}\r\n");
    socket.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).await.unwrap();
    answer
}

async fn status(server: &Server, method: &str, path: &str, headers: &str) -> String {
    ask(server, method, path, headers).await.split(' ').nth(1).unwrap().to_owned()
}

#[tokio::test]
async fn only_a_fresh_token_on_its_own_path_is_served() {
    let (server, _) = server().await;
    let url = server.exec(exec(&["cat"], false)).unwrap();
    assert!(url.starts_with(&format!("http://{}/exec/", server.address())), "{url}");
    let good = path(&url);
    let token = good.rsplit('/').next().unwrap();
    let elsewhere = ["/", "/exec", "/exec/", "/exec/unknown0", &format!("/attach/{token}"), &format!("{good}/more")];
    for path in elsewhere {
        assert_eq!(status(&server, "GET", path, "").await, "404", "{path}");
    }
    assert_eq!(status(&server, "PUT", &good, "").await, "405");
    // It was found, and asks for nothing: used up all the same.
    assert_eq!(status(&server, "POST", &good, "Content-Length: 0\r\n").await, "400");
    assert_eq!(status(&server, "GET", &good, "").await, "404");
    let spdy = "Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: v9\r\n";
    let refused = ask(&server, "GET", &path(&server.attach(attach()).unwrap()), spdy).await.to_lowercase();
    assert!(
        refused.starts_with("http/1.1 403 ") && refused.contains("x-accepted-stream-protocol-versions: v5."),
        "{refused}"
    );
}

#[tokio::test]
async fn requests_are_checked_before_they_get_a_url() {
    let (server, _) = server().await;
    let both = AttachRequest { tty: true, ..attach() };
    assert!(matches!(server.attach(both), Err(TokenError::Invalid { field: "stderr", .. })));
    assert!(matches!(server.port_forward(ports(&[0])), Err(TokenError::Invalid { field: "port", .. })));
    let mut urls = Vec::new();
    let exhausted = loop {
        match server.exec(exec(&["cat"], false)) {
            Ok(url) => urls.push(url),
            Err(error) => break error,
        }
    };
    assert_eq!((urls.len(), exhausted), (1000, TokenError::Exhausted { limit: 1000 }));
}

#[tokio::test]
async fn a_huge_head_is_refused() {
    let (server, _) = server().await;
    let huge = format!("X: {}\r\n", "x".repeat(64 << 10));
    let mut socket = connect(&server).await;
    // The server may hang up before it has read all of it.
    drop(socket.write_all(format!("GET /exec/x HTTP/1.1\r\n{huge}\r\n").as_bytes()).await);
    let mut answer = Vec::new();
    drop(socket.read_to_end(&mut answer).await);
    assert!(!answer.starts_with(b"HTTP/1.1 101"));
}

#[tokio::test]
async fn a_dropped_server_is_gone() {
    let (server, _) = server().await;
    let address = server.address();
    let mut socket = connect(&server).await;
    drop(server);
    assert_eq!(socket.read(&mut [0; 1]).await.unwrap_or(0), 0);
    while tokio::net::TcpStream::connect(address).await.is_ok() {
        tokio::task::yield_now().await;
    }
}
