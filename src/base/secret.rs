//! Text that is never shown: passwords and tokens of the configuration.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A secret. Printed or written out it is `***`; empty is absent.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secret(String);

const HIDDEN: &str = "***";

impl Secret {
    /// Takes a text into custody.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// Returns the text, for who needs it.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// Tells whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_empty() { "none" } else { HIDDEN })
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(if self.is_empty() { "" } else { HIDDEN })
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // Of a value of another kind serde's own error would show the value.
        match toml::Value::deserialize(deserializer)? {
            toml::Value::String(text) => Ok(Self(text)),
            _ => Err(serde::de::Error::custom("it takes a string")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_neither_printed_nor_written_out() {
        let secret = Secret::new("s3cret");
        assert_eq!(format!("{secret:?}"), "***");
        let table = toml::Table::try_from(std::collections::BTreeMap::from([("password", &secret)])).unwrap();
        assert_eq!(table["password"].as_str(), Some("***"));
        assert_eq!(secret.reveal(), "s3cret");
    }
}
