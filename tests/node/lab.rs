//! What the tests stand on.

pub(crate) mod archive;
pub(crate) mod authority;
pub(crate) mod cri;
pub(crate) mod distribution;
pub(crate) mod log;
pub(crate) mod netns;
pub(crate) mod node;
pub(crate) mod proxy;
pub(crate) mod registry;
pub(crate) mod relay;
pub(crate) mod residue;
pub(crate) mod tcp;
pub(crate) mod tokens;
pub(crate) mod tree;

pub(crate) use node::{Node, Setup};
