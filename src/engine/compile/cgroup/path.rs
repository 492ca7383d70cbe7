//! A cgroup's path below each hierarchy's mount.

use std::fmt;
use std::str::FromStr;

/// A cgroup's path: absolute below the mount, at least one component, none of them `.` or `..`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CgroupPath(String);

/// Why a text is no cgroup path.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{value:?} is no cgroup path: {problem}")]
pub struct InvalidCgroupPath {
    value: String,
    /// What is wrong with it.
    pub(crate) problem: &'static str,
}

impl CgroupPath {
    /// Returns the path with its leading slash.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the cgroup's directory below a hierarchy's mount.
    pub(crate) fn below(&self, mount: &str) -> String {
        format!("{}{}", mount.trim_end_matches('/'), self.0)
    }

    /// Returns the directories from the one below the mount down to the cgroup's parent.
    pub(crate) fn ancestors_below(&self, mount: &str) -> Vec<String> {
        let mount = mount.trim_end_matches('/');
        let slashes = self.0.char_indices().skip(1).filter(|(_, character)| *character == '/');
        slashes.map(|(end, _)| format!("{mount}{}", &self.0[..end])).collect()
    }
}

impl FromStr for CgroupPath {
    type Err = InvalidCgroupPath;

    fn from_str(value: &str) -> Result<Self, InvalidCgroupPath> {
        let refuse = |problem| Err(InvalidCgroupPath { value: value.to_owned(), problem });
        let components: Vec<&str> = value.split('/').filter(|component| !component.is_empty()).collect();
        if components.is_empty() {
            return refuse("is the root of the hierarchy");
        }
        if components.iter().any(|component| matches!(*component, "." | "..")) {
            return refuse("has a component that leaves it");
        }
        if value.contains(['\0', '\n']) {
            return refuse("has a character that no directory of the cgroup file system can have");
        }
        if !value.starts_with('/') && value.split(':').count() == 3 {
            return refuse("is a unit of the systemd driver (slice:prefix:name), where a path is wanted");
        }
        Ok(Self(format!("/{}", components.join("/"))))
    }
}

impl fmt::Display for CgroupPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_normalised_and_split() {
        let path: CgroupPath = "kubepods//pod1/abc/".parse().unwrap();
        assert_eq!(path.as_str(), "/kubepods/pod1/abc");
        assert_eq!(path.below("/sys/fs/cgroup"), "/sys/fs/cgroup/kubepods/pod1/abc");
        assert_eq!(path.ancestors_below("/c"), ["/c/kubepods", "/c/kubepods/pod1"]);
        assert!("/a".parse::<CgroupPath>().unwrap().ancestors_below("/c").is_empty());
    }

    #[test]
    fn what_leaves_the_hierarchy_is_refused() {
        for bad in ["", "/", "/a/../b", "..", "./a", "/a\n/b", "system.slice:podwright:abc"] {
            assert!(bad.parse::<CgroupPath>().is_err(), "{bad:?}");
        }
    }
}
