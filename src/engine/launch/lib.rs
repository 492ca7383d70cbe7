//! The engine's launch half: runs in a process with one thread, a pod's shim or the OCI command line, and executes the
//! flat plans of `proto/shim/v1/shim.proto`.
//!
//! - [`Pod::set_up`] makes what a pod's containers share: namespaces, /dev/shm, the reaper of a shared pid namespace.
//! - [`start`] forks a container's init and returns at once; [`exec`] does the same into a running container. Both give a
//!   [`Pending`], whose status fd says when the user's program runs or which step failed.
//! - [`create`] forks a container that has no pod, and [`release`] lets its program run: the two may be called by
//!   different processes, the first of which has ended meanwhile.
//! - [`cgroup`] makes, changes, freezes, kills and removes the control groups that plans name.
//!
//! Nothing here waits for anything a user controls: sources on a dead NFS server are opened by the forked process,
//! which can be killed. Nothing is mounted in the host's mount namespace.
//!
//! A container's program may name the shim's own file by `/proc/self/exe` in its first line and have it executed in the
//! container; it cannot write to it, since the kernel refuses that (`ETXTBSY`) while any shim runs, its own pod's for one.
//! A caller of [`create`], which ends while its container runs, must see to that itself.
//!
//! The caller is the parent of every process started here and reaps it: a child whose set-up failed has exited with
//! code 1 by the time [`Pending::outcome`] tells the failure, or is about to. Cgroups of a failed start are the caller's
//! to remove once the child is reaped ([`cgroup::remove`]).

mod attributes;
pub mod cgroup;
mod console;
mod devices;
mod door;
mod exec;
mod failure;
mod fscontext;
mod home;
pub mod hooks;
mod init;
mod inroot;
mod listener;
mod masks;
mod mounts;
mod namespaces;
mod overlay;
mod pending;
mod pid_namespace;
mod pod;
mod procfs;
mod program;
mod progress;
mod reaper;
mod rootfs;
mod shared_mounts;
mod sources;
mod standalone;
mod start;
mod status;
mod streams;
mod sysctl;
mod time_namespace;
mod user_namespace;

pub use door::{Door, is_waiting, open_directory};
pub use exec::{ExecStdio, Facts, Target, enter, exec};
pub use failure::Failure;
pub use listener::deliver;
pub use pending::{Pending, Stdio};
pub use pod::Pod;
pub use progress::{Progress, Stage};
pub use standalone::{Creating, Phase, Standalone, create, release};
pub use start::start;
