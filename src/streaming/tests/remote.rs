//! Exec and attach over SPDY.

use tokio::net::TcpStream;

use crate::tests::spdy_client::{Conversation, Frame, Receiver, Sender, client, upgrade};
use crate::tests::{attach, connect, exec, path, pattern, server};
use crate::{ExecRequest, Server};

const V4: &str = "v4.channel.k8s.io";

async fn dial(server: &Server, url: &str, version: &str) -> (Sender<TcpStream>, Receiver<TcpStream>) {
    let mut socket = connect(server).await;
    let head = upgrade(&mut socket, &path(url), version).await.to_lowercase();
    assert!(head.starts_with("http/1.1 101 "), "{head}");
    for line in ["connection: upgrade", "upgrade: spdy/3.1", &format!("x-stream-protocol-version: {version}")] {
        assert_eq!(head.matches(&format!("\r\n{line}\r\n")).count(), 1, "{line} in {head}");
    }
    client(socket)
}

/// Runs a command whose input is given at once.
async fn run(request: ExecRequest, version: &str, input: &[u8]) -> ([u32; 4], Conversation) {
    let (server, _) = server().await;
    let (mut sender, mut receiver) = dial(&server, &server.exec(request).unwrap(), version).await;
    let ids = sender.open_all(["error", "stdin", "stdout", "stderr"]).await;
    receiver.accepted(ids).await;
    sender.data(ids[1], input, true).await.unwrap();
    (ids, receiver.rest().await)
}

#[tokio::test]
async fn all_versions_carry_a_command_s_streams() {
    for version in ["v5.channel.k8s.io", V4, "v3.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io"] {
        let ([error, stdin, stdout, stderr], said) = run(exec(&["print", "100000"], false), version, b"").await;
        assert!(said.data[&stdout] == pattern(100_000), "{version}");
        assert_eq!(said.text(stderr), "to stderr");
        let json = version.starts_with("v4") || version.starts_with("v5");
        assert_eq!(said.text(error), if json { r#"{"metadata":{},"status":"Success"}"# } else { "" });
        let mut finished = said.finished;
        finished.sort_unstable();
        assert_eq!((finished, said.goaway), (vec![error, stdin, stdout, stderr], Some(0)), "{version}");
    }
}

#[tokio::test]
async fn exit_codes_and_failures_are_told_in_the_version_s_form() {
    for (command, json, text) in [
        (&["exit", "3"][..], r#"{"reason":"ExitCode","message":"3"}"#, "exit status 3"),
        (&["missing"], r#""reason":"InternalError""#, "no such file or directory"),
        (&["break"], "the shim is gone", "the shim is gone"),
    ] {
        let ([error, ..], said) = run(exec(command, false), V4, b"").await;
        assert!(said.text(error).contains(json), "{}", said.text(error));
        let ([error, ..], said) = run(exec(command, false), "v2.channel.k8s.io", b"").await;
        assert!(said.text(error).contains(text) && !said.text(error).contains('{'), "{}", said.text(error));
    }
}

#[tokio::test]
async fn what_was_written_before_a_bad_end_is_not_lost() {
    let ([error, _, stdout, _], said) = run(exec(&["break"], false), V4, b"").await;
    assert_eq!((said.text(stdout).as_str(), said.text(error).contains("the shim is gone")), ("before", true));
}

#[tokio::test]
async fn the_end_of_the_input_ends_it_for_the_command_alone() {
    let ([_, _, stdout, _], said) = run(exec(&["cat"], false), V4, b"in and out").await;
    assert_eq!(said.text(stdout), "in and out");
    let ([_, _, stdout, _], said) = run(exec(&["count"], false), V4, &pattern(300_000)).await;
    assert_eq!(said.text(stdout), "300000");
    // What was read is credited, to the stream and to all together.
    assert!(said.credits[&0] >= 300_000);
}

#[tokio::test]
async fn input_that_nobody_reads_stalls_nobody() {
    let ([error, _, stdout, _], said) = run(exec(&["head"], false), V4, &pattern(4 << 20)).await;
    assert_eq!((said.data[&stdout].len(), said.text(error).contains("Success")), (1, true));
}

#[tokio::test]
async fn an_attach_ends_without_the_container_s_exit_code() {
    let (server, _) = server().await;
    let (mut sender, mut receiver) = dial(&server, &server.attach(attach()).unwrap(), V4).await;
    let [error, _, stdout, _] = sender.open_all(["error", "stdin", "stdout", "stderr"]).await;
    let said = receiver.rest().await;
    assert_eq!((said.data[&stdout].len(), said.text(error).contains("Success")), (3, true));
}

#[tokio::test]
async fn a_terminal_s_sizes_reach_the_command() {
    let (server, _) = server().await;
    let url = server.exec(exec(&["size", "200x50"], true)).unwrap();
    let (mut sender, mut receiver) = dial(&server, &url, V4).await;
    let [_, _, stdout, resize] = sender.open_all(["error", "stdin", "stdout", "resize"]).await;
    sender.data(resize, br#"{"Width":80,"Height":24}"#, false).await.unwrap();
    receiver.accepted([1, 3, 5, 7]).await;
    assert_eq!(receiver.read(stdout, 6).await, b"80x24\n");
    sender.data(resize, br#"{"Width":200,"#, false).await.unwrap();
    sender.data(resize, br#""Height":50}"#, false).await.unwrap();
    assert_eq!(receiver.rest().await.text(stdout), "200x50\n");
}

#[tokio::test]
async fn streams_nobody_asked_for_change_nothing() {
    let (server, _) = server().await;
    let request = ExecRequest { stderr: false, stdin: false, ..exec(&["print", "4"], false) };
    let (mut sender, mut receiver) = dial(&server, &server.exec(request).unwrap(), V4).await;
    let [stderr, nonsense, resize, error, stdout] =
        sender.open_all(["stderr", "nonsense", "resize", "error", "stdout"]).await;
    sender.data(resize, b"whatever", false).await.unwrap();
    let said = receiver.rest().await;
    assert_eq!(said.replied, [stderr, resize, error, stdout]);
    assert_eq!(said.resets.into_iter().collect::<Vec<_>>(), [(nonsense, 3)]);
    assert_eq!(said.data[&stdout], pattern(4));
}

#[tokio::test]
async fn a_client_that_leaves_takes_its_session_along() {
    let (server, fake) = server().await;
    let (mut sender, mut receiver) = dial(&server, &server.exec(exec(&["hold"], false)).unwrap(), V4).await;
    let [_, _, stdout, _] = sender.open_all(["error", "stdin", "stdout", "stderr"]).await;
    receiver.accepted([1, 3, 5, 7]).await;
    assert_eq!(receiver.read(stdout, 4).await, b"held");
    drop((sender, receiver));
    fake.dropped.cancelled().await;
}

#[tokio::test]
async fn a_client_that_breaks_the_protocol_is_cut_off() {
    for nonsense in [&[0x80, 2, 0, 1, 0, 0, 0, 0][..], &[0x80, 3, 0, 1, 0, 0xff, 0xff, 0xff], b"GET / HTTP/1.1\r\n\r\n"]
    {
        let (server, fake) = server().await;
        let (mut sender, mut receiver) = dial(&server, &server.exec(exec(&["hold"], false)).unwrap(), V4).await;
        let [_, _, stdout, _] = sender.open_all(["error", "stdin", "stdout", "stderr"]).await;
        receiver.accepted([1, 3, 5, 7]).await;
        assert_eq!(receiver.read(stdout, 4).await, b"held");
        sender.raw(nonsense).await;
        assert_eq!(receiver.rest().await.goaway, Some(1));
        fake.dropped.cancelled().await;
    }
}

#[tokio::test]
async fn pings_are_answered() {
    let (server, _) = server().await;
    let (mut sender, mut receiver) = dial(&server, &server.exec(exec(&["hold"], false)).unwrap(), V4).await;
    sender.ping(0x0102_0305).await;
    receiver.until(|frame| *frame == Frame::Pong(0x0102_0305)).await;
}

#[tokio::test]
async fn a_server_that_stops_tells_its_clients() {
    let (server, fake) = server().await;
    let (mut sender, mut receiver) = dial(&server, &server.exec(exec(&["hold"], false)).unwrap(), V4).await;
    let [error, _, stdout, _] = sender.open_all(["error", "stdin", "stdout", "stderr"]).await;
    receiver.accepted([1, 3, 5, 7]).await;
    assert_eq!(receiver.read(stdout, 4).await, b"held");
    let stopping = server.clone();
    let stopped = tokio::spawn(async move { stopping.shutdown().await });
    let said = receiver.rest().await;
    assert!(said.text(error).contains("the container runtime is stopping"), "{}", said.text(error));
    drop((sender, receiver));
    stopped.await.unwrap();
    assert!(fake.dropped.is_cancelled());
    assert!(TcpStream::connect(server.address()).await.is_err());
}
