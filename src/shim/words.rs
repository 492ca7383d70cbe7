//! The shim's last words: lines on stderr, which the daemon made a file beside the pod's socket.

use std::fmt;
use std::io::Write;

/// Writes one line. A log that cannot be written to has no second place to say so.
pub(crate) fn say(what: fmt::Arguments<'_>) {
    let _no_other_place = std::io::stderr().write_fmt(format_args!("podwright-shim: {what}\n"));
}
