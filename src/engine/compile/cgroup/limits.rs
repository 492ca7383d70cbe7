//! Collects the writes into a cgroup's own directories, each controller's where this host has it.

use oci_spec::runtime::LinuxResources;
use podwright_plan::wire::{CgroupDir, CgroupWrite};

use super::{CgroupPath, counts, cpu, io, memory, unified};
use crate::error::CompileError;
use crate::facts::{CgroupLayout, Home};

/// Writes a value; a missing file is an error.
pub(super) fn write(file: impl Into<String>, value: impl ToString) -> CgroupWrite {
    CgroupWrite { file: file.into(), value: value.to_string(), ..CgroupWrite::default() }
}

/// Writes a value where the kernel has the file.
pub(super) fn optional(file: impl Into<String>, value: impl ToString) -> CgroupWrite {
    CgroupWrite { optional: true, ..write(file, value) }
}

/// Writes a value if the kernel takes it now.
pub(super) fn lenient(file: impl Into<String>, value: impl ToString) -> CgroupWrite {
    CgroupWrite { lenient: true, optional: true, ..write(file, value) }
}

/// Copies the parent's value where there is none yet.
pub(super) fn inherit(file: impl Into<String>) -> CgroupWrite {
    CgroupWrite { inherit: true, ..write(file, "") }
}

/// The writes so far.
pub(super) struct Limits<'a> {
    layout: &'a CgroupLayout,
    path: &'a CgroupPath,
    dirs: Vec<CgroupDir>,
}

impl<'a> Limits<'a> {
    pub(super) fn new(layout: &'a CgroupLayout, path: &'a CgroupPath) -> Self {
        Self { layout, path, dirs: Vec::new() }
    }

    pub(super) fn into_dirs(self) -> Vec<CgroupDir> {
        self.dirs
    }

    /// Finds where a controller lives that a field needs.
    pub(super) fn home(&self, controller: &'static str, field: &str) -> Result<Home<'a>, CompileError> {
        let missing = || CompileError::NoController { field: format!("linux.resources.{field}"), controller };
        self.layout.home(controller).ok_or_else(missing)
    }

    /// Like [`Self::home`], for what may be absent.
    pub(super) fn find(&self, controller: &str) -> Option<Home<'a>> {
        self.layout.home(controller)
    }

    pub(super) fn layout(&self) -> &'a CgroupLayout {
        self.layout
    }

    /// Appends writes to the cgroup's directory in a hierarchy.
    pub(super) fn add(&mut self, home: Home<'_>, writes: impl IntoIterator<Item = CgroupWrite>) {
        let directory = self.path.below(home.mount());
        match self.dirs.iter_mut().find(|dir| dir.path == directory) {
            Some(dir) => dir.writes.extend(writes),
            None => {
                let writes: Vec<CgroupWrite> = writes.into_iter().collect();
                if !writes.is_empty() {
                    self.dirs.push(CgroupDir { path: directory, writes });
                }
            }
        }
    }

    /// Compiles everything in `linux.resources` but the device rules.
    pub(super) fn resources(&mut self, resources: &LinuxResources) -> Result<(), CompileError> {
        if let Some(cpu) = resources.cpu() {
            cpu::limits(self, cpu)?;
        }
        if let Some(memory) = resources.memory() {
            memory::limits(self, memory)?;
        }
        if let Some(block_io) = resources.block_io() {
            io::limits(self, block_io)?;
        }
        counts::limits(self, resources)?;
        // Last: a file named here has the last word over the field that means the same.
        if let Some(files) = resources.unified() {
            unified::limits(self, files)?;
        }
        Ok(())
    }
}

/// The error of a limit that one cgroup version has no file for.
pub(super) fn not_on(version: &'static str, field: &str) -> CompileError {
    CompileError::NotOnThisCgroup { field: format!("linux.resources.{field}"), version }
}
