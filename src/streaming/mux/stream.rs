//! One stream: what the client sent on it, bounded, and what is sent back.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::mux::outbox::Outbox;
use crate::mux::{Control, Headers, WINDOW};

/// The client has given the stream up, or is gone.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the client has given the stream up")]
pub(crate) struct Reset;

/// What the reader, the two halves and the queue of outgoing data share of one stream.
#[derive(Debug)]
pub(crate) struct Shared {
    id: u32,
    incoming: Mutex<Incoming>,
    reset: CancellationToken,
}

#[derive(Debug, Default)]
struct Incoming {
    bytes: VecDeque<u8>,
    finished: bool,
    abandoned: bool,
    consumer: Option<Waker>,
    feeder: Option<Waker>,
}

impl Shared {
    pub(crate) fn new(id: u32) -> Arc<Self> {
        Arc::new(Self { id, incoming: Mutex::default(), reset: CancellationToken::new() })
    }

    fn incoming(&self) -> MutexGuard<'_, Incoming> {
        self.incoming.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether nothing more is to be sent.
    pub(crate) fn is_reset(&self) -> bool {
        self.reset.is_cancelled()
    }

    /// Ends both directions: the client has reset the stream, or is gone.
    pub(crate) fn reset(&self) {
        self.reset.cancel();
        let mut incoming = self.incoming();
        incoming.bytes = VecDeque::new();
        wake(&mut incoming.consumer);
        wake(&mut incoming.feeder);
    }

    /// Notes that the client sends no more.
    pub(crate) fn finish(&self) {
        let mut incoming = self.incoming();
        incoming.finished = true;
        wake(&mut incoming.consumer);
    }

    /// Stores what the client sent, waiting for room. Returns how much of it nobody will read.
    pub(crate) async fn feed(&self, mut bytes: &[u8]) -> usize {
        std::future::poll_fn(|context| {
            let mut incoming = self.incoming();
            if incoming.abandoned || incoming.finished || self.is_reset() {
                return Poll::Ready(bytes.len());
            }
            let room = WINDOW - incoming.bytes.len();
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            incoming.bytes.extend(now);
            bytes = later;
            if !now.is_empty() {
                wake(&mut incoming.consumer);
            }
            if bytes.is_empty() {
                return Poll::Ready(0);
            }
            incoming.feeder = Some(context.waker().clone());
            Poll::Pending
        })
        .await
    }
}

fn wake(waker: &mut Option<Waker>) {
    if let Some(waker) = waker.take() {
        waker.wake();
    }
}

/// What the client sends. Dropping it throws away the rest, so that a client whose input nobody wants is not stalled.
#[derive(Debug)]
pub(crate) struct Input {
    shared: Arc<Shared>,
    outbox: Arc<Outbox>,
    /// Read, and not yet told the client.
    consumed: usize,
}

impl AsyncRead for Input {
    /// Fails with `ConnectionReset` when the client gives the stream up or is gone.
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let mut incoming = this.shared.incoming();
        if this.shared.is_reset() {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::ConnectionReset, Reset)));
        }
        if incoming.bytes.is_empty() {
            if incoming.finished {
                return Poll::Ready(Ok(()));
            }
            incoming.consumer = Some(context.waker().clone());
            return Poll::Pending;
        }
        let (front, _) = incoming.bytes.as_slices();
        let count = front.len().min(into.remaining());
        into.put_slice(&front[..count]);
        incoming.bytes.drain(..count);
        wake(&mut incoming.feeder);
        let credit = !incoming.finished;
        drop(incoming);
        this.consumed += count;
        // Half a window at a time: few updates, and the client never runs dry while it is read.
        if this.consumed >= WINDOW / 2 {
            this.outbox.credit(0, this.consumed);
            if credit {
                this.outbox.credit(this.shared.id, this.consumed);
            }
            this.consumed = 0;
        }
        Poll::Ready(Ok(()))
    }
}

impl Drop for Input {
    fn drop(&mut self) {
        let mut incoming = self.shared.incoming();
        incoming.abandoned = true;
        let unread = self.consumed + std::mem::take(&mut incoming.bytes).len();
        wake(&mut incoming.feeder);
        let open = !incoming.finished && !self.shared.is_reset();
        drop(incoming);
        if unread > 0 {
            self.outbox.credit(0, unread);
            if open {
                self.outbox.credit(self.shared.id, unread);
            }
        }
    }
}

/// A piece of outgoing data on its way to the writer.
#[derive(Debug)]
pub(crate) struct Piece {
    pub(crate) stream: Arc<Shared>,
    pub(crate) bytes: Bytes,
    pub(crate) last: bool,
}

impl Piece {
    pub(crate) fn id(&self) -> u32 {
        self.stream.id
    }
}

/// What is sent to the client.
#[derive(Debug)]
pub(crate) struct Output {
    shared: Arc<Shared>,
    queue: mpsc::Sender<Piece>,
    outbox: Arc<Outbox>,
}

impl Output {
    /// Queues a piece, waiting for the client to read what is before it.
    ///
    /// # Errors
    /// When the client no longer wants it.
    pub(crate) async fn send(&self, bytes: Bytes) -> Result<(), Reset> {
        self.queue(bytes, false).await
    }

    /// Tells the client that nothing more comes.
    ///
    /// # Errors
    /// When the client no longer wants to know.
    pub(crate) async fn finish(self) -> Result<(), Reset> {
        self.queue(Bytes::new(), true).await
    }

    async fn queue(&self, bytes: Bytes, last: bool) -> Result<(), Reset> {
        let piece = Piece { stream: Arc::clone(&self.shared), bytes, last };
        tokio::select! {
            biased;
            () = self.shared.reset.cancelled() => Err(Reset),
            sent = self.queue.send(piece) => sent.map_err(|_| Reset),
        }
    }

    /// Waits until the client no longer wants anything.
    pub(crate) async fn abandoned(&self) {
        self.shared.reset.cancelled().await;
    }

    /// Gives the stream up, both ways. What is queued on it is not sent any more.
    pub(crate) fn cancel(self) {
        if !self.shared.is_reset() {
            self.shared.reset();
            // A client that owes us so many answers is cut off by the reader.
            drop(self.outbox.push(Control::Cancel { id: self.shared.id }));
        }
    }
}

/// Both directions of a stream.
pub(crate) fn halves(shared: Arc<Shared>, queue: mpsc::Sender<Piece>, outbox: Arc<Outbox>) -> (Input, Output) {
    let input = Input { shared: Arc::clone(&shared), outbox: Arc::clone(&outbox), consumed: 0 };
    (input, Output { shared, queue, outbox })
}

/// A stream that the client has opened and that waits to be taken.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) id: u32,
    pub(crate) headers: Headers,
    input: Input,
    output: Output,
}

impl Opened {
    pub(crate) fn new(id: u32, headers: Headers, (input, output): (Input, Output)) -> Self {
        Self { id, headers, input, output }
    }

    /// Tells the client that its stream is there.
    pub(crate) fn accept(self) -> (Input, Output) {
        // A client that owes us so many answers is cut off by the reader.
        drop(self.output.outbox.push(Control::Accept { id: self.id }));
        (self.input, self.output)
    }

    /// Tells the client that its stream makes no sense.
    pub(crate) fn refuse(self) {
        self.output.shared.reset();
        drop(self.output.outbox.push(Control::Refuse { id: self.id }));
    }
}
