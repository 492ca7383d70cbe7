//! Bytes and numbers from a seed: the same on every machine.
//!
//! What a compressor finds in real files is what decides how long a decompressor takes: repeats of what was there
//! before, near ones more often than far ones, between letters of a skewed alphabet. So that is what is made here.

/// How far back repeats reach; gzip's window.
const WINDOW: usize = 32 << 10;

/// A generator of numbers (xorshift64*).
#[derive(Debug)]
pub(crate) struct Numbers(u64);

impl Numbers {
    /// Begins a sequence of its own for each seed.
    pub(crate) fn new(seed: u64) -> Self {
        // Small seeds would begin alike; zero would stay zero.
        let mut numbers = Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
        numbers.next();
        numbers
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 16
    }

    /// A number below `end`, which is not zero.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    /// A number from one to below `end`, each power of two as likely as the next.
    pub(crate) fn magnitude(&mut self, end: u64) -> u64 {
        let power = self.below(u64::from(end.ilog2()));
        ((1 << power) + self.below(1 << power)).min(end - 1)
    }
}

/// What a file holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Content {
    /// Sources, scripts, documents.
    Text,
    /// Programs and libraries.
    Program,
    /// What is compressed already.
    Packed,
}

impl Content {
    /// In a hundred tokens, how many are repeats; and the bound on how many bytes a repeat may have beyond three.
    fn repeats(self) -> (u64, u64) {
        match self {
            Self::Text => (66, 32),
            Self::Program => (60, 30),
            Self::Packed => (0, 2),
        }
    }

    fn letter(self, numbers: &mut Numbers) -> u8 {
        const TEXT: &[u8; 64] = b"etaoinshrdlucmfwypvbgkqjxz \n().,_;=\"-{}/0123456789ETAOINSRC:*<>#";
        #[allow(clippy::cast_possible_truncation)] // 64 letters and 256 bytes
        match self {
            // The lesser of two numbers makes the first letters the likely ones.
            Self::Text => TEXT[numbers.below(64).min(numbers.below(64)) as usize],
            Self::Program => (numbers.below(256).min(numbers.below(256)) as u8).wrapping_mul(0x49),
            Self::Packed => numbers.next() as u8,
        }
    }
}

/// Fills `bytes` with `length` bytes of a kind.
pub(crate) fn fill(bytes: &mut Vec<u8>, length: usize, content: Content, numbers: &mut Numbers) {
    bytes.clear();
    let (share, longest) = content.repeats();
    while bytes.len() < length {
        if bytes.len() > 4 && numbers.below(100) < share {
            let window = bytes.len().min(WINDOW) as u64;
            #[allow(clippy::cast_possible_truncation)] // within a window
            let (distance, run) = (numbers.magnitude(window) as usize, 3 + numbers.magnitude(longest) as usize);
            let start = bytes.len() - distance;
            for at in start..start + run {
                bytes.push(bytes[at]);
            }
        } else {
            bytes.push(content.letter(numbers));
        }
    }
    bytes.truncate(length);
}
