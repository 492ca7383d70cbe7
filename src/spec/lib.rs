//! Pod and container configuration, and the pure way from them to an OCI runtime specification.
//!
//! [`pod`] and [`container`] hold what the kubelet asked for; [`user::resolve`], [`sysctl::of_pod`],
//! [`signal::stop_signal`] and [`container_spec`] judge and translate it. Nothing here opens a file, asks the kernel
//! or depends on the time: what they need to know of the host comes in by [`input::HostTraits`].

pub mod capabilities;
pub mod container;
mod devices;
pub mod error;
pub mod input;
mod mounts;
mod namespaces;
mod oci;
pub mod pod;
mod process;
pub mod resources;
mod security;
pub mod signal;
pub mod sysctl;
#[cfg(test)]
mod tests;
pub mod user;

pub use capabilities::capability_mask;
pub use container::ContainerConfig;
pub use error::SpecError;
pub use input::{ContainerInput, DeviceKind, HostTraits, PodFiles, PodNamespaces, ResolvedDevice, VolumeSource};
pub use oci::{config_json, container_spec};
pub use pod::PodConfig;
pub use process::exec_process;
pub use signal::stop_signal;
