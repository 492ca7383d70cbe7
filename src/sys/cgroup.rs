//! What every holder of a control group does with it: stop or kill what is in it, remove it, ask for its OOM kills and for
//! what it uses. Works on directories of both hierarchies.

mod freezer;
mod oom_watch;
mod stats;

use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{Pid, Signal};

pub use freezer::{freeze, is_frozen, thaw};
pub use oom_watch::OomWatch;
pub use stats::{Amount, Cpu, Io, Memory, Pids, Usage};

/// The file that lists a cgroup's processes, in both hierarchies.
const PROCS: &str = "cgroup.procs";
/// How often a frozen or a killed cgroup is looked at again before the caller is told to come back.
const TRIES: u32 = 10;
/// Between two such looks.
const PAUSE: Duration = Duration::from_millis(2);

/// Sends SIGKILL to every process in a cgroup and below it, in one sweep that a forking process cannot outrun.
///
/// # Errors
/// The kernel's. A directory that is missing has no processes and is no error. `EBUSY`: on v1 without a freezer,
/// processes were still forking after many passes.
pub fn kill(dir: &Path) -> Result<(), Errno> {
    // v2 from 5.14: the kernel itself leaves no gap for a fork.
    match write_file(&dir.join("cgroup.kill"), b"1") {
        // Missing on v1; gone under our hands (a second one clears it too); refused where a container has made its cgroup
        // threaded.
        Err(Errno::NOENT | Errno::NODEV | Errno::OPNOTSUPP) => {}
        result => return result,
    }
    match write_file(&dir.join("freezer.state"), b"FROZEN") {
        Ok(()) => {
            let result = kill_frozen(dir);
            // A signal is delivered on thawing, so this must happen however the pass went.
            let thawed = write_file(&dir.join("freezer.state"), b"THAWED");
            result.and(thawed)
        }
        Err(Errno::NOENT | Errno::NODEV) => kill_until_empty(dir),
        Err(errno) => Err(errno),
    }
}

/// Nothing forks once the state reads FROZEN, which takes the kernel a moment; a process stuck in the kernel holds it off,
/// and is killed all the same.
fn kill_frozen(dir: &Path) -> Result<(), Errno> {
    for _ in 0..TRIES {
        if read_file(&dir.join("freezer.state"))?.starts_with(b"FROZEN") {
            break;
        }
        std::thread::sleep(PAUSE);
    }
    kill_pass(dir).map(|_| ())
}

fn kill_until_empty(dir: &Path) -> Result<(), Errno> {
    for _ in 0..TRIES {
        if kill_pass(dir)? == 0 {
            return Ok(());
        }
        std::thread::sleep(PAUSE);
    }
    Err(Errno::BUSY)
}

/// Kills what is in a tree of cgroups now, and says how many there were.
fn kill_pass(dir: &Path) -> Result<usize, Errno> {
    let procs = match read_file(&dir.join(PROCS)) {
        // Read of a removed cgroup is ENODEV.
        Err(Errno::NOENT | Errno::NODEV) => return Ok(0),
        procs => procs?,
    };
    let mut seen = 0;
    for line in String::from_utf8_lossy(&procs).lines() {
        // 0 is a process that this pid namespace does not see.
        let Some(pid) = line.parse().ok().and_then(Pid::from_raw) else { continue };
        seen += 1;
        match rustix::process::kill_process(pid, Signal::KILL) {
            Ok(()) | Err(Errno::SRCH) => {}
            Err(errno) => return Err(errno),
        }
    }
    for child in children(dir)? {
        seen += kill_pass(&child)?;
    }
    Ok(seen)
}

/// Removes a cgroup directory with all below it. The kernel refuses with `EBUSY` for a moment after the last process
/// has died, so a few tries are made, for 20 ms at most.
///
/// # Errors
/// `EBUSY` when processes are still there: try again later. A missing directory is no error.
pub fn remove(dir: &Path) -> Result<(), Errno> {
    for _ in 1..TRIES {
        match remove_once(dir) {
            Err(Errno::BUSY) => std::thread::sleep(PAUSE),
            result => return result,
        }
    }
    remove_once(dir)
}

fn remove_once(dir: &Path) -> Result<(), Errno> {
    // Most have no child: the listing is for those that refuse.
    match rustix::fs::unlinkat(CWD, dir, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::BUSY | Errno::NOTEMPTY) => {}
        Err(errno) => return Err(errno),
    }
    for child in children(dir)? {
        remove_once(&child)?;
    }
    match rustix::fs::unlinkat(CWD, dir, AtFlags::REMOVEDIR) {
        Err(Errno::NOENT) => Ok(()),
        // Both say that a process or a child came back.
        Err(Errno::NOTEMPTY) => Err(Errno::BUSY),
        result => result,
    }
}

fn children(dir: &Path) -> Result<Vec<PathBuf>, Errno> {
    let entries = match std::fs::read_dir(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(errno_of)?,
    };
    let mut children = Vec::new();
    for entry in entries {
        let entry = entry.map_err(errno_of)?;
        if entry.file_type().map_err(errno_of)?.is_dir() {
            children.push(entry.path());
        }
    }
    Ok(children)
}

/// Reads how many processes the kernel's OOM killer has killed in a cgroup, from `memory.events` (v2; its `.local`
/// sibling is preferred, which leaves out what happened in cgroups below) or `memory.oom_control` (v1).
///
/// # Errors
/// The kernel's, `ENOENT` among them once the cgroup is gone; `EBADMSG` for a file without the count.
pub fn oom_kills(file: &Path) -> Result<u64, Errno> {
    let mut local = file.as_os_str().to_owned();
    local.push(".local");
    let text = match read_file(Path::new(&local)) {
        Err(Errno::NOENT) => read_file(file)?,
        text => text?,
    };
    parse_oom_kills(&text).ok_or(Errno::BADMSG)
}

fn parse_oom_kills(text: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(text).ok()?;
    text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
}

/// Writes a file of a kernel file system in one call, without making it.
///
/// # Errors
/// The kernel's; `EIO` when it took only a part.
pub fn write_file(file: &Path, value: &[u8]) -> Result<(), Errno> {
    let fd = rustix::fs::open(file, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    let written = rustix::io::retry_on_intr(|| rustix::io::write(&fd, value))?;
    if written == value.len() { Ok(()) } else { Err(Errno::IO) }
}

/// Reads a file of a kernel file system.
///
/// # Errors
/// The kernel's.
pub fn read_file(file: &Path) -> Result<Vec<u8>, Errno> {
    std::fs::read(file).map_err(errno_of)
}

fn errno_of(error: std::io::Error) -> Errno {
    Errno::from_io_error(&error).unwrap_or(Errno::IO)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_count_is_found_in_both_formats() {
        assert_eq!(parse_oom_kills(b"low 0\noom 3\noom_kill 2\noom_group_kill 9\n"), Some(2));
        assert_eq!(parse_oom_kills(b"oom_kill_disable 0\nunder_oom 0\noom_kill 7\n"), Some(7));
        assert_eq!(parse_oom_kills(b"oom_kill_disable 1\n"), None);
    }

    #[test]
    fn a_missing_cgroup_has_nothing_to_kill_or_remove() {
        let nowhere = Path::new("/sys/fs/cgroup/podwright-no-such-cgroup");
        assert_eq!(kill(nowhere), Ok(()));
        assert_eq!(remove(nowhere), Ok(()));
    }
}
