//! Content digests as the OCI image specification writes them: `sha256:` and 64 lower-case hex digits.

use std::fmt;
use std::io::{self, Read};
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

const PREFIX: &str = "sha256:";

/// A sha256 digest; names a blob, a manifest, an image (its configuration's digest) or an unpacked layer (its diffID).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest(String);

/// Why a string is no digest that Podwright handles.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no digest: it takes sha256: and 64 lower-case hex digits")]
pub struct InvalidDigest(String);

impl Digest {
    /// Makes the digest of a finished sha256 computation.
    pub fn from_sha256(hash: &[u8; 32]) -> Self {
        let mut text = String::with_capacity(PREFIX.len() + 64);
        text.push_str(PREFIX);
        for byte in hash {
            text.push_str(&format!("{byte:02x}"));
        }
        Self(text)
    }

    /// Computes the digest of bytes in memory.
    pub fn of(bytes: &[u8]) -> Self {
        Self::from_sha256(&Sha256::digest(bytes).into())
    }

    /// Computes the digest of all that a reader gives.
    ///
    /// # Errors
    /// The reader's.
    pub fn of_reader(mut reader: impl Read) -> io::Result<Self> {
        let (mut hash, mut buffer) = (Sha256::new(), vec![0; 64 << 10]);
        loop {
            match reader.read(&mut buffer) {
                Ok(0) => return Ok(Self::from_sha256(&hash.finalize().into())),
                Ok(read) => hash.update(&buffer[..read]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Returns the whole digest, algorithm included.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the 64 hex digits: a safe path component.
    pub fn hex(&self) -> &str {
        &self.0[PREFIX.len()..]
    }
}

impl FromStr for Digest {
    type Err = InvalidDigest;

    fn from_str(value: &str) -> Result<Self, InvalidDigest> {
        let digits = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        match value.strip_prefix(PREFIX) {
            Some(hex) if hex.len() == 64 && hex.bytes().all(digits) => Ok(Self(value.to_owned())),
            _ => Err(InvalidDigest(value.chars().take(160).collect())),
        }
    }
}

impl TryFrom<String> for Digest {
    type Error = InvalidDigest;

    fn try_from(value: String) -> Result<Self, InvalidDigest> {
        value.parse()
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.0
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_becomes_its_text_and_back() {
        let digest = Digest::from_sha256(&[0xab; 32]);
        assert_eq!(digest.hex(), "ab".repeat(32));
        assert_eq!(digest.as_str().parse::<Digest>().unwrap(), digest);
        assert_eq!(Digest::of_reader(&[7; 100_000][..]).unwrap(), Digest::of(&[7; 100_000]));
    }

    #[test]
    fn other_algorithms_and_paths_are_refused() {
        for bad in ["", "sha256:", "sha256:../../../../etc/passwd", "sha512:aa", &format!("sha256:{}", "F".repeat(64))]
        {
            assert!(bad.parse::<Digest>().is_err(), "{bad:?}");
        }
    }
}
