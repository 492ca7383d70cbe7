//! A relay in front of a server that counts what it sends, and stops when told.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

/// A relay on a loopback port, gone with its connections when dropped.
pub(crate) struct Relay {
    address: SocketAddr,
    flow: Arc<Flow>,
    _server: AbortOnDropHandle<()>,
}

struct Flow {
    sent: AtomicU64,
    /// No byte after these many is sent.
    budget: watch::Sender<u64>,
    /// Somebody waits for more of it.
    exhausted: watch::Sender<bool>,
}

impl Relay {
    /// Relays to the server of this base URL, without a bound.
    pub(crate) async fn start(url: &str) -> Self {
        let server = url.trim_start_matches("http://").trim_end_matches('/').to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a loopback port");
        let address = listener.local_addr().expect("a bound socket has an address");
        let flow = Flow {
            sent: AtomicU64::new(0),
            budget: watch::Sender::new(u64::MAX),
            exhausted: watch::Sender::new(false),
        };
        let flow = Arc::new(flow);
        let shared = Arc::clone(&flow);
        let serve = async move {
            loop {
                let (client, _) = listener.accept().await.expect("a connection");
                let (server, flow) = (server.clone(), Arc::clone(&shared));
                tokio::spawn(async move {
                    let server = TcpStream::connect(server).await.expect("the server behind the relay");
                    relay(client, server, &flow).await;
                });
            }
        };
        Self { address, flow, _server: AbortOnDropHandle::new(tokio::spawn(serve)) }
    }

    /// Its base URL.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Bytes that went to clients, headers included.
    pub(crate) fn sent(&self) -> u64 {
        self.flow.sent.load(Ordering::SeqCst)
    }

    /// Begins to count anew, and sends so many bytes and no more.
    pub(crate) fn allow(&self, budget: u64) {
        self.flow.sent.store(0, Ordering::SeqCst);
        self.flow.exhausted.send_replace(false);
        self.flow.budget.send_replace(budget);
    }

    /// Lifts the bound; what was sent stays counted.
    pub(crate) fn open(&self) {
        self.flow.budget.send_replace(u64::MAX);
    }

    /// Waits until somebody waits for more than is allowed.
    pub(crate) async fn exhausted(&self) {
        self.flow.exhausted.subscribe().wait_for(|exhausted| *exhausted).await.expect("the sender lives here");
    }
}

async fn relay(client: TcpStream, server: TcpStream, flow: &Flow) {
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let up = async { drop(tokio::io::copy(&mut from_client, &mut to_server).await) };
    let down = async {
        let mut budget = flow.budget.subscribe();
        let mut buffer = vec![0; 16 << 10];
        while let Ok(length @ 1..) = from_server.read(&mut buffer).await {
            if flow.sent.load(Ordering::SeqCst) >= *budget.borrow() {
                flow.exhausted.send_replace(true);
                budget.wait_for(|budget| flow.sent.load(Ordering::SeqCst) < *budget).await.expect("the relay lives");
            }
            flow.sent.fetch_add(length as u64, Ordering::SeqCst);
            if to_client.write_all(&buffer[..length]).await.is_err() {
                break;
            }
        }
    };
    // Either side's end is the end of both.
    tokio::select! {
        () = up => {}
        () = down => {}
    }
}
