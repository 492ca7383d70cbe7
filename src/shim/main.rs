//! The per-pod shim process.
fn main() {}
