//! A backend whose commands are words and whose ports are numbers.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::tests::pattern;
use crate::{AttachRequest, Backend, Connection, ExecRequest, Session, SessionError, TerminalSize};

/// What a process has as pipes and connections have as buffers.
const PIPE: usize = 64 << 10;

/// See the file's head.
#[derive(Default)]
pub(super) struct Fake {
    /// Set once a session that was held has been dropped.
    pub(super) dropped: CancellationToken,
    /// What the server is told of the client, where it cannot see for itself.
    pub(super) hung_up: CancellationToken,
    /// Bytes that `flood` got rid of.
    pub(super) flooded: std::sync::Arc<AtomicUsize>,
}

/// A process's side of its session.
struct Process {
    stdin: DuplexStream,
    stdout: DuplexStream,
    stderr: DuplexStream,
    sizes: mpsc::Receiver<TerminalSize>,
}

impl Fake {
    fn session(&self, command: Vec<String>, stderr_wanted: bool, tty: bool) -> Session {
        let ((stdin, inner_in), (stdout, inner_out), (stderr, inner_err)) = (duplex(PIPE), duplex(PIPE), duplex(PIPE));
        let (resize, sizes) = mpsc::channel(1);
        let process = Process { stdin: inner_in, stdout: inner_out, stderr: inner_err, sizes };
        let (exit, exited) = oneshot::channel();
        let flooded = std::sync::Arc::clone(&self.flooded);
        let guard = self.dropped.clone().drop_guard();
        tokio::spawn(async move {
            let result = process.run(command, &flooded).await;
            // Nobody waits for the end of a session that was dropped.
            drop(exit.send(result));
        });
        Session {
            stdin: Some(Box::new(stdin)),
            stdout: Some(Box::new(stdout)),
            stderr: stderr_wanted.then(|| Box::new(stderr) as _),
            resize: tty.then_some(resize),
            end: Box::pin(async move {
                let _guard = guard;
                exited.await.unwrap().map_err(SessionError::new)
            }),
        }
    }
}

impl Process {
    async fn run(mut self, command: Vec<String>, flooded: &AtomicUsize) -> io::Result<i32> {
        let words: Vec<&str> = command.iter().map(String::as_str).collect();
        match words[..] {
            ["cat"] => {
                tokio::io::copy(&mut self.stdin, &mut self.stdout).await?;
            }
            ["print", count] => {
                self.stdout.write_all(&pattern(count.parse().unwrap())).await?;
                // Not every client wants it.
                self.stderr.write_all(b"to stderr").await.ok();
            }
            ["exit", code] => return Ok(code.parse().unwrap()),
            ["count"] => {
                let count = tokio::io::copy(&mut self.stdin, &mut tokio::io::sink()).await?;
                self.stdout.write_all(count.to_string().as_bytes()).await?;
            }
            // Reads a byte and closes its input, as `head -c 1` does.
            ["head"] => {
                let byte = self.stdin.read_u8().await?;
                drop(self.stdin);
                self.stdout.write_all(&[byte]).await?;
            }
            ["size", until] => {
                while let Some(TerminalSize { width, height }) = self.sizes.recv().await {
                    let size = format!("{width}x{height}");
                    self.stdout.write_all(format!("{size}\n").as_bytes()).await?;
                    if size == until {
                        break;
                    }
                }
            }
            ["flood"] => {
                let chunk = pattern(4096);
                while self.stdout.write_all(&chunk).await.is_ok() {
                    flooded.fetch_add(chunk.len(), Ordering::Relaxed);
                }
            }
            // Ends with nobody left to close its output.
            ["leave"] => {
                self.stdout.write_all(b"left").await?;
                tokio::spawn(async move {
                    let _held = self.stdout;
                    std::future::pending::<()>().await;
                });
            }
            ["hold"] => {
                self.stdout.write_all(b"held").await?;
                std::future::pending::<()>().await;
            }
            ["break"] => {
                self.stdout.write_all(b"before").await?;
                return Err(io::Error::other("the shim is gone"));
            }
            _ => panic!("{words:?}"),
        }
        Ok(0)
    }
}

impl Backend for Fake {
    fn exec(&self, request: ExecRequest) -> BoxFuture<'_, Result<Session, SessionError>> {
        Box::pin(async move {
            if request.command == ["missing"] {
                return Err(SessionError::new("no such file or directory"));
            }
            Ok(self.session(request.command, request.stderr, request.tty))
        })
    }

    fn attach(&self, request: AttachRequest) -> BoxFuture<'_, Result<Session, SessionError>> {
        assert_eq!(request.container_id, "c");
        // It prints and ends with a code that is none of an attach's business.
        let mut session = self.session(vec!["print".to_owned(), "3".to_owned()], request.stderr, request.tty);
        session.end = Box::pin(async { session.end.await.map(|_| 7) });
        Box::pin(async { Ok(session) })
    }

    fn port_forward(&self, pod: String, port: u16) -> BoxFuture<'_, Result<Connection, SessionError>> {
        assert_eq!(pod, "p");
        Box::pin(async move {
            let (ours, theirs) = duplex(PIPE);
            match port {
                1 => return Err(SessionError::new("connection refused")),
                7 => drop(tokio::spawn(echo(theirs))),
                // Holds the connection until the other side lets go.
                9 => {
                    let guard = self.dropped.clone().drop_guard();
                    tokio::spawn(async move {
                        let _guard = guard;
                        let mut theirs = theirs;
                        theirs.read_to_end(&mut Vec::new()).await
                    });
                }
                // Breaks in the middle.
                13 => return Ok(Box::new(tokio::io::join(Broken, ours)) as Connection),
                // Speaks first and hangs up.
                17 => drop(tokio::spawn(async move {
                    let mut theirs = theirs;
                    theirs.write_all(b"quote").await
                })),
                _ => panic!("{port}"),
            }
            Ok(Box::new(ours) as Connection)
        })
    }
}

async fn echo(connection: DuplexStream) -> io::Result<()> {
    let (mut read, mut write) = tokio::io::split(connection);
    tokio::io::copy(&mut read, &mut write).await?;
    write.shutdown().await
}

/// What cannot be read.
struct Broken;

impl AsyncRead for Broken {
    fn poll_read(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
        _: &mut tokio::io::ReadBuf<'_>,
    ) -> std::task::Poll<io::Result<()>> {
        std::task::Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()))
    }
}
