//! Verification of images, one after the other, as a stream.

use std::collections::VecDeque;
use std::sync::Arc;

use futures_util::StreamExt;
use futures_util::stream;
use podwright_images::{Finding, Image, Images, Outcome, Verified};
use podwright_proto::podwright::v1;
use tonic::Status;

use crate::batch::Answers;
use crate::node::named;
use crate::status::of_verify;

/// What is left to do.
struct Rest {
    images: Images,
    repair: bool,
    queue: VecDeque<Arc<Image>>,
    known: Verified,
}

/// Verifies the images of these names, or all, and tells of each when it is done. It goes on only while it is read.
pub(crate) fn stream(images: Images, names: &[String], repair: bool) -> Result<Answers<v1::VerifiedImage>, Status> {
    let (queue, aside) = if names.is_empty() {
        (images.list().into(), images.set_aside().map_err(of_verify)?)
    } else {
        let find = |name: &String| {
            let missing = || Status::not_found(format!("there is no image {name:?}: `podwright image ls` lists them"));
            images.find(name).ok_or_else(missing)
        };
        (names.iter().map(find).collect::<Result<_, _>>()?, Vec::new())
    };
    let aside = stream::iter(aside.into_iter().map(|finding| Ok(record(&finding))));
    let rest = Rest { images, repair, queue, known: Verified::default() };
    let verified = stream::unfold(rest, |mut rest| async move {
        let image = rest.queue.pop_front()?;
        let verified = rest.images.verify(&image, rest.repair, &mut rest.known).await;
        let answer = verified.map(|(found, outcome)| message(&image, &found, &outcome)).map_err(of_verify);
        if answer.is_err() {
            rest.queue.clear();
        }
        Some((answer, rest))
    });
    Ok(aside.chain(verified).boxed())
}

fn message(image: &Image, found: &[Finding], outcome: &Outcome) -> v1::VerifiedImage {
    let (state, failures) = match outcome {
        Outcome::Whole => (v1::VerifyOutcome::VerifyWhole, Vec::new()),
        Outcome::Removed => (v1::VerifyOutcome::VerifyRemoved, Vec::new()),
        Outcome::Damaged => (v1::VerifyOutcome::VerifyDamaged, Vec::new()),
        Outcome::Repaired => (v1::VerifyOutcome::VerifyRepaired, Vec::new()),
        Outcome::Failed(failures) => {
            (v1::VerifyOutcome::VerifyFailed, failures.iter().map(ToString::to_string).collect())
        }
    };
    v1::VerifiedImage {
        image: Some(named(image)),
        damages: found.iter().map(damage).collect(),
        outcome: state.into(),
        failures,
    }
}

/// A record that cannot be used is all that is left of its image.
fn record(finding: &Finding) -> v1::VerifiedImage {
    v1::VerifiedImage {
        image: Some(v1::Image { id: finding.digest.to_string(), names: Vec::new() }),
        damages: vec![damage(finding)],
        outcome: v1::VerifyOutcome::VerifyDamaged.into(),
        failures: Vec::new(),
    }
}

fn damage(finding: &Finding) -> v1::Damage {
    v1::Damage {
        part: finding.part.to_string(),
        digest: finding.digest.to_string(),
        path: finding.path.clone().unwrap_or_default(),
        what: finding.what.clone(),
    }
}
