//! Public keys: PEM with a SubjectPublicKeyInfo (RFC 5280), as `cosign`, `skopeo` and `openssl` write them.

use std::fmt;

use der::asn1::{AnyRef, BitStringRef, ObjectIdentifier, UintRef};
use der::{Decode, Reader, SliceReader};
use ring::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P384_SHA256_ASN1, ECDSA_P384_SHA384_ASN1, ED25519, RSA_PKCS1_2048_8192_SHA256,
    UnparsedPublicKey, VerificationAlgorithm,
};
use rustls_pki_types::SubjectPublicKeyInfoDer;
use rustls_pki_types::pem::PemObject;
use spki::SubjectPublicKeyInfo;

const RSA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");
const EC: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");
const EDWARDS_25519: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.101.112");
const P256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.3.1.7");
const P384: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.132.0.34");
/// Bounds on an RSA key, in bits: a shorter one can be broken, a longer one is not verified.
const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=8192;

type Algorithms = Vec<&'static dyn VerificationAlgorithm>;

/// A key that signatures are verified with.
pub(crate) struct PublicKey {
    /// Where it comes from: a path, or a place in the policy.
    origin: String,
    /// What it may have signed with; nothing beside a signature says which hash was used.
    algorithms: Algorithms,
    bytes: Vec<u8>,
}

/// Why a text is no key that can be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// No such section.
    #[error("it has no PEM section \"PUBLIC KEY\": `openssl pkey -pubout` writes one from a private key")]
    None,
    /// More than one, of which only the first would count elsewhere.
    #[error("it has {0} public keys: give each a file of its own, and name them in keyPaths")]
    Several(usize),
    /// The section does not parse.
    #[error("its public key does not parse")]
    Malformed,
    /// A kind of key that is not verified.
    #[error("its key ({0}) is not supported: use ECDSA with P-256 or P-384, Ed25519, or RSA of 2048 to 8192 bits")]
    Unsupported(String),
}

impl PublicKey {
    /// Parses the one public key of a PEM text.
    pub(crate) fn parse(pem: &[u8], origin: String) -> Result<Self, KeyError> {
        let sections = SubjectPublicKeyInfoDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>();
        let sections = sections.map_err(|_| KeyError::Malformed)?;
        let section = match sections.as_slice() {
            [] => return Err(KeyError::None),
            [section] => section,
            several => return Err(KeyError::Several(several.len())),
        };
        let key = SubjectPublicKeyInfo::<AnyRef<'_>, BitStringRef<'_>>::from_der(section);
        let key = key.map_err(|_| KeyError::Malformed)?;
        let bytes = key.subject_public_key.as_bytes().ok_or(KeyError::Malformed)?;
        let algorithms = algorithms(&key.algorithm, bytes)?;
        Ok(Self { origin, algorithms, bytes: bytes.to_vec() })
    }

    /// Tells whether this key made a signature of a message.
    pub(crate) fn made(&self, signature: &[u8], message: &[u8]) -> bool {
        self.algorithms
            .iter()
            .any(|algorithm| UnparsedPublicKey::new(*algorithm, &self.bytes).verify(message, signature).is_ok())
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.origin)
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PublicKey").field("origin", &self.origin).finish_non_exhaustive()
    }
}

fn algorithms(named: &spki::AlgorithmIdentifier<AnyRef<'_>>, key: &[u8]) -> Result<Algorithms, KeyError> {
    match named.oid {
        RSA => match rsa_bits(key)? {
            bits if RSA_BITS.contains(&bits) => Ok(vec![&RSA_PKCS1_2048_8192_SHA256]),
            bits => Err(KeyError::Unsupported(format!("RSA of {bits} bits"))),
        },
        EC => match named.parameters_oid().map_err(|_| KeyError::Malformed)? {
            P256 => uncompressed(key, 32).map(|()| -> Algorithms { vec![&ECDSA_P256_SHA256_ASN1] }),
            // cosign 2 and containers/image hash with SHA-256 whatever the curve, newer ones with the curve's size.
            P384 => {
                uncompressed(key, 48).map(|()| -> Algorithms { vec![&ECDSA_P384_SHA384_ASN1, &ECDSA_P384_SHA256_ASN1] })
            }
            other => Err(KeyError::Unsupported(format!("ECDSA with the curve {other}"))),
        },
        EDWARDS_25519 if key.len() == 32 => Ok(vec![&ED25519]),
        EDWARDS_25519 => Err(KeyError::Malformed),
        other => Err(KeyError::Unsupported(format!("algorithm {other}"))),
    }
}

/// Checks that a point is written as its two coordinates (SEC 1, 2.3.3), the one form that is verified with.
fn uncompressed(point: &[u8], coordinate: usize) -> Result<(), KeyError> {
    match point {
        [4, coordinates @ ..] if coordinates.len() == 2 * coordinate => Ok(()),
        [2 | 3, ..] => Err(KeyError::Unsupported("ECDSA with a compressed point".to_owned())),
        _ => Err(KeyError::Malformed),
    }
}

/// The length of an RSAPublicKey's modulus (RFC 8017, A.1.1).
fn rsa_bits(key: &[u8]) -> Result<usize, KeyError> {
    let modulus = SliceReader::new(key).and_then(|mut reader| {
        reader.sequence(|fields| {
            let modulus = UintRef::decode(fields)?;
            UintRef::decode(fields)?;
            Ok::<_, der::Error>(modulus)
        })
    });
    let modulus = modulus.map_err(|_| KeyError::Malformed)?;
    let leading = modulus.as_bytes().first().map_or(8, |byte| byte.leading_zeros() as usize);
    Ok(modulus.as_bytes().len() * 8 - leading)
}

#[cfg(test)]
mod tests {
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;

    use super::*;

    fn parse(pem: &str) -> Result<PublicKey, KeyError> {
        PublicKey::parse(pem.as_bytes(), "k".to_owned())
    }

    /// Keys and signatures by `openssl genpkey`, `openssl pkey -pubout`, `openssl dgst -sign` and `openssl pkeyutl -sign`.
    #[test]
    fn what_openssl_signed_is_verified() {
        let payload = include_bytes!("testdata/payload.json");
        for (pem, signature) in [
            (include_str!("testdata/p256.pub"), include_str!("testdata/p256.sig")),
            (include_str!("testdata/p384.pub"), include_str!("testdata/p384.sig")),
            (include_str!("testdata/p384.pub"), include_str!("testdata/p384-sha256.sig")),
            (include_str!("testdata/rsa2048.pub"), include_str!("testdata/rsa2048.sig")),
            (include_str!("testdata/ed25519.pub"), include_str!("testdata/ed25519.sig")),
        ] {
            let (key, mut signature) = (parse(pem).unwrap(), STANDARD.decode(signature).unwrap());
            assert!(key.made(&signature, payload), "{pem}");
            assert!(!key.made(&signature, &payload[1..]), "{pem}");
            assert!(!parse(include_str!("testdata/other.pub")).unwrap().made(&signature, payload), "{pem}");
            *signature.last_mut().unwrap() ^= 1;
            assert!(!key.made(&signature, payload), "{pem}");
            assert!(!key.made(b"", payload), "{pem}");
        }
    }

    #[test]
    fn keys_that_are_not_verified_with_are_refused_by_name() {
        let unsupported = |pem, word: &str| {
            let error = parse(pem).unwrap_err();
            assert!(matches!(&error, KeyError::Unsupported(what) if what.contains(word)), "{error}");
        };
        unsupported(include_str!("testdata/rsa1024.pub"), "1024");
        unsupported(include_str!("testdata/p521.pub"), "1.3.132.0.35");
        assert_eq!(parse("").unwrap_err(), KeyError::None);
        let one = include_str!("testdata/p256.pub");
        assert_eq!(parse(&one.replace("PUBLIC", "PRIVATE")).unwrap_err(), KeyError::None);
        assert_eq!(parse(&format!("{one}{one}")).unwrap_err(), KeyError::Several(2));
        assert_eq!(parse(&one.replace("MFkw", "MFkx")).unwrap_err(), KeyError::Malformed);
        assert!(parse(&format!("for the release team\n{one}\n")).is_ok());
    }
}
