//! Port-forward: connections to a pod's ports, many on one session.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::backend::{Backend, SessionError};
use crate::copy::{Sent, receive, send};
use crate::mux::stream::{Input, Opened, Output, Reset};

/// The pod whose ports are forwarded.
#[derive(Clone)]
pub(crate) struct Pod {
    pub(crate) backend: Arc<dyn Backend>,
    pub(crate) id: String,
}

/// A stream that waits for the other of its pair.
struct Half {
    deadline: Instant,
    kind: Kind,
    input: Input,
    output: Output,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Data,
    Error,
}

/// What a SPDY client asks for with one stream.
struct Asked {
    kind: Kind,
    port: u16,
    /// What joins a data stream and its error stream.
    request: String,
}

impl Asked {
    fn read(stream: &Opened) -> Option<Self> {
        let header = |name: &str| stream.headers.get(name).map(String::as_str);
        let kind = match header("streamtype")? {
            "data" => Kind::Data,
            "error" => Kind::Error,
            _ => return None,
        };
        let port = header("port")?.parse().ok().filter(|&port| port != 0)?;
        let request = match (header("requestid"), kind) {
            (Some(request), _) => request.to_owned(),
            // Clients before Kubernetes 1.2 open the error stream, then at once the data stream, and number neither.
            (None, Kind::Error) => format!("stream {}", stream.id),
            (None, Kind::Data) => format!("stream {}", stream.id.checked_sub(2)?),
        };
        Some(Self { kind, port, request })
    }
}

/// Serves a SPDY client: pairs its streams and forwards each pair, until the client leaves and this is dropped, or the
/// server stops.
pub(crate) async fn serve_pairs(
    mut opened: mpsc::Receiver<Opened>,
    pod: &Pod,
    patience: Duration,
    stopping: &CancellationToken,
) {
    let mut halves: HashMap<String, Half> = HashMap::new();
    let mut forwards = JoinSet::new();
    loop {
        let next = halves.values().map(|half| half.deadline).min();
        let expired = async {
            match next {
                Some(deadline) => sleep_until(deadline).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            stream = opened.recv() => match stream {
                None => return while forwards.join_next().await.is_some() {},
                Some(stream) => pair(stream, &mut halves, pod, patience, &mut forwards),
            },
            Some(_) = forwards.join_next() => {}
            () = expired => {
                let now = Instant::now();
                let late = |_: &String, half: &mut Half| half.deadline <= now;
                halves.extract_if(late).for_each(|(_, half)| half.output.cancel());
            }
            () = stopping.cancelled() => return,
        }
    }
}

fn pair(stream: Opened, halves: &mut HashMap<String, Half>, pod: &Pod, patience: Duration, forwards: &mut JoinSet<()>) {
    let Some(Asked { kind, port, request }) = Asked::read(&stream) else {
        tracing::debug!(headers = ?stream.headers, "a client opens a stream that no port can be forwarded to");
        return stream.refuse();
    };
    let Some(first) = halves.remove(&request) else {
        let (input, output) = stream.accept();
        halves.insert(request, Half { deadline: Instant::now() + patience, kind, input, output });
        return;
    };
    if first.kind == kind {
        halves.insert(request, first);
        return stream.refuse();
    }
    let second = stream.accept();
    let (data, error) = match kind {
        Kind::Data => (second, first.output),
        Kind::Error => ((first.input, first.output), second.1),
    };
    let pod = pod.clone();
    forwards.spawn(async move { forward(&pod, port, data, error).await });
}

/// Serves a WebSocket client: its ports were named by the request, each has a data and an error channel.
pub(crate) async fn serve_ports(ports: Vec<(u16, (Input, Output), Output)>, pod: &Pod, stopping: &CancellationToken) {
    let mut forwards = JoinSet::new();
    for (port, data, error) in ports {
        let pod = pod.clone();
        forwards.spawn(async move {
            // The first message of each channel is the port's number, its lower byte first.
            let greeting = Bytes::copy_from_slice(&port.to_le_bytes());
            if data.1.send(greeting.clone()).await.is_ok() && error.send(greeting).await.is_ok() {
                forward(&pod, port, data, error).await;
            }
        });
    }
    tokio::select! {
        () = async { while forwards.join_next().await.is_some() {} } => {}
        () = stopping.cancelled() => {}
    }
}

/// Serves one connection. What keeps it from being made goes to the error stream. When it breaks later, its data stream
/// is reset and no more is said: client-go ends the whole session on any word of an error.
async fn forward(pod: &Pod, port: u16, (input, output): (Input, Output), error: Output) {
    let connecting = async {
        tokio::select! {
            connected = pod.backend.port_forward(pod.id.clone(), port) => Some(connected),
            () = output.abandoned() => None,
        }
    };
    match connecting.await {
        None => {}
        Some(Err(cause)) => {
            refuse(&pod.id, port, &cause, &error).await;
            output.cancel();
        }
        Some(Ok(connection)) => {
            let (mut read, write) = tokio::io::split(connection);
            let inward = receive(input, write);
            let outward = async {
                match send(&mut read, &output, &CancellationToken::new()).await {
                    Sent::All => output.finish().await,
                    Sent::Reset => Err(Reset),
                    Sent::Unreadable(cause) => {
                        tracing::debug!(pod.id = pod.id, port, %cause, "a forwarded connection broke");
                        output.cancel();
                        Err(Reset)
                    }
                }
            };
            // Either side's reset ends both directions; the end of one leaves the other open.
            drop(tokio::try_join!(inward, outward));
        }
    }
    drop(error.finish().await);
}

async fn refuse(pod: &str, port: u16, cause: &SessionError, error: &Output) {
    let message = format!("forward port {port} of pod {pod}: {}", cause.chain());
    tracing::debug!(pod.id = pod, port, error = message, "a connection was not forwarded");
    // A client that no longer listens to errors is told none.
    drop(error.send(Bytes::from(message)).await);
}
