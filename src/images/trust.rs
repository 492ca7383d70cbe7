//! Trust: whether the node's signature policy lets an image in, asked before anything of it is fetched or unpacked.
//!
//! ```text
//!   name ── policy (read anew) ──► refused · nothing to be judged · a rule
//!   manifest is known ──────────► signatures: tags sha256-<hex>.sig, then referrers ── rule ──► go on · refused
//! ```
//! Signatures are looked for beside what was named and beside the manifest for this host, and no longer than until they
//! will do. A place that cannot be asked now makes the pull fail as one that may be tried again.

use std::collections::BTreeMap;
use std::path::PathBuf;

use podwright_base::{Digest, chain};
use podwright_registry::{Blob, Document, Reference, RegistryError, Session};
use podwright_signature::{
    BUNDLE, Content, Decision, ImageName, InvalidName, Policy, PolicyError, Refusal, Rule, SIGNATURE_ANNOTATION,
    SIMPLE_SIGNING, Signature,
};
use serde::Deserialize;

/// Bounds on what is fetched for one image: signatures in all, referrers of one digest, bytes of one signature.
const MOST_SIGNATURES: usize = 64;
const MOST_REFERRERS: usize = 16;
const LONGEST_SIGNATURE: usize = 1 << 20;
/// Artifact type under which cosign lists bundles where the registry does not list referrers itself.
const EMPTY: &str = "application/vnd.oci.empty.v1+json";
/// All spellings of the media type of bundles begin so.
const BUNDLES: &str = "application/vnd.dev.sigstore.bundle";

/// Why an image is not let in.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrustError {
    /// The policy cannot be used: nothing is let in.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// The policy has no way to speak of such a name.
    #[error(transparent)]
    Name(#[from] InvalidName),
    /// The policy was asked, and the image's signatures were.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// Signatures may be there, and could not be fetched.
    #[error("look for its signatures")]
    Registry(#[source] RegistryError),
}

/// The node's policy, which need not be there.
#[derive(Debug, Clone)]
pub(crate) struct Trust {
    policy: Option<PathBuf>,
}

/// One image's case, opened by its name.
pub(crate) struct Case {
    /// None: there is nothing to be judged.
    judged_by: Option<(Policy, ImageName)>,
}

impl Trust {
    /// Takes the path of the policy; says at once whether it can be used, although each pull reads it again.
    pub(crate) fn new(policy: Option<PathBuf>) -> Self {
        if let Some(path) = &policy {
            match Policy::read(path) {
                Ok(_) => tracing::info!(path = %path.display(), "images are judged by a signature policy"),
                Err(error) => tracing::error!(error = chain(&error), "no image can be pulled"),
            }
        }
        Self { policy }
    }

    /// Reads the policy and decides what can be decided by the name.
    pub(crate) fn open(&self, reference: &Reference) -> Result<Case, TrustError> {
        let Some(path) = &self.policy else { return Ok(Case { judged_by: None }) };
        let (policy, image) = (Policy::read(path)?, ImageName::parse(&reference.to_string())?);
        match policy.decide(&image)? {
            Decision::Accept => Ok(Case { judged_by: None }),
            Decision::Judge(_) => Ok(Case { judged_by: Some((policy, image)) }),
        }
    }
}

impl Case {
    /// Looks for signatures of what was named and of the manifest for this host until they will do.
    pub(crate) async fn judge(&self, session: &Session, named: &Digest, chosen: &Digest) -> Result<(), TrustError> {
        let Some((policy, image)) = &self.judged_by else { return Ok(()) };
        let Decision::Judge(rule) = policy.decide(image)? else { return Ok(()) };
        let mut digests = vec![named.clone(), chosen.clone()];
        digests.dedup();
        let mut search = Search { session, signatures: Vec::new(), unanswered: None };
        let is_met = |search: &Search<'_>, rule: &Rule<'_>| rule.judge(&digests, &search.signatures).is_ok();
        for digest in &digests {
            search.by_tag(digest).await;
            if is_met(&search, &rule) {
                return Ok(());
            }
        }
        for digest in &digests {
            search.by_referrers(digest).await;
            if is_met(&search, &rule) {
                return Ok(());
            }
        }
        match search.unanswered {
            Some(error) => Err(TrustError::Registry(error)),
            None => Ok(rule.judge(&digests, &search.signatures)?),
        }
    }
}

#[derive(Deserialize)]
struct Index {
    manifests: Vec<Descriptor>,
}

#[derive(Deserialize)]
struct Manifest {
    layers: Vec<Descriptor>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    media_type: String,
    digest: String,
    size: u64,
    artifact_type: Option<String>,
    annotations: Option<BTreeMap<String, String>>,
}

/// What was found so far.
struct Search<'a> {
    session: &'a Session,
    signatures: Vec<Signature>,
    /// Why one of the places could not be asked, where that may change.
    unanswered: Option<RegistryError>,
}

impl Search<'_> {
    async fn by_tag(&mut self, digest: &Digest) {
        let origin = format!("the tag sha256-{}.sig", digest.hex());
        match self.session.signature(digest).await {
            Ok(Some(document)) => self.layers(&origin, &document).await,
            Ok(None) => {}
            Err(error) => self.failed(&origin, error),
        }
    }

    async fn by_referrers(&mut self, digest: &Digest) {
        let origin = format!("the referrers of {digest}");
        let document = match self.session.referrers(digest, BUNDLE).await {
            Ok(Some(document)) => document,
            Ok(None) => return,
            Err(error) => return self.failed(&origin, error),
        };
        let index: Index = match serde_json::from_slice(&document.bytes) {
            Ok(index) => index,
            Err(error) => return self.unusable(&origin, format!("they do not parse: {error}")),
        };
        let may_be_bundle = |entry: &&Descriptor| matches!(entry.artifact_type.as_deref(), None | Some(BUNDLE | EMPTY));
        for entry in index.manifests.iter().filter(may_be_bundle).take(MOST_REFERRERS) {
            let origin = format!("the referrer {}", entry.digest);
            let fetched = match entry.digest.parse() {
                Ok(digest) => self.session.manifest(Some(&digest)).await,
                Err(error) => {
                    self.unusable(&origin, chain(&error));
                    continue;
                }
            };
            match fetched {
                Ok(document) => self.layers(&origin, &document).await,
                Err(error) => self.failed(&origin, error),
            }
        }
    }

    /// Fetches the signatures that a manifest holds, one in each layer.
    async fn layers(&mut self, origin: &str, document: &Document) {
        let manifest: Manifest = match serde_json::from_slice(&document.bytes) {
            Ok(manifest) => manifest,
            Err(error) => return self.unusable(origin, format!("it is no manifest of signatures: {error}")),
        };
        for (index, layer) in manifest.layers.iter().enumerate() {
            let origin = format!("{origin}, layer {index}");
            if self.signatures.len() >= MOST_SIGNATURES {
                return;
            }
            match self.layer(layer).await {
                Ok(content) => self.signatures.push(Signature { origin, content }),
                Err(error) => self.failed(&origin, error),
            }
        }
    }

    async fn layer(&self, layer: &Descriptor) -> Result<Content, RegistryError> {
        let Ok(digest) = layer.digest.parse::<Digest>() else {
            return Ok(Content::Unusable("its digest is none".to_owned()));
        };
        if layer.size > LONGEST_SIGNATURE as u64 {
            return Ok(Content::Unusable(format!("it is longer than {LONGEST_SIGNATURE} bytes")));
        }
        let blob = Blob { digest, size: layer.size };
        let fetch = async || self.session.blob(&blob, LONGEST_SIGNATURE).await.map(|bytes| bytes.to_vec());
        let annotations = layer.annotations.as_ref();
        let signature = annotations.and_then(|annotations| annotations.get(SIGNATURE_ANNOTATION));
        match (layer.media_type.as_str(), signature) {
            (SIMPLE_SIGNING, Some(signature)) => {
                Ok(Content::SimpleSigning { payload: fetch().await?, signature: signature.clone() })
            }
            (SIMPLE_SIGNING, None) => Ok(Content::Unusable(format!("it has no annotation {SIGNATURE_ANNOTATION}"))),
            (bundle, _) if bundle.starts_with(BUNDLES) => Ok(Content::Bundle(fetch().await?)),
            (other, _) => {
                let media_type: String = other.chars().take(100).collect();
                Ok(Content::Unusable(format!("its media type {media_type:?} is no signature's")))
            }
        }
    }

    fn failed(&mut self, origin: &str, error: RegistryError) {
        if error.is_transient() {
            self.unanswered.get_or_insert(error);
        } else {
            self.unusable(origin, chain(&error));
        }
    }

    fn unusable(&mut self, origin: &str, reason: String) {
        self.signatures.push(Signature { origin: origin.to_owned(), content: Content::Unusable(reason) });
    }
}
