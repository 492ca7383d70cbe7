//! From the socket to the streams.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::mpsc;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::mux::connection::LinkError;
use crate::mux::outbox::Outbox;
use crate::mux::stream::{Opened, Piece, Shared, halves};
use crate::mux::{Control, Decode, Event, Headers, ProtocolError};

/// Bytes asked of the socket at a time.
const READ: usize = 16 << 10;
/// Streams that one client may have open: a port-forward has two for each of its connections.
const STREAMS: usize = 1000;
/// How long nothing may be taken of what a client sent before it hung up.
const PATIENCE: Duration = Duration::from_secs(10);

/// The reading half of a connection.
pub(crate) struct Reader<D> {
    pub(crate) decoder: D,
    pub(crate) streams: HashMap<u32, Arc<Shared>>,
    pub(crate) outbox: Arc<Outbox>,
    pub(crate) queue: mpsc::Sender<Piece>,
    /// Where streams that the client opens go; none once it has said that it opens no more.
    pub(crate) opened: Option<mpsc::Sender<Opened>>,
    /// Set when the client has hung up, which is not read while nobody takes what it sent before.
    pub(crate) hung_up: CancellationToken,
}

impl<D: Decode> Reader<D> {
    /// Reads until the client is gone. All streams have ended then.
    ///
    /// # Errors
    /// When the socket fails or the client breaks the protocol.
    pub(crate) async fn run<R: AsyncRead + Unpin>(mut self, socket: &mut R) -> Result<(), LinkError> {
        let ended = self.read(socket).await;
        self.streams.values().for_each(|stream| stream.reset());
        ended
    }

    async fn read<R: AsyncRead + Unpin>(&mut self, socket: &mut R) -> Result<(), LinkError> {
        let mut buffer = BytesMut::new();
        loop {
            while let Some(event) = self.decoder.decode(&mut buffer)? {
                if matches!(event, Event::Closed) {
                    return Ok(());
                }
                self.handle(event).await?;
            }
            buffer.reserve(READ);
            if socket.read_buf(&mut buffer).await.map_err(LinkError::Read)? == 0 {
                return Ok(());
            }
        }
    }

    async fn handle(&mut self, event: Event) -> Result<(), LinkError> {
        match event {
            Event::Open { id, headers, last, one_way } => self.open(id, headers, last, one_way).await?,
            Event::Data { id, bytes, last } => self.data(id, &bytes, last).await?,
            Event::Reset { id } => {
                if let Some(stream) = self.streams.remove(&id) {
                    stream.reset();
                }
            }
            Event::Ping(payload) => self.outbox.push(Control::Pong(payload))?,
            Event::Leaving => self.opened = None,
            Event::Closed => {}
        }
        Ok(())
    }

    async fn open(&mut self, id: u32, headers: Headers, last: bool, one_way: bool) -> Result<(), ProtocolError> {
        // What only this table still knows is over.
        self.streams.retain(|_, stream| Arc::strong_count(stream) > 1);
        let Some(opened) = self.opened.as_ref().filter(|_| self.streams.len() < STREAMS) else {
            return self.outbox.push(Control::Refuse { id });
        };
        let stream = Shared::new(id);
        if last {
            stream.finish();
        }
        let (input, output) = halves(Arc::clone(&stream), self.queue.clone(), Arc::clone(&self.outbox));
        let asked = Opened::new(id, headers, (input, output));
        if one_way || opened.send(asked).await.is_err() {
            // Nobody uses one-way streams, and none is served once the session is over.
            return self.outbox.push(Control::Refuse { id });
        }
        self.streams.insert(id, stream);
        Ok(())
    }

    async fn data(&mut self, id: u32, bytes: &[u8], last: bool) -> Result<(), LinkError> {
        let Some(stream) = self.streams.get(&id) else {
            // Sent before the client knew that the stream was over.
            if !bytes.is_empty() {
                self.outbox.credit(0, bytes.len());
            }
            return Ok(());
        };
        let leaving = async {
            self.hung_up.cancelled().await;
            sleep(PATIENCE).await;
        };
        let unwanted = tokio::select! {
            biased;
            unwanted = stream.feed(bytes) => unwanted,
            () = leaving => return Err(LinkError::HungUp),
        };
        if unwanted > 0 {
            self.outbox.credit(0, unwanted);
            if !last {
                self.outbox.credit(id, unwanted);
            }
        }
        if last {
            stream.finish();
        }
        Ok(())
    }
}
