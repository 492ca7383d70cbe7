//! What others have attached to an image in its repository: signatures, which are found by a tag made of the image's
//! digest, or by the distribution specification's list of referrers.

use podwright_base::Digest;

use crate::error::{RegistryError, What};
use crate::exchange::{Ask, Capability};
use crate::session::{Document, Session};

const ACCEPT_INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// Bound on a list of referrers.
const LONGEST_INDEX: usize = 4 << 20;

impl Session {
    /// Fetches the signatures in cosign's classic place, the tag `sha256-<hex>.sig`; none when it is not there.
    ///
    /// # Errors
    /// When no endpoint says whether it is there.
    pub async fn signature(&self, digest: &Digest) -> Result<Option<Document>, RegistryError> {
        found(self.document(&format!("{}.sig", tag(digest)), None).await)
    }

    /// Fetches the index of what refers to a manifest and has an artifact type; none when there is none. What comes may
    /// have other types in it: registries need not filter.
    ///
    /// # Errors
    /// When no endpoint says what refers to it.
    pub async fn referrers(&self, digest: &Digest, artifact_type: &str) -> Result<Option<Document>, RegistryError> {
        let what = What::Referrers(digest.clone());
        let filter = artifact_type.replace('+', "%2B");
        let path = format!("{}/referrers/{digest}?artifactType={filter}", self.reference.repository());
        let ask =
            Ask { what: &what, path, accept: Some(ACCEPT_INDEX), offset: 0, end: None, takes: Capability::Referrers };
        match self.whole(&ask, LONGEST_INDEX).await {
            Ok((_, _, bytes)) => Ok(Some(Document { digest: Digest::of(&bytes), bytes, media_type: None })),
            // A registry without the list: the specification puts it under a tag then.
            Err(error) if is_unknown_call(&error) => found(self.document(&tag(digest), None).await),
            Err(error) => Err(error),
        }
    }
}

fn tag(digest: &Digest) -> String {
    format!("sha256-{}", digest.hex())
}

fn found(document: Result<Document, RegistryError>) -> Result<Option<Document>, RegistryError> {
    match document {
        Ok(document) => Ok(Some(document)),
        Err(error) if matches!(error.decisive(), RegistryError::NotFound { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Registries that know no referrers answer 404, some of them 400 or 405.
fn is_unknown_call(error: &RegistryError) -> bool {
    match error.decisive() {
        RegistryError::NotFound { .. } => true,
        RegistryError::Status { status, .. } => matches!(status, 400 | 405 | 501),
        _ => false,
    }
}
