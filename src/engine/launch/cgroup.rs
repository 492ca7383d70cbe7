//! Control groups as plans name them: made, changed, killed, removed, and asked for OOM kills.

use std::path::{Path, PathBuf};

use podwright_plan::wire::{Cause, CgroupDir, CgroupPlan, CgroupWrite};
pub use podwright_sys::cgroup::{kill, oom_kills, remove};
pub(crate) use podwright_sys::cgroup::{read_file, write_file};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::failure::{Failure, Named};

/// The file that lists a v1 cgroup's threads; v2 has none of this name.
const TASKS: &str = "tasks";
/// The file that places a process, in both hierarchies.
const PROCS: &str = "cgroup.procs";

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
    if !plan.device_program.is_empty() {
        let cgroup = open_dir(Path::new(&plan.unified)).in_shim("open cgroup", &plan.unified)?;
        podwright_sys::bpf::attach_device_program(cgroup, &plan.device_program)
            .in_shim("attach device rules", &plan.unified)?;
    }
    Ok(())
}

fn apply(dir: &CgroupDir, write: &CgroupWrite) -> Result<(), Failure> {
    let file = Path::new(&dir.path).join(&write.file);
    let written = if write.inherit { inherit(&file) } else { write_file(&file, write.value.as_bytes()) };
    match written {
        Err(Errno::NOENT) if write.optional => Ok(()),
        Err(_) if write.lenient => Ok(()),
        result => result.in_shim("write cgroup file", file.display()).map_err(|f| f.with_detail(&*write.value)),
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

/// A file and what it said, `None` for one that need not be there.
fn earlier_value(dir: &CgroupDir, write: &CgroupWrite) -> Result<Option<(PathBuf, Vec<u8>)>, Failure> {
    let file = Path::new(&dir.path).join(&write.file);
    match read_file(&file) {
        Ok(value) => Ok(Some((file, value))),
        Err(Errno::NOENT) if write.optional => Ok(None),
        Err(_) if write.lenient => Ok(None),
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
