//! Exec and attach: a session's streams, whatever carries them to the client.

use std::io;
use std::pin::pin;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::backend::{Reader, Session, SessionError};
use crate::copy::{Sent, receive, send};
use crate::mux::stream::{Input, Opened, Output};
use crate::resize;
use crate::status::{Format, Outcome};

/// The streams a client has opened for its session.
#[derive(Debug, Default)]
pub(crate) struct Channels {
    pub(crate) stdin: Option<Input>,
    pub(crate) stdout: Option<Output>,
    pub(crate) stderr: Option<Output>,
    pub(crate) error: Option<Output>,
    pub(crate) resize: Option<Input>,
    /// Directions that carry nothing, and streams that nobody asked for: finished with the session.
    pub(crate) unused: Vec<Output>,
}

/// The streams that a session is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) stdin: bool,
    pub(crate) stdout: bool,
    pub(crate) stderr: bool,
    pub(crate) resize: bool,
}

impl Channels {
    /// Takes streams as the client opens them, until all that are wanted are there.
    pub(crate) async fn gather(&mut self, opened: &mut mpsc::Receiver<Opened>, wanted: Wanted) {
        while !self.complete(wanted) {
            // The connection is gone when there are no more, and this future is dropped for that.
            let Some(stream) = opened.recv().await else { return std::future::pending().await };
            let kind = stream.headers.get("streamtype").cloned().unwrap_or_default();
            match kind.as_str() {
                "stdin" if wanted.stdin && self.stdin.is_none() => {
                    let (input, output) = stream.accept();
                    self.stdin = Some(input);
                    self.unused.push(output);
                }
                "resize" if wanted.resize && self.resize.is_none() => {
                    let (input, output) = stream.accept();
                    self.resize = Some(input);
                    self.unused.push(output);
                }
                "stdout" if wanted.stdout && self.stdout.is_none() => self.stdout = Some(stream.accept().1),
                "stderr" if wanted.stderr && self.stderr.is_none() => self.stderr = Some(stream.accept().1),
                "error" if self.error.is_none() => self.error = Some(stream.accept().1),
                // Refusing one would have client-go give up the session.
                "stdin" | "stdout" | "stderr" | "error" | "resize" => self.unused.push(stream.accept().1),
                _ => {
                    tracing::debug!(kind, "a client opens a stream of a kind that does not exist");
                    stream.refuse();
                }
            }
        }
    }

    fn complete(&self, wanted: Wanted) -> bool {
        self.error.is_some()
            && self.stdin.is_some() == wanted.stdin
            && self.stdout.is_some() == wanted.stdout
            && self.stderr.is_some() == wanted.stderr
            && self.resize.is_some() == wanted.resize
    }
}

/// Serves a session to its end and tells the client how it ended. Dropped when the client leaves.
pub(crate) async fn serve(
    mut channels: Channels,
    opening: impl Future<Output = Result<Session, SessionError>>,
    format: Format,
    stopping: &CancellationToken,
) {
    let outcome = tokio::select! {
        outcome = run(&mut channels, opening) => outcome.unwrap_or_else(|error| Outcome::Failed(error.chain())),
        () = stopping.cancelled() => Outcome::Failed("the container runtime is stopping: this session ends with it".to_owned()),
    };
    tell(channels, &outcome, format).await;
}

/// Ends the client's streams, the error stream with the outcome.
pub(crate) async fn tell(channels: Channels, outcome: &Outcome, format: Format) {
    let Channels { stdin, stdout, stderr, error, resize, unused } = channels;
    // What the client sends from here on is thrown away.
    drop((stdin, resize));
    if let Some(error) = error {
        if let Some(message) = format.render(outcome) {
            // A client that no longer listens to errors is told none.
            drop(error.send(message).await);
        }
        drop(error.finish().await);
    }
    for output in [stdout, stderr].into_iter().flatten().chain(unused) {
        drop(output.finish().await);
    }
}

async fn run(
    channels: &mut Channels,
    opening: impl Future<Output = Result<Session, SessionError>>,
) -> Result<Outcome, SessionError> {
    let Session { stdin, stdout, stderr, resize, mut end } = opening.await?;
    let ended = CancellationToken::new();
    let feeding = async {
        match (channels.stdin.take(), stdin) {
            // A client that gives its input up does not end it: the writer is dropped, and the backend knows what that means.
            (Some(from), Some(to)) => drop(receive(from, to).await),
            (from, to) => drop((from, to)),
        }
    };
    let resizing = async {
        if let (Some(from), Some(to)) = (channels.resize.take(), resize) {
            resize::pass_on(from, to).await;
        }
    };
    let (out, err) = (channels.stdout.take(), channels.stderr.take());
    let printing = async {
        let (out, err) = tokio::join!(print(stdout, out, &ended), print(stderr, err, &ended));
        out.and(err)
    };
    let mut inward = pin!(async { tokio::join!(feeding, resizing) });
    let mut printing = pin!(printing);
    let (mut exit, mut printed, mut fed) = (None, None, false);
    loop {
        tokio::select! {
            code = &mut end, if exit.is_none() => {
                exit = Some(code);
                ended.cancel();
            }
            result = &mut printing, if printed.is_none() => printed = Some(result),
            _ = &mut inward, if !fed => fed = true,
        }
        // What was written before the end, a bad one too, is sent before the client is told of it.
        match (exit.take(), &printed) {
            (Some(Ok(_)), Some(Err(error))) => return Ok(Outcome::Failed(format!("the output was cut off: {error}"))),
            (Some(code), Some(_)) => return code.map(Outcome::of),
            (waiting, _) => exit = waiting,
        }
    }
}

/// Sends an output of the process to the client and ends the client's stream.
async fn print(from: Option<Reader>, to: Option<Output>, ended: &CancellationToken) -> io::Result<()> {
    let Some(to) = to else { return Ok(()) };
    let sent = match from {
        Some(mut from) => send(&mut from, &to, ended).await,
        None => Sent::All,
    };
    // One that was reset needs no end.
    drop(to.finish().await);
    match sent {
        Sent::All | Sent::Reset => Ok(()),
        Sent::Unreadable(error) => Err(error),
    }
}

/// Tells a WebSocket client that its session is there: SPDY does so by its replies.
pub(crate) async fn greet(channels: &Channels) {
    let first = channels.stdout.as_ref().or(channels.stderr.as_ref()).or(channels.error.as_ref());
    if let Some(output) = first {
        // One that has gone already is noticed by the connection.
        drop(output.send(Bytes::new()).await);
    }
}
