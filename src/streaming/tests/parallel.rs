//! Many sessions at once, byte-exact.

use std::sync::Arc;

use crate::Server;
use crate::tests::spdy_client::{client, upgrade};
use crate::tests::{connect, exec, path, pattern, ports, server};

const SESSIONS: usize = 64;
const BYTES: usize = 4 << 20;

/// Sends bytes through a command or a port and back, on a connection of its own.
async fn echo(server: Server, bytes: Arc<Vec<u8>>, forward: bool) {
    let (url, version) = if forward {
        (server.port_forward(ports(&[])).unwrap(), "portforward.k8s.io")
    } else {
        (server.exec(exec(&["cat"], false)).unwrap(), "v4.channel.k8s.io")
    };
    let mut socket = connect(&server).await;
    assert!(upgrade(&mut socket, &path(&url), version).await.contains(" 101 "));
    let (mut sender, mut receiver) = client(socket);
    let (to, from) = if forward {
        let (data, _) = sender.open_port("7", "0").await;
        receiver.accepted([1, 3]).await;
        (data, data)
    } else {
        let [_, stdin, stdout, _] = sender.open_all(["error", "stdin", "stdout", "stderr"]).await;
        receiver.accepted([1, 3, 5, 7]).await;
        (stdin, stdout)
    };
    let sent = Arc::clone(&bytes);
    let sending = tokio::spawn(async move {
        for chunk in sent.chunks(32 << 10) {
            sender.data(to, chunk, false).await.unwrap();
        }
        sender.data(to, b"", true).await.unwrap();
        sender
    });
    assert!(receiver.read(from, BYTES).await == *bytes);
    sending.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn sixty_four_sessions_at_once_lose_no_byte() {
    let (server, _) = server().await;
    let bytes = Arc::new(pattern(BYTES));
    let session = |number| tokio::spawn(echo(server.clone(), Arc::clone(&bytes), number % 2 == 0));
    let sessions: Vec<_> = (0..SESSIONS).map(session).collect();
    for session in sessions {
        session.await.unwrap();
    }
}
