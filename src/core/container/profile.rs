//! Finds the seccomp profile that a container's configuration names.

use std::fs;

use oci_spec::runtime::LinuxSeccomp;
use podwright_spec::ContainerConfig;
use podwright_spec::container::SecurityProfile;

use crate::error::Error;
use crate::node::Node;

const FIELD: &str = "config.linux.security_context.seccomp.localhost_ref";

/// Returns the profile, `None` where none applies: unconfined, not given, or privileged.
///
/// # Errors
/// Names the field when a localhost profile is missing or malformed.
pub(crate) fn seccomp(node: &Node, config: &ContainerConfig) -> Result<Option<LinuxSeccomp>, Error> {
    if config.security.privileged {
        return Ok(None);
    }
    match &config.security.seccomp {
        SecurityProfile::Unset | SecurityProfile::Unconfined => Ok(None),
        SecurityProfile::RuntimeDefault => {
            let capabilities = podwright_spec::capability_mask(&config.security, node.host.capabilities)
                .map_err(|error| Error::invalid(format!("config.{}", error.field()), error.to_string()))?;
            Ok(Some(podwright_compile::seccomp::default_profile(capabilities, node.facts.kernel)))
        }
        SecurityProfile::Localhost(path) => {
            let text = fs::read(path).map_err(|error| Error::invalid(FIELD, format!("{path}: {error}")))?;
            let profile = serde_json::from_slice(&text)
                .map_err(|error| Error::invalid(FIELD, format!("{path} is no seccomp profile: {error}")))?;
            Ok(Some(profile))
        }
    }
}
