//! What every layer needs and none owns: identifiers, digests, the on-disk layout and the configuration.

pub mod chain;
pub mod config;
pub mod config_file;
pub mod digest;
pub mod ids;
pub mod paths;
pub mod secret;

pub use chain::chain;
pub use config::Config;
pub use digest::Digest;
pub use ids::{ContainerId, PodId};
pub use paths::Layout;
pub use secret::Secret;
