//! Which of an index's images this host runs.

use oci_client::manifest::ImageIndexEntry;

/// What this host runs, best first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Host {
    /// As Go names it.
    pub(crate) architecture: &'static str,
    /// Variants from best to plainest; an entry without one fits after them.
    variants: &'static [&'static str],
}

impl Host {
    /// Tells what this process's host runs.
    pub(crate) fn current() -> Self {
        let (architecture, variants): (_, &[&str]) = match std::env::consts::ARCH {
            "x86_64" => ("amd64", amd64_levels()),
            "aarch64" => ("arm64", &["v8"]),
            "arm" => ("arm", &["v7", "v6", "v5"]),
            "x86" => ("386", &[]),
            "powerpc64" if cfg!(target_endian = "little") => ("ppc64le", &[]),
            "loongarch64" => ("loong64", &[]),
            other => (other, &[]),
        };
        Self { architecture, variants }
    }

    /// Ranks a platform: the lower the better, `None` when it cannot run here.
    pub(crate) fn rank(&self, os: &str, architecture: &str, variant: Option<&str>) -> Option<usize> {
        if os != "linux" || architecture != self.architecture {
            return None;
        }
        match variant.filter(|variant| !variant.is_empty()) {
            None => Some(self.variants.len()),
            Some(variant) => self.variants.iter().position(|known| *known == variant),
        }
    }

    /// Picks the best entry of an index. Entries that name no platform come last.
    pub(crate) fn choose<'a>(&self, entries: &'a [ImageIndexEntry]) -> Option<&'a ImageIndexEntry> {
        let rank = |entry: &ImageIndexEntry| match &entry.platform {
            None => Some(usize::MAX),
            Some(platform) => {
                self.rank(&platform.os.to_string(), &platform.architecture.to_string(), platform.variant.as_deref())
            }
        };
        let ranked = entries.iter().filter_map(|entry| rank(entry).map(|rank| (rank, entry)));
        // The first of equals, as the specification asks.
        ranked.min_by_key(|(rank, _)| *rank).map(|(_, entry)| entry)
    }
}

/// The micro-architecture levels of the x86-64 psABI that this CPU has.
#[cfg(target_arch = "x86_64")]
fn amd64_levels() -> &'static [&'static str] {
    use std::arch::is_x86_feature_detected as has;
    let v2 = has!("sse4.2") && has!("ssse3") && has!("popcnt") && has!("cmpxchg16b");
    let v3 = v2
        && has!("avx2")
        && has!("bmi1")
        && has!("bmi2")
        && has!("f16c")
        && has!("fma")
        && has!("lzcnt")
        && has!("movbe");
    let v4 = v3 && has!("avx512f") && has!("avx512bw") && has!("avx512cd") && has!("avx512dq") && has!("avx512vl");
    let levels: &[&str] = &["v4", "v3", "v2", "v1"];
    let best = if v4 {
        0
    } else if v3 {
        1
    } else if v2 {
        2
    } else {
        3
    };
    &levels[best..]
}

#[cfg(not(target_arch = "x86_64"))]
fn amd64_levels() -> &'static [&'static str] {
    &["v1"]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(text: &str) -> ImageIndexEntry {
        let platform: serde_json::Value = serde_json::from_str(text).unwrap();
        let entry = serde_json::json!({"mediaType": "m", "digest": text, "size": 1, "platform": platform});
        serde_json::from_value(entry).unwrap()
    }

    #[test]
    fn the_best_variant_that_runs_is_chosen() {
        let host = Host { architecture: "amd64", variants: &["v2", "v1"] };
        let entries = [
            entry(r#"{"os":"windows","architecture":"amd64"}"#),
            entry(r#"{"os":"linux","architecture":"arm64"}"#),
            entry(r#"{"os":"linux","architecture":"amd64","variant":"v3"}"#),
            entry(r#"{"os":"linux","architecture":"amd64"}"#),
            entry(r#"{"os":"linux","architecture":"amd64","variant":"v2"}"#),
            entry(r#"{"os":"unknown","architecture":"unknown"}"#),
        ];
        assert_eq!(host.choose(&entries).unwrap().digest, entries[4].digest);
        assert_eq!(host.choose(&entries[..4]).unwrap().digest, entries[3].digest);
        assert!(host.choose(&entries[..3]).is_none());
        assert!(host.choose(&entries[5..]).is_none());
    }

    #[test]
    fn this_host_runs_its_own_architecture() {
        let host = Host::current();
        assert!(host.rank("linux", host.architecture, None).is_some());
        assert!(host.rank("linux", "other", None).is_none());
    }
}
