//! OCI specification and host facts to launch plan.
//!
//! [`container`], [`standalone`], [`exec`], [`pod`] and [`update`] are pure functions: they open nothing and ask nothing of the host but what
//! stands in [`HostFacts`], so that a specification is refused when a container is created, by the field that is wrong,
//! and never half-way through its start. Every field of the runtime specification is compiled or refused by name.
//!
//! What comes out is flat ([`podwright_plan::wire`]): mounts in order, capabilities as bits, system call filters and device
//! rules assembled. The shim executes it without understanding it.

pub mod capabilities;
mod cgroup;
mod container;
mod devices;
mod error;
mod exec;
pub mod facts;
mod hooks;
mod id_maps;
mod listener;
mod mount_options;
mod mounts;
mod namespaces;
mod net_devices;
mod number_list;
mod personality;
mod pod;
mod process;
mod scheduling;
pub mod seccomp;
mod sysctl;
#[cfg(test)]
mod tests;
mod unsupported;

pub use cgroup::{CgroupDriver, CgroupPath, CgroupPlace, InvalidCgroupPath, update};
pub use container::{Bundle, Standalone, container, standalone};
pub use error::CompileError;
pub use exec::{ExecRequest, exec};
pub use facts::{CgroupLayout, FactsError, HostFacts};
pub use pod::{PodRequest, pod};
pub use seccomp::{SeccompArch, SeccompError};
