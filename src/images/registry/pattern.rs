//! Which registries and repositories a key of credentials covers, as Docker, podman and the kubelet write such keys:
//! `r.io`, `r.io:5000`, `https://index.docker.io/v1/`, `r.io/team/app`, `*.r.io`.

use crate::credentials::canonical;

/// A key, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pattern {
    /// Labels, in lower case; `*` in one stands for any part of it.
    host: Vec<String>,
    port: Option<String>,
    path: Vec<String>,
}

impl Pattern {
    pub(crate) fn new(key: &str) -> Self {
        let key = key.trim();
        let key = key.split_once("://").map_or(key, |(_, rest)| rest);
        let (address, path) = key.split_once('/').unwrap_or((key, ""));
        let (host, port) = split(&canonical(address));
        let mut path: Vec<String> =
            path.split('/').filter(|segment| !segment.is_empty()).map(ToOwned::to_owned).collect();
        // The version of the API is not part of any repository's name.
        if path.first().is_some_and(|first| first == "v1" || first == "v2") {
            path.remove(0);
        }
        Self { host: host.split('.').map(ToOwned::to_owned).collect(), port, path }
    }

    /// Tells whether the key is for a repository of a registry, which is a host with its port.
    pub(crate) fn covers(&self, registry: &str, repository: &str) -> bool {
        let (host, port) = split(&canonical(registry));
        let labels: Vec<&str> = host.split('.').collect();
        let mut segments = repository.split('/');
        self.port == port
            && self.host.len() == labels.len()
            && self.host.iter().zip(labels).all(|(pattern, label)| fits(pattern, label))
            && self.path.iter().all(|segment| segments.next() == Some(segment))
    }

    /// Of two keys that cover a repository, the one with the greater rank says more about it.
    pub(crate) fn rank(&self) -> (usize, bool) {
        (self.path.len(), !self.host.iter().any(|label| label.contains('*')))
    }
}

/// Parts host and port; an IPv6 address is one label, brackets and all.
fn split(address: &str) -> (String, Option<String>) {
    match address.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host.to_owned(), Some(port.to_owned())),
        _ => (address.to_owned(), None),
    }
}

fn fits(pattern: &str, label: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == label,
        Some((before, after)) => label.strip_prefix(before).is_some_and(|rest| {
            let mut ends = rest.char_indices().map(|(at, _)| at).chain([rest.len()]);
            ends.any(|end| fits(after, &rest[end..]))
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_written_in_many_ways() {
        for (key, registry, repository, covered) in [
            ("r.io", "r.io", "a/b", true),
            ("R.IO", "r.io", "a", true),
            ("https://r.io/v2/", "r.io", "a", true),
            ("r.io", "r.io:5000", "a", false),
            ("r.io:5000", "r.io:5000", "a", true),
            ("r.io:5000", "r.io", "a", false),
            ("https://index.docker.io/v1/", "docker.io", "library/x", true),
            ("docker.io", "registry-1.docker.io", "library/x", true),
            ("r.io/a", "r.io", "a/b", true),
            ("r.io/a/b", "r.io", "a/b", true),
            ("r.io/a/b/c", "r.io", "a/b", false),
            ("r.io/a", "r.io", "ab", false),
            ("*.r.io", "eu.r.io", "a", true),
            ("*.r.io", "r.io", "a", false),
            ("*.r.io", "a.eu.r.io", "a", false),
            ("eu-*x.r.io", "eu-1-x.r.io", "a", true),
            ("eu-*x.r.io", "eu-1-y.r.io", "a", false),
            ("[::1]:5000", "[::1]:5000", "a", true),
            ("[::1]", "[::1]:5000", "a", false),
            ("", "r.io", "a", false),
        ] {
            assert_eq!(Pattern::new(key).covers(registry, repository), covered, "{key} {registry}/{repository}");
        }
    }

    #[test]
    fn a_longer_path_and_a_whole_name_say_more() {
        let rank = |key: &str| Pattern::new(key).rank();
        assert!(rank("r.io/a/b") > rank("r.io/a") && rank("r.io/a") > rank("r.io") && rank("r.io") > rank("*.io"));
    }
}
