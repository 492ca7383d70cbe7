//! Identifiers of pod sandboxes and containers: 64 lower-case hex digits, so that they are safe as a path component,
//! a cgroup name and a log field without any further check.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

const LENGTH: usize = 64;

/// Why a string is no identifier.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{value:?} is no {kind} id: it takes {LENGTH} lower-case hex digits")]
pub struct InvalidId {
    kind: &'static str,
    value: String,
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $kind:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// Draws a new random identifier.
            ///
            /// # Panics
            /// When the kernel has no random numbers to give, which it always has after boot.
            pub fn random() -> Self {
                let mut bytes = [0_u8; LENGTH / 2];
                getrandom::fill(&mut bytes).expect("the kernel's random numbers are ready after boot");
                Self(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
            }

            /// Returns the identifier's 64 hex digits.
            pub fn as_str(&self) -> &str {
                &self.0
            }

            /// Returns the first 12 digits, as tables show them.
            pub fn short(&self) -> &str {
                &self.0[..12]
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;

            fn from_str(value: &str) -> Result<Self, InvalidId> {
                let digits = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
                if value.len() == LENGTH && value.bytes().all(digits) {
                    Ok(Self(value.to_owned()))
                } else {
                    Err(InvalidId { kind: $kind, value: value.chars().take(80).collect() })
                }
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidId;

            fn try_from(value: String) -> Result<Self, InvalidId> {
                value.parse()
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> Self {
                id.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.short())
            }
        }
    };
}

id!(
    /// Identifies a pod sandbox (CRI `pod_sandbox_id`).
    PodId,
    "pod sandbox"
);
id!(
    /// Identifies a container (CRI `container_id`).
    ContainerId,
    "container"
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_ids_parse_and_differ() {
        let (a, b) = (PodId::random(), PodId::random());
        assert_ne!(a, b);
        assert_eq!(a.as_str().parse::<PodId>().unwrap(), a);
    }

    #[test]
    fn what_could_leave_its_directory_is_refused() {
        for bad in ["", "..", "../../etc", &"A".repeat(64), &"g".repeat(64), &"a".repeat(63), &"a".repeat(65)] {
            assert!(bad.parse::<ContainerId>().is_err(), "{bad:?}");
        }
    }
}
