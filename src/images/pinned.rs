//! Images that are named in the configuration as needed, whether a pod uses them or not.

use crate::image::Image;

/// Patterns of names.
#[derive(Debug)]
pub(crate) struct Pinned {
    patterns: Vec<String>,
}

impl Pinned {
    /// Takes patterns as they are configured. A whole name may be short, as in `busybox:1`.
    pub(crate) fn new(patterns: &[String]) -> Self {
        let whole = |pattern: &String| match podwright_registry::normalize(pattern) {
            Ok(reference) if !pattern.contains('*') => reference.to_string(),
            _ => pattern.clone(),
        };
        Self { patterns: patterns.iter().map(whole).collect() }
    }

    /// Tells whether one of an image's names fits a pattern.
    pub(crate) fn fits(&self, image: &Image) -> bool {
        let mut names = image.tags.iter().chain(&image.digests);
        !self.patterns.is_empty() && names.any(|name| self.patterns.iter().any(|pattern| fits(pattern, name)))
    }
}

/// `*` stands for any characters, slashes too.
fn fits(pattern: &str, name: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = name.strip_prefix(first) else { return false };
    let Some(last) = parts.next_back() else { return rest.is_empty() };
    for part in parts {
        match rest.split_once(part) {
            Some((_, after)) => rest = after,
            None => return false,
        }
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_any_characters() {
        for (pattern, name, want) in [
            ("r.io/a:1", "r.io/a:1", true),
            ("r.io/a:1", "r.io/a:10", false),
            ("r.io/*", "r.io/a/b:1", true),
            ("*", "r.io/a/b:1", true),
            ("*/a:*", "r.io/a:1", true),
            ("*/a:*", "r.io/aa:1", false),
            ("r.io/*:1*2", "r.io/x:132", true),
            ("r.io/*:1*12", "r.io/x:12", false),
            ("", "r.io/a:1", false),
        ] {
            assert_eq!(fits(pattern, name), want, "{pattern} {name}");
        }
    }

    #[test]
    fn short_names_are_made_whole() {
        assert_eq!(Pinned::new(&["busybox:1".to_owned()]).patterns, ["docker.io/library/busybox:1"]);
        assert_eq!(Pinned::new(&["*/Any".to_owned()]).patterns, ["*/Any"]);
    }
}
