//! From what the core knows to messages of the wire.

pub(crate) mod container;
pub(crate) mod image;
pub(crate) mod pod;
pub(crate) mod status;

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::Value;

/// Tells the time as the interface does: unix nanoseconds.
pub(crate) fn now() -> i64 {
    // A clock before 1970 or after 2262 tells no time: 0 is the interface's word for that.
    SystemTime::now().duration_since(UNIX_EPOCH).ok().and_then(|time| i64::try_from(time.as_nanos()).ok()).unwrap_or(0)
}

/// Makes the map of a verbose answer: one entry, an object as text.
pub(crate) fn info(key: &str, value: &Value) -> BTreeMap<String, String> {
    BTreeMap::from([(key.to_owned(), value.to_string())])
}
