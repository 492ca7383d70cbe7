//! Another process in a running container.

use oci_spec::runtime::{Process, Spec};
use podwright_plan::wire;

use crate::container::filter;
use crate::error::CompileError;
use crate::facts::HostFacts;
use crate::process;

/// Which exec it is and how it is carried out.
#[derive(Debug, Clone, Copy)]
pub struct ExecRequest<'a> {
    /// The container it runs in.
    pub container_id: &'a str,
    /// Unique in the pod.
    pub exec_id: &'a str,
    /// Which file descriptors come with the plan.
    pub stdio: wire::Stdio,
    /// After how many milliseconds the shim kills it; 0: never.
    pub timeout_ms: u64,
    /// Whether it dies with the connection that asked for it.
    pub tied_to_connection: bool,
}

/// Compiles an exec. It is held by the container's own system call filter, which is in `spec`.
///
/// # Errors
/// When a field of the process is bad, or more than this version or host can do.
pub fn exec(
    process: &Process,
    spec: &Spec,
    request: &ExecRequest<'_>,
    facts: &HostFacts,
) -> Result<wire::ExecPlan, CompileError> {
    Ok(wire::ExecPlan {
        container_id: request.container_id.to_owned(),
        exec_id: request.exec_id.to_owned(),
        process: Some(process::process(process, filter(spec, facts)?, facts)?),
        stdio: Some(request.stdio),
        tied_to_connection: request.tied_to_connection,
        timeout_ms: request.timeout_ms,
    })
}
