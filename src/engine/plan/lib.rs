//! What the daemon and a pod's shim share: the flat launch plan, the messages that carry it, and their framing.
//!
//! The messages are described in `proto/shim/v1/shim.proto`. Nothing here does I/O on its own: [`frame`] turns
//! messages into bytes and back, and each side moves them with its own event loop.

pub mod frame;

/// The generated messages; see `proto/shim/v1/shim.proto` for what each field means.
#[allow(missing_docs, clippy::doc_markdown, clippy::large_enum_variant)]
pub mod wire {
    include!(concat!(env!("OUT_DIR"), "/podwright.shim.v1.rs"));
}

/// The protocol's major version: both sides must have the same.
pub const MAJOR: u32 = 1;
/// The protocol's minor version: raised when a field or an operation is added.
pub const MINOR: u32 = 3;
