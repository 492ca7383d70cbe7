//! Wall-clock time as the CRI and the shim's wire count it.

use std::time::{SystemTime, UNIX_EPOCH};

/// Returns unix nanoseconds; 0 on a clock before 1970.
pub(crate) fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| i64::try_from(since.as_nanos()).unwrap_or(i64::MAX))
}
