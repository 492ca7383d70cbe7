//! Regular files: their data with its holes, and what is known of each when it is closed.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

use podwright_sys::writeback;
use rustix::fs::{Gid, Mode, OFlags, Uid, XattrFlags};
use rustix::io::Errno;

use crate::apply::{Applier, times, xattr};
use crate::apply_error::{EntryError, Fault, step};
use crate::archive::{Member, Members};
use crate::sparse::Map;

/// Files from this length on begin to go to disk at once: the sync at the end of a pull then waits for less. For shorter
/// ones the call costs more than it saves.
const EARLY: u64 = 256 << 10;
/// The bits of a mode that chmod sets, and those of them that a new file may have from the start.
const MODE: u32 = 0o7777;
const PERMISSIONS: u32 = 0o777;

impl Applier<'_> {
    pub(crate) fn file(
        &mut self,
        parent: &OwnedFd,
        name: &[u8],
        member: &Member,
        size: u64,
        sparse: Option<&Map>,
        data: &mut Members<impl Read>,
    ) -> Result<(), Fault> {
        let file = self.make_file(parent, name, member)?;
        self.hasher.restart();
        let length = match sparse {
            None => {
                self.write(data, 0, |bytes, _| (&file).write_all(bytes))?;
                size
            }
            Some(map) => {
                for extent in &map.extents {
                    let mut extent_data = data.by_ref().take(extent.length);
                    self.write(&mut extent_data, extent.offset, |bytes, at| file.write_all_at(bytes, at))?;
                }
                step("set the file's length", file.set_len(map.real_size))?;
                map.real_size
            }
        };
        if length >= EARLY
            && let Err(errno) = writeback::start(&file)
        {
            step("begin to write the file to disk", Err(errno))?;
        }
        self.amount.add_file(size);
        // Each of these two calls makes the file system write the inode once more, and most files need neither.
        let made = step("look at the file", rustix::fs::fstat(&file))?;
        self.memory.contents.insert(made.st_ino, self.hasher.finish(length));
        // Changing the owner clears the setuid bits and file capabilities: they come after it.
        if (made.st_uid, made.st_gid) != (member.uid, member.gid) {
            let owner = rustix::fs::fchown(&file, Some(Uid::from_raw(member.uid)), Some(Gid::from_raw(member.gid)));
            step("set the owner", owner)?;
        }
        if made.st_mode & MODE != member.mode {
            step("set the mode", rustix::fs::fchmod(&file, Mode::from_raw_mode(member.mode)))?;
        }
        for (key, value) in &member.xattrs {
            let set = rustix::fs::fsetxattr(&file, key.as_slice(), value, XattrFlags::empty());
            xattr(key, set.map_err(io::Error::from))?;
            self.memory.marked.insert(made.st_ino);
        }
        step("set the time", rustix::fs::futimens(&file, &times(member.mtime)))?;
        Ok(())
    }

    /// Makes an empty file. Its owner and mode may be wrong still; nobody but root reaches a layer that is being unpacked.
    fn make_file(&mut self, parent: &OwnedFd, name: &[u8], member: &Member) -> Result<File, EntryError> {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let open = || rustix::fs::openat(parent, name, flags, Mode::from_raw_mode(member.mode & PERMISSIONS));
        let made = match open() {
            Err(Errno::EXIST) => {
                self.clear(parent, name)?;
                open()
            }
            made => made,
        };
        Ok(File::from(step("make the file", made)?))
    }

    /// Passes data on that belongs at `at` in the file.
    fn write(
        &mut self,
        data: &mut impl Read,
        mut at: u64,
        mut sink: impl FnMut(&[u8], u64) -> io::Result<()>,
    ) -> Result<(), Fault> {
        loop {
            match data.read(&mut self.buffer) {
                Ok(0) => return Ok(()),
                Ok(read) => {
                    self.hasher.update(at, &self.buffer[..read]);
                    step("write the file", sink(&self.buffer[..read], at))?;
                    at += read as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Fault::Data(error)),
            }
        }
    }
}
