//! What is kept of a container between commands: a directory below the root with its record, its specification as it was
//! at `create` but for limits that were changed, the plan, and the socket that its process waits at.
//!
//! A container's status is not written down but seen: its process is alive or not (told apart from another one of the same
//! number by its start time), and waits at its socket or not.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use oci_spec::runtime::Spec;
use podwright_compile::CgroupPlace;
use podwright_launch::{Facts, Phase, cgroup, is_waiting, open_directory};
use podwright_plan::wire::ContainerPlan;
use prost::Message;
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::driver;
use crate::error::Error;

/// The newest version of the runtime specification that is understood.
pub(crate) const OCI_VERSION: &str = "1.3.0";
/// The version of the record's own format.
const FORMAT: u32 = 1;
/// What the longest name of a directory may have.
const LONGEST_ID: usize = 255;

const RECORD: &str = "state.json";
const PLAN: &str = "plan";
const CONFIG: &str = "config.json";

/// What is written at `create`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Record {
    pub(crate) format: u32,
    pub(crate) oci_version: String,
    pub(crate) id: String,
    pub(crate) pid: u32,
    /// When the process began, in clock ticks since boot.
    pub(crate) began: u64,
    pub(crate) bundle: PathBuf,
    pub(crate) rootfs: String,
    pub(crate) created: String,
    pub(crate) owner: String,
    pub(crate) annotations: BTreeMap<String, String>,
    /// Whether systemd has its cgroup.
    #[serde(default)]
    pub(crate) systemd: bool,
}

/// How a container is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Status {
    Created,
    Running,
    Paused,
    Stopped,
}

impl Status {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
        }
    }
}

/// The state as the specification has it, with runc's fields beside.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Shown<'a> {
    pub(crate) oci_version: &'a str,
    pub(crate) id: &'a str,
    /// 0 of one that has stopped.
    pub(crate) pid: u32,
    pub(crate) status: &'a str,
    pub(crate) bundle: &'a Path,
    pub(crate) rootfs: &'a str,
    pub(crate) created: &'a str,
    pub(crate) annotations: &'a BTreeMap<String, String>,
    pub(crate) owner: &'a str,
}

impl Record {
    /// A record of a container whose process is not there yet.
    pub(crate) fn new(id: &str, bundle: &Path, plan: &ContainerPlan, spec: &Spec) -> Self {
        Self {
            format: FORMAT,
            oci_version: spec.version().clone(),
            id: id.to_owned(),
            pid: 0,
            began: 0,
            bundle: bundle.to_owned(),
            rootfs: plan.rootfs.as_ref().map(|root| root.path.clone()).unwrap_or_default(),
            created: podwright_sys::stamp::Stamp::now().as_str().to_owned(),
            owner: user_name(rustix::process::geteuid().as_raw()),
            annotations: spec.annotations().iter().flatten().map(|(key, value)| (key.clone(), value.clone())).collect(),
            systemd: plan.cgroup.as_ref().is_some_and(|group| group.systemd.is_some()),
        }
    }

    /// Shows the state, in a phase or status given by its word.
    pub(crate) fn shown<'a>(&'a self, status: &'a str, pid: u32) -> Shown<'a> {
        Shown {
            oci_version: &self.oci_version,
            id: &self.id,
            pid,
            status,
            bundle: &self.bundle,
            rootfs: &self.rootfs,
            created: &self.created,
            annotations: &self.annotations,
            owner: &self.owner,
        }
    }

    /// Writes what hooks are told.
    pub(crate) fn for_hooks(&self, phase: Phase, pid: u32) -> Vec<u8> {
        let status = match phase {
            Phase::Creating => "creating",
            Phase::Created => "created",
            Phase::Running => "running",
            Phase::Stopped => "stopped",
        };
        // Text and numbers under text: there is nothing in it that JSON cannot hold but a path that is not UTF-8, and
        // such a bundle is refused.
        serde_json::to_vec(&self.shown(status, pid)).unwrap_or_default()
    }
}

/// A container's directory.
#[derive(Debug)]
pub(crate) struct Home {
    path: PathBuf,
    directory: OwnedFd,
}

/// A container that was created.
#[derive(Debug)]
pub(crate) struct Container {
    pub(crate) home: Home,
    pub(crate) record: Record,
}

impl Home {
    /// Makes the directory of a new container.
    pub(crate) fn make(root: &Path, id: &str) -> Result<Self, Error> {
        DirBuilder::new().recursive(true).mode(0o700).create(root).map_err(Error::file("make", root))?;
        let path = root.join(id);
        match DirBuilder::new().mode(0o700).create(&path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Err(Error::Exists { id: id.to_owned() }),
            made => {
                made.map_err(Error::file("make", &path))?;
                Self::open(path, id)
            }
        }
    }

    fn open(path: PathBuf, id: &str) -> Result<Self, Error> {
        match open_directory(&path) {
            Ok(directory) => Ok(Self { path, directory }),
            Err(Errno::NOENT) => Err(Error::NotFound { id: id.to_owned() }),
            Err(errno) => Err(Error::step("open", path.display())(errno)),
        }
    }

    /// The directory, for the socket in it.
    pub(crate) fn directory(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }

    /// Keeps specification and plan.
    pub(crate) fn keep(&self, specification: &[u8], plan: &ContainerPlan) -> Result<(), Error> {
        self.write(CONFIG, specification)?;
        self.write(PLAN, &plan.encode_to_vec())
    }

    /// Keeps a specification that has changed.
    pub(crate) fn keep_specification(&self, specification: &serde_json::Value) -> Result<(), Error> {
        let path = self.path.join(CONFIG);
        podwright_base::replace(&path, specification.to_string().as_bytes()).map_err(Error::file("write", path))
    }

    /// Keeps the record.
    pub(crate) fn record(&self, record: &Record) -> Result<(), Error> {
        let path = self.path.join(RECORD);
        let json = serde_json::to_vec(record).map_err(|source| Error::Json { path: path.clone(), source })?;
        podwright_base::replace(&path, &json).map_err(Error::file("write", path))
    }

    fn write(&self, name: &str, bytes: &[u8]) -> Result<(), Error> {
        let path = self.path.join(name);
        fs::write(&path, bytes).map_err(Error::file("write", path))
    }

    /// Holds off other commands that change the container until the lock is dropped.
    pub(crate) fn lock(&self) -> Result<Flock<fs::File>, Error> {
        let file = fs::File::open(&self.path).map_err(Error::file("open", &self.path))?;
        Flock::lock(file, FlockArg::LockExclusive)
            .map_err(|(_, errno)| Error::step("lock", self.path.display())(Errno::from_raw_os_error(errno as i32)))
    }

    /// Removes the directory with all that is in it.
    pub(crate) fn remove(&self) -> Result<(), Error> {
        match fs::remove_dir_all(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::file("remove", &self.path)(error)),
            _ => Ok(()),
        }
    }
}

impl Container {
    /// Finds a container.
    pub(crate) fn find(root: &Path, id: &str) -> Result<Self, Error> {
        let home = Home::open(root.join(id), id)?;
        let path = home.path.join(RECORD);
        let bytes = match fs::read(&path) {
            // Its creation has just begun, or ended early.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(Error::NotFound { id: id.to_owned() });
            }
            bytes => bytes.map_err(Error::file("read", &path))?,
        };
        let record: Record =
            serde_json::from_slice(&bytes).map_err(|source| Error::Json { path: path.clone(), source })?;
        if record.format != FORMAT {
            return Err(Error::Format { path, found: record.format, known: FORMAT });
        }
        Ok(Self { home, record })
    }

    /// Finds all containers, by id.
    pub(crate) fn all(root: &Path) -> Result<Vec<Self>, Error> {
        let entries = match fs::read_dir(root) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(Error::file("list", root))?,
        };
        let mut containers = Vec::new();
        for entry in entries {
            let id = entry.map_err(Error::file("list", root))?.file_name();
            match Self::find(root, &id.to_string_lossy()) {
                // It was deleted meanwhile, or is not created yet.
                Err(Error::NotFound { .. }) => {}
                found => containers.push(found?),
            }
        }
        containers.sort_by(|a, b| a.record.id.cmp(&b.record.id));
        Ok(containers)
    }

    /// Sees how it is.
    pub(crate) fn status(&self) -> Result<Status, Error> {
        if !self.is_alive() {
            return Ok(Status::Stopped);
        }
        if let Some(dir) = self.facts()?.kill_dir()
            && cgroup::is_frozen(dir).map_err(Error::step("look at cgroup", dir.display()))?
        {
            return Ok(Status::Paused);
        }
        let waiting = is_waiting(self.home.directory()).map_err(Error::step("look at", self.home.path.display()))?;
        Ok(if waiting { Status::Created } else { Status::Running })
    }

    fn is_alive(&self) -> bool {
        began(self.record.pid) == Some(self.record.began)
    }

    /// Refers to its process, `None` when that has ended.
    pub(crate) fn pidfd(&self) -> Result<Option<OwnedFd>, Error> {
        let Some(pid) = i32::try_from(self.record.pid).ok().and_then(Pid::from_raw) else { return Ok(None) };
        match rustix::process::pidfd_open(pid, PidfdFlags::empty()) {
            // Looked at once it is held: the number may have been another one's before.
            Ok(pidfd) => Ok(self.is_alive().then_some(pidfd)),
            Err(Errno::SRCH) => Ok(None),
            Err(errno) => Err(Error::step("open process", self.record.pid)(errno)),
        }
    }

    /// Reads its plan.
    pub(crate) fn plan(&self) -> Result<ContainerPlan, Error> {
        let path = self.home.path.join(PLAN);
        let bytes = fs::read(&path).map_err(Error::file("read", &path))?;
        ContainerPlan::decode(&*bytes).map_err(|source| Error::Plan { path, source })
    }

    /// Reads its specification, and says where it is: as it was when it was created, with the limits of now.
    pub(crate) fn specification(&self) -> Result<(PathBuf, Spec), Error> {
        self.json()
    }

    /// Reads its specification with all that is in it.
    pub(crate) fn raw_specification(&self) -> Result<(PathBuf, serde_json::Value), Error> {
        self.json()
    }

    fn json<T: DeserializeOwned>(&self) -> Result<(PathBuf, T), Error> {
        let path = self.home.path.join(CONFIG);
        let bytes = fs::read(&path).map_err(Error::file("read", &path))?;
        let json = serde_json::from_slice(&bytes).map_err(|source| Error::Json { path: path.clone(), source })?;
        Ok((path, json))
    }

    /// Finds its cgroup.
    pub(crate) fn place(&self) -> Result<CgroupPlace, Error> {
        let (path, spec) = self.specification()?;
        let manager = driver::manager(self.record.systemd)?;
        let driver = driver::driver(self.record.systemd, manager.as_ref());
        CgroupPlace::of(&spec, &self.record.id, driver).map_err(|source| Error::Specification { path, source })
    }

    /// Reads what is needed of the plan to kill it and to clean up after it.
    pub(crate) fn facts(&self) -> Result<Facts, Error> {
        self.plan().map(|plan| Facts::of(&plan))
    }

    /// Makes the error of an operation that is not for its status.
    pub(crate) fn refuse(&self, operation: &'static str, status: Status) -> Error {
        Error::Status { operation, id: self.record.id.clone(), status: status.as_str() }
    }
}

/// When a process began, in clock ticks since boot; `None` when it has ended, be it reaped or not.
pub(crate) fn began(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the program's name in parentheses, which may have any character.
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    if matches!(fields.next()?, "Z" | "X") {
        return None;
    }
    // The 22nd; the state was the third.
    fields.nth(18)?.parse().ok()
}

/// Takes an id that can be the name of a directory.
pub(crate) fn check_id(id: String) -> Result<String, Error> {
    let known = |byte: u8| byte.is_ascii_alphanumeric() || b"_+-.".contains(&byte);
    if id.is_empty() || id.len() > LONGEST_ID || id == "." || id == ".." || !id.bytes().all(known) {
        return Err(Error::argument("id", id, "is no container id: it takes letters, digits and _+-."));
    }
    Ok(id)
}

/// Where containers are kept when the command line does not say.
pub(crate) fn default_root() -> PathBuf {
    let own = match rustix::process::geteuid().is_root() {
        true => None,
        false => std::env::var_os("XDG_RUNTIME_DIR").filter(|dir| !dir.is_empty()),
    };
    own.map_or_else(|| PathBuf::from("/run"), PathBuf::from).join("podwright-oci")
}

/// A user's name, their number where they have none.
fn user_name(uid: u32) -> String {
    let accounts = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let name = accounts.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)? == uid.to_string()).then(|| name.to_owned())
    });
    name.unwrap_or_else(|| uid.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_a_name() {
        for good in ["a", "my_con-tainer.1+2", &"x".repeat(255)] {
            assert!(check_id(good.to_owned()).is_ok(), "{good}");
        }
        for bad in ["", ".", "..", "a/b", "a b", "ä", &"x".repeat(256)] {
            assert!(check_id(bad.to_owned()).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_process_is_told_by_when_it_began() {
        assert!(began(std::process::id()).is_some_and(|ticks| ticks > 0));
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let pid = child.id();
        child.wait().unwrap();
        assert_eq!(began(pid), None);
    }
}
