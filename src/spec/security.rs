//! Security modules' part of a specification: seccomp profile, AppArmor profile, SELinux labels, hidden paths.

use oci_spec::runtime::LinuxSeccomp;

use crate::container::{SecurityProfile, SelinuxOptions};
use crate::error::SpecError;
use crate::input::ContainerInput;

/// Chooses the seccomp profile: none for privileged containers and for those that do not ask for one.
pub(crate) fn seccomp(input: &ContainerInput<'_>) -> Result<Option<LinuxSeccomp>, SpecError> {
    let security = &input.container.security;
    let name = match &security.seccomp {
        _ if security.privileged => return Ok(None),
        SecurityProfile::Unset | SecurityProfile::Unconfined => return Ok(None),
        SecurityProfile::RuntimeDefault => "RuntimeDefault",
        SecurityProfile::Localhost(name) => name,
    };
    match input.seccomp {
        Some(profile) => Ok(Some(profile.clone())),
        // Running without it would be the opposite of what was asked for.
        None => Err(SpecError::NoSeccompProfile { name: name.to_owned() }),
    }
}

/// Chooses the AppArmor profile. Without AppArmor on the host, the runtime's default is to have none.
pub(crate) fn apparmor(input: &ContainerInput<'_>) -> Result<Option<String>, SpecError> {
    let security = &input.container.security;
    match &security.apparmor {
        SecurityProfile::Localhost(name) if !input.host.apparmor => Err(SpecError::NoApparmor { name: name.clone() }),
        _ if security.privileged || !input.host.apparmor => Ok(None),
        SecurityProfile::Unconfined => Ok(None),
        SecurityProfile::Localhost(name) => Ok(Some(name.clone())),
        SecurityProfile::Unset | SecurityProfile::RuntimeDefault => Ok(input.host.apparmor_default.clone()),
    }
}

/// SELinux labels of a container.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Labels {
    /// Of the process.
    pub(crate) process: Option<String>,
    /// Of the root file system and of what the runtime mounts.
    pub(crate) mount: Option<String>,
}

/// Makes the labels that the request asks for; a privileged container keeps the daemon's own.
pub(crate) fn labels(input: &ContainerInput<'_>) -> Labels {
    let security = &input.container.security;
    match &security.selinux {
        Some(options) if input.host.selinux && !security.privileged => Labels {
            process: Some(label(options, "system_r", or(&options.kind, "container_t"))),
            mount: Some(label(options, "object_r", "container_file_t")),
        },
        _ => Labels::default(),
    }
}

fn label(options: &SelinuxOptions, role: &str, kind: &str) -> String {
    // `object_r` is the only role files have.
    let role = if role == "object_r" { role } else { or(&options.role, role) };
    format!("{}:{role}:{kind}:{}", or(&options.user, "system_u"), or(&options.level, "s0"))
}

fn or<'a>(given: &'a str, default: &'a str) -> &'a str {
    if given.is_empty() { default } else { given }
}

/// Lists paths as the request gives them. An empty list means none: the kubelet sends the usual ones itself, and
/// `procMount: Unmasked` arrives as an empty list.
pub(crate) fn paths(input: &ContainerInput<'_>, requested: &[String]) -> Option<Vec<String>> {
    Some(requested.to_vec()).filter(|list| !list.is_empty() && !input.container.security.privileged)
}
