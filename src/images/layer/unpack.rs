//! From a blob's byte stream to a layer directory: hash, decompress, hash again, apply; all in one pass.

use std::io::{self, BufReader, Chain, Cursor, Read};
use std::path::Path;

use flate2::bufread::MultiGzDecoder;
use podwright_base::Digest;

use crate::amount::Amount;
use crate::apply;
use crate::apply_error::ApplyError;
use crate::gzip::Gunzip;
use crate::hashed::Hashed;
use crate::survey::{self, Memory};
use crate::tree::Tree;

const BUFFER: usize = 128 << 10;
const GZIP: &[u8] = &[0x1f, 0x8b];
const ZSTD: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];
/// zstd:chunked may begin with a skippable frame: 0x184D2A50 to 0x184D2A5F, little-endian.
const ZSTD_SKIPPABLE: &[u8] = &[0x2a, 0x4d, 0x18];

/// Why a layer was not unpacked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UnpackError {
    /// The blob is not what the manifest names.
    #[error("the blob's digest is {found}, not {expected}")]
    Digest {
        /// What the manifest says.
        expected: Digest,
        /// What came.
        found: Digest,
    },
    /// The blob is what the manifest names, but its contents are not what the image's configuration names.
    #[error("the layer's diffID is {found}, not {expected}")]
    DiffId {
        /// What the image's configuration says.
        expected: Digest,
        /// What came.
        found: Digest,
    },
    /// The blob cannot be read to its end.
    #[error("read the blob")]
    Read(#[source] io::Error),
    /// The finished directory cannot be listed.
    #[error("write the layer's listing")]
    Listing(#[source] io::Error),
    /// The archive or one of its entries.
    #[error(transparent)]
    Apply(ApplyFailure),
}

/// Why an archive could not be applied; says which entry.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct ApplyFailure(ApplyError);

/// What a layer has turned out to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unpacked {
    /// What it takes on disk.
    pub amount: Amount,
    /// The digest of its listing.
    pub listing: Digest,
    /// Whether an entry names the root; else its attributes are the defaults.
    pub names_root: bool,
    /// Whether all that is in layers below is hidden: the root is marked opaque, which overlayfs does not look for.
    pub hides_all: bool,
    /// Directories other than the root whose attributes are those of layers below (see [`crate::Origin::Implied`]).
    pub implied: u64,
    /// Hard links whose targets are in layers below.
    pub unresolved: u64,
}

/// What a layer has to turn out to be.
#[derive(Debug, Clone)]
pub struct Expected {
    /// Of the bytes as they come; a file's own bytes that nobody named have none.
    pub blob: Option<Digest>,
    /// Of the bytes decompressed.
    pub diff_id: Digest,
}

/// Unpacks a blob into an empty directory, checks both its digests and writes the listing of the directory.
///
/// The directory holds unverified files until this returns; the caller throws it and the listing away on any error.
///
/// # Errors
/// When the stream breaks, is no layer, or is not the expected one.
pub fn unpack(blob: impl Read, expected: &Expected, directory: &Path, listing: &Path) -> Result<Unpacked, UnpackError> {
    let (applied, found) = apply_stream(blob, expected.blob.as_ref(), directory, |raw| decompress_digested(raw))?;
    if found != expected.diff_id {
        return Err(UnpackError::DiffId { expected: expected.diff_id.clone(), found });
    }
    applied.list(directory, listing)
}

/// What was applied to a directory, which has no listing yet.
pub(crate) struct Applied {
    amount: Amount,
    memory: Memory,
}

impl Applied {
    /// Writes the directory's listing.
    pub(crate) fn list(self, directory: &Path, listing: &Path) -> Result<Unpacked, UnpackError> {
        let survey = survey::survey(directory, &self.memory, listing).map_err(UnpackError::Listing)?;
        Ok(Unpacked {
            amount: self.amount,
            listing: survey.listing,
            names_root: survey.names_root,
            hides_all: survey.hides_all,
            implied: survey.implied,
            unresolved: self.memory.links.len() as u64,
        })
    }
}

/// Applies what a blob holds and checks the blob's digest; returns the digest of what was applied, too.
pub(crate) fn apply_stream<R: Read>(
    blob: R,
    expected: Option<&Digest>,
    directory: &Path,
    archive: impl for<'a> FnOnce(&'a mut Hashed<R>) -> io::Result<Box<dyn Read + 'a>>,
) -> Result<(Applied, Digest), UnpackError> {
    let tree = Tree::open(directory).map_err(|error| UnpackError::Apply(ApplyFailure(ApplyError::Root(error))))?;
    let mut raw = Hashed::new(blob);
    let applied = archive(&mut raw).map_err(UnpackError::Read).and_then(|plain| {
        let mut plain = Hashed::new(plain);
        let applied = apply::apply(&mut plain, &tree).map_err(|error| UnpackError::Apply(ApplyFailure(error)))?;
        let (amount, memory) = applied;
        // What follows the archive's end is no file, but is hashed.
        io::copy(&mut plain, &mut io::sink()).map_err(UnpackError::Read)?;
        Ok((Applied { amount, memory }, plain.digest()))
    });
    let stream_is_bad = match &applied {
        Ok(_) | Err(UnpackError::Read(_)) => true,
        Err(UnpackError::Apply(ApplyFailure(error))) => error.is_stream(),
        Err(_) => false,
    };
    // When the bytes make no sense, the reason may be that they are the wrong ones. A failing source says so itself.
    if stream_is_bad && let Some(expected) = expected {
        match io::copy(&mut raw, &mut io::sink()) {
            Ok(_) => check(raw.digest(), expected)?,
            Err(error) if applied.is_ok() => return Err(UnpackError::Read(error)),
            Err(_) => {}
        }
    }
    applied
}

fn check(found: Digest, expected: &Digest) -> Result<(), UnpackError> {
    if found == *expected { Ok(()) } else { Err(UnpackError::Digest { expected: expected.clone(), found }) }
}

/// Decompresses by what the bytes are: media types are wrong about compression often enough, and digests decide.
///
/// # Errors
/// When the first bytes cannot be read.
pub fn decompress<'a>(blob: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
    decompress_by(blob, |gzip| Box::new(BufReader::with_capacity(BUFFER, MultiGzDecoder::new(gzip))))
}

/// Decompresses without a look at gzip's own checksum: a digest of what comes out will be compared.
fn decompress_digested<'a>(blob: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
    decompress_by(blob, |gzip| Box::new(BufReader::with_capacity(BUFFER, Gunzip::new(gzip))))
}

/// A blob's stream, its head put back.
type Whole<R> = BufReader<Chain<Cursor<Vec<u8>>, R>>;

fn decompress_by<'a, R: Read + 'a>(
    mut blob: R,
    gunzip: impl FnOnce(Whole<R>) -> Box<dyn Read + 'a>,
) -> io::Result<Box<dyn Read + 'a>> {
    let mut head = Vec::with_capacity(4);
    blob.by_ref().take(4).read_to_end(&mut head)?;
    let (gzip, zstd) = (is_gzip(&head), is_zstd(&head));
    let whole = BufReader::with_capacity(BUFFER, Cursor::new(head).chain(blob));
    Ok(if gzip {
        gunzip(whole)
    } else if zstd {
        Box::new(BufReader::with_capacity(BUFFER, zstd::stream::read::Decoder::with_buffer(whole)?))
    } else {
        Box::new(whole)
    })
}

fn is_gzip(head: &[u8]) -> bool {
    head.starts_with(GZIP)
}

fn is_zstd(head: &[u8]) -> bool {
    head.starts_with(ZSTD) || head.get(1..4) == Some(ZSTD_SKIPPABLE)
}

/// Tells by its first four bytes whether a stream is compressed.
pub fn is_compressed(head: &[u8]) -> bool {
    is_gzip(head) || is_zstd(head)
}
