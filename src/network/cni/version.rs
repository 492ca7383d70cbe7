//! Versions of the CNI specification, and what each brought.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A version of the specification that is spoken here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Version {
    /// Chains of plugins.
    #[serde(rename = "0.3.0")]
    V0_3_0,
    /// The same, misprints corrected.
    #[serde(rename = "0.3.1")]
    V0_3_1,
    /// CHECK, and the result of ADD in DEL.
    #[serde(rename = "0.4.0")]
    V0_4_0,
    /// Addresses without their own version.
    #[serde(rename = "1.0.0")]
    V1_0_0,
    /// STATUS and GC.
    #[serde(rename = "1.1.0")]
    V1_1_0,
}

impl Version {
    /// All, oldest first.
    pub const ALL: [Self; 5] = [Self::V0_3_0, Self::V0_3_1, Self::V0_4_0, Self::V1_0_0, Self::V1_1_0];

    /// Reads a version; `None` when it is not spoken here.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|version| version.as_str() == text)
    }

    /// The version as configurations have it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::V0_3_0 => "0.3.0",
            Self::V0_3_1 => "0.3.1",
            Self::V0_4_0 => "0.4.0",
            Self::V1_0_0 => "1.0.0",
            Self::V1_1_0 => "1.1.0",
        }
    }

    /// Whether plugins know CHECK.
    pub(crate) fn has_check(self) -> bool {
        self >= Self::V0_4_0
    }

    /// Whether plugins are told the result of ADD when they are to undo it.
    pub(crate) fn has_result_on_del(self) -> bool {
        self >= Self::V0_4_0
    }

    /// Whether plugins know STATUS and GC.
    pub(crate) fn has_status_and_gc(self) -> bool {
        self >= Self::V1_1_0
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_ordered_and_read_back() {
        assert!(Version::ALL.is_sorted());
        for version in Version::ALL {
            assert_eq!(Version::parse(version.as_str()), Some(version));
            assert_eq!(serde_json::to_value(version).unwrap(), version.as_str());
        }
        assert_eq!(Version::parse("0.2.0"), None);
        assert_eq!(Version::parse("1.2.0"), None);
    }
}
