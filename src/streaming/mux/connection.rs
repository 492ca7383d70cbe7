//! A connection with its streams: set up, then driven until both sides have said goodbye.

use std::collections::HashMap;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::mux::outbox::Outbox;
use crate::mux::reader::Reader;
use crate::mux::stream::{Input, Opened, Output, Shared, halves};
use crate::mux::writer::Writer;
use crate::mux::{Decode, Encode, Goodbye, ProtocolError};

/// Pieces that wait for the writer: with [`CHUNK`](crate::mux::CHUNK) each, a window's worth for all streams together.
const QUEUE: usize = 4;
/// Streams that wait to be taken.
const OPENED: usize = 16;
/// How long a client may take to hang up once all was sent. To close before it does, with input of its still unread,
/// would have the kernel reset the connection and throw away what the client has not read yet.
const LINGER: Duration = Duration::from_secs(10);
/// How long a last frame may take to a client that has gone or is cut off.
const FAREWELL: Duration = Duration::from_secs(2);

/// Why a connection broke.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LinkError {
    /// The client does not speak the protocol.
    #[error("the client broke the protocol")]
    Protocol(#[from] ProtocolError),
    /// The client has hung up, and what it sent last is not taken.
    #[error("the client has hung up")]
    HungUp,
    /// The socket has failed.
    #[error("read from the client")]
    Read(#[source] io::Error),
    /// The socket has failed.
    #[error("write to the client")]
    Write(#[source] io::Error),
}

/// A connection that is not driven yet.
pub(crate) struct Link<D, E> {
    reader: Reader<D>,
    writer: Writer<E>,
}

/// Ends a connection when its session is over.
#[derive(Debug, Clone)]
pub(crate) struct Closer(Arc<Outbox>);

impl Closer {
    /// Has the connection end once all that is queued was sent.
    pub(crate) fn close(&self) {
        self.0.say_goodbye(Goodbye::Done);
    }
}

impl<D: Decode, E: Encode> Link<D, E> {
    /// Sets a connection up on which the client may open streams, which come out of the receiver.
    pub(crate) fn new(decoder: D, encoder: E, hung_up: CancellationToken) -> (Self, mpsc::Receiver<Opened>) {
        let outbox = Arc::new(Outbox::default());
        let (queue, pieces) = mpsc::channel(QUEUE);
        let (opened, incoming) = mpsc::channel(OPENED);
        let reader = Reader {
            decoder,
            streams: HashMap::new(),
            outbox: Arc::clone(&outbox),
            queue,
            opened: Some(opened),
            hung_up,
        };
        (Self { reader, writer: Writer { encoder, outbox, queue: pieces } }, incoming)
    }

    /// Adds a stream that is there from the start.
    pub(crate) fn stream(&mut self, id: u32) -> (Input, Output) {
        let shared = Shared::new(id);
        self.reader.streams.insert(id, Arc::clone(&shared));
        halves(shared, self.reader.queue.clone(), Arc::clone(&self.reader.outbox))
    }

    /// Returns what ends the connection.
    pub(crate) fn closer(&self) -> Closer {
        Closer(Arc::clone(&self.reader.outbox))
    }

    /// Carries bytes until the client is gone or, after the [`Closer`]'s word, has been sent everything.
    ///
    /// # Errors
    /// When the socket fails or the client breaks the protocol.
    pub(crate) async fn drive<S: AsyncRead + AsyncWrite>(self, socket: S) -> Result<(), LinkError> {
        let (mut read, mut write) = tokio::io::split(socket);
        let outbox = Arc::clone(&self.reader.outbox);
        let mut reading = pin!(self.reader.run(&mut read));
        let mut writing = pin!(self.writer.run(&mut write));
        let ended = tokio::select! {
            ended = &mut reading => ended,
            written = &mut writing => {
                written.map_err(LinkError::Write)?;
                // All was said. Whether the client leaves in time or breaks the protocol makes no difference any more.
                drop(timeout(LINGER, reading).await);
                return Ok(());
            }
        };
        let broken = matches!(ended, Err(LinkError::Protocol(_)));
        outbox.say_goodbye(if broken { Goodbye::ProtocolError } else { Goodbye::Answer });
        // A client that is gone does not hear it.
        drop(timeout(FAREWELL, writing).await);
        ended
    }
}
