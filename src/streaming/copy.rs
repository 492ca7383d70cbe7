//! Carries bytes between a client's stream and what the backend gave.

use std::io;
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::mux::CHUNK;
use crate::mux::stream::{Input, Output, Reset};

/// How sending to a client ended.
#[derive(Debug)]
pub(crate) enum Sent {
    /// All there was has been queued.
    All,
    /// The client wants no more.
    Reset,
    /// The other side cannot be read.
    Unreadable(io::Error),
}

/// How long an output may be silent once its process has ended: somebody else holds it open then.
const SILENCE: Duration = Duration::from_secs(10);

/// Sends a client all that a reader gives. It does not tell the client that it was all. Once `ended`, a reader that
/// stays silent is at its end too.
pub(crate) async fn send<R: AsyncRead + Unpin>(from: &mut R, to: &Output, ended: &CancellationToken) -> Sent {
    let mut buffer = BytesMut::new();
    loop {
        // Room of a buffer that is sent and forgotten is used again.
        buffer.reserve(CHUNK);
        let silent = async {
            ended.cancelled().await;
            sleep(SILENCE).await;
        };
        let read = tokio::select! {
            biased;
            read = from.read_buf(&mut buffer) => read,
            () = to.abandoned() => return Sent::Reset,
            () = silent => return Sent::All,
        };
        match read {
            Ok(0) => return Sent::All,
            Err(error) => return Sent::Unreadable(error),
            Ok(_) => {
                while !buffer.is_empty() {
                    let piece = buffer.split_to(CHUNK.min(buffer.len())).freeze();
                    if to.send(piece).await.is_err() {
                        return Sent::Reset;
                    }
                }
            }
        }
    }
}

/// Writes all that a client sends, then shuts the writer down. When the writer takes no more, the rest is thrown away:
/// that is between the client and whom it talks to.
///
/// # Errors
/// When the client gives the stream up; the writer is not shut down then, only dropped.
pub(crate) async fn receive<W: AsyncWrite + Unpin>(mut from: Input, mut to: W) -> Result<(), Reset> {
    let mut buffer = BytesMut::with_capacity(CHUNK);
    loop {
        buffer.clear();
        match from.read_buf(&mut buffer).await {
            Err(_) => return Err(Reset),
            Ok(0) => break,
            Ok(_) => {}
        }
        if to.write_all(&buffer).await.is_err() || to.flush().await.is_err() {
            return Ok(());
        }
    }
    // One that is gone already needs no end.
    drop(to.shutdown().await);
    Ok(())
}
