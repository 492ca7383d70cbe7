//! WebSocket sessions, with a client of another hand.

use futures_util::{SinkExt, StreamExt};
use tokio::io::duplex;
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::http::HeaderValue;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{Bytes, Message};
use tokio_tungstenite::{WebSocketStream, client_async};

use crate::tests::spdy_client::client;
use crate::tests::{attach, connect, exec, pattern, ports, server};
use crate::{ExecRequest, Server};

type Client = WebSocketStream<TcpStream>;

async fn dial(server: &Server, url: &str, protocol: &'static str) -> Client {
    let mut request = url.replace("http://", "ws://").into_client_request().unwrap();
    request.headers_mut().insert("sec-websocket-protocol", HeaderValue::from_static(protocol));
    let (client, response) = client_async(request, connect(server).await).await.unwrap();
    assert_eq!(response.headers()["sec-websocket-protocol"], protocol);
    client
}

fn on(channel: u8, bytes: &[u8]) -> Message {
    Message::Binary([&[channel], bytes].concat().into())
}

/// Reads to the end: what came on each channel, and the code it was closed with.
async fn rest(client: &mut Client) -> ([Vec<u8>; 5], Option<CloseCode>) {
    let (mut channels, mut code) = ([const { Vec::new() }; 5], None);
    while let Some(Ok(message)) = client.next().await {
        match message {
            Message::Binary(bytes) => channels[usize::from(bytes[0])].extend_from_slice(&bytes[1..]),
            Message::Close(frame) => code = frame.map(|frame| frame.code),
            other => panic!("{other:?}"),
        }
    }
    (channels, code)
}

#[tokio::test]
async fn version_five_ends_the_input_and_tells_the_exit_code() {
    let (server, _) = server().await;
    let mut client = dial(&server, &server.exec(exec(&["count"], false)).unwrap(), "v5.channel.k8s.io").await;
    // Larger than anything that is held, in one message.
    client.send(on(0, &pattern(3 << 20))).await.unwrap();
    client.send(on(255, &[0])).await.unwrap();
    let ([_, stdout, _, error, _], code) = rest(&mut client).await;
    assert_eq!(stdout, (3 << 20).to_string().as_bytes());
    assert_eq!(error, br#"{"metadata":{},"status":"Success"}"#);
    assert_eq!(code, Some(CloseCode::Normal));
    let mut client = dial(&server, &server.exec(exec(&["exit", "9"], false)).unwrap(), "v5.channel.k8s.io").await;
    let ([_, _, _, error, _], _) = rest(&mut client).await;
    assert!(String::from_utf8(error).unwrap().contains(r#"{"reason":"ExitCode","message":"9"}"#));
}

#[tokio::test]
async fn every_protocol_greets_and_carries_both_outputs() {
    for (protocol, status) in [
        ("v5.channel.k8s.io", r#"{"metadata":{},"status":"Success"}"#),
        ("v4.channel.k8s.io", r#"{"metadata":{},"status":"Success"}"#),
        ("channel.k8s.io", ""),
    ] {
        let (server, _) = server().await;
        let mut client = dial(&server, &server.exec(exec(&["print", "100000"], false)).unwrap(), protocol).await;
        assert_eq!(client.next().await.unwrap().unwrap(), on(1, b""));
        let ([_, stdout, stderr, error, _], code) = rest(&mut client).await;
        assert!(stdout == pattern(100_000), "{protocol}");
        assert_eq!((&stderr[..], &error[..]), (&b"to stderr"[..], status.as_bytes()), "{protocol}");
        assert_eq!(code, Some(CloseCode::Normal));
    }
}

#[tokio::test]
async fn base64_messages_are_text() {
    let (server, _) = server().await;
    for (protocol, status) in [("base64.channel.k8s.io", None), ("v4.base64.channel.k8s.io", Some("3eyJtZXRh"))] {
        let request = ExecRequest { tty: true, stderr: false, ..exec(&["head"], false) };
        let mut client = dial(&server, &server.exec(request).unwrap(), protocol).await;
        client.send(Message::text("0Zg==")).await.unwrap();
        let mut texts = Vec::new();
        while let Some(Ok(message)) = client.next().await {
            texts.extend(message.is_text().then(|| message.into_text().unwrap()));
        }
        assert_eq!(texts[..2], ["1", "1Zg=="]);
        assert_eq!(texts.get(2).map(|text| &text[..9]), status, "{protocol}");
    }
}

#[tokio::test]
async fn sizes_pings_and_attaches_work_as_over_spdy() {
    let (server, _) = server().await;
    let mut client = dial(&server, &server.exec(exec(&["size", "1x2"], true)).unwrap(), "v4.channel.k8s.io").await;
    client.send(Message::Ping(Bytes::from_static(b"there?"))).await.unwrap();
    assert_eq!(client.next().await.unwrap().unwrap(), on(1, b""));
    assert_eq!(client.next().await.unwrap().unwrap(), Message::Pong(Bytes::from_static(b"there?")));
    client.send(on(4, br#"{"Width":1,"Height":2}"#)).await.unwrap();
    assert_eq!(rest(&mut client).await.0[1], b"1x2\n");
    let mut client = dial(&server, &server.attach(attach()).unwrap(), "v5.channel.k8s.io").await;
    let ([_, stdout, _, error, _], _) = rest(&mut client).await;
    assert_eq!((stdout, &error[..]), (pattern(3), &br#"{"metadata":{},"status":"Success"}"#[..]));
}

#[tokio::test]
async fn a_client_that_closes_or_breaks_the_rules_takes_its_session_along() {
    for (last, expected) in [(Message::Close(None), CloseCode::Normal), (on(255, &[0, 0]), CloseCode::Protocol)] {
        let (server, fake) = server().await;
        let mut client = dial(&server, &server.exec(exec(&["hold"], false)).unwrap(), "v5.channel.k8s.io").await;
        assert_eq!(client.next().await.unwrap().unwrap(), on(1, b""));
        assert_eq!(client.next().await.unwrap().unwrap(), on(1, b"held"));
        client.send(last).await.unwrap();
        assert_eq!(rest(&mut client).await.1, Some(expected));
        fake.dropped.cancelled().await;
    }
}

#[tokio::test]
async fn ports_have_channels_that_begin_with_their_numbers() {
    let (server, _) = server().await;
    let url = server.port_forward(ports(&[7, 1])).unwrap();
    let mut client = dial(&server, &url, "v4.channel.k8s.io").await;
    client.send(on(0, b"echo")).await.unwrap();
    let mut channels = [const { Vec::new() }; 4];
    while channels[0] != b"\x07\0echo" || channels[3].len() < 10 {
        let Message::Binary(bytes) = client.next().await.unwrap().unwrap() else { panic!("only binary messages") };
        channels[usize::from(bytes[0])].extend_from_slice(&bytes[1..]);
    }
    assert_eq!(channels[1], [7, 0]);
    assert_eq!(channels[2], [1, 0]);
    assert_eq!(channels[3], b"\x01\0forward port 1 of pod p: connection refused");
}

#[tokio::test]
async fn spdy_runs_within_a_websocket() {
    let (server, _) = server().await;
    let url = server.port_forward(ports(&[])).unwrap();
    let socket = dial(&server, &url, "SPDY/3.1+portforward.k8s.io").await;
    let (mut sink, mut stream) = socket.split();
    let (inner, outer) = duplex(1000);
    let (mut read, mut write) = tokio::io::split(outer);
    tokio::spawn(async move {
        let mut buffer = vec![0; 333];
        while let Ok(count @ 1..) = tokio::io::AsyncReadExt::read(&mut read, &mut buffer).await {
            sink.send(Message::Binary(buffer[..count].to_vec().into())).await.unwrap();
        }
        sink.close().await
    });
    tokio::spawn(async move {
        while let Some(Ok(Message::Binary(bytes))) = stream.next().await {
            tokio::io::AsyncWriteExt::write_all(&mut write, &bytes).await.unwrap();
        }
    });
    let (mut sender, mut receiver) = client(inner);
    let (data, error) = sender.open_port("7", "0").await;
    receiver.accepted([1, 3]).await;
    let bytes = pattern(200_000);
    let sent = bytes.clone();
    let sending = tokio::spawn(async move { sender.data(data, &sent, true).await });
    let said = receiver.until(|frame| *frame == crate::tests::spdy_client::Frame::Data(error, Vec::new(), true)).await;
    assert!(said.data[&data] == bytes);
    sending.await.unwrap().unwrap();
}
