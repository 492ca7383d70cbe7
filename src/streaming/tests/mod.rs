//! Sessions from end to end: clients of their own and of another hand, a backend that runs nothing.

mod backend;
mod backpressure;
mod forward;
mod http;
mod parallel;
mod remote;
mod spdy_client;
mod tls;
mod websocket;

use std::num::NonZeroU64;
use std::sync::Arc;

use podwright_base::config::Streaming;
use tokio::net::TcpStream;

use crate::tests::backend::Fake;
use crate::{AttachRequest, ExecRequest, PortForwardRequest, Server};

/// A server on a port of its own, and what it asks.
async fn server() -> (Server, Arc<Fake>) {
    let fake = Arc::new(Fake::default());
    let config = Streaming { idle_timeout_seconds: NonZeroU64::new(600).unwrap(), ..Streaming::default() };
    (Server::start(&config, Arc::clone(&fake) as _).await.unwrap(), fake)
}

fn exec(command: &[&str], tty: bool) -> ExecRequest {
    let command = command.iter().map(|&word| word.to_owned()).collect();
    ExecRequest { container_id: "c".to_owned(), command, tty, stdin: true, stdout: true, stderr: !tty }
}

fn attach() -> AttachRequest {
    AttachRequest { container_id: "c".to_owned(), tty: false, stdin: true, stdout: true, stderr: true }
}

fn ports(ports: &[i32]) -> PortForwardRequest {
    PortForwardRequest { pod_sandbox_id: "p".to_owned(), ports: ports.to_vec() }
}

async fn connect(server: &Server) -> TcpStream {
    TcpStream::connect(server.address()).await.unwrap()
}

/// Returns a URL's path.
fn path(url: &str) -> String {
    format!("/{}", url.splitn(4, '/').nth(3).unwrap())
}

/// Bytes that show what is missing or out of order.
fn pattern(count: usize) -> Vec<u8> {
    (0..count.div_ceil(4)).flat_map(|i| u32::try_from(i).unwrap().to_le_bytes()).take(count).collect()
}
