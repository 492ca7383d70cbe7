//! The engine's launch half: runs in the shim.
