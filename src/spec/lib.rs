//! Pod and container configuration, and the pure way from them to an OCI runtime specification.

pub mod container;
pub mod pod;
pub mod user;

pub use container::ContainerConfig;
pub use pod::PodConfig;
