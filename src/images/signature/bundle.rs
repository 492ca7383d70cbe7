//! Sigstore bundles: what cosign 3 pushes by default. A DSSE envelope holds an in-toto statement on the image's digest.
//!
//! Only the envelope is looked at: a certificate, a time stamp or a transparency log's entry beside it proves nothing
//! that a signature by a known key does not.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use crate::BUNDLE;
use crate::judge::{Claim, Reason};
use crate::key::PublicKey;

/// The older spellings of the media type; the envelope is the same.
const OLDER: &str = "application/vnd.dev.sigstore.bundle+json;version=0.";
const IN_TOTO: &str = "application/vnd.in-toto+json";
const STATEMENTS: [&str; 2] = ["https://in-toto.io/Statement/v1", "https://in-toto.io/Statement/v0.1"];
/// What a statement says that is cosign's signature of an image. Others say how it was built or what is in it: they
/// do not say that it may run.
const SIGNS_AN_IMAGE: &str = "https://sigstore.dev/cosign/sign/v1";
/// Signatures of an envelope that are looked at.
const MOST_SIGNATURES: usize = 16;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Bundle {
    media_type: String,
    dsse_envelope: Option<Envelope>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Envelope {
    payload: String,
    payload_type: String,
    signatures: Vec<EnvelopeSignature>,
}

#[derive(Deserialize)]
struct EnvelopeSignature {
    sig: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Statement {
    #[serde(rename = "_type")]
    kind: String,
    subject: Vec<Subject>,
    predicate_type: String,
}

#[derive(Deserialize)]
struct Subject {
    name: Option<String>,
    #[serde(default)]
    digest: BTreeMap<String, String>,
}

/// Verifies a bundle by any of the keys and reads what it claims.
pub(crate) fn claim(bundle: &[u8], keys: &[PublicKey]) -> Result<Claim, Reason> {
    let parse = |part| move |source| Reason::Parse { part, source };
    let bundle: Bundle = serde_json::from_slice(bundle).map_err(parse("bundle"))?;
    if bundle.media_type != BUNDLE && !bundle.media_type.starts_with(OLDER) {
        return Err(Reason::Type(bundle.media_type));
    }
    // The other kind of content is a bare signature of a file, which no image is.
    let Some(envelope) = bundle.dsse_envelope else { return Err(Reason::Type("messageSignature".to_owned())) };
    let payload = STANDARD.decode(&envelope.payload).map_err(|_| Reason::Base64)?;
    let signed = pre_authentication_encoding(&envelope.payload_type, &payload);
    let mut made = false;
    for signature in envelope.signatures.iter().take(MOST_SIGNATURES) {
        let signature = STANDARD.decode(&signature.sig).map_err(|_| Reason::Base64)?;
        made |= keys.iter().any(|key| key.made(&signature, &signed));
    }
    if !made {
        return Err(Reason::Key);
    }
    if envelope.payload_type != IN_TOTO {
        return Err(Reason::Type(envelope.payload_type));
    }
    let statement: Statement = serde_json::from_slice(&payload).map_err(parse("statement"))?;
    if !STATEMENTS.contains(&statement.kind.as_str()) {
        return Err(Reason::Type(statement.kind));
    }
    if statement.predicate_type != SIGNS_AN_IMAGE {
        return Err(Reason::Attestation(statement.predicate_type));
    }
    // A statement on several images has no name of its own.
    let name = match statement.subject.as_slice() {
        [only] => only.name.clone().filter(|name| !name.is_empty()),
        _ => None,
    };
    let digests = statement.subject.iter().filter_map(|subject| subject.digest.get("sha256"));
    Ok(Claim { digests: digests.map(|hex| format!("sha256:{hex}")).collect(), name })
}

/// What a DSSE signature covers: the type too, with lengths, so that no two contents look alike.
fn pre_authentication_encoding(payload_type: &str, payload: &[u8]) -> Vec<u8> {
    let mut encoded = format!("DSSEv1 {} {payload_type} {} ", payload_type.len(), payload.len()).into_bytes();
    encoded.extend_from_slice(payload);
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(pem: &str) -> Vec<PublicKey> {
        vec![PublicKey::parse(pem.as_bytes(), "k".to_owned()).unwrap()]
    }

    /// Bundles signed by `openssl dgst -sha256 -sign`.
    #[test]
    fn a_statement_is_believed_that_a_key_has_signed() {
        let (text, known) = (include_str!("testdata/bundle.json"), keys(include_str!("testdata/p256.pub")));
        let found = claim(text.as_bytes(), &known).unwrap();
        assert_eq!(found.digests, ["sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"]);
        assert_eq!(found.name, None);
        let other = keys(include_str!("testdata/other.pub"));
        assert!(matches!(claim(text.as_bytes(), &other), Err(Reason::Key)));
        let older = text.replace("bundle.v0.3+json", "bundle+json;version=0.1");
        assert!(claim(older.as_bytes(), &known).is_ok());
        let bad = |from: &str, to: &str| claim(text.replace(from, to).as_bytes(), &known).unwrap_err();
        // The type is signed too.
        assert!(matches!(bad("vnd.in-toto+json", "vnd.in-toto+xml"), Reason::Key));
        assert!(matches!(bad("eyJfdHlwZSI6", "eyJfdHlwZSI7"), Reason::Key));
        assert!(matches!(bad("bundle.v0.3", "bundle.v9"), Reason::Type(_)));
        assert!(matches!(bad("dsseEnvelope", "messageSignature"), Reason::Type(_)));
        assert!(matches!(bad("\"payload\":\"", "\"payload\":\"*"), Reason::Base64));
        assert!(matches!(bad("{\"mediaType\"", "{\"mediaTypes\""), Reason::Parse { .. }));
    }

    #[test]
    fn an_attestation_is_no_signature() {
        let found = claim(include_bytes!("testdata/attestation.json"), &keys(include_str!("testdata/p256.pub")));
        assert!(matches!(found, Err(Reason::Attestation(_))));
    }
}
