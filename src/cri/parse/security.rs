//! The security context of a container.

use podwright_core::Error;
use podwright_proto::runtime::v1;
use podwright_spec::container::{RunAs, Security, SecurityProfile, SelinuxOptions};

use super::field::{Field, absolute, absolutes, id, ids, known, not_empty, text};
use super::namespaces;

/// Reads a security context; an absent one is all defaults.
pub(crate) fn parse(context: Option<v1::LinuxContainerSecurityContext>, at: Field<'_>) -> Result<Security, Error> {
    let Some(context) = context else { return Ok(Security::default()) };
    let profiles = Profiles::read(&context, at)?;
    let user = user(&context, at)?;
    let groups_policy: v1::SupplementalGroupsPolicy =
        known(context.supplemental_groups_policy, at.child("supplemental_groups_policy"))?;
    let capabilities = context.capabilities.unwrap_or_default();
    Ok(Security {
        add_capabilities: capabilities.add_capabilities,
        drop_capabilities: capabilities.drop_capabilities,
        add_ambient_capabilities: capabilities.add_ambient_capabilities,
        privileged: context.privileged,
        pid: namespaces::of_container(context.namespace_options, at.child("namespace_options"))?,
        run_as_group: group(context.run_as_group, &user, at.child("run_as_group"))?,
        user,
        supplemental_groups: ids(context.supplemental_groups, at.child("supplemental_groups"))?,
        strict_supplemental_groups: groups_policy == v1::SupplementalGroupsPolicy::Strict,
        readonly_rootfs: context.readonly_rootfs,
        no_new_privs: context.no_new_privs,
        masked_paths: absolutes(context.masked_paths, at.child("masked_paths"))?,
        readonly_paths: absolutes(context.readonly_paths, at.child("readonly_paths"))?,
        seccomp: profiles.seccomp,
        apparmor: profiles.apparmor,
        selinux: selinux(context.selinux_options, at.child("selinux_options"))?,
    })
}

fn user(context: &v1::LinuxContainerSecurityContext, at: Field<'_>) -> Result<RunAs, Error> {
    let name = &context.run_as_username;
    match &context.run_as_user {
        Some(_) if !name.is_empty() => {
            Err(at.child("run_as_username").invalid("is given beside run_as_user: only one of them can count"))
        }
        Some(user) => Ok(RunAs::Uid(id(user.value, at.child("run_as_user"))?)),
        None if name.is_empty() => Ok(RunAs::Image),
        None => Ok(RunAs::Name(text(name.clone(), at.child("run_as_username"))?)),
    }
}

/// A group alone would be combined with whatever user the image has.
fn group(group: Option<v1::Int64Value>, user: &RunAs, field: Field<'_>) -> Result<Option<u32>, Error> {
    match group {
        Some(_) if *user == RunAs::Image => Err(field.invalid("needs run_as_user or run_as_username beside it")),
        Some(group) => id(group.value, field).map(Some),
        None => Ok(None),
    }
}

fn selinux(options: Option<v1::SeLinuxOption>, at: Field<'_>) -> Result<Option<SelinuxOptions>, Error> {
    let Some(options) = options else { return Ok(None) };
    let options = SelinuxOptions {
        user: text(options.user, at.child("user"))?,
        role: text(options.role, at.child("role"))?,
        kind: text(options.r#type, at.child("type"))?,
        level: text(options.level, at.child("level"))?,
    };
    Ok(Some(options).filter(|options| *options != SelinuxOptions::default()))
}

/// The profiles of a container.
struct Profiles {
    seccomp: SecurityProfile,
    apparmor: SecurityProfile,
}

impl Profiles {
    /// Reads the profiles; a field of the older form counts where the newer one is absent.
    #[allow(deprecated)] // callers before Kubernetes 1.30 send only the older form
    fn read(context: &v1::LinuxContainerSecurityContext, at: Field<'_>) -> Result<Self, Error> {
        let seccomp = match &context.seccomp {
            Some(profile) => new_form(profile, at.child("seccomp"), absolute)?,
            None => old_form(&context.seccomp_profile_path, at.child("seccomp_profile_path"), absolute)?,
        };
        let apparmor = match &context.apparmor {
            Some(profile) => new_form(profile, at.child("apparmor"), not_empty)?,
            None => old_form(&context.apparmor_profile, at.child("apparmor_profile"), not_empty)?,
        };
        Ok(Self { seccomp, apparmor })
    }
}

/// How the reference of a profile on this host is checked.
type CheckReference = fn(String, Field<'_>) -> Result<String, Error>;

fn new_form(profile: &v1::SecurityProfile, at: Field<'_>, check: CheckReference) -> Result<SecurityProfile, Error> {
    use v1::security_profile::ProfileType;
    Ok(match known(profile.profile_type, at.child("profile_type"))? {
        ProfileType::RuntimeDefault => SecurityProfile::RuntimeDefault,
        ProfileType::Unconfined => SecurityProfile::Unconfined,
        ProfileType::Localhost => {
            SecurityProfile::Localhost(check(profile.localhost_ref.clone(), at.child("localhost_ref"))?)
        }
    })
}

fn old_form(profile: &str, field: Field<'_>, check: CheckReference) -> Result<SecurityProfile, Error> {
    match profile {
        "" => Ok(SecurityProfile::Unset),
        "runtime/default" | "docker/default" => Ok(SecurityProfile::RuntimeDefault),
        "unconfined" => Ok(SecurityProfile::Unconfined),
        other => match other.strip_prefix("localhost/") {
            Some(reference) => Ok(SecurityProfile::Localhost(check(reference.to_owned(), field)?)),
            None => Err(field.invalid(format!(
                "{other:?} is none of runtime/default, unconfined and localhost/ with a profile's name"
            ))),
        },
    }
}
