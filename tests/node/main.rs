//! Whole-daemon tests: a real daemon in directories of its own, driven through its socket by CRI bindings of another hand,
//! with images from a real registry. `hack/test` prepares what they need and runs them.
//!
//! They need root, `target/podwright/podwright` (or `PODWRIGHT_BIN`) and the address of `hack/registry` in
//! `PODWRIGHT_TEST_REGISTRY`. One test binary, a module for each topic: linking a binary for each costs more than all runs.

mod lab;

mod bad;
mod builtin;
mod clean;
mod cli;
mod cni;
mod content;
mod crictl;
mod images;
mod isolation;
mod lifecycle;
mod logs;
mod network;
mod registries;
mod restart;
mod servers;
mod streaming;
mod trees;
mod trust;
mod volumes;
