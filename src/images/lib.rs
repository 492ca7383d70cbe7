//! Images: pulled from registries or loaded from files, unpacked into layers, and kept whole.
//!
//! ```text
//!   registry (reference, hosts, session) ──► pull: manifest, platform
//!                                                ├─► trust (signature policy), before any blob
//!                                                └─► fetch: part (what has come), slots (one unpack per layer) ──► layer (unpack)
//!   bundle (an archive's members) ─► load ──────────────────────────────────┘
//!   store: image (records) · content (blobs) · snapshot (layer directories) · leases
//!          verify (is it what was pulled?) ─► repair (fetch what is damaged, move it over) · heal (both, for an image)
//!          publish (whole or not at all) · collect (what nobody needs) · layout (index.json, for other tools)
//! ```
//! How registries are spoken to is `podwright-registry`, how a layer's bytes become a directory `podwright-layer`.
//! Only synced data is published: layers get their final names after one `syncfs`, the image's record comes last.
//! What is leased stays, whoever removes its image. [`Images`] is the whole face of the crate.

mod artifact;
mod collect;
mod complete;
mod content;
mod durable;
mod fetch;
mod heal;
mod image;
mod images;
mod join;
mod layout;
mod load;
mod manifest;
mod mark;
mod part;
mod pinned;
mod places;
mod platform;
mod progress;
mod publish;
mod pull;
mod pull_error;
mod repair;
mod slots;
mod snapshot;
mod store;
mod trust;
mod usage;
mod verify;

pub use collect::Collected;
pub use complete::CompletionError;
pub use heal::{Failure, Outcome};
pub use image::{Artifact, Image};
pub use images::Images;
pub use load::LoadError;
pub use manifest::ManifestError;
pub use podwright_layer::{Located, ReadFileError, UnpackError};
pub use podwright_registry::{
    Credentials, CredentialsError, Reference, ReferenceError, RegistryError, What, normalize,
};
pub use podwright_signature::{PolicyError, Refusal};
pub use progress::{LayerProgress, LayerState, PullProgress};
pub use pull_error::{PullClass, PullError};
pub use repair::RepairError;
pub use store::{Lease, StoreError};
pub use trust::TrustError;
pub use usage::Usage;
pub use verify::{Finding, Part, Verified, VerifyError};

/// Why the images of this node cannot be opened.
pub type OpenError = StoreError;
/// Why an image was not removed.
pub type RemoveError = StoreError;

#[cfg(test)]
mod tests;
