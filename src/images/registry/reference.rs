//! Image references as the ecosystem writes them, in one canonical form.
//!
//! `[registry[:port]/]repository[:tag][@digest]`; a name without a registry is Docker Hub's, one without a path there
//! is in `library/`, and one without tag and digest means `latest`. The grammar is that of the distribution project,
//! with IPv6 registries in brackets, which `oci_client::Reference` does not know; where both know a reference, the
//! tests hold them to the same answer.

use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;

use podwright_base::Digest;

/// Docker Hub's name in references; its registry answers at another host.
pub(crate) const DOCKER_HUB: &str = "docker.io";
const DOCKER_HUB_LEGACY: &str = "index.docker.io";
const DOCKER_HUB_NAMESPACE: &str = "library";
const DEFAULT_TAG: &str = "latest";
/// The distribution project's bound on a repository's path.
const LONGEST_REPOSITORY: usize = 255;
const LONGEST_TAG: usize = 128;

/// A whole image reference, parsed and completed.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Reference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// Why a string is no image reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reference:?} is no image reference: {problem}")]
pub struct ReferenceError {
    reference: String,
    problem: Problem,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
enum Problem {
    #[error("it is empty")]
    Empty,
    #[error("the registry {0:?} is no host name")]
    Registry(String),
    #[error("the repository {0:?} takes lower-case letters and digits, with single separators . _ __ - between them")]
    Repository(String),
    #[error("the repository is longer than {LONGEST_REPOSITORY} characters")]
    RepositoryTooLong,
    #[error("the repository is 64 hex digits, which is an image id")]
    Id,
    #[error("the tag {0:?} takes up to {LONGEST_TAG} letters, digits and _ . -, the first no . or -")]
    Tag(String),
    #[error("{0}")]
    Digest(podwright_base::digest::InvalidDigest),
}

/// Parses a reference and completes what it leaves out.
///
/// # Errors
/// When the string does not follow the grammar, or has a digest other than sha256.
pub fn normalize(reference: &str) -> Result<Reference, ReferenceError> {
    parse(reference).map_err(|problem| ReferenceError { reference: reference.chars().take(300).collect(), problem })
}

impl Reference {
    /// Returns the registry with its port, `docker.io` for Docker Hub.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// Returns the path of the repository in its registry.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// Returns the tag; none only when there is a digest.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// Returns the digest that the reference pins, if it does.
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// Returns `registry/repository`.
    pub fn name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }

    /// Returns `registry/repository@digest`, as CRI's `repo_digests` has it.
    pub fn with_digest(&self, digest: &Digest) -> String {
        format!("{}/{}@{digest}", self.registry, self.repository)
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(value: &str) -> Result<Self, ReferenceError> {
        normalize(value)
    }
}

fn parse(reference: &str) -> Result<Reference, Problem> {
    if reference.is_empty() {
        return Err(Problem::Empty);
    }
    let (rest, digest) = match reference.split_once('@') {
        Some((rest, digest)) => (rest, Some(digest.parse().map_err(Problem::Digest)?)),
        None => (reference, None),
    };
    // A colon before the last slash belongs to the registry's port.
    let (name, tag) = match rest.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
        _ => (rest, None),
    };
    let (registry, path) = split_registry(name);
    let registry = match registry {
        None | Some(DOCKER_HUB | DOCKER_HUB_LEGACY) => DOCKER_HUB,
        Some(host) if is_host(host) => host,
        Some(host) => return Err(Problem::Registry(host.to_owned())),
    };
    check_repository(path)?;
    let repository = match registry {
        DOCKER_HUB if !path.contains('/') => {
            if path.len() == 64 && path.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte)) {
                return Err(Problem::Id);
            }
            format!("{DOCKER_HUB_NAMESPACE}/{path}")
        }
        _ => path.to_owned(),
    };
    if repository.len() > LONGEST_REPOSITORY {
        return Err(Problem::RepositoryTooLong);
    }
    let tag = match tag {
        Some(tag) if is_tag(tag) => Some(tag.to_owned()),
        Some(tag) => return Err(Problem::Tag(tag.chars().take(200).collect())),
        None if digest.is_none() => Some(DEFAULT_TAG.to_owned()),
        None => None,
    };
    Ok(Reference { registry: registry.to_owned(), repository, tag, digest })
}

/// The first component is a registry if it could be nothing else: it has a dot, a port, a bracket or an upper-case
/// letter, or is `localhost`.
fn split_registry(name: &str) -> (Option<&str>, &str) {
    match name.split_once('/') {
        Some((first, rest))
            if first.contains(['.', ':', '['])
                || first == "localhost"
                || first.bytes().any(|byte| byte.is_ascii_uppercase()) =>
        {
            (Some(first), rest)
        }
        _ => (None, name),
    }
}

fn is_host(host: &str) -> bool {
    let is_port = |port: &str| port.parse::<u16>().is_ok() && port.bytes().all(|byte| byte.is_ascii_digit());
    if let Some(rest) = host.strip_prefix('[') {
        return match rest.split_once(']') {
            Some((address, "")) => address.parse::<Ipv6Addr>().is_ok(),
            Some((address, port)) => address.parse::<Ipv6Addr>().is_ok() && port.strip_prefix(':').is_some_and(is_port),
            None => false,
        };
    }
    let (name, port) = match host.split_once(':') {
        Some((name, port)) => (name, Some(port)),
        None => (host, None),
    };
    let label = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    name.split('.').all(label) && port.is_none_or(is_port)
}

fn check_repository(path: &str) -> Result<(), Problem> {
    if path.len() > LONGEST_REPOSITORY {
        return Err(Problem::RepositoryTooLong);
    }
    if path.split('/').all(is_component) { Ok(()) } else { Err(Problem::Repository(path.to_owned())) }
}

/// Runs of letters and digits, between each two of them one of `.`, `_`, `__` or any number of `-`.
fn is_component(component: &str) -> bool {
    let word = |byte: u8| byte.is_ascii_digit() || byte.is_ascii_lowercase();
    let separators = component.split(|character: char| u8::try_from(character).is_ok_and(word));
    let bytes = component.as_bytes();
    matches!(bytes, [first, .., last] if word(*first) && word(*last))
        && bytes.len() > 1
        && separators
            .filter(|separator| !separator.is_empty())
            .all(|separator| matches!(separator, "." | "_" | "__") || separator.bytes().all(|byte| byte == b'-'))
        || matches!(bytes, [only] if word(*only))
}

fn is_tag(tag: &str) -> bool {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    let mut bytes = tag.bytes();
    tag.len() <= LONGEST_TAG
        && bytes.next().is_some_and(word)
        && bytes.all(|byte| word(byte) || byte == b'.' || byte == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn what_is_left_out_is_completed() {
        for (written, whole) in [
            ("busybox", "docker.io/library/busybox:latest".to_owned()),
            ("busybox:1.36", "docker.io/library/busybox:1.36".to_owned()),
            ("index.docker.io/busybox", "docker.io/library/busybox:latest".to_owned()),
            ("docker.io/a/b", "docker.io/a/b:latest".to_owned()),
            ("a/b/c", "docker.io/a/b/c:latest".to_owned()),
            ("localhost/x", "localhost/x:latest".to_owned()),
            ("localhost:5000/x:y", "localhost:5000/x:y".to_owned()),
            ("Registry/x", "Registry/x:latest".to_owned()),
            ("127.0.0.1:5055/a/b", "127.0.0.1:5055/a/b:latest".to_owned()),
            ("[::1]:5000/a:t", "[::1]:5000/a:t".to_owned()),
            ("[fd00::7]/a", "[fd00::7]/a:latest".to_owned()),
            ("registry.k8s.io/pause:3.9", "registry.k8s.io/pause:3.9".to_owned()),
            (&format!("x@sha256:{HEX}"), format!("docker.io/library/x@sha256:{HEX}")),
            (&format!("r.io/x:t@sha256:{HEX}"), format!("r.io/x:t@sha256:{HEX}")),
            ("a__b--c.d", "docker.io/library/a__b--c.d:latest".to_owned()),
        ] {
            assert_eq!(normalize(written).unwrap().to_string(), whole, "{written}");
        }
    }

    #[test]
    fn what_follows_no_grammar_is_refused() {
        let (long, tag) = (format!("r.io/{}", "a/".repeat(130)), format!("x:{}", "t".repeat(129)));
        for bad in [
            "",
            ":x",
            "x:",
            "X",
            "a/B",
            "a//b",
            "/a",
            "a/",
            "x@",
            "x@sha256:abc",
            "x:a b",
            "a..b",
            "a___b",
            "a_-b",
            "-a",
            "a-",
            "[::1/x",
            "[::g]/x",
            "[::1]x/y",
            "r.io:99999/x",
            "r.io:/x",
            "r_.io/x",
            "-r.io/x",
            "x:-t",
            "é",
            "a/é",
            HEX,
            &long,
            &tag,
            "https://r.io/x",
            "x@sha512:00",
            "x\n",
            "x:t\n",
            "../x",
            "r.io/../x",
        ] {
            assert!(normalize(bad).is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        // Not with upper-case letters: there oci_client makes names that it does not parse itself.
        fn agrees_with_the_ecosystem(text in "([a-z0-9.-]{1,8}(:[0-9]{1,4})?/)?[a-z0-9._/-]{1,12}(:[a-zA-Z0-9._-]{1,6})?") {
            // With a dot the first component is a registry, with an underscore it cannot be one: we refuse it, others
            // take it for a part of the path and then have no registry at all.
            let first = text.split_once('/').map_or("", |(first, _)| first);
            prop_assume!(!(first.contains('.') && first.contains('_')));
            let ours = normalize(&text).map(|reference| reference.to_string()).ok();
            let theirs = text.parse::<oci_client::Reference>().map(|reference| reference.whole()).ok();
            prop_assert_eq!(ours, theirs);
        }

        #[test]
        fn the_canonical_form_is_stable(text in "\\PC{0,40}") {
            if let Ok(reference) = normalize(&text) {
                prop_assert_eq!(normalize(&reference.to_string()).unwrap(), reference);
            }
        }
    }
}
