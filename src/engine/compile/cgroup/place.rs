//! `linux.cgroupsPath`: where a container's cgroup is, and whether systemd makes it.

use oci_spec::runtime::Spec;

use super::path::CgroupPath;
use super::units;
use crate::error::{CompileError, invalid};

/// The field that all of this is about.
const FIELD: &str = "linux.cgroupsPath";

/// Who makes cgroups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CgroupDriver<'a> {
    /// The runtime itself, by directories. A relative path, and that of a container without one, is below this cgroup;
    /// `None`: below the root.
    Cgroupfs(Option<&'a CgroupPath>),
    /// systemd, by units. Of a user's manager the cgroup that it is in itself; `None`: the system's manager.
    Systemd(Option<&'a CgroupPath>),
}

/// A container's cgroup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CgroupPlace {
    pub(crate) path: CgroupPath,
    pub(crate) unit: Option<Unit>,
}

/// The unit whose cgroup it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Unit {
    /// With its ending, escaped.
    pub(crate) name: String,
    /// The slice around it.
    pub(crate) slice: String,
    /// Whether a user's manager has it.
    pub(crate) user: bool,
}

impl CgroupPlace {
    /// Reads a specification's `linux.cgroupsPath`; without one the place follows from the container's id.
    ///
    /// For the cgroupfs driver it is a path, for the systemd driver `slice:prefix:name`: the scope `prefix-name.scope` in
    /// that slice, or, where the name is a slice's, that slice itself.
    ///
    /// # Errors
    /// When the value is none that the driver understands.
    pub fn of(spec: &Spec, id: &str, driver: CgroupDriver<'_>) -> Result<Self, CompileError> {
        let given = spec.linux().as_ref().and_then(|linux| linux.cgroups_path().as_deref());
        let given = given.map(|path| crate::mounts::text(path, FIELD)).transpose()?.unwrap_or_default();
        match driver {
            CgroupDriver::Cgroupfs(base) => Self::directory(&given, id, base),
            CgroupDriver::Systemd(manager) => Self::unit(&given, id, manager),
        }
    }

    /// A cgroup that the runtime makes at a path.
    pub fn at(path: CgroupPath) -> Self {
        Self { path, unit: None }
    }

    /// Returns the path below each hierarchy's mount.
    pub fn path(&self) -> &CgroupPath {
        &self.path
    }

    /// Tells whether it is a unit of systemd.
    pub fn is_unit(&self) -> bool {
        self.unit.is_some()
    }

    fn directory(given: &str, id: &str, base: Option<&CgroupPath>) -> Result<Self, CompileError> {
        let path = parse(if given.is_empty() { id } else { given })?;
        match base {
            Some(base) if !given.starts_with('/') => Ok(Self::at(parse(&format!("{base}{path}"))?)),
            _ => Ok(Self::at(path)),
        }
    }

    fn unit(given: &str, id: &str, manager: Option<&CgroupPath>) -> Result<Self, CompileError> {
        let default = if manager.is_some() { "user.slice" } else { "system.slice" };
        let (slice, name) = match given.split(':').collect::<Vec<_>>()[..] {
            [""] => (default, units::scope("podwright", id)),
            [slice, _, name] if name.ends_with(".slice") => (slice, name.to_owned()),
            [slice, prefix, name] if !name.is_empty() => (slice, units::scope(prefix, name)),
            _ => return Err(invalid(FIELD, given, "is not slice:prefix:name, as the systemd driver wants it")),
        };
        let slice = if slice.is_empty() { default } else { slice };
        let refuse = |problem| invalid(FIELD, given, problem);
        let below = units::slice_path(slice).ok_or_else(|| refuse("does not begin with the name of a slice"))?;
        let path = if name.ends_with(".slice") {
            units::slice_path(&name).ok_or_else(|| refuse("does not end with the name of a slice"))?
        } else {
            format!("{below}/{}", units::directory(&name))
        };
        if name.len() > units::MAX_NAME {
            return Err(refuse("makes a unit name of more than 255 characters"));
        }
        let base = manager.map(CgroupPath::as_str).unwrap_or_default();
        let unit = Unit { name, slice: slice.to_owned(), user: manager.is_some() };
        Ok(Self { path: parse(&format!("{base}{path}"))?, unit: Some(unit) })
    }
}

fn parse(path: &str) -> Result<CgroupPath, CompileError> {
    path.parse().map_err(|error: super::InvalidCgroupPath| invalid(FIELD, path, error.problem))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(given: Option<&str>, driver: CgroupDriver<'_>) -> Result<CgroupPlace, String> {
        let mut json = serde_json::json!({"ociVersion": "1.3.0", "linux": {}});
        if let Some(given) = given {
            json["linux"]["cgroupsPath"] = given.into();
        }
        let spec: Spec = serde_json::from_value(json).unwrap();
        CgroupPlace::of(&spec, "c1", driver).map_err(|error| error.to_string())
    }

    fn path(given: Option<&str>, driver: CgroupDriver<'_>) -> String {
        place(given, driver).unwrap().path.to_string()
    }

    #[test]
    fn a_path_is_absolute_or_below_the_runtimes_own() {
        let base: CgroupPath = "/user.slice".parse().unwrap();
        for (given, base, expected) in [
            (None, None, "/c1"),
            (Some(""), Some(&base), "/user.slice/c1"),
            (None, Some(&base), "/user.slice/c1"),
            (Some("pods/a"), None, "/pods/a"),
            (Some("pods/a"), Some(&base), "/user.slice/pods/a"),
            (Some("/pods//a/"), Some(&base), "/pods/a"),
        ] {
            assert_eq!(path(given, CgroupDriver::Cgroupfs(base)), expected, "{given:?}");
        }
        for bad in ["/", "../a", "machine.slice:libpod:c1"] {
            let error = place(Some(bad), CgroupDriver::Cgroupfs(None)).unwrap_err();
            assert!(error.starts_with("linux.cgroupsPath"), "{error}");
        }
    }

    #[test]
    fn a_unit_is_a_scope_in_its_slice() {
        let unit = |given| {
            let place = place(given, CgroupDriver::Systemd(None)).unwrap();
            let unit = place.unit.unwrap();
            (unit.name, unit.slice, place.path.to_string())
        };
        let expected = |name: &str, slice: &str, path: &str| (name.to_owned(), slice.to_owned(), path.to_owned());
        assert_eq!(unit(None), expected("podwright-c1.scope", "system.slice", "/system.slice/podwright-c1.scope"));
        assert_eq!(
            unit(Some("kubepods-pod_1.slice:cri:a b")),
            expected(
                "cri-a\\x20b.scope",
                "kubepods-pod_1.slice",
                "/kubepods.slice/kubepods-pod_1.slice/cri-a\\x20b.scope"
            )
        );
        assert_eq!(unit(Some("-.slice:x:c")), expected("x-c.scope", "-.slice", "/x-c.scope"));
        assert_eq!(unit(Some("a.slice::a-b.slice")), expected("a-b.slice", "a.slice", "/a.slice/a-b.slice"));
    }

    #[test]
    fn a_users_unit_is_below_their_manager() {
        let manager: CgroupPath = "/user.slice/user-7.slice/user@7.service".parse().unwrap();
        let place = place(None, CgroupDriver::Systemd(Some(&manager))).unwrap();
        assert_eq!(place.path.to_string(), format!("{manager}/user.slice/podwright-c1.scope"));
        assert_eq!(place.unit.map(|unit| (unit.slice, unit.user)), Some(("user.slice".to_owned(), true)));
    }

    #[test]
    fn what_is_no_unit_is_refused() {
        for bad in ["/a/b", "system.slice:x", "system:x:c", "a--b.slice:x:c", "a/b.slice:x:c", "a.slice:x:", "a:b:c:d"]
        {
            assert!(place(Some(bad), CgroupDriver::Systemd(None)).is_err(), "{bad}");
        }
        let long = format!("a.slice:x:{}", "c".repeat(255));
        assert!(place(Some(&long), CgroupDriver::Systemd(None)).unwrap_err().contains("255"));
    }
}
