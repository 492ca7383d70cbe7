//! A container's log file: appended to, reopened after a rotation by others, rotated by itself if that is wanted, and
//! patient when the disk is full.
//!
//! Text that could not be written is held, to the byte, and written first once the disk takes it again. While text
//! is held the container's output is not read, so what is held stays as small as one read.

use std::os::fd::OwnedFd;

use podwright_plan::wire;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::rotation::Rotation;

/// The log of one container.
#[derive(Debug)]
pub(crate) struct LogFile {
    /// Empty: no log is wanted, what is written is dropped.
    path: String,
    file: Option<OwnedFd>,
    held: Vec<u8>,
    problem: Option<Errno>,
    rotation: Option<Rotation>,
}

impl LogFile {
    /// Opens the log, making the file when it is missing but not its directory.
    pub(crate) fn open(plan: &wire::Log) -> Result<Self, Errno> {
        let (path, rotation) = (plan.path.clone(), Rotation::of(plan));
        let mut log = Self { path, file: None, held: Vec::new(), problem: None, rotation };
        if !log.path.is_empty() {
            log.use_file(append_to(&log.path)?)?;
        }
        Ok(log)
    }

    fn use_file(&mut self, file: OwnedFd) -> Result<(), Errno> {
        if let Some(rotation) = &mut self.rotation {
            rotation.begin(&file)?;
        }
        self.file = Some(file);
        Ok(())
    }

    /// The log's path; empty when no log is wanted.
    pub(crate) fn path(&self) -> &str {
        &self.path
    }

    /// Whether there is a file to write to.
    pub(crate) fn wanted(&self) -> bool {
        self.file.is_some()
    }

    /// Appends whole lines, or holds what the file does not take.
    pub(crate) fn write(&mut self, text: &[u8]) {
        let mut rest = text;
        while !rest.is_empty() {
            let (now, later) =
                rest.split_at(self.rotation.as_ref().map_or(rest.len(), |rotation| rotation.before_due(rest)));
            self.append(now);
            self.rotate_when_due();
            rest = later;
        }
    }

    fn append(&mut self, text: &[u8]) {
        let Some(file) = &self.file else { return };
        let mut written = 0;
        if self.problem.is_none() {
            (written, self.problem) = write_all(file, text);
            self.count(written);
        }
        self.held.extend_from_slice(&text[written..]);
    }

    fn count(&mut self, written: usize) {
        if let Some(rotation) = &mut self.rotation {
            rotation.wrote(written);
        }
    }

    /// Rotates a file that is large enough and ends with a whole line.
    fn rotate_when_due(&mut self) {
        if let Some(rotation) = &mut self.rotation
            && self.problem.is_none()
            && rotation.is_due()
            && let Some(file) = rotation.rotate(&self.path)
        {
            self.file = Some(file);
        }
    }

    /// Tries to write what is held; whether nothing is left.
    pub(crate) fn retry(&mut self) -> bool {
        if let Some(file) = &self.file {
            let (written, problem) = write_all(file, &self.held);
            self.held.drain(..written);
            self.problem = problem;
            self.count(written);
        }
        if self.problem.is_none() {
            self.held = Vec::new();
            self.rotate_when_due();
        }
        self.problem.is_none()
    }

    /// Switches to the file that has the log's path now, made when missing. On an error the old file stays in use.
    pub(crate) fn reopen(&mut self) -> Result<(), Errno> {
        if self.wanted() {
            self.use_file(append_to(&self.path)?)?;
        }
        Ok(())
    }

    /// What the last rotation failed with.
    pub(crate) fn rotation_problem(&self) -> Option<Errno> {
        self.rotation.as_ref().and_then(Rotation::problem)
    }

    /// Why text is held, while it is.
    pub(crate) fn problem(&self) -> Option<Errno> {
        self.problem
    }
}

/// Opens a log for appending, making it when it is missing.
pub(crate) fn append_to(path: &str) -> Result<OwnedFd, Errno> {
    let flags = OFlags::WRONLY | OFlags::APPEND | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOCTTY;
    rustix::fs::open(path, flags, Mode::from_raw_mode(0o640))
}

/// Writes as much as the file takes, and says why it took no more.
fn write_all(file: &OwnedFd, text: &[u8]) -> (usize, Option<Errno>) {
    let mut written = 0;
    while written < text.len() {
        match rustix::io::write(file, &text[written..]) {
            // A regular file never takes nothing without saying why; the disk is as good as full.
            Ok(0) => return (written, Some(Errno::NOSPC)),
            Ok(count) => written += count,
            Err(Errno::INTR) => {}
            Err(error) => return (written, Some(error)),
        }
    }
    (written, None)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn at(path: &str) -> wire::Log {
        wire::Log { path: path.to_owned(), ..Default::default() }
    }

    #[test]
    fn appends_and_follows_a_rotation() {
        let dir = tempfile::tempdir().unwrap();
        let (path, old) = (dir.path().join("0.log"), dir.path().join("0.log.old"));
        std::fs::write(&path, "before\n").unwrap();
        let mut log = LogFile::open(&at(path.to_str().unwrap())).unwrap();
        log.write(b"one\n");
        std::fs::rename(&path, &old).unwrap();
        log.write(b"two\n");
        log.reopen().unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
        log.write(b"three\n");
        assert_eq!(std::fs::read_to_string(old).unwrap(), "before\none\ntwo\n");
        assert_eq!(std::fs::read_to_string(path).unwrap(), "three\n");
    }

    #[test]
    fn the_directory_must_exist() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("missing/0.log");
        assert_eq!(LogFile::open(&at(path.to_str().unwrap())).unwrap_err(), Errno::NOENT);
    }

    #[test]
    fn a_failed_reopen_keeps_the_old_file() {
        let dir = tempfile::tempdir().unwrap();
        let (logs, moved) = (dir.path().join("logs"), dir.path().join("moved"));
        std::fs::create_dir(&logs).unwrap();
        let mut log = LogFile::open(&at(logs.join("0.log").to_str().unwrap())).unwrap();
        std::fs::rename(&logs, &moved).unwrap();
        assert_eq!(log.reopen().unwrap_err(), Errno::NOENT);
        log.write(b"still\n");
        assert_eq!(std::fs::read_to_string(moved.join("0.log")).unwrap(), "still\n");
    }

    #[test]
    fn text_is_held_in_order_while_it_cannot_be_written() {
        // /dev/full answers every write with ENOSPC.
        let mut log = LogFile::open(&at("/dev/full")).unwrap();
        log.write(b"one\n");
        assert_eq!(log.problem(), Some(Errno::NOSPC));
        log.write(b"two\n");
        assert!(!log.retry());
        let dir = tempfile::tempdir().unwrap();
        log.path = dir.path().join("0.log").to_str().unwrap().to_owned();
        log.reopen().unwrap();
        assert!(log.retry());
        assert_eq!(log.problem(), None);
        log.write(b"three\n");
        assert_eq!(std::fs::read_to_string(&log.path).unwrap(), "one\ntwo\nthree\n");
    }

    #[test]
    fn without_a_path_text_is_dropped() {
        let mut log = LogFile::open(&at("")).unwrap();
        log.write(b"x");
        log.reopen().unwrap();
        assert!(!log.wanted() && log.retry() && log.held.is_empty());
    }
}
