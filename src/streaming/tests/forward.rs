//! Port-forward over SPDY.

use tokio::net::TcpStream;

use crate::tests::spdy_client::{Frame, Receiver, Sender, client, upgrade};
use crate::tests::{Fake, connect, path, pattern, ports, server};

type Dialled = (Sender<TcpStream>, Receiver<TcpStream>, std::sync::Arc<Fake>, crate::Server);

async fn dial() -> Dialled {
    let (server, fake) = server().await;
    let url = server.port_forward(ports(&[])).unwrap();
    let mut socket = connect(&server).await;
    assert!(upgrade(&mut socket, &path(&url), "portforward.k8s.io").await.contains(" 101 "));
    let (sender, receiver) = client(socket);
    (sender, receiver, fake, server)
}

#[tokio::test]
async fn many_connections_share_a_session() {
    let (mut sender, mut receiver, _fake, _server) = dial().await;
    let mut opened = Vec::new();
    for number in 0..50_usize {
        let (data, error) = sender.open_port("7", &number.to_string()).await;
        opened.push((data, error, pattern(1000 + number)));
    }
    for (data, _, bytes) in opened.iter().rev() {
        sender.data(*data, bytes, true).await.unwrap();
    }
    let mut said = crate::tests::spdy_client::Conversation::default();
    while said.finished.len() < 2 * opened.len() {
        said.add(receiver.next().await.unwrap());
    }
    for (data, error, bytes) in opened {
        assert!(said.data[&data] == bytes);
        assert_eq!(said.text(error), "");
    }
}

#[tokio::test]
async fn a_refused_connection_is_told_and_the_session_goes_on() {
    let (mut sender, mut receiver, _fake, _server) = dial().await;
    let (data, error) = sender.open_port("1", "0").await;
    let said = receiver.until(|frame| matches!(frame, Frame::Data(id, _, true) if *id == error)).await;
    assert_eq!(said.text(error), "forward port 1 of pod p: connection refused");
    assert_eq!(said.resets[&data], 5);
    let (data, _) = sender.open_port("7", "1").await;
    sender.data(data, b"echo", false).await.unwrap();
    receiver.accepted([5, 7]).await;
    assert_eq!(receiver.read(data, 4).await, b"echo");
}

#[tokio::test]
async fn a_connection_that_breaks_is_reset_without_a_word() {
    let (mut sender, mut receiver, _fake, _server) = dial().await;
    let (data, error) = sender.open_port("13", "0").await;
    let said = receiver.until(|frame| matches!(frame, Frame::Data(id, _, true) if *id == error)).await;
    assert_eq!((said.text(error).as_str(), said.resets[&data]), ("", 5));
}

#[tokio::test]
async fn either_side_may_end_first() {
    let (mut sender, mut receiver, _fake, _server) = dial().await;
    let (quote, error) = sender.open_port("17", "0").await;
    receiver.accepted([1, 3]).await;
    assert_eq!(receiver.read(quote, 100).await, b"quote");
    // What Go's client does then; the error stream's end is what it waits for.
    sender.reset(quote).await;
    receiver.until(|frame| *frame == Frame::Data(error, Vec::new(), true)).await;
}

#[tokio::test]
async fn a_reset_drops_the_connection_to_the_pod() {
    let (mut sender, mut receiver, fake, _server) = dial().await;
    let (data, error) = sender.open_port("9", "0").await;
    receiver.accepted([1, 3]).await;
    sender.reset(data).await;
    fake.dropped.cancelled().await;
    receiver.until(|frame| *frame == Frame::Data(error, Vec::new(), true)).await;
}

#[tokio::test]
async fn streams_without_numbers_are_paired_by_their_own() {
    let (mut sender, mut receiver, _fake, _server) = dial().await;
    sender.open(&[("streamtype", "error"), ("port", "7")]).await;
    let data = sender.open(&[("streamtype", "data"), ("port", "7")]).await;
    sender.data(data, b"old", false).await.unwrap();
    receiver.accepted([1, 3]).await;
    assert_eq!(receiver.read(data, 3).await, b"old");
}

#[tokio::test]
async fn streams_that_say_nothing_useful_are_refused() {
    let (mut sender, mut receiver, _fake, _server) = dial().await;
    for headers in [
        &[("streamtype", "data"), ("requestid", "0")][..],
        &[("streamtype", "data"), ("port", "0"), ("requestid", "0")],
        &[("streamtype", "data"), ("port", "65536"), ("requestid", "0")],
        &[("streamtype", "stdin"), ("port", "7"), ("requestid", "0")],
        &[("port", "7"), ("requestid", "0")],
    ] {
        let id = sender.open(headers).await;
        receiver.until(|frame| *frame == Frame::Reset(id, 3)).await;
    }
    let twice = [("streamtype", "data"), ("port", "7"), ("requestid", "1")];
    let (first, second) = (sender.open(&twice).await, sender.open(&twice).await);
    let said = receiver.until(|frame| *frame == Frame::Reset(second, 3)).await;
    assert_eq!(said.replied, [first]);
}

#[tokio::test]
async fn a_client_has_a_thousand_streams_at_most() {
    let (mut sender, mut receiver, _fake, _server) = dial().await;
    for number in 0..501 {
        sender.open_port("9", &number.to_string()).await;
    }
    let said = receiver.until(|frame| matches!(frame, Frame::Reset(..))).await;
    assert_eq!(said.resets.into_keys().collect::<Vec<_>>(), [2001]);
}
