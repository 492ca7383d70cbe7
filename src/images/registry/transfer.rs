//! A blob's way to its reader: in order, over one connection, and over more when that one is too slow for it.
//!
//! One request streams the blob from where the reader is, and goes on where it broke off, at whichever endpoint answers.
//! When the reader is found waiting most of the time, the ranges ahead of it are fetched beside that stream, as far as
//! the node's limits allow, and are handed on in their turn:
//! ```text
//!   blob   |── received ──|── first connection ──|── range ──|── range ──|   not asked for yet   |
//!                         reader                 the stream ends here: the ranges take over
//! ```
//! A fast registry therefore sees one request for each layer, and one that knows no ranges is never worse off.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use http::StatusCode;
use http::header::CONTENT_RANGE;
use reqwest::Response;
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use crate::error::{RegistryError, What};
use crate::exchange::{Ask, Capability};
use crate::limits::Permit;
use crate::session::{Blob, Session};

/// A transfer that brought this much before it broke is as good as new.
const PROGRESS: u64 = 1 << 20;
/// Pieces after which it is judged whether the reader is kept waiting.
const JUDGED: u32 = 64;

/// A piece of a blob on its way to its reader; a channel that closes before the end is a transfer given up.
#[derive(Debug)]
pub enum Piece {
    /// The next bytes.
    Bytes(Bytes),
    /// All have come.
    End,
}

/// Why a stream stopped.
#[derive(Debug)]
pub enum Stop {
    /// The reader takes no more: it knows why.
    Refused,
    /// The registry, or the way to it.
    Registry(RegistryError),
}

impl From<RegistryError> for Stop {
    fn from(error: RegistryError) -> Self {
        Self::Registry(error)
    }
}

/// How blobs are fetched in ranges.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ranges {
    /// Bytes of one range; 0: no ranges.
    pub(crate) bytes: u64,
    /// Ranges of one blob in flight.
    pub(crate) most: usize,
}

/// Where the reader takes its bytes from, and who wants to know how many there were.
pub struct Reader<'a> {
    /// The pieces, in order.
    pub sink: mpsc::Sender<Piece>,
    /// Is told the number of bytes that are there.
    pub progress: &'a (dyn Fn(u64) + Sync),
}

impl std::fmt::Debug for Reader<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reader").field("sink", &self.sink).finish_non_exhaustive()
    }
}

impl Session {
    /// Streams a blob to a reader that has its first `offset` bytes; the length is checked here, the digest by who reads
    /// it.
    ///
    /// # Errors
    /// When no endpoint gives it to its end, or the reader has dropped its end of the channel.
    pub async fn stream(self: &Arc<Self>, blob: &Blob, offset: u64, reader: &Reader<'_>) -> Result<(), Stop> {
        let _permit = self.transport().limits.acquire(self.registry()).await;
        let ranges = self.transport().ranges;
        let hunger = Hunger::default();
        let mut transfer = Transfer {
            session: self,
            blob,
            received: offset,
            reader,
            hunger,
            ahead: None,
            takes_ranges: ranges.bytes > 0,
        };
        transfer.run().await?;
        reader.sink.send(Piece::End).await.map_err(|_| Stop::Refused)
    }

    fn blob_ask<'a>(&self, what: &'a What, blob: &Blob, offset: u64, end: Option<u64>) -> Ask<'a> {
        Ask { path: self.blob_path(blob), what, accept: None, offset, end, takes: Capability::Pull }
    }

    /// Fetches one range, all of it.
    async fn range(&self, blob: &Blob, start: u64, end: u64) -> Result<Vec<Bytes>, RegistryError> {
        let mut patience = self.transport().patience();
        loop {
            match self.range_once(blob, start, end).await {
                Err(error) if patience.again(&error).await => {}
                result => return result,
            }
        }
    }

    async fn range_once(&self, blob: &Blob, start: u64, end: u64) -> Result<Vec<Bytes>, RegistryError> {
        let what = What::Blob(blob.digest.clone());
        let (host, mut response) = self.round(&self.blob_ask(&what, blob, start, Some(end))).await?;
        if response.status() != StatusCode::PARTIAL_CONTENT || range_start(&response) != Some(start) {
            return Err(RegistryError::Range { host, what });
        }
        let (mut pieces, mut left) = (Vec::new(), end - start);
        while left > 0 {
            let Some(piece) = self.chunk(&host, &mut response).await? else {
                return Err(RegistryError::Range { host, what });
            };
            left = left
                .checked_sub(piece.len() as u64)
                .ok_or_else(|| RegistryError::Range { host: host.clone(), what: what.clone() })?;
            pieces.push(piece);
        }
        Ok(pieces)
    }
}

/// One blob on its way.
struct Transfer<'a> {
    session: &'a Arc<Session>,
    blob: &'a Blob,
    received: u64,
    reader: &'a Reader<'a>,
    hunger: Hunger,
    ahead: Option<Ahead>,
    /// Ranges have not failed.
    takes_ranges: bool,
}

impl Transfer<'_> {
    async fn run(&mut self) -> Result<(), Stop> {
        let mut patience = self.session.transport().patience();
        (self.reader.progress)(self.received);
        while self.received < self.blob.size {
            let before = self.received;
            match self.connection().await {
                Ok(()) => self.ranges().await?,
                Err(Stop::Registry(error)) => {
                    if self.received - before >= PROGRESS {
                        patience = self.session.transport().patience();
                    }
                    if !patience.again(&error).await {
                        return Err(error.into());
                    }
                }
                Err(Stop::Refused) => return Err(Stop::Refused),
            }
        }
        Ok(())
    }

    /// Streams over one connection, to the end or to where the ranges begin.
    async fn connection(&mut self) -> Result<(), Stop> {
        let what = What::Blob(self.blob.digest.clone());
        let (host, mut response) =
            self.session.round(&self.session.blob_ask(&what, self.blob, self.received, None)).await?;
        let size = self.blob.size;
        let length = |found| RegistryError::Length { host: host.clone(), what: what.clone(), expected: size, found };
        let partial = response.status() == StatusCode::PARTIAL_CONTENT;
        let start = if partial { range_start(&response) } else { Some(0) };
        // A server may send all of it again: what has come already is passed over.
        let mut skip = match start {
            Some(start) if start <= self.received => self.received - start,
            _ => return Err(RegistryError::Range { host, what }.into()),
        };
        if let Some(announced) = response.content_length().filter(|_| !partial)
            && announced != size
        {
            return Err(length(announced).into());
        }
        while let Some(mut piece) = self.session.chunk(&host, &mut response).await? {
            let skipped = skip.min(piece.len() as u64);
            skip -= skipped;
            let mut piece = piece.split_off(usize::try_from(skipped).unwrap_or(piece.len()));
            if let Some(ahead) = &self.ahead {
                piece.truncate(usize::try_from(ahead.start - self.received).unwrap_or(usize::MAX));
            }
            if self.received + piece.len() as u64 > size {
                return Err(length(self.received + piece.len() as u64).into());
            }
            self.hand_on(piece).await?;
            if self.ahead.as_ref().is_some_and(|ahead| ahead.start == self.received) {
                return Ok(());
            }
            self.look_ahead();
        }
        // A connection that broke says so; this answer just ended.
        if self.received < size { Err(length(self.received).into()) } else { Ok(()) }
    }

    async fn hand_on(&mut self, piece: Bytes) -> Result<(), Stop> {
        if piece.is_empty() {
            return Ok(());
        }
        let sink = &self.reader.sink;
        self.hunger.note(sink.capacity() == sink.max_capacity());
        self.received += piece.len() as u64;
        (self.reader.progress)(self.received);
        sink.send(Piece::Bytes(piece)).await.map_err(|_| Stop::Refused)
    }

    /// Begins to fetch ranges when the reader waits more than it reads and there is enough left to be worth it.
    fn look_ahead(&mut self) {
        let ranges = self.session.transport().ranges;
        let left = self.blob.size - self.received;
        if self.ahead.is_some() || !self.takes_ranges || left <= 2 * ranges.bytes || !self.hunger.is_great() {
            return;
        }
        let start = self.received + ranges.bytes;
        let mut ahead = Ahead { start, next: start, width: 1, fetching: VecDeque::new() };
        if ahead.fill(self.session, self.blob) {
            tracing::debug!(blob = %self.blob.digest, start, "the layer comes slowly: its rest is fetched in ranges");
            self.ahead = Some(ahead);
        }
    }

    /// Hands on the ranges that were fetched ahead, and fetches more of them meanwhile.
    async fn ranges(&mut self) -> Result<(), Stop> {
        let Some(mut ahead) = self.ahead.take() else { return Ok(()) };
        while let Some(range) = ahead.fetching.pop_front() {
            if !range.is_finished() {
                ahead.width = (ahead.width + 1).min(self.session.transport().ranges.most);
            }
            ahead.fill(self.session, self.blob);
            let pieces = match range.await {
                Ok(Ok(pieces)) => pieces,
                Ok(Err(error)) => {
                    let error: &dyn std::error::Error = &error;
                    tracing::debug!(error, blob = %self.blob.digest, "its rest is fetched in one piece");
                    self.takes_ranges = false;
                    return Ok(());
                }
                Err(error) => match error.try_into_panic() {
                    Ok(panic) => std::panic::resume_unwind(panic),
                    // The runtime is going down.
                    Err(_) => return Ok(()),
                },
            };
            for piece in pieces {
                self.hand_on(piece).await?;
            }
        }
        self.hunger = Hunger::default();
        Ok(())
    }
}

/// The ranges behind `start`, in flight or waiting for their turn.
struct Ahead {
    start: u64,
    /// The first byte that was not asked for.
    next: u64,
    width: usize,
    fetching: VecDeque<AbortOnDropHandle<Result<Vec<Bytes>, RegistryError>>>,
}

impl Ahead {
    /// Asks for as many ranges as fit, and tells whether any is in flight.
    fn fill(&mut self, session: &Arc<Session>, blob: &Blob) -> bool {
        while self.fetching.len() < self.width && self.next < blob.size {
            let Some(permit) = session.transport().limits.try_acquire(session.registry()) else { break };
            let (start, end) = (self.next, (self.next + session.transport().ranges.bytes).min(blob.size));
            self.next = end;
            self.fetching.push_back(fetch(Arc::clone(session), blob.clone(), start, end, permit));
        }
        !self.fetching.is_empty()
    }
}

fn fetch(
    session: Arc<Session>,
    blob: Blob,
    start: u64,
    end: u64,
    permit: Permit,
) -> AbortOnDropHandle<Result<Vec<Bytes>, RegistryError>> {
    AbortOnDropHandle::new(tokio::spawn(async move {
        let _permit = permit;
        session.range(&blob, start, end).await
    }))
}

/// How often the reader had taken everything before the next piece came.
#[derive(Default)]
struct Hunger {
    pieces: u32,
    waited: u32,
}

impl Hunger {
    fn note(&mut self, waits: bool) {
        if self.pieces == JUDGED {
            *self = Self::default();
        }
        self.pieces += 1;
        self.waited += u32::from(waits);
    }

    fn is_great(&self) -> bool {
        self.pieces == JUDGED && self.waited > JUDGED / 4 * 3
    }
}

/// `Content-Range: bytes 5-9/10` begins at 5.
fn range_start(response: &Response) -> Option<u64> {
    let range = response.headers().get(CONTENT_RANGE)?.to_str().ok()?;
    range.strip_prefix("bytes ")?.split('-').next()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_reader_that_mostly_waits_is_hungry() {
        let judge = |waits: &dyn Fn(u32) -> bool| {
            let mut hunger = Hunger::default();
            (0..JUDGED).for_each(|piece| hunger.note(waits(piece)));
            hunger.is_great()
        };
        assert!(judge(&|_| true));
        assert!(!judge(&|piece| piece % 2 == 0));
        assert!(!Hunger::default().is_great());
    }
}
