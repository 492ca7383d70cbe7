//! The verdict: each requirement of a rule needs one signature that does, and a refusal says why none did.

use std::fmt;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use podwright_base::Digest;

use crate::identity::ImageName;
use crate::policy::Signed;
use crate::{bundle, payload};

/// Signatures of which a refusal tells why they will not do.
const MOST_TOLD: usize = 8;
/// Characters of a word that somebody else chose, in a refusal.
const LONGEST_WORD: usize = 200;

/// A signature as it was fetched.
#[derive(Debug, Clone)]
pub struct Signature {
    /// Where it was found, for messages.
    pub origin: String,
    /// What was found.
    pub content: Content,
}

/// What a signature is made of.
#[derive(Debug, Clone)]
pub enum Content {
    /// cosign's classic form.
    SimpleSigning {
        /// The layer.
        payload: Vec<u8>,
        /// The layer's annotation, in base64.
        signature: String,
    },
    /// A sigstore bundle.
    Bundle(Vec<u8>),
    /// Nothing that can be judged, and why.
    Unusable(String),
}

/// What a policy demands of the signatures of one image.
#[derive(Debug)]
pub struct Rule<'a> {
    pub(crate) policy: &'a Path,
    pub(crate) scope: String,
    pub(crate) image: &'a ImageName,
    pub(crate) signed: Vec<&'a Signed>,
}

/// Why an image may not be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// Whatever it is signed by.
    #[error("{}, {scope}: every such image is rejected", policy.display())]
    Rejected {
        /// The policy.
        policy: PathBuf,
        /// Where in it.
        scope: String,
    },
    /// It has no signature that does.
    #[error("{}, {scope}: it takes a signature by {keys} for {name}; {tried}", policy.display())]
    NotSigned {
        /// The policy.
        policy: PathBuf,
        /// Where in it.
        scope: String,
        /// Where the keys come from.
        keys: String,
        /// The name that has to be signed.
        name: String,
        /// The signatures and what is wrong with each.
        tried: Tried,
    },
}

/// The signatures that were tried.
#[derive(Debug)]
pub struct Tried(Vec<(String, String)>);

impl fmt::Display for Tried {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("it has no signature");
        }
        for (index, (origin, reason)) in self.0.iter().take(MOST_TOLD).enumerate() {
            let separator = if index == 0 { "" } else { "; " };
            write!(f, "{separator}{origin}: {reason}")?;
        }
        match self.0.len().checked_sub(MOST_TOLD) {
            None | Some(0) => Ok(()),
            Some(more) => write!(f, "; and {more} more"),
        }
    }
}

/// What a signature says, once it is known whose it is.
#[derive(Debug)]
pub(crate) struct Claim {
    pub(crate) digests: Vec<String>,
    pub(crate) name: Option<String>,
}

/// Why a signature does not do.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Reason {
    #[error("{0}")]
    Unusable(String),
    #[error("its {part} does not parse: {source}")]
    Parse { part: &'static str, source: serde_json::Error },
    #[error("it is not in base64")]
    Base64,
    #[error("it was not made by such a key")]
    Key,
    #[error("it is a {:?}, which signs no image", word(.0))]
    Type(String),
    #[error("it is an attestation ({}), which does not sign the image", word(.0))]
    Attestation(String),
    #[error("it signs {}, not this image", words(.0))]
    Digest(Vec<String>),
    #[error("it names {:?}", word(.0))]
    Name(String),
    #[error(
        "a bundle names no image: where the digest alone is to count, set signedIdentity to {{\"type\": \"matchDigest\"}}"
    )]
    Nameless,
}

impl Rule<'_> {
    /// Judges an image by its signatures. `digests` are the document that the name stands for and the manifest that
    /// was chosen in it: a signature of either will do.
    ///
    /// # Errors
    /// When a requirement is met by none of the signatures.
    pub fn judge(&self, digests: &[Digest], signatures: &[Signature]) -> Result<(), Refusal> {
        for requirement in &self.signed {
            let mut tried = Vec::new();
            let met = signatures.iter().any(|signature| match self.meets(requirement, digests, &signature.content) {
                Ok(()) => true,
                Err(reason) => {
                    tried.push((signature.origin.clone(), reason.to_string()));
                    false
                }
            });
            if !met {
                let keys: Vec<String> = requirement.keys.iter().map(ToString::to_string).collect();
                return Err(Refusal::NotSigned {
                    policy: self.policy.to_owned(),
                    scope: self.scope.clone(),
                    keys: keys.join(" or "),
                    name: requirement.identity.describe(self.image),
                    tried: Tried(tried),
                });
            }
        }
        Ok(())
    }

    fn meets(&self, requirement: &Signed, digests: &[Digest], content: &Content) -> Result<(), Reason> {
        // Whose it is comes first: nothing else is read of what anybody may have written.
        let claim = match content {
            Content::SimpleSigning { payload, signature } => {
                let signature = STANDARD.decode(signature).map_err(|_| Reason::Base64)?;
                if !requirement.keys.iter().any(|key| key.made(&signature, payload)) {
                    return Err(Reason::Key);
                }
                payload::claim(payload)?
            }
            Content::Bundle(bytes) => bundle::claim(bytes, &requirement.keys)?,
            Content::Unusable(reason) => return Err(Reason::Unusable(reason.clone())),
        };
        if !claim.digests.iter().any(|signed| digests.iter().any(|digest| digest.as_str() == signed)) {
            return Err(Reason::Digest(claim.digests));
        }
        if requirement.identity == crate::identity::SignedIdentity::MatchDigest {
            return Ok(());
        }
        let Some(name) = claim.name else { return Err(Reason::Nameless) };
        match ImageName::parse(&name) {
            Ok(signed) if requirement.identity.takes(self.image, &signed) => Ok(()),
            _ => Err(Reason::Name(name)),
        }
    }
}

fn word(text: &str) -> String {
    text.chars().take(LONGEST_WORD).collect()
}

fn words(texts: &[String]) -> String {
    let words: Vec<String> = texts.iter().take(3).map(|text| format!("{:?}", word(text))).collect();
    if words.is_empty() { "nothing by sha256".to_owned() } else { words.join(", ") }
}
