//! Control groups as plans name them: made, changed, killed, removed, and asked for OOM kills.

use std::path::{Path, PathBuf};
use std::time::Duration;

use podwright_plan::wire::{Cause, CgroupDir, CgroupPlan, CgroupWrite};
use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{Pid, Signal};

use crate::failure::{Failure, Named};

/// The file that places a process, in both hierarchies.
const PROCS: &str = "cgroup.procs";
/// How often a frozen or a killed cgroup is looked at again before the caller is told to come back.
const TRIES: u32 = 10;
/// Between two such looks.
const PAUSE: Duration = Duration::from_millis(2);

/// The directories that [`make`] found missing.
#[derive(Debug, Default)]
pub(crate) struct Made(Vec<PathBuf>);

impl Made {
    /// Removes them again, after a failure that is the one to tell: a directory that stays is found by the sweep.
    pub(crate) fn undo(self) {
        for dir in self.0.iter().rev() {
            let _ = remove(dir);
        }
    }
}

/// Makes the directories of a plan, then writes their files in order. When that fails, what it made is removed.
pub(crate) fn make(plan: &CgroupPlan) -> Result<Made, Failure> {
    let mut made = Made::default();
    match make_dirs(&plan.dirs, &mut made).and_then(|()| limit(plan)) {
        Ok(()) => Ok(made),
        Err(failure) => {
            made.undo();
            Err(failure)
        }
    }
}

fn make_dirs(dirs: &[CgroupDir], made: &mut Made) -> Result<(), Failure> {
    for dir in dirs {
        match rustix::fs::mkdir(&dir.path, Mode::from_raw_mode(0o755)) {
            Ok(()) => made.0.push(PathBuf::from(&dir.path)),
            Err(Errno::EXIST) => {}
            Err(errno) => return Err(Failure::internal("make cgroup", &dir.path, errno)),
        }
    }
    Ok(())
}

fn limit(plan: &CgroupPlan) -> Result<(), Failure> {
    for dir in &plan.dirs {
        for write in &dir.writes {
            apply(dir, write)?;
        }
    }
    if !plan.device_program.is_empty() {
        let cgroup = open_dir(Path::new(&plan.unified)).in_shim("open cgroup", &plan.unified)?;
        podwright_sys::bpf::attach_device_program(cgroup, &plan.device_program)
            .in_shim("attach device rules", &plan.unified)?;
    }
    Ok(())
}

fn apply(dir: &CgroupDir, write: &CgroupWrite) -> Result<(), Failure> {
    let file = Path::new(&dir.path).join(&write.file);
    match write_file(&file, write.value.as_bytes()) {
        Err(Errno::NOENT) if write.optional => Ok(()),
        result => result.in_shim("write cgroup file", file.display()).map_err(|f| f.with_detail(&*write.value)),
    }
}

/// Puts the calling process into one cgroup; `cause` says whose process it is.
pub(crate) fn join(dir: &Path, cause: Cause) -> Result<(), Failure> {
    // "0" is the writer itself, in whatever pid namespace it is.
    let file = dir.join(PROCS);
    write_file(&file, b"0").map_err(|errno| Failure::new(cause, "join cgroup", file.display(), errno))
}

/// Writes a container's new limits, all or nothing: when a write fails, the values before it come back.
///
/// # Errors
/// Names the file and the kernel's answer; the directories hold their earlier values then.
pub fn update(dirs: &[CgroupDir]) -> Result<(), Failure> {
    let writes: Vec<_> = dirs.iter().flat_map(|dir| dir.writes.iter().map(move |write| (dir, write))).collect();
    // All are read before the first is written: a file that cannot be read cannot be restored.
    let earlier = writes.iter().map(|(dir, write)| earlier_value(dir, write)).collect::<Result<Vec<_>, _>>()?;
    for (done, (dir, write)) in writes.iter().enumerate() {
        if let Err(failure) = apply(dir, write) {
            let lost: Vec<_> = earlier[..done].iter().rev().flatten().filter_map(restore).collect();
            return Err(if lost.is_empty() { failure } else { failure.with_detail(lost.join("; ")) });
        }
    }
    Ok(())
}

/// A file and what it said, `None` for an optional one that is missing.
fn earlier_value(dir: &CgroupDir, write: &CgroupWrite) -> Result<Option<(PathBuf, Vec<u8>)>, Failure> {
    let file = Path::new(&dir.path).join(&write.file);
    match read_file(&file) {
        Ok(value) => Ok(Some((file, value))),
        Err(Errno::NOENT) if write.optional => Ok(None),
        Err(errno) => Err(Failure::internal("read cgroup file", file.display(), errno)),
    }
}

/// Writes an earlier value back; the words say what could not be.
fn restore((file, value): &(PathBuf, Vec<u8>)) -> Option<String> {
    let mut refused = None;
    // A file of several lines (io.max) takes them one by one.
    for line in value.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        refused = write_file(file, line).err().or(refused);
    }
    refused.map(|errno| format!("{} was not restored: {errno}", file.display()))
}

/// Sends SIGKILL to every process in a cgroup and below it, in one sweep that a forking process cannot outrun.
///
/// # Errors
/// The kernel's. A directory that is missing has no processes and is no error. `EBUSY`: on v1 without a freezer,
/// processes were still forking after many passes.
pub fn kill(dir: &Path) -> Result<(), Errno> {
    // v2 from 5.14: the kernel itself leaves no gap for a fork.
    match write_file(&dir.join("cgroup.kill"), b"1") {
        Err(Errno::NOENT) => {}
        result => return result,
    }
    match write_file(&dir.join("freezer.state"), b"FROZEN") {
        Ok(()) => {
            let result = kill_frozen(dir);
            // A signal is delivered on thawing, so this must happen however the pass went.
            let thawed = write_file(&dir.join("freezer.state"), b"THAWED");
            result.and(thawed)
        }
        Err(Errno::NOENT) => kill_until_empty(dir),
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

pub(crate) fn open_dir(dir: &Path) -> Result<std::os::fd::OwnedFd, Errno> {
    rustix::fs::open(dir, OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
}

/// Writes a file of a kernel file system in one call, without making it.
pub(crate) fn write_file(file: &Path, value: &[u8]) -> Result<(), Errno> {
    let fd = rustix::fs::open(file, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    let written = rustix::io::retry_on_intr(|| rustix::io::write(&fd, value))?;
    if written == value.len() { Ok(()) } else { Err(Errno::IO) }
}

fn read_file(file: &Path) -> Result<Vec<u8>, Errno> {
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
