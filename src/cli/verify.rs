//! `podwright image verify`: is what is on disk of images what was pulled?

use std::io::{self, Write};

use anyhow::{Context, Result, bail};
use podwright_proto::podwright::v1::{VerifiedImage, VerifyImagesRequest, VerifyOutcome};

use super::client::{Client, said};

/// Which images, and what becomes of damage.
#[derive(Debug, clap::Args)]
pub(crate) struct Verify {
    /// Names or ids [default: all images]
    images: Vec<String>,
    /// Fetch what is damaged again, and only that; containers may run meanwhile
    #[arg(long)]
    repair: bool,
}

/// Verifies images and tells of each; damage that stays is a failure.
pub(crate) async fn verify(client: &mut Client, args: Verify) -> Result<()> {
    let request = VerifyImagesRequest { images: args.images, repair: args.repair };
    let what = "verify images";
    let mut stream = client.node.verify_images(request).await.map_err(said).context(what)?.into_inner();
    let (mut all, mut damaged) = (0, 0);
    while let Some(image) = stream.message().await.map_err(said).context(what)? {
        write!(io::stdout(), "{}", shown(&image))?;
        all += 1;
        let stays = matches!(image.outcome(), VerifyOutcome::VerifyDamaged | VerifyOutcome::VerifyFailed);
        damaged += usize::from(stays);
    }
    match (damaged, args.repair) {
        (0, _) => Ok(()),
        (_, true) => bail!("{damaged} of {all} images stay damaged"),
        (_, false) => bail!("{damaged} of {all} images are damaged: --repair fetches what is damaged again"),
    }
}

/// A line for the image, one for each damage, and one for each part that stays damaged.
fn shown(verified: &VerifiedImage) -> String {
    let image = verified.image.as_ref();
    let name = image.and_then(|image| image.names.first().or(Some(&image.id))).map_or("", String::as_str);
    let outcome = match verified.outcome() {
        VerifyOutcome::VerifyWhole => "whole",
        VerifyOutcome::VerifyDamaged => "damaged",
        VerifyOutcome::VerifyRepaired => "repaired",
        VerifyOutcome::VerifyFailed => "not repaired",
        VerifyOutcome::VerifyRemoved => "removed meanwhile",
    };
    let mut text = format!("{name}: {outcome}\n");
    for damage in &verified.damages {
        let path = if damage.path.is_empty() { String::new() } else { format!(" {}", damage.path) };
        text += &format!("  {} {}{path}: {}\n", damage.part, damage.digest, damage.what);
    }
    for failure in &verified.failures {
        text += &format!("  not repaired: {failure}\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use podwright_proto::podwright::v1::{Damage, Image};

    use super::*;

    #[test]
    fn damage_is_told_by_part_and_path() {
        let damage = |path: &str| Damage {
            part: "layer".to_owned(),
            digest: "sha256:ab".to_owned(),
            path: path.to_owned(),
            what: "missing".to_owned(),
        };
        let verified = VerifiedImage {
            image: Some(Image { id: "sha256:cd".to_owned(), names: vec!["r.io/a:1".to_owned()] }),
            damages: vec![damage("/etc/passwd"), damage("")],
            outcome: VerifyOutcome::VerifyFailed.into(),
            failures: vec!["layer sha256:ab: no registry".to_owned()],
        };
        let expected = "r.io/a:1: not repaired\n  layer sha256:ab /etc/passwd: missing\n  layer sha256:ab: missing\n  \
             not repaired: layer sha256:ab: no registry\n";
        assert_eq!(shown(&verified), expected);
    }
}
