//! The podwright command.
fn main() {}
