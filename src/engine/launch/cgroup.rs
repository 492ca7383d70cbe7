//! Control groups as plans name them: made, changed, frozen, killed, removed, and asked for OOM kills.

mod update;

use std::path::{Path, PathBuf};

use podwright_plan::wire::{Cause, CgroupDir, CgroupPlan, CgroupWrite};
pub use podwright_sys::cgroup::{freeze, is_frozen, kill, oom_kills, remove, thaw};
pub(crate) use podwright_sys::cgroup::{read_file, write_file};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::failure::{Failure, Named};
pub use update::{Updated, update};

/// The file that lists a v1 cgroup's threads; v2 has none of this name.
const TASKS: &str = "tasks";
/// The file that places a process, in both hierarchies.
const PROCS: &str = "cgroup.procs";
/// The kernel's list of the files in a v2 directory that belong to whom the directory is delegated.
const DELEGATE: &str = "/sys/kernel/cgroup/delegate";

/// The directories that [`make`] found missing.
#[derive(Debug, Default)]
pub(crate) struct Made(Vec<PathBuf>);

impl Made {
    /// Removes them again, after a failure that is the one to tell: a directory that stays is found by the sweep.
    pub(crate) fn undo(self) {
        for dir in self.0.iter().rev() {
            // Not what is below: another pod may be using a parent by now.
            let _ = rustix::fs::rmdir(dir);
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
    if let Some(owner) = plan.owner {
        give(Path::new(&plan.unified), owner)?;
    }
    if plan.device_program.is_empty() { Ok(()) } else { attach(&plan.unified, &plan.device_program) }
}

fn attach(unified: &str, program: &[u8]) -> Result<(), Failure> {
    let cgroup = open_dir(Path::new(unified)).in_shim("open cgroup", unified)?;
    podwright_sys::bpf::attach_device_program(cgroup, program).in_shim("attach device rules", unified)
}

/// Gives a v2 directory, and what is to be delegated of it, to a user.
fn give(dir: &Path, owner: u32) -> Result<(), Failure> {
    let files = read_file(Path::new(DELEGATE)).in_shim("read", DELEGATE)?;
    let files = String::from_utf8_lossy(&files);
    let owner = Some(rustix::fs::Uid::from_raw(owner));
    rustix::fs::chown(dir, owner, None).in_shim("give cgroup to the container's user", dir.display())?;
    for file in files.split_ascii_whitespace() {
        match rustix::fs::chown(dir.join(file), owner, None) {
            // The list is of all controllers, the directory has those that are on.
            Err(Errno::NOENT) => {}
            result => result.in_shim("give cgroup file to the container's user", dir.join(file).display())?,
        }
    }
    Ok(())
}

fn apply(dir: &CgroupDir, write: &CgroupWrite) -> Result<(), Failure> {
    let file = Path::new(&dir.path).join(&write.file);
    if !write.not_below.is_empty() {
        check(Path::new(&dir.path), write)?;
    }
    let written = if write.inherit { inherit(&file) } else { write_file(&file, write.value.as_bytes()) };
    match written {
        Err(Errno::NOENT) if may_be_missing(dir, write) => Ok(()),
        Err(_) if write.lenient => Ok(()),
        result => result.in_shim("write cgroup file", file.display()).map_err(|f| f.with_detail(&*write.value)),
    }
}

fn may_be_missing(dir: &CgroupDir, write: &CgroupWrite) -> bool {
    write.optional || (!write.optional_with.is_empty() && Path::new(&dir.path).join(&write.optional_with).exists())
}

/// Refuses a limit below what is used now: the kernel would take it, and kill.
fn check(dir: &Path, write: &CgroupWrite) -> Result<(), Failure> {
    // What is no number is no limit.
    let Ok(limit) = write.value.parse::<u64>() else { return Ok(()) };
    let file = dir.join(&write.not_below);
    let used = read_file(&file).in_shim("read cgroup file", file.display())?;
    let used = String::from_utf8_lossy(&used);
    match used.trim().parse::<u64>() {
        Ok(used) if used <= limit => Ok(()),
        Ok(used) => Err(Failure::internal("lower limit", dir.join(&write.file).display(), Errno::BUSY)
            .with_detail(format!("{limit} is below the {used} in use"))),
        Err(_) => Err(Failure::internal("read cgroup file", file.display(), Errno::BADMSG)),
    }
}

/// Fills an empty file with what its directory's parent has in the one of that name.
fn inherit(file: &Path) -> Result<(), Errno> {
    if !read_file(file)?.trim_ascii().is_empty() {
        return Ok(());
    }
    let (Some(parent), Some(name)) = (file.parent().and_then(Path::parent), file.file_name()) else {
        return Err(Errno::INVAL);
    };
    write_file(file, read_file(&parent.join(name))?.trim_ascii())
}

/// Puts the calling process into one cgroup; `cause` says whose process it is.
pub(crate) fn join(dir: &Path, cause: Cause) -> Result<(), Failure> {
    // "0" is the writer itself, in whatever pid namespace it is. It has one thread, and on v1 the kernel moves a thread
    // without the lock against every fork on the host that it takes for a process: an RCU grace period, 10 ms and more.
    match write_file(&dir.join(TASKS), b"0") {
        Err(Errno::NOENT) => {}
        result => return result.map_err(|errno| Failure::new(cause, "join cgroup", dir.display(), errno)),
    }
    let file = dir.join(PROCS);
    write_file(&file, b"0").map_err(|errno| Failure::new(cause, "join cgroup", file.display(), errno))
}

/// Puts another process into one cgroup.
pub(crate) fn place(dir: &Path, pid: u32) -> Result<(), Failure> {
    let file = dir.join(PROCS);
    write_file(&file, pid.to_string().as_bytes()).in_shim("place process in cgroup", file.display())
}

/// Finds the cgroup, in a directory or below it, that a process is in.
pub(crate) fn find(dir: &Path, pid: u32) -> Option<PathBuf> {
    let procs = read_file(&dir.join(PROCS)).ok()?;
    if String::from_utf8_lossy(&procs).lines().any(|line| line == pid.to_string()) {
        return Some(dir.to_owned());
    }
    let entries = std::fs::read_dir(dir).ok()?.flatten();
    entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).find_map(|entry| find(&entry.path(), pid))
}

pub(crate) fn open_dir(dir: &Path) -> Result<std::os::fd::OwnedFd, Errno> {
    rustix::fs::open(dir, OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
}
