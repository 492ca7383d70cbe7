//! How pulls fail.

use std::error::Error;
use std::io;
use std::sync::Arc;

use podwright_base::Digest;
use podwright_layer::UnpackError;
use podwright_registry::{CredentialsError, HostsError, ReferenceError, RegistryError};

use crate::complete::CompletionError;
use crate::manifest::ManifestError;
use crate::store::StoreError;
use crate::trust::TrustError;

/// Why an image was not pulled; [`PullError::class`] sorts it for the CRI.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PullError {
    /// The name is no reference.
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    /// The request's credentials are malformed.
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    /// The registry's configuration on this node.
    #[error("pull {reference}: find its registry")]
    Hosts {
        /// The image.
        reference: String,
        /// Why.
        source: HostsError,
    },
    /// The registry.
    #[error("pull {reference}")]
    Registry {
        /// The image.
        reference: String,
        /// Why.
        source: RegistryError,
    },
    /// What it is.
    #[error("pull {reference}: the image {digest}")]
    Manifest {
        /// The image.
        reference: String,
        /// The document's digest.
        digest: Digest,
        /// What is wrong with it.
        source: ManifestError,
    },
    /// Its layers together.
    #[error("pull {reference}: complete its layers")]
    Complete {
        /// The image.
        reference: String,
        /// Why.
        source: CompletionError,
    },
    /// One of its layers.
    #[error("pull {reference}: unpack the layer {layer}")]
    Unpack {
        /// The image.
        reference: String,
        /// The blob's digest.
        layer: Digest,
        /// Why.
        source: UnpackError,
    },
    /// The layer's directory cannot be made or finished.
    #[error("pull {reference}: prepare the layer {layer}")]
    Stage {
        /// The image.
        reference: String,
        /// The blob's digest.
        layer: Digest,
        /// Why.
        source: io::Error,
    },
    /// The node's own disk.
    #[error("pull {reference}")]
    Store {
        /// The image.
        reference: String,
        /// Why.
        source: StoreError,
    },
    /// The node's signature policy does not let it in.
    #[error("pull {reference}")]
    Trust {
        /// The image.
        reference: String,
        /// Why.
        source: TrustError,
    },
    /// The pull ended without a result: the daemon is going down.
    #[error("pull {reference}: it was broken off")]
    Aborted {
        /// The image.
        reference: String,
    },
    /// The outcome of the identical pull that this one has joined.
    #[error(transparent)]
    Joined(Arc<PullError>),
}

/// What kind of failure a [`PullError`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PullClass {
    /// The name, or the credentials, are malformed.
    Invalid,
    /// The registry has no such image.
    NotFound,
    /// The registry refuses this puller.
    Unauthorized,
    /// No registry could be reached, or it kept failing (CRI `RegistryUnavailable`).
    Unavailable,
    /// What came is not what was named.
    Mismatch,
    /// The signature policy does not let it in (CRI `SignatureValidationFailed`).
    Untrusted,
    /// This node cannot use such an image.
    Unsupported,
    /// The disk or a quota is full.
    StorageFull,
    /// Anything else.
    Internal,
}

impl PullError {
    /// Tells what kind of failure this is.
    pub fn class(&self) -> PullClass {
        if is_storage_full(self) {
            return PullClass::StorageFull;
        }
        match self {
            Self::Reference(_) | Self::Credentials(_) => PullClass::Invalid,
            Self::Registry { source, .. } | Self::Trust { source: TrustError::Registry(source), .. } => {
                of_registry(source)
            }
            Self::Trust { .. } => PullClass::Untrusted,
            Self::Manifest { .. } => PullClass::Unsupported,
            Self::Unpack { source: UnpackError::Digest { .. } | UnpackError::DiffId { .. }, .. } => PullClass::Mismatch,
            Self::Unpack { .. } => PullClass::Unsupported,
            Self::Complete { source: CompletionError::Layers(_), .. } => PullClass::Unsupported,
            Self::Joined(error) => error.class(),
            Self::Hosts { .. }
            | Self::Complete { .. }
            | Self::Stage { .. }
            | Self::Store { .. }
            | Self::Aborted { .. } => PullClass::Internal,
        }
    }
}

fn of_registry(source: &RegistryError) -> PullClass {
    match source.decisive() {
        RegistryError::NotFound { .. } => PullClass::NotFound,
        RegistryError::Denied { .. } => PullClass::Unauthorized,
        RegistryError::Auth { .. } if !source.is_transient() => PullClass::Unauthorized,
        RegistryError::Digest { .. } | RegistryError::Length { .. } => PullClass::Mismatch,
        RegistryError::TooLong { .. } => PullClass::Unsupported,
        // 407 is a proxy's: the registry was not even asked.
        RegistryError::Request { .. } | RegistryError::Status { status: 407, .. } => PullClass::Unavailable,
        _ if source.is_transient() => PullClass::Unavailable,
        _ => PullClass::Internal,
    }
}

/// Looks through the causes for a full disk.
fn is_storage_full(error: &(dyn Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<io::Error>()
            && matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
        {
            return true;
        }
        cause = error.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_found_among_the_causes() {
        let full = PullError::Stage {
            reference: "x".to_owned(),
            layer: Digest::of(b""),
            source: io::Error::from(io::ErrorKind::StorageFull),
        };
        assert_eq!(PullError::Joined(Arc::new(full)).class(), PullClass::StorageFull);
    }
}
