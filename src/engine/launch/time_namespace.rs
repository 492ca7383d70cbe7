//! A time namespace of the container's own: its clocks since boot are the host's and an offset.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use nix::sched::CloneFlags;
use podwright_plan::wire::TimeOffset;
use rustix::fs::OFlags;

use crate::failure::{Failure, Named};
use crate::procfs::Procfs;

/// `CLONE_NEWTIME`, which nix does not name.
pub(crate) const CLONE_NEWTIME: CloneFlags = CloneFlags::from_bits_retain(0x80);

const OFFSETS: &str = "self/timens_offsets";

/// The file that takes a new namespace's offsets, which must be opened by who may change clocks: before the process enters
/// a user namespace.
#[derive(Debug)]
pub(crate) struct Offsets(File);

impl Offsets {
    pub(crate) fn open() -> Result<Self, Failure> {
        let opened = Procfs::open().and_then(|procfs| procfs.look_up(Path::new(OFFSETS), OFlags::WRONLY));
        opened.map(|file| Self(file.into())).in_child("open in the host's /proc", OFFSETS)
    }

    /// Makes a new namespace for the children of the calling process, and sets its clocks while nobody is in it.
    pub(crate) fn unshare(mut self, offsets: &[TimeOffset]) -> Result<(), Failure> {
        nix::sched::unshare(CLONE_NEWTIME).in_child("unshare namespaces", "CLONE_NEWTIME")?;
        for TimeOffset { clock, seconds, nanoseconds } in offsets {
            let line = format!("{clock} {seconds} {nanoseconds}\n");
            self.0.write_all(line.as_bytes()).in_child("set time offset", line.trim_end())?;
        }
        Ok(())
    }
}
