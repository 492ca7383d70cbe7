//! `pause` and `resume`: a container's processes stand still, and go on.

use std::path::PathBuf;
use std::time::Duration;

use podwright_launch::cgroup;
use rustix::io::Errno;

use crate::args::Globals;
use crate::error::Error;
use crate::state::{Container, Status};

/// How long the processes may take to stand still.
const PATIENCE: Duration = Duration::from_secs(10);

/// Does `pause`.
pub(crate) fn pause(globals: &Globals, id: &str) -> Result<(), Error> {
    let container = Container::find(&globals.root, id)?;
    let _lock = container.home.lock()?;
    match container.status()? {
        Status::Running | Status::Created => {}
        status => return Err(container.refuse("pause", status)),
    }
    let dir = directory(&container)?;
    cgroup::freeze(&dir, PATIENCE).map_err(Error::step("freeze cgroup", dir.display()))
}

/// Does `resume`.
pub(crate) fn resume(globals: &Globals, id: &str) -> Result<(), Error> {
    let container = Container::find(&globals.root, id)?;
    let _lock = container.home.lock()?;
    match container.status()? {
        Status::Paused => {}
        status => return Err(container.refuse("resume", status)),
    }
    let dir = directory(&container)?;
    cgroup::thaw(&dir).map_err(Error::step("thaw cgroup", dir.display()))
}

/// The cgroup that stands still whole.
fn directory(container: &Container) -> Result<PathBuf, Error> {
    let facts = container.facts()?;
    let without = || Error::step("find a cgroup of", &container.record.id)(Errno::NOENT);
    facts.kill_dir().map(PathBuf::from).ok_or_else(without)
}
