//! The hash of a file's bytes by which damage is found: computed as they are written, and again as they are read back.
//!
//! It is XXH3-128 over the file's blocks of 4 KiB in which a byte is not zero, the last one as short as it is; where
//! blocks are left out, the offset at which it goes on (8 bytes, little-endian) stands in their place. So a hole and
//! written zeros are the same, and neither costs anything: an archive may claim a file of eight exbibytes.

use twox_hash::xxhash3_128::Hasher;

const BLOCK: usize = 4096;
const ZEROS: [u8; BLOCK] = [0; BLOCK];

/// The hash of a file's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Contents(pub(crate) [u8; 16]);

/// Computes [`Contents`] of a file whose bytes come in rising order.
pub(crate) struct ContentHasher {
    /// Made for the first whole block: most files have none.
    hash: Option<Hasher>,
    /// Where in the file the next byte belongs.
    at: u64,
    /// The begun block.
    partial: Box<[u8; BLOCK]>,
    filled: usize,
    /// Whether blocks were left out since the last one.
    skipped: bool,
}

impl ContentHasher {
    pub(crate) fn new() -> Self {
        Self { hash: None, at: 0, partial: Box::new(ZEROS), filled: 0, skipped: false }
    }

    /// Begins another file.
    pub(crate) fn restart(&mut self) {
        (self.hash, self.at, self.filled, self.skipped) = (None, 0, 0, false);
    }

    /// Takes bytes of the file; those between the last ones and `offset` are zeros.
    pub(crate) fn update(&mut self, offset: u64, mut bytes: &[u8]) {
        self.zeros(offset);
        if self.filled > 0 {
            let (head, rest) = bytes.split_at(bytes.len().min(BLOCK - self.filled));
            self.fill(head);
            bytes = rest;
        }
        let (whole, rest) = bytes.split_at(bytes.len() - bytes.len() % BLOCK);
        self.blocks(whole);
        self.fill(rest);
    }

    /// Returns the hash of a file that is `size` bytes long.
    pub(crate) fn finish(&mut self, size: u64) -> Contents {
        self.zeros(size);
        let last = &self.partial[..self.filled];
        if last == &ZEROS[..self.filled] {
            let hash = self.hash.as_ref().map_or_else(|| Hasher::oneshot(&[]), Hasher::finish_128);
            return Contents(hash.to_le_bytes());
        }
        if self.hash.is_none() && !self.skipped {
            return Contents(Hasher::oneshot(last).to_le_bytes());
        }
        let hash = self.hash.get_or_insert_with(Hasher::new);
        if self.skipped {
            hash.write(&(self.at - self.filled as u64).to_le_bytes());
        }
        hash.write(&self.partial[..self.filled]);
        Contents(hash.finish_128().to_le_bytes())
    }

    /// Takes what does not end the begun block, or just ends it.
    fn fill(&mut self, bytes: &[u8]) {
        self.partial[self.filled..self.filled + bytes.len()].copy_from_slice(bytes);
        self.filled += bytes.len();
        self.at += bytes.len() as u64;
        if self.filled == BLOCK {
            self.filled = 0;
            self.at -= BLOCK as u64;
            let block = *self.partial;
            self.blocks(&block);
        }
    }

    /// Goes on to `offset`: ends the begun block, leaves out whole ones, and begins the one that `offset` is in.
    fn zeros(&mut self, offset: u64) {
        if self.filled > 0 && self.at < offset {
            let room = BLOCK - self.filled;
            self.fill(&ZEROS[..usize::try_from(offset - self.at).map_or(room, |missing| missing.min(room))]);
        }
        if self.at < offset {
            let begun = offset % BLOCK as u64;
            self.skipped |= offset - begun > self.at;
            self.at = offset - begun;
            self.fill(&ZEROS[..usize::try_from(begun).unwrap_or_default()]);
        }
    }

    /// Takes whole blocks.
    fn blocks(&mut self, bytes: &[u8]) {
        let mut from = 0;
        while from < bytes.len() {
            let is_zero = |at: usize| bytes[at..at + BLOCK] == ZEROS;
            if is_zero(from) {
                self.skipped = true;
                from += BLOCK;
                continue;
            }
            let mut to = from + BLOCK;
            while to < bytes.len() && !is_zero(to) {
                to += BLOCK;
            }
            let hash = self.hash.get_or_insert_with(Hasher::new);
            if std::mem::take(&mut self.skipped) {
                hash.write(&(self.at + from as u64).to_le_bytes());
            }
            hash.write(&bytes[from..to]);
            from = to;
        }
        self.at += bytes.len() as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The definition, word for word.
    fn plain(bytes: &[u8]) -> Contents {
        let mut input = Vec::new();
        let mut skipped = false;
        for (index, block) in bytes.chunks(BLOCK).enumerate() {
            if block.iter().all(|byte| *byte == 0) {
                skipped = true;
                continue;
            }
            if std::mem::take(&mut skipped) {
                input.extend_from_slice(&((index * BLOCK) as u64).to_le_bytes());
            }
            input.extend_from_slice(block);
        }
        Contents(Hasher::oneshot(&input).to_le_bytes())
    }

    #[test]
    fn a_huge_hole_costs_nothing_and_counts() {
        let mut hasher = ContentHasher::new();
        hasher.update(1 << 62, b"x");
        let far = hasher.finish((1 << 62) + 1);
        hasher.restart();
        hasher.update(1 << 61, b"x");
        assert_ne!(hasher.finish((1 << 61) + 1), far);
        hasher.restart();
        assert_eq!(hasher.finish(u64::MAX), plain(b""));
    }

    proptest! {
        #[test]
        fn pieces_holes_and_written_zeros_are_alike(
            runs in proptest::collection::vec((0_usize..9000, 0_usize..9000, 0_usize..5000, any::<bool>()), 0..8)
        ) {
            let (mut whole, mut hasher) = (Vec::new(), ContentHasher::new());
            hasher.update(0, b"another file");
            hasher.restart();
            for (hole, data, piece, written) in runs {
                let offset = whole.len();
                whole.resize(offset + hole, 0);
                if written {
                    hasher.update(offset as u64, &whole[offset..]);
                }
                let offset = whole.len();
                whole.extend((0..data).map(|byte| (byte % 251 + 1) as u8));
                let (head, tail) = whole[offset..].split_at(piece.min(data));
                hasher.update(offset as u64, head);
                hasher.update((offset + head.len()) as u64, tail);
            }
            whole.extend_from_slice(&[0; 100]);
            prop_assert_eq!(hasher.finish(whole.len() as u64), plain(&whole));
        }
    }
}
