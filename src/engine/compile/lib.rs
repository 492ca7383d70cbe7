//! OCI specification and host facts to launch plan.
