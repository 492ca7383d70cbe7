//! Signatures of images: the policy that says which images need one, and whether those that were found will do.
//!
//! ```text
//!   policy file ──► parse ──► Policy ── decide(image) ──► accepted, refused, or a Rule
//!                     └─ key (PEM files)                       │ judge(digests, signatures)
//!                                                              ├── payload (cosign, containers/image)
//!   the caller fetches signatures ────────────────────────────►├── bundle (sigstore)
//!                                                              └── identity (which name was signed)
//! ```
//! The policy is the ecosystem's: containers-policy.json(5). Only signatures by keys are checked; a policy that asks
//! for anything else does not load, so that nothing is accepted by a check that was not made. The crate opens the
//! policy and its key files and nothing else; what it reads is not kept, so a changed file counts at once.

mod bundle;
mod identity;
mod json;
mod judge;
mod key;
mod parse;
mod payload;
mod policy;

pub use identity::{ImageName, InvalidName};
pub use judge::{Content, Refusal, Rule, Signature};
pub use key::KeyError;
pub use parse::PolicyError;
pub use policy::{Decision, Policy};

/// Media type of the layers that hold a payload in cosign's classic form; the signature is an annotation beside it.
pub const SIMPLE_SIGNING: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
/// Annotation of such a layer with its payload's signature in base64.
pub const SIGNATURE_ANNOTATION: &str = "dev.cosignproject.cosign/signature";
/// Media type of sigstore's bundles, as artifact type of a manifest and as its layer's media type.
pub const BUNDLE: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";

#[cfg(test)]
mod tests;
