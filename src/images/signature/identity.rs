//! Names: of the image that is pulled, of the image that was signed, and which of the latter do for the former.

use std::fmt;

use podwright_base::Digest;

const DOCKER_HUB: &str = "docker.io";
const DOCKER_HUB_LEGACY: &str = "index.docker.io";

/// An image's name in full: `registry/repository`, and a tag or a digest or neither.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageName {
    /// `registry/repository`.
    pub(crate) repository: String,
    pub(crate) tag: Option<String>,
    pub(crate) digest: Option<Digest>,
}

/// A text that is no image's name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no image's name")]
pub struct InvalidName(String);

/// What `signedIdentity` asks of the name that was signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum SignedIdentity {
    /// The same tag, or for an image pulled by digest the same repository.
    MatchRepoDigestOrExact,
    MatchExact,
    MatchRepository,
    ExactReference(ImageName),
    ExactRepository(String),
    /// As the first, once one prefix of the image's name is replaced by the other.
    Remap {
        prefix: String,
        signed_prefix: String,
    },
    /// None: the digest alone counts.
    MatchDigest,
}

impl ImageName {
    /// Parses a name and completes it as the ecosystem does, but for the tag `latest`.
    ///
    /// # Errors
    /// When the text cannot be a name.
    pub fn parse(text: &str) -> Result<Self, InvalidName> {
        let invalid = || InvalidName(text.chars().take(300).collect());
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest.parse().map_err(|_| invalid())?)),
            None => (text, None),
        };
        // A colon before the last slash belongs to the registry's port.
        let (name, tag) = match rest.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => (name, Some(tag.to_owned())),
            _ => (rest, None),
        };
        let (host, path) = match name.split_once('/') {
            Some((host, path)) if is_host(host) => (in_lower_case(host), path),
            _ => (DOCKER_HUB.to_owned(), name),
        };
        let host = if host == DOCKER_HUB_LEGACY { DOCKER_HUB.to_owned() } else { host };
        let is_path = path.split('/').all(|part| {
            !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_graphic() && !byte.is_ascii_uppercase())
        });
        let is_tag = |tag: &String| !tag.is_empty() && tag.bytes().all(|byte| byte.is_ascii_graphic());
        if !is_path || !tag.as_ref().is_none_or(is_tag) || !host.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(invalid());
        }
        let library = if host == DOCKER_HUB && !path.contains('/') { "library/" } else { "" };
        Ok(Self { repository: format!("{host}/{library}{path}"), tag, digest })
    }

    /// Whether it has neither tag nor digest.
    pub(crate) fn is_repository(&self) -> bool {
        self.tag.is_none() && self.digest.is_none()
    }
}

impl fmt::Display for ImageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        match &self.digest {
            Some(digest) => write!(f, "@{digest}"),
            None => Ok(()),
        }
    }
}

/// The first component is a host if it could be nothing else.
fn is_host(first: &str) -> bool {
    first.contains(['.', ':', '[']) || first == "localhost" || first.bytes().any(|byte| byte.is_ascii_uppercase())
}

/// Hosts are compared in lower case; one that only its capitals tell from a path keeps them.
fn in_lower_case(host: &str) -> String {
    let lower = host.to_ascii_lowercase();
    if is_host(&lower) { lower } else { host.to_owned() }
}

impl SignedIdentity {
    /// Tells whether a signed name does for an image.
    pub(crate) fn takes(&self, image: &ImageName, signed: &ImageName) -> bool {
        match self {
            Self::MatchRepoDigestOrExact => repo_digest_or_exact(image, signed),
            Self::MatchExact => !signed.is_repository() && *signed == pinned(image),
            Self::MatchRepository => signed.repository == image.repository,
            Self::ExactReference(wanted) => signed == wanted,
            Self::ExactRepository(wanted) => signed.repository == *wanted,
            Self::Remap { prefix, signed_prefix } => {
                let repository = match image.repository.strip_prefix(prefix.as_str()) {
                    Some(rest) if rest.is_empty() || rest.starts_with('/') => format!("{signed_prefix}{rest}"),
                    _ => image.repository.clone(),
                };
                repo_digest_or_exact(&ImageName { repository, ..image.clone() }, signed)
            }
            Self::MatchDigest => true,
        }
    }

    /// Says what name has to be signed for an image.
    pub(crate) fn describe(&self, image: &ImageName) -> String {
        match self {
            Self::MatchRepoDigestOrExact if image.digest.is_some() => format!("{} with any tag", image.repository),
            Self::MatchRepoDigestOrExact => format!("{image} (matchRepoDigestOrExact)"),
            Self::MatchExact => format!("{} (matchExact)", pinned(image)),
            Self::MatchRepository => format!("the repository {} (matchRepository)", image.repository),
            Self::ExactReference(wanted) => format!("{wanted} (exactReference)"),
            Self::ExactRepository(wanted) => format!("the repository {wanted} (exactRepository)"),
            Self::Remap { prefix, signed_prefix } => {
                format!("{image} with {prefix} replaced by {signed_prefix} (remapIdentity)")
            }
            Self::MatchDigest => "any name (matchDigest)".to_owned(),
        }
    }
}

/// A reference that pins a digest says nothing about its tag.
fn pinned(image: &ImageName) -> ImageName {
    match image.digest {
        Some(_) => ImageName { tag: None, ..image.clone() },
        None => image.clone(),
    }
}

fn repo_digest_or_exact(image: &ImageName, signed: &ImageName) -> bool {
    match image.digest {
        // The digest is what was resolved, and the signature is held to it.
        Some(_) => !signed.is_repository() && signed.repository == image.repository,
        None => image.tag.is_some() && signed == image,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn name(text: &str) -> ImageName {
        ImageName::parse(text).unwrap()
    }

    #[test]
    fn names_are_completed() {
        for (written, whole) in [
            ("busybox", "docker.io/library/busybox"),
            ("index.docker.io/library/busybox:1", "docker.io/library/busybox:1"),
            ("team/app", "docker.io/team/app"),
            ("Registry.Example:5000/a/b:V1", "registry.example:5000/a/b:V1"),
            ("localhost/x", "localhost/x"),
            ("[::1]:5000/x", "[::1]:5000/x"),
            ("LOCALHOST/x", "localhost/x"),
            ("Registry/x", "Registry/x"),
        ] {
            assert_eq!(name(written).to_string(), whole);
        }
        assert_eq!(name(&format!("r.io/x:t@{DIGEST}")).digest.unwrap().as_str(), DIGEST);
        for bad in ["", "r.io/", "r.io//x", "x y", "x:", "x@sha256:1", "r.io/X", "/x", "r.io/x:a b", "r.io/é"] {
            assert!(ImageName::parse(bad).is_err(), "{bad:?}");
        }
    }

    /// The table of containers-policy.json(5): image, signed name, and whether each kind takes it.
    #[test]
    fn each_kind_takes_what_it_says() {
        let by_digest = format!("r.io/a/x@{DIGEST}");
        let by_both = format!("r.io/a/x:1@{DIGEST}");
        for (image, signed, or_exact, exact, repository) in [
            ("r.io/a/x:1", "r.io/a/x:1", true, true, true),
            ("r.io/a/x:1", "r.io/a/x:2", false, false, true),
            // What cosign writes.
            ("r.io/a/x:1", "r.io/a/x", false, false, true),
            ("r.io/a/x:1", "r.io/a/y:1", false, false, false),
            ("r.io/a/x:1", &by_digest, false, false, true),
            (&by_digest, "r.io/a/x:1", true, false, true),
            (&by_digest, "r.io/a/x", false, false, true),
            (&by_digest, &by_digest, true, true, true),
            (&by_digest, "r.io/a/y:1", false, false, false),
            (&by_both, "r.io/a/x:2", true, false, true),
            (&by_both, &by_digest, true, true, true),
            (&by_both, "r.io/a/x:1", true, false, true),
        ] {
            let takes = |kind: SignedIdentity| kind.takes(&name(image), &name(signed));
            assert_eq!(takes(SignedIdentity::MatchRepoDigestOrExact), or_exact, "{image} {signed}");
            assert_eq!(takes(SignedIdentity::MatchExact), exact, "{image} {signed}");
            assert_eq!(takes(SignedIdentity::MatchRepository), repository, "{image} {signed}");
        }
    }

    #[test]
    fn a_mirrors_prefix_is_replaced_at_a_slash_only() {
        let kind = SignedIdentity::Remap { prefix: "m.io/v".into(), signed_prefix: "v.example".into() };
        for (image, signed, takes) in [
            ("m.io/v/a/x:1", "v.example/a/x:1", true),
            ("m.io/v/a/x:1", "m.io/v/a/x:1", false),
            ("m.io/vv/a/x:1", "v.examplev/a/x:1", false),
            ("m.io/vv/a/x:1", "m.io/vv/a/x:1", true),
            ("r.io/x:1", "r.io/x:1", true),
        ] {
            assert_eq!(kind.takes(&name(image), &name(signed)), takes, "{image} {signed}");
        }
    }

    proptest! {
        #[test]
        fn a_name_reads_as_it_is_written(text in "\\PC{0,40}") {
            if let Ok(parsed) = ImageName::parse(&text) {
                prop_assert_eq!(name(&parsed.to_string()), parsed);
            }
        }
    }
}
