//! Verification and repair of whole images, on request and after the host went down.

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;

use podwright_base::{Digest, chain};

use crate::image::Image;
use crate::images::Images;
use crate::repair::{Repair, RepairError};
use crate::store::StoreError;
use crate::verify::{self, Effort, Finding, Part, Verified, VerifyError};

/// What became of the damage that was found.
#[derive(Debug)]
pub enum Outcome {
    /// Nothing was damaged.
    Whole,
    /// It was removed meanwhile.
    Removed,
    /// Nobody asked for a repair.
    Damaged,
    /// All of it was repaired, and verified again.
    Repaired,
    /// Some of it stays.
    Failed(Vec<Failure>),
}

/// Why damage stays.
#[derive(Debug)]
pub struct Failure {
    /// The part of the image.
    pub part: Part,
    /// Its digest.
    pub digest: Digest,
    /// Why; absent: it was repaired, and is damaged again.
    pub error: Option<RepairError>,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let why = self.error.as_ref().map_or("it is damaged again".to_owned(), |error| chain(error));
        write!(f, "{} {}: {why}", self.part, self.digest)
    }
}

impl Images {
    /// Compares everything that is on disk of an image with what was pulled, and with `repair` puts right what differs,
    /// with containers running or not. `known` remembers what was found of layers, for images that share them.
    ///
    /// # Errors
    /// When the disk cannot be read, beyond what is damage.
    pub async fn verify(
        &self,
        image: &Arc<Image>,
        repair: bool,
        known: &mut Verified,
    ) -> Result<(Vec<Finding>, Outcome), VerifyError> {
        self.go_through(image, Effort::Content, repair, known).await
    }

    async fn go_through(
        &self,
        image: &Arc<Image>,
        effort: Effort,
        repair: bool,
        known: &mut Verified,
    ) -> Result<(Vec<Finding>, Outcome), VerifyError> {
        let _lease = self.lease(image);
        let mut left = self.check(image, effort, known).await?;
        if !left.is_empty() {
            // What was removed while it was looked at is not damaged, nor what was pulled again since.
            match self.find(image.id.as_str()) {
                None => {
                    forget(&left, known);
                    return Ok((Vec::new(), Outcome::Removed));
                }
                Some(now) if !Arc::ptr_eq(&now, image) => {
                    forget(&left, known);
                    left = self.check(&now, effort, known).await?;
                }
                Some(_) => {}
            }
        }
        if left.is_empty() || !repair {
            let outcome = if left.is_empty() { Outcome::Whole } else { Outcome::Damaged };
            return Ok((left, outcome));
        }
        let (mut found, mut tried, mut failures) = (Vec::new(), HashSet::new(), Vec::new());
        let stays = loop {
            // Without its manifest nobody knows an image's blobs: what they lack is found once it is repaired.
            let is_new = |finding: &Finding| !tried.contains(&(finding.part, finding.digest.clone()));
            let (new, old): (Vec<_>, Vec<_>) = left.into_iter().partition(is_new);
            if new.is_empty() {
                break old;
            }
            let failed = Repair { puller: self.puller(), image }.run(&new).await;
            failures.extend(failed.into_iter().map(|(part, digest, error)| Failure {
                part,
                digest,
                error: Some(error),
            }));
            tried.extend(new.iter().map(|finding| (finding.part, finding.digest.clone())));
            forget(&new, known);
            found.extend(new);
            left = self.check(image, effort, known).await?;
        };
        for finding in stays {
            let is_told = |failure: &Failure| (failure.part, &failure.digest) == (finding.part, &finding.digest);
            if !failures.iter().any(is_told) {
                failures.push(Failure { part: finding.part, digest: finding.digest, error: None });
            }
        }
        let outcome = if failures.is_empty() { Outcome::Repaired } else { Outcome::Failed(failures) };
        Ok((found, outcome))
    }

    async fn check(
        &self,
        image: &Arc<Image>,
        effort: Effort,
        known: &mut Verified,
    ) -> Result<Vec<Finding>, VerifyError> {
        let (store, image, mut taken) = (Arc::clone(self.store()), Arc::clone(image), std::mem::take(known));
        let checking = tokio::task::spawn_blocking(move || {
            let found = verify::check(&store, &image, effort, &mut taken);
            (found, taken)
        });
        let (found, taken) = checking.await.map_err(|_| VerifyError::Aborted)?;
        *known = taken;
        found
    }

    /// Returns what starts have moved aside: records that cannot be used. Pulling their images again is all that helps.
    ///
    /// # Errors
    /// When the disk cannot be read.
    pub fn set_aside(&self) -> Result<Vec<Finding>, StoreError> {
        self.store().set_aside()
    }

    /// Looks through all layers when the host went down while images could be written, and repairs what the registries
    /// allow; else does nothing. What is found is logged.
    ///
    /// # Errors
    /// When the store cannot be marked as checked.
    pub async fn recover(&self) -> Result<(), StoreError> {
        if !self.store().is_suspect() {
            return Ok(());
        }
        let (mut known, mut is_whole) = (Verified::default(), true);
        for image in self.list() {
            match self.go_through(&image, Effort::Metadata, true, &mut known).await {
                Ok((found, outcome)) => is_whole &= tell(&image, &found, &outcome),
                Err(error) => {
                    is_whole = false;
                    tracing::warn!(image.id = %image.id, error = chain(&error), "an image could not be verified");
                }
            }
        }
        // Whatever stays damaged is looked for again at the next start.
        if is_whole { self.store().checked() } else { Ok(()) }
    }
}

/// Has layers looked at again.
fn forget(findings: &[Finding], known: &mut Verified) {
    for finding in findings {
        known.0.remove(&finding.digest);
    }
}

/// Logs what a power cut has done to an image; `false`: damage stays.
fn tell(image: &Image, found: &[Finding], outcome: &Outcome) -> bool {
    for finding in found {
        tracing::warn!(image.id = %image.id, %finding, "an image was damaged when the host went down");
    }
    match outcome {
        Outcome::Whole | Outcome::Removed => true,
        Outcome::Repaired => {
            tracing::info!(image.id = %image.id, "an image was repaired");
            true
        }
        Outcome::Damaged => false,
        Outcome::Failed(failures) => {
            for failure in failures {
                tracing::error!(image.id = %image.id, %failure, "an image stays damaged");
            }
            false
        }
    }
}
