//! The program driven as its users drive it, as root: bundles with busybox, from `create` to `delete`.

// A test program's own modules are to clippy no tests.
#![allow(clippy::unwrap_used, unreachable_pub, missing_docs)]

mod bundle;
mod confinement;
mod execs;
mod hooks;
mod lifecycle;
mod limits;
mod namespaces;
mod net_devices;
mod units;
