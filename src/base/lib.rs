//! What every layer needs and none owns: identifiers, digests, the on-disk layout, files that are replaced whole, and the
//! configuration.

pub mod chain;
pub mod config;
pub mod config_file;
pub mod digest;
pub mod ids;
pub mod paths;
pub mod replace;
pub mod secret;

pub use chain::chain;
pub use config::Config;
pub use digest::Digest;
pub use ids::{ContainerId, PodId};
pub use paths::Layout;
pub use replace::replace;
pub use secret::Secret;
