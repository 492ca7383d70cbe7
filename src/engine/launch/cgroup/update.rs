//! New limits for a container that runs: all or nothing.

use std::path::{Path, PathBuf};
use std::time::Duration;

use podwright_plan::wire::{CgroupDir, CgroupWrite, UpdateResources};
use podwright_sys::cgroup::{freeze, is_frozen, read_file, thaw, write_file};
use rustix::io::Errno;

use super::{apply, attach, may_be_missing};
use crate::failure::{Failure, Named};

/// The files of v1's device rules: written only; the rules are read elsewhere.
const DEVICE_RULES: [&str; 2] = ["devices.allow", "devices.deny"];
const DEVICE_LIST: &str = "devices.list";
/// How long a container may take to stand still while its device rules change.
const HOLD: Duration = Duration::from_secs(2);

/// A file and what is to be written to bring it back.
type Earlier = (PathBuf, Vec<u8>);

/// Limits that were changed, until their successors are known to be good elsewhere too.
#[derive(Debug)]
pub struct Updated(Vec<Earlier>);

impl Updated {
    /// Brings the earlier values back, those of a device program excepted. Tells what could not be.
    pub fn undo(self) -> Vec<String> {
        self.0.iter().rev().filter_map(restore).collect()
    }
}

/// Writes a container's new limits, all or nothing: when a write fails, the values before it come back. Device rules of v2
/// change last and in one step.
///
/// # Errors
/// Names the file and the kernel's answer; the directories hold their earlier values then.
pub fn update(update: &UpdateResources) -> Result<Updated, Failure> {
    let held = hold(&update.hold)?;
    let written = write_all(&update.dirs);
    if let Some(dir) = held {
        // Whatever became of the limits, nothing may stay frozen that was not.
        thaw(dir).in_shim("thaw cgroup", dir.display())?;
    }
    let updated = written?;
    let Some(devices) = &update.devices else { return Ok(updated) };
    attach(&devices.unified, &devices.program).map_err(|failure| told(failure, updated))?;
    Ok(Updated(Vec::new()))
}

/// Freezes a cgroup if there is one to hold and it is not frozen: the caller's to thaw.
fn hold(dir: &str) -> Result<Option<&Path>, Failure> {
    let dir = Path::new(dir);
    if dir.as_os_str().is_empty() || is_frozen(dir).in_shim("read freezer", dir.display())? {
        return Ok(None);
    }
    freeze(dir, HOLD).in_shim("freeze cgroup", dir.display())?;
    Ok(Some(dir))
}

fn write_all(dirs: &[CgroupDir]) -> Result<Updated, Failure> {
    let writes: Vec<_> = dirs.iter().flat_map(|dir| dir.writes.iter().map(move |write| (dir, write))).collect();
    // All are read before the first is written: a file that cannot be read cannot be restored.
    let mut earlier = writes.iter().map(|(dir, write)| earlier_values(dir, write)).collect::<Result<Vec<_>, _>>()?;
    for (done, (dir, write)) in writes.iter().enumerate() {
        if let Err(failure) = apply(dir, write) {
            earlier.truncate(done);
            return Err(told(failure, Updated(earlier.concat())));
        }
    }
    Ok(Updated(earlier.concat()))
}

/// Adds to a failure what could not be brought back.
fn told(failure: Failure, updated: Updated) -> Failure {
    let lost = updated.undo();
    if lost.is_empty() { failure } else { failure.with_detail(lost.join("; ")) }
}

/// What a file says, as it is written back: none for one that need not be there.
fn earlier_values(dir: &CgroupDir, write: &CgroupWrite) -> Result<Vec<Earlier>, Failure> {
    let rules = DEVICE_RULES.contains(&write.file.as_str());
    let file = Path::new(&dir.path).join(if rules { DEVICE_LIST } else { &write.file });
    let value = match read_file(&file) {
        Ok(value) => value,
        Err(Errno::NOENT) if may_be_missing(dir, write) => return Ok(Vec::new()),
        Err(_) if write.lenient => return Ok(Vec::new()),
        Err(errno) => return Err(Failure::internal("read cgroup file", file.display(), errno)),
    };
    // A file of several lines (io.max, devices.list) takes them one by one.
    let lines = value.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).map(<[u8]>::to_vec);
    if !rules {
        return Ok(lines.map(|line| (file.clone(), line)).collect());
    }
    // Earlier values are brought back last first: everything is taken away before the list is given again.
    let allow = lines.map(|line| (file.with_file_name("devices.allow"), line));
    Ok(allow.chain([(file.with_file_name("devices.deny"), b"a".to_vec())]).collect())
}

/// Writes an earlier value back; the words say what could not be.
fn restore((file, value): &Earlier) -> Option<String> {
    let refused = write_file(file, value).err();
    refused.map(|errno| format!("{} was not restored: {errno}", file.display()))
}
