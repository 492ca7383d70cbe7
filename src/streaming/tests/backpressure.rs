//! What is held when one side does not read, and time-outs: on connections in memory, with the clock paused.
//!
//! A paused clock moves only when nothing else can, so that a wait is over when everything has come to a standstill.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{DuplexStream, duplex};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::mux::WINDOW;
use crate::mux::connection::LinkError;
use crate::negotiate::{Agreement, ForwardProtocol, Remote, RemoteProtocol};
use crate::request::{ForwardRequest, RemoteRequest};
use crate::session::{Terms, run};
use crate::status::Format;
use crate::tests::backend::Fake;
use crate::tests::spdy_client::{Receiver, Sender, client};
use crate::tests::{exec, pattern};
use crate::websocket::Codec;

const SOCKET: usize = 64 << 10;
/// The process's pipe, the session's pieces, the writer's batch and the socket.
const HELD: usize = 8 * WINDOW;

type Session = JoinHandle<Result<(), LinkError>>;

fn serve(agreement: Agreement) -> (DuplexStream, Arc<Fake>, Session) {
    let fake = Arc::new(Fake::default());
    let (ours, theirs) = duplex(SOCKET);
    let (stopping, hung_up) = (CancellationToken::new(), fake.hung_up.clone());
    let terms = Terms { backend: Arc::clone(&fake) as _, patience: Duration::from_secs(30), stopping, hung_up };
    (ours, fake, tokio::spawn(async move { run(theirs, agreement, &terms).await }))
}

fn spdy(command: &[&str]) -> (Sender<DuplexStream>, Receiver<DuplexStream>, Arc<Fake>, Session) {
    let remote = RemoteProtocol::Spdy(Remote { resize: true, format: Format::Json });
    let (socket, fake, session) = serve(Agreement::Remote(remote, RemoteRequest::Exec(exec(command, false))));
    let (sender, receiver) = client(socket);
    (sender, receiver, fake, session)
}

async fn standstill() {
    sleep(Duration::from_secs(1)).await;
}

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_read_stalls_its_process_and_loses_nothing() {
    let (mut sender, mut receiver, fake, _session) = spdy(&["flood"]);
    let [_, _, stdout, _] = sender.open_all(["error", "stdin", "stdout", "stderr"]).await;
    standstill().await;
    let held = fake.flooded.load(Ordering::Relaxed);
    assert!((SOCKET..HELD).contains(&held), "{held}");
    standstill().await;
    assert_eq!(fake.flooded.load(Ordering::Relaxed), held);
    receiver.accepted([1, 3, 5, 7]).await;
    let read = receiver.read(stdout, 1 << 20).await;
    let chunk = pattern(4096);
    assert!(read.chunks(4096).all(|part| *part == chunk[..part.len()]));
}

#[tokio::test(start_paused = true)]
async fn a_websocket_client_that_does_not_read_stalls_its_process() {
    let codec = Codec::Binary { half_close: true };
    let protocol = RemoteProtocol::Channels(codec, Format::Json);
    let request = RemoteRequest::Exec(exec(&["flood"], false));
    let (_socket, fake, _session) = serve(Agreement::Remote(protocol, request));
    standstill().await;
    let held = fake.flooded.load(Ordering::Relaxed);
    assert!((SOCKET..HELD).contains(&held), "{held}");
}

#[tokio::test(start_paused = true)]
async fn a_process_that_does_not_read_stalls_its_client() {
    let (mut sender, mut receiver, _fake, _session) = spdy(&["hold"]);
    let [_, stdin, _, _] = sender.open_all(["error", "stdin", "stdout", "stderr"]).await;
    receiver.accepted([1, 3, 5, 7]).await;
    let sent = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&sent);
    // Frames far above what is held of them.
    let chunk = pattern(200_000);
    tokio::spawn(async move {
        loop {
            sender.data(stdin, &chunk, false).await.unwrap();
            counted.fetch_add(chunk.len(), Ordering::Relaxed);
        }
    });
    standstill().await;
    let held = sent.load(Ordering::Relaxed);
    assert!(held < HELD, "{held}");
    standstill().await;
    assert_eq!(sent.load(Ordering::Relaxed), held);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_hangs_up_with_input_that_is_not_taken_ends_its_session() {
    let (mut sender, mut receiver, fake, session) = spdy(&["hold"]);
    let [_, stdin, _, _] = sender.open_all(["error", "stdin", "stdout", "stderr"]).await;
    receiver.accepted([1, 3, 5, 7]).await;
    let sending = tokio::spawn(async move { sender.data(stdin, &pattern(1 << 20), false).await });
    standstill().await;
    let begin = Instant::now();
    fake.hung_up.cancel();
    assert!(matches!(session.await.unwrap(), Err(LinkError::HungUp)));
    assert!(begin.elapsed() >= Duration::from_secs(10));
    assert!(fake.dropped.is_cancelled() && sending.await.unwrap().is_err());
}

#[tokio::test(start_paused = true)]
async fn a_client_that_reads_no_answers_is_cut_off() {
    let (mut sender, _receiver, _fake, session) = spdy(&["hold"]);
    let pinging = tokio::spawn(async move {
        for number in (1..).step_by(2) {
            sender.ping(number).await;
        }
    });
    assert!(matches!(session.await.unwrap(), Err(LinkError::Protocol(_))));
    assert!(pinging.await.is_err());
}

#[tokio::test(start_paused = true)]
async fn streams_must_come_in_time() {
    let (mut sender, mut receiver, _fake, session) = spdy(&["cat"]);
    let begin = Instant::now();
    let [error, _] = sender.open_all(["error", "stdin"]).await;
    let said = receiver.rest().await;
    assert!(said.text(error).contains("did not open its streams within 30 s"), "{}", said.text(error));
    assert_eq!(begin.elapsed().as_secs(), 30);
    drop((sender, receiver));
    session.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_lone_half_of_a_forward_is_reset_in_time() {
    let request = ForwardRequest { pod_sandbox_id: "p".to_owned(), ports: Vec::new() };
    let (socket, _fake, _session) = serve(Agreement::Forward(ForwardProtocol::Spdy, request));
    let (mut sender, mut receiver) = client(socket);
    let begin = Instant::now();
    let lone = sender.open(&[("streamtype", "data"), ("port", "7"), ("requestid", "0")]).await;
    let said = receiver.until(|frame| matches!(frame, crate::tests::spdy_client::Frame::Reset(..))).await;
    assert_eq!((said.resets[&lone], begin.elapsed().as_secs()), (5, 30));
    // The session goes on.
    let (data, _) = sender.open_port("7", "1").await;
    sender.data(data, b"echo", true).await.unwrap();
    receiver.accepted([3, 5]).await;
    assert_eq!(receiver.read(data, 4).await, b"echo");
}

#[tokio::test(start_paused = true)]
async fn an_output_that_others_hold_open_does_not_hold_the_session() {
    let (mut sender, mut receiver, _fake, _session) = spdy(&["leave"]);
    let begin = Instant::now();
    let [error, _, stdout, _] = sender.open_all(["error", "stdin", "stdout", "stderr"]).await;
    let said = receiver.rest().await;
    assert_eq!((said.text(stdout).as_str(), said.text(error).contains("Success")), ("left", true));
    assert_eq!(begin.elapsed().as_secs(), 10);
}
