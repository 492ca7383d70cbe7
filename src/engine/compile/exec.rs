//! Another process in a running container.

use std::path::Path;

use oci_spec::runtime::{Process, Spec};
use podwright_plan::wire;

use crate::error::{CompileError, missing};
use crate::facts::HostFacts;
use crate::listener::Owner;
use crate::{process, scheduling};

/// Which exec it is and how it is carried out.
#[derive(Debug, Clone, Copy)]
pub struct ExecRequest<'a> {
    /// The container it runs in.
    pub container_id: &'a str,
    /// Absolute directory of the container's bundle.
    pub bundle: &'a Path,
    /// Unique in the pod.
    pub exec_id: &'a str,
    /// Which file descriptors come with the plan.
    pub stdio: wire::Stdio,
    /// After how many milliseconds the shim kills it; 0: never.
    pub timeout_ms: u64,
    /// Whether it dies with the connection that asked for it.
    pub tied_to_connection: bool,
}

/// Compiles an exec. It is held by the container's own system call filter, which is in `spec`; what its process does not
/// say of limits and labels, of rights and scheduling, is as in the container's.
///
/// # Errors
/// When a field of the process is bad, or more than this version or host can do.
pub fn exec(
    process: &Process,
    spec: &Spec,
    request: &ExecRequest<'_>,
    facts: &HostFacts,
) -> Result<wire::ExecPlan, CompileError> {
    let linux = spec.linux().as_ref().ok_or_else(|| missing("linux"))?;
    let process = completed(process, spec.process().as_ref());
    let owner = Owner { id: request.container_id, bundle: request.bundle, status: "running" };
    let around = process::Surroundings { spec, linux, owner, facts };
    let mut compiled = process::process(&process, around)?;
    if let Some(affinity) = process.exec_cpu_affinity() {
        (compiled.cpus_initial, compiled.cpus_final) = scheduling::affinity(affinity)?;
    }
    Ok(wire::ExecPlan {
        container_id: request.container_id.to_owned(),
        exec_id: request.exec_id.to_owned(),
        process: Some(compiled),
        stdio: Some(request.stdio),
        tied_to_connection: request.tied_to_connection,
        timeout_ms: request.timeout_ms,
    })
}

/// Fills what a process leaves open with what the container's own says.
fn completed(process: &Process, init: Option<&Process>) -> Process {
    let Some(init) = init else { return process.clone() };
    fn or<T: Clone>(own: &Option<T>, inits: &Option<T>) -> Option<T> {
        own.clone().or_else(|| inits.clone())
    }
    let named = |label: &Option<String>| label.clone().filter(|label| !label.is_empty());
    let mut full = process.clone();
    full.set_capabilities(or(process.capabilities(), init.capabilities()))
        .set_rlimits(or(process.rlimits(), init.rlimits()))
        .set_no_new_privileges(process.no_new_privileges().or(init.no_new_privileges()))
        .set_apparmor_profile(or(&named(process.apparmor_profile()), init.apparmor_profile()))
        .set_selinux_label(or(&named(process.selinux_label()), init.selinux_label()))
        .set_io_priority(or(process.io_priority(), init.io_priority()))
        .set_scheduler(or(process.scheduler(), init.scheduler()))
        .set_exec_cpu_affinity(or(process.exec_cpu_affinity(), init.exec_cpu_affinity()));
    full.user_mut().set_umask(process.user().umask().or(init.user().umask()));
    full
}
