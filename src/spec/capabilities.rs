//! Which capabilities a container has: the runtime's default set, more or fewer.

use oci_spec::runtime::{Capabilities, Capability, LinuxCapabilities};

use crate::container::Security;
use crate::error::SpecError;

use Capability as C;

/// All capabilities by their number in `linux/capability.h`.
const BY_NUMBER: [Capability; 41] = [
    C::Chown,
    C::DacOverride,
    C::DacReadSearch,
    C::Fowner,
    C::Fsetid,
    C::Kill,
    C::Setgid,
    C::Setuid,
    C::Setpcap,
    C::LinuxImmutable,
    C::NetBindService,
    C::NetBroadcast,
    C::NetAdmin,
    C::NetRaw,
    C::IpcLock,
    C::IpcOwner,
    C::SysModule,
    C::SysRawio,
    C::SysChroot,
    C::SysPtrace,
    C::SysPacct,
    C::SysAdmin,
    C::SysBoot,
    C::SysNice,
    C::SysResource,
    C::SysTime,
    C::SysTtyConfig,
    C::Mknod,
    C::Lease,
    C::AuditWrite,
    C::AuditControl,
    C::Setfcap,
    C::MacOverride,
    C::MacAdmin,
    C::Syslog,
    C::WakeAlarm,
    C::BlockSuspend,
    C::AuditRead,
    C::Perfmon,
    C::Bpf,
    C::CheckpointRestore,
];

/// What a container gets that asks for nothing: the set images have come to expect since Docker.
const DEFAULT: [Capability; 14] = [
    C::Chown,
    C::DacOverride,
    C::Fowner,
    C::Fsetid,
    C::Kill,
    C::Setgid,
    C::Setuid,
    C::Setpcap,
    C::NetBindService,
    C::NetRaw,
    C::SysChroot,
    C::Mknod,
    C::AuditWrite,
    C::Setfcap,
];

const ADD: &str = "add_capabilities";
const DROP: &str = "drop_capabilities";
const AMBIENT: &str = "add_ambient_capabilities";

/// What a container's process starts with, as bit sets (bit n: capability n).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Granted {
    /// The bounding, permitted and effective sets.
    pub(crate) bounding: u64,
    /// The ambient and inheritable sets.
    pub(crate) ambient: u64,
}

/// Tells which capabilities a container gets (bit n: capability n), for what depends on them: the runtime's own seccomp
/// profile lets pass what a capability is for.
///
/// # Errors
/// Names the list and the capability that is not known, or not among `available`.
pub fn capability_mask(security: &Security, available: u64) -> Result<u64, SpecError> {
    granted(security, available).map(|granted| granted.bounding)
}

/// Works out a container's capabilities; `available` is what the host can give.
///
/// `ALL` is applied before single names, so that "drop ALL, add CHOWN" and "add ALL, drop CHOWN" mean what they say.
pub(crate) fn granted(security: &Security, available: u64) -> Result<Granted, SpecError> {
    let add = Request::read(ADD, &security.add_capabilities)?;
    let drop = Request::read(DROP, &security.drop_capabilities)?;
    let ambient = Request::read(AMBIENT, &security.add_ambient_capabilities)?;
    add.require(available)?;
    ambient.require(available)?;

    let mut set = DEFAULT.iter().fold(0, |set, capability| set | bit(*capability)) & available;
    if add.all || security.privileged {
        set = available;
    }
    if !security.privileged {
        if drop.all {
            set = 0;
        }
        set = (set | add.set) & !drop.set;
    }
    let ambient = if ambient.all { available } else { ambient.set };
    // A capability is only ambient while it is permitted and inheritable (capabilities(7)).
    Ok(Granted { bounding: set | ambient, ambient })
}

/// Writes `granted` as the OCI specification has it.
pub(crate) fn to_oci(granted: Granted) -> LinuxCapabilities {
    let mut oci = LinuxCapabilities::default();
    oci.set_bounding(Some(names(granted.bounding)));
    oci.set_permitted(Some(names(granted.bounding)));
    oci.set_effective(Some(names(granted.bounding)));
    // Empty without ambient ones: an inheritable set would give capabilities to files that have inheritable bits.
    oci.set_inheritable(Some(names(granted.ambient)));
    oci.set_ambient(Some(names(granted.ambient)));
    oci
}

/// One list of the request.
struct Request {
    field: &'static str,
    all: bool,
    set: u64,
}

impl Request {
    fn read(field: &'static str, list: &[String]) -> Result<Self, SpecError> {
        let mut request = Self { field, all: false, set: 0 };
        for name in list {
            let upper = name.to_ascii_uppercase();
            if upper == "ALL" {
                request.all = true;
                continue;
            }
            let known = upper.strip_prefix("CAP_").unwrap_or(&upper).parse::<Capability>();
            let capability = known.map_err(|_| SpecError::UnknownCapability { field, name: name.clone() })?;
            request.set |= bit(capability);
        }
        Ok(request)
    }

    fn require(&self, available: u64) -> Result<(), SpecError> {
        match names(self.set & !available).iter().min_by_key(|capability| bit(**capability)) {
            None => Ok(()),
            Some(missing) => {
                Err(SpecError::UnavailableCapability { field: self.field, name: format!("CAP_{missing}") })
            }
        }
    }
}

fn bit(capability: Capability) -> u64 {
    BY_NUMBER.iter().position(|known| *known == capability).map_or(0, |number| 1 << number)
}

fn names(set: u64) -> Capabilities {
    BY_NUMBER.iter().enumerate().filter(|(number, _)| set & (1 << number) != 0).map(|(_, name)| *name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: u64 = (1 << 41) - 1;
    const DEFAULT_MASK: u64 = 0xa804_25fb;

    fn set(add: &[&str], drop: &[&str]) -> Result<u64, SpecError> {
        let list = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let security = Security { add_capabilities: list(add), drop_capabilities: list(drop), ..Security::default() };
        capability_mask(&security, ALL)
    }

    #[test]
    fn each_capability_has_its_number() {
        assert_eq!(bit(C::Chown), 1);
        assert_eq!(bit(C::SysAdmin), 1 << 21);
        assert_eq!(bit(C::Setfcap), 1 << 31);
        assert_eq!(bit(C::CheckpointRestore), 1 << 40);
        assert_eq!(names(ALL).len(), BY_NUMBER.len());
    }

    #[test]
    fn names_are_added_and_dropped() {
        for (add, drop, want) in [
            (&[][..], &[][..], DEFAULT_MASK),
            (&["NET_ADMIN"], &[], DEFAULT_MASK | 1 << 12),
            (&["CAP_NET_ADMIN"], &[], DEFAULT_MASK | 1 << 12),
            (&["net_admin"], &["cap_chown"], DEFAULT_MASK & !1 | 1 << 12),
            (&["ALL"], &[], ALL),
            (&["all"], &["CHOWN"], ALL & !1),
            (&[], &["ALL"], 0),
            (&["CHOWN"], &["ALL"], 1),
            (&["NET_ADMIN"], &["NET_ADMIN"], DEFAULT_MASK),
        ] {
            assert_eq!(set(add, drop), Ok(want), "+{add:?} -{drop:?}");
        }
    }

    #[test]
    fn an_unknown_name_is_told_with_its_list() {
        let error = set(&[], &["CHOWN", "FLY"]).unwrap_err();
        assert_eq!(error.field(), "linux.security_context.capabilities.drop_capabilities");
        assert_eq!(error.to_string(), "there is no capability \"FLY\"");
        assert!(set(&["CAP_CAP_CHOWN"], &[]).is_err());
    }

    #[test]
    fn nothing_is_granted_that_the_host_lacks() {
        let without_raw = ALL & !(1 << 13);
        let plain = Security::default();
        assert_eq!(granted(&plain, without_raw).unwrap().bounding, DEFAULT_MASK & !(1 << 13));
        let privileged = Security { privileged: true, drop_capabilities: vec!["ALL".into()], ..plain.clone() };
        assert_eq!(granted(&privileged, without_raw).unwrap().bounding, without_raw);
        let asking = Security { add_capabilities: vec!["net_raw".into()], ..plain };
        let error = granted(&asking, without_raw).unwrap_err();
        assert!(matches!(error, SpecError::UnavailableCapability { field: ADD, ref name } if name == "CAP_NET_RAW"));
    }

    #[test]
    fn ambient_ones_are_in_every_set() {
        let security = Security {
            drop_capabilities: vec!["ALL".into()],
            add_ambient_capabilities: vec!["NET_BIND_SERVICE".into()],
            ..Security::default()
        };
        let granted = granted(&security, ALL).unwrap();
        assert_eq!(granted, Granted { bounding: 1 << 10, ambient: 1 << 10 });
        let oci = to_oci(granted);
        for set in [oci.bounding(), oci.permitted(), oci.effective(), oci.inheritable(), oci.ambient()] {
            assert_eq!(set.as_ref().unwrap(), &Capabilities::from([C::NetBindService]));
        }
    }
}
