//! Exec and attach through the daemon's streaming server, with a WebSocket client of another hand.

use futures_util::{SinkExt, StreamExt};
use k8s_cri::v1::{AttachRequest, ExecRequest, PortForwardRequest};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::http::HeaderValue;
use tokio_tungstenite::{WebSocketStream, client_async};
use tonic::Code;

use crate::lab::cri::{eventually, refused, shell};
use crate::lab::{Node, log};

const STDIN: u8 = 0;
const STDOUT: usize = 1;
const STDERR: usize = 2;
const ERROR: usize = 3;
/// Says which channel's input has ended.
const CLOSE: u8 = 255;

type Client = WebSocketStream<TcpStream>;

async fn dial(url: &str) -> Client {
    let mut request = url.replace("http://", "ws://").into_client_request().expect("a URL");
    request.headers_mut().insert("sec-websocket-protocol", HeaderValue::from_static("v5.channel.k8s.io"));
    let authority = request.uri().authority().expect("a host and a port").to_string();
    let stream = TcpStream::connect(authority).await.expect("the streaming server listens");
    client_async(request, stream).await.expect("an upgraded connection").0
}

async fn send(client: &mut Client, channel: u8, bytes: &[u8]) {
    client.send(Message::Binary([&[channel], bytes].concat().into())).await.expect("the server reads");
}

/// Reads to the end: what came on each channel.
async fn rest(client: &mut Client) -> [Vec<u8>; 5] {
    let mut channels = [const { Vec::new() }; 5];
    while let Some(Ok(message)) = client.next().await {
        if let Message::Binary(bytes) = message {
            channels[usize::from(bytes[0])].extend_from_slice(&bytes[1..]);
        }
    }
    channels
}

/// Waits for a word of the container's output, and drops it.
async fn hear(client: &mut Client) {
    loop {
        let message = client.next().await.expect("the container speaks").expect("a message");
        if matches!(message, Message::Binary(bytes) if bytes.len() > 1 && usize::from(bytes[0]) == STDOUT) {
            return;
        }
    }
}

async fn exec(node: &Node, container: &str, script: &str, tty: bool) -> Client {
    let request = ExecRequest {
        container_id: container.to_owned(),
        cmd: vec!["sh".to_owned(), "-c".to_owned(), script.to_owned()],
        tty,
        stdin: true,
        stdout: true,
        stderr: !tty,
    };
    let url = node.runtime.clone().exec(request).await.expect("Exec").into_inner().url;
    dial(&url).await
}

async fn attach(node: &Node, container: &str, stdin: bool) -> Client {
    let request = AttachRequest { container_id: container.to_owned(), stdin, tty: false, stdout: true, stderr: true };
    dial(&node.runtime.clone().attach(request).await.expect("Attach").into_inner().url).await
}

#[tokio::test]
async fn exec_has_both_outputs_input_to_its_end_and_an_exit_code() {
    let node = Node::start_with_images(&["busybox"]).await;
    let running = node.run(&shell("main", "while :; do sleep 0.05; done")).await;
    let mut client = exec(&node, &running.container, "echo err >&2; cat | wc -c; exit 7", false).await;
    let input = vec![b'x'; 3 << 20];
    send(&mut client, STDIN, &input).await;
    send(&mut client, CLOSE, &[STDIN]).await;
    let channels = rest(&mut client).await;
    assert_eq!(channels[STDOUT].trim_ascii(), input.len().to_string().as_bytes());
    assert_eq!(channels[STDERR], b"err\n");
    let status: serde_json::Value = serde_json::from_slice(&channels[ERROR]).expect("a JSON status");
    assert_eq!(status["reason"], "NonZeroExitCode");
    assert_eq!(status["details"]["causes"][0]["message"], "7");

    let mut client = exec(&node, &running.container, "test -t 0 && tty", true).await;
    assert!(rest(&mut client).await[STDOUT].starts_with(b"/dev/pts/"));

    let missing =
        ExecRequest { container_id: "0".repeat(64), cmd: vec!["true".into()], stdout: true, ..Default::default() };
    refused(node.runtime.clone().exec(missing).await, Code::NotFound, &["does not exist"]);
    node.delete(&running.pod).await;
    let forward = PortForwardRequest { pod_sandbox_id: running.pod.clone(), port: vec![80] };
    refused(node.runtime.clone().port_forward(forward).await, Code::NotFound, &["does not exist"]);
    node.finish().await;
}

#[tokio::test]
async fn a_client_that_leaves_takes_its_command_with_it() {
    let node = Node::start_with_images(&["busybox"]).await;
    let running = node.run(&shell("main", "while :; do sleep 0.05; done")).await;
    let mut client = exec(&node, &running.container, "echo here; exec sleep 100000", false).await;
    hear(&mut client).await;
    let sleeps = async || node.sh(&running.container, "ps | grep -c '[s]leep 100000' || true").await;
    eventually("the command runs", async || (sleeps().await == "1\n").then_some(())).await;
    drop(client);
    eventually("the command is gone", async || (sleeps().await == "0\n").then_some(())).await;
    node.delete(&running.pod).await;
    node.finish().await;
}

#[tokio::test]
async fn attached_clients_and_the_log_hear_the_same() {
    let node = Node::start_with_images(&["busybox"]).await;
    // It ticks until it is told to go, so that a client can hear that it is attached.
    let script = "(while :; do echo tick; sleep 0.05; done) & read line; kill $!; wait; \
        i=0; while [ $i -lt 2000 ]; do echo $i; i=$((i+1)); done; echo $line >&2";
    let mut config = shell("main", script);
    config.stdin = true;
    let running = node.run(&config).await;
    let mut first = attach(&node, &running.container, true).await;
    let mut second = attach(&node, &running.container, false).await;
    hear(&mut first).await;
    hear(&mut second).await;
    send(&mut first, STDIN, b"go\n").await;
    let (first, second) = tokio::join!(rest(&mut first), rest(&mut second));
    let numbers: String = (0..2000).map(|number| format!("{number}\n")).collect();
    for channels in [&first, &second] {
        assert_eq!(String::from_utf8_lossy(&channels[STDOUT]).replace("tick\n", ""), numbers);
        assert_eq!(channels[STDERR], b"go\n");
    }
    let status = node.exited(&running.container).await;
    assert_eq!(status.exit_code, 0);
    assert_eq!(log::text(&status.log_path, Some("stdout")).replace("tick\n", ""), numbers);
    node.delete(&running.pod).await;
    node.finish().await;
}

#[tokio::test]
async fn a_restart_of_the_daemon_ends_streams_and_no_container() {
    let node = Node::start_with_images(&["busybox"]).await;
    let running = node.run(&shell("main", "while :; do sleep 0.05; done")).await;
    let mut client = exec(&node, &running.container, "echo here; exec sleep 100000", false).await;
    hear(&mut client).await;
    let before = node.status(&running.container).await;
    node.crash().await;
    rest(&mut client).await;
    assert_eq!(node.status(&running.container).await, before);
    let sleeps = async || node.sh(&running.container, "ps | grep -c '[s]leep 100000' || true").await;
    eventually("the command is gone", async || (sleeps().await == "0\n").then_some(())).await;
    node.delete(&running.pod).await;
    node.finish().await;
}
