//! From the streams to the socket.

use std::io;
use std::sync::Arc;

use bytes::BytesMut;
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;

use crate::mux::outbox::Outbox;
use crate::mux::stream::Piece;
use crate::mux::{Encode, Goodbye};

/// Bytes put together for one write.
const BATCH: usize = 64 << 10;

/// The writing half of a connection.
pub(crate) struct Writer<E> {
    pub(crate) encoder: E,
    pub(crate) outbox: Arc<Outbox>,
    pub(crate) queue: mpsc::Receiver<Piece>,
}

impl<E: Encode> Writer<E> {
    /// Writes until the goodbye is said.
    ///
    /// # Errors
    /// When the socket fails.
    pub(crate) async fn run<W: AsyncWrite + Unpin>(mut self, socket: &mut W) -> io::Result<()> {
        let mut out = BytesMut::new();
        self.encoder.greeting(&mut out);
        loop {
            // Read before the queues are emptied: what was queued before the goodbye goes out before it.
            let goodbye = self.outbox.goodbye();
            while out.len() < BATCH
                && goodbye.is_none_or(|goodbye| goodbye == Goodbye::Done)
                && let Ok(piece) = self.queue.try_recv()
            {
                self.put(&piece, &mut out);
            }
            self.outbox.drain(|control| self.encoder.control(control, &mut out));
            if !out.is_empty() {
                socket.write_all(&out).await?;
                socket.flush().await?;
                out.clear();
                continue;
            }
            if let Some(goodbye) = goodbye {
                self.encoder.goodbye(goodbye, &mut out);
                socket.write_all(&out).await?;
                return socket.shutdown().await;
            }
            tokio::select! {
                () = self.outbox.filled() => {}
                Some(piece) = self.queue.recv() => self.put(&piece, &mut out),
            }
        }
    }

    /// Encodes a piece, and before it whatever waits in the outbox: the reply that opens its stream, which was put there
    /// before the piece was queued.
    fn put(&mut self, piece: &Piece, out: &mut BytesMut) {
        self.outbox.drain(|control| self.encoder.control(control, out));
        if !piece.stream.is_reset() {
            self.encoder.data(piece.id(), &piece.bytes, piece.last, out);
        }
    }
}
