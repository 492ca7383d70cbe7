//! Parts: the bytes of a blob that have come so far, kept until the blob is unpacked. Who pulls it next, after a pull
//! that was given up or a daemon that was killed, goes on from there.
//!
//! A part is written as its bytes pass on to the unpacker, never synced, and gone when the layer is unpacked: in most
//! pulls none of it reaches the disk. Since all of a blob is hashed again whatever a part holds, one that a power cut
//! has damaged is found out, dropped, and fetched anew.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::{Buf, Bytes};
use podwright_base::Digest;
use podwright_registry::{Blob, Piece};
use tokio::sync::{OwnedMutexGuard, mpsc};

/// A blob shorter than this is fetched again as fast as its part is found.
const SMALLEST: u64 = 1 << 20;

/// Who is writing which part.
#[derive(Debug, Default)]
pub(crate) struct Parts {
    taken: Mutex<HashMap<Digest, Arc<tokio::sync::Mutex<()>>>>,
}

/// A blob's part, taken by one pull.
#[derive(Debug)]
pub(crate) struct Part {
    /// None: too short to be worth a file.
    file: Option<(File, PathBuf)>,
    /// What was there when it was taken.
    resumed: u64,
    _taken: OwnedMutexGuard<()>,
}

impl Parts {
    /// Takes a blob's part, once nobody else has it; `place` is where it is. With `always` there is one of a small blob
    /// too.
    pub(crate) async fn take(&self, blob: &Blob, place: PathBuf, always: bool) -> io::Result<Part> {
        let lock = {
            let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
            taken.retain(|_, lock| Arc::strong_count(lock) > 1);
            Arc::clone(taken.entry(blob.digest.clone()).or_default())
        };
        let guard = lock.lock_owned().await;
        if blob.size < SMALLEST && !always {
            return Ok(Part { file: None, resumed: 0, _taken: guard });
        }
        let size = blob.size;
        let opened =
            tokio::task::spawn_blocking(move || open(&place, size).map(|(file, length)| (file, place, length)));
        let (file, place, resumed) = opened.await.map_err(io::Error::other)??;
        Ok(Part { file: Some((file, place)), resumed, _taken: guard })
    }
}

fn open(place: &Path, size: u64) -> io::Result<(File, u64)> {
    let file = File::options().read(true).append(true).create(true).open(place)?;
    let length = file.metadata()?.len();
    if length <= size {
        return Ok((file, length));
    }
    file.set_len(0)?;
    Ok((file, 0))
}

impl Part {
    /// Returns the number of bytes that need not be fetched.
    pub(crate) fn resumed(&self) -> u64 {
        self.resumed
    }

    /// Tells whether nothing has come: then it is no use to whoever pulls next.
    pub(crate) fn is_empty(&self) -> bool {
        let length = self.file.as_ref().map(|(file, _)| file.metadata().map(|metadata| metadata.len()));
        !matches!(length, Some(Ok(1..)))
    }

    /// Removes it: its blob is unpacked, or it is not what it should be.
    pub(crate) fn remove(&self) {
        let Some((_, place)) = &self.file else { return };
        if let Err(error) = fs::remove_file(place) {
            // The collection of old parts will try again.
            tracing::warn!(path = %place.display(), %error, "a part of a blob that is not needed stays");
        }
    }
}

/// What the unpacker reads: the part, then what comes, which goes into the part on its way.
#[derive(Debug)]
pub(crate) struct Feed {
    part: Part,
    replayed: u64,
    receiver: mpsc::Receiver<Piece>,
    current: Bytes,
    ended: bool,
    given_up: bool,
}

impl Feed {
    pub(crate) fn new(part: Part, receiver: mpsc::Receiver<Piece>) -> Self {
        Self { part, replayed: 0, receiver, current: Bytes::new(), ended: false, given_up: false }
    }

    /// Returns the part, and whether the transfer was given up before the blob's end.
    pub(crate) fn into_part(self) -> (Part, bool) {
        (self.part, self.given_up)
    }

    fn next(&mut self) -> io::Result<()> {
        match self.receiver.blocking_recv() {
            Some(Piece::Bytes(bytes)) => {
                if let Some((file, _)) = &mut self.part.file {
                    file.write_all(&bytes)?;
                }
                self.current = bytes;
            }
            Some(Piece::End) => self.ended = true,
            None => {
                self.given_up = true;
                return Err(io::Error::other("the transfer was given up"));
            }
        }
        Ok(())
    }
}

impl Read for Feed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if let Some((file, place)) = &self.part.file
            && self.replayed < self.part.resumed
        {
            let left = usize::try_from(self.part.resumed - self.replayed).unwrap_or(usize::MAX);
            let most = left.min(buffer.len());
            let read = file.read_at(&mut buffer[..most], self.replayed)?;
            if read == 0 && most > 0 {
                return Err(io::Error::other(format!("{} was cut while it was read", place.display())));
            }
            self.replayed += read as u64;
            return Ok(read);
        }
        while self.current.is_empty() && !self.ended {
            self.next()?;
        }
        let length = self.current.len().min(buffer.len());
        self.current.copy_to_slice(&mut buffer[..length]);
        Ok(length)
    }
}
