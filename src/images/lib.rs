//! Images: pulled from registries or loaded from files, unpacked into layers, and kept whole.
//!
//! ```text
//!   reference ──► hosts ──► registry (client, auth) ──► manifest, platform
//!                                      │ bytes
//!                   slots (one unpack per layer) ──► unpack ──► archive, pax, sparse
//!                                                       └─────► apply ──► tree (openat2)
//!   store: image (records) · content (blobs) · snapshot (layer directories) · leases
//! ```
//! Only synced data is published: layers get their final names after one `syncfs`, the image's record comes last.
//! What is leased stays, whoever removes its image. [`Images`] is the whole face of the crate.

mod apply;
mod archive;
mod auth;
mod bundle;
mod client;
mod content;
mod credentials;
mod hosts;
mod image;
mod images;
mod join;
mod load;
mod manifest;
mod pax;
mod places;
mod platform;
mod progress;
mod pull;
mod reference;
mod registry;
mod registry_error;
mod rootfs;
mod slots;
mod snapshot;
mod sparse;
mod store;
mod tree;
mod unpack;
mod usage;

pub use auth::AuthError;
pub use client::ClientError;
pub use credentials::{Credentials, CredentialsError};
pub use hosts::HostsError;
pub use image::Image;
pub use images::Images;
pub use load::LoadError;
pub use manifest::ManifestError;
pub use progress::{LayerProgress, LayerState, PullProgress};
pub use pull::{PullClass, PullError};
pub use reference::{Reference, ReferenceError, normalize};
pub use registry_error::{RegistryError, What};
pub use rootfs::ReadFileError;
pub use store::{Collected, Lease, StoreError};
pub use unpack::{ApplyFailure, UnpackError};
pub use usage::Usage;

/// Why the images of this node cannot be opened.
pub type OpenError = StoreError;
/// Why an image was not removed.
pub type RemoveError = StoreError;

#[cfg(test)]
mod tests;
