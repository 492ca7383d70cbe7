//! A log's own rotation by size: `log` becomes `log.1`, that becomes `log.2`, and so on; off unless the plan wants it.

use std::os::fd::OwnedFd;

use podwright_plan::wire;
use rustix::io::Errno;

use crate::logfile::append_to;

/// The rotation of one log.
#[derive(Debug)]
pub(crate) struct Rotation {
    max_bytes: u64,
    max_files: u32,
    /// Bytes of the file in use.
    size: u64,
    /// The size at which it is rotated: later than `max_bytes` after a failure, not to try with every line.
    due: u64,
    problem: Option<Errno>,
}

impl Rotation {
    /// Makes one if the plan wants it.
    pub(crate) fn of(log: &wire::Log) -> Option<Self> {
        let new =
            Self { max_bytes: log.max_bytes, max_files: log.max_files, size: 0, due: log.max_bytes, problem: None };
        (log.max_bytes > 0).then_some(new)
    }

    /// A file has come into use.
    pub(crate) fn begin(&mut self, file: &OwnedFd) -> Result<(), Errno> {
        self.size = u64::try_from(rustix::fs::fstat(file)?.st_size).unwrap_or(0);
        self.due = self.max_bytes;
        Ok(())
    }

    /// Bytes were written to it.
    pub(crate) fn wrote(&mut self, bytes: usize) {
        self.size += bytes as u64;
    }

    /// How much of a text of whole lines still goes into the file: up to the end of the line that makes it due.
    pub(crate) fn before_due(&self, text: &[u8]) -> usize {
        let room = usize::try_from(self.due.saturating_sub(self.size)).unwrap_or(usize::MAX);
        let from = room.saturating_sub(1).min(text.len());
        let end = text[from..].iter().position(|byte| *byte == b'\n');
        end.map_or(text.len(), |at| from + at + 1)
    }

    /// Whether the file is to be rotated.
    pub(crate) fn is_due(&self) -> bool {
        self.size >= self.due
    }

    /// What the last attempt failed with.
    pub(crate) fn problem(&self) -> Option<Errno> {
        self.problem
    }

    /// Moves the file out of the way and makes the next one; nothing when that fails, and the old one stays in use.
    pub(crate) fn rotate(&mut self, path: &str) -> Option<OwnedFd> {
        match self.replace(path) {
            Ok(file) => {
                self.problem = None;
                Some(file)
            }
            Err(error) => {
                self.problem = Some(error);
                self.due = self.size.saturating_add(self.max_bytes);
                None
            }
        }
    }

    fn replace(&mut self, path: &str) -> Result<OwnedFd, Errno> {
        let name = |number: u32| format!("{path}.{number}");
        let taken = |number: &u32| rustix::fs::lstat(name(*number)).err() != Some(Errno::NOENT);
        // Up to the first free name, so that what a failed attempt has moved is not moved again.
        let last = (1..self.max_files).find(|number| !taken(number)).unwrap_or(self.max_files);
        for number in (1..last).rev() {
            rustix::fs::rename(name(number), name(number + 1))?;
        }
        let moved = match rustix::fs::rename(path, name(1)) {
            Ok(()) => true,
            // Somebody else has moved it.
            Err(Errno::NOENT) => false,
            Err(error) => return Err(error),
        };
        let next = append_to(path).and_then(|file| self.begin(&file).map(|()| file));
        if next.is_err() && moved {
            // If this fails too, the old file stays in use by its new name, and the next attempt moves it on.
            let _stays = rustix::fs::rename(name(1), path);
        }
        next
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::logfile::LogFile;

    fn plan(path: &std::path::Path, max_bytes: u64, max_files: u32) -> wire::Log {
        wire::Log { path: path.to_str().unwrap().to_owned(), max_bytes, max_files, ..Default::default() }
    }

    fn read(path: &std::path::Path) -> String {
        std::fs::read_to_string(path).unwrap()
    }

    proptest! {
        #[test]
        fn nothing_is_lost_repeated_or_torn(texts in prop::collection::vec("([ab]{0,9}\n){0,20}", 0..8), max in 1_u64..60) {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("log");
            let mut log = LogFile::open(&plan(&path, max, 1000)).unwrap();
            for text in &texts {
                log.write(text.as_bytes());
            }
            let mut files: Vec<String> = (1..).map(|n| dir.path().join(format!("log.{n}"))).take_while(|file| file.exists()).map(|file| read(&file)).collect();
            files.reverse();
            for file in &files {
                prop_assert!(file.ends_with('\n') && file.len() as u64 >= max);
                let before = file[..file.len() - 1].rfind('\n').map_or(0, |at| at + 1);
                prop_assert!((before as u64) < max, "{} bytes were enough", before);
            }
            let last = read(&path);
            prop_assert!((last.len() as u64) < max);
            files.push(last);
            prop_assert_eq!(files.concat(), texts.concat());
        }
    }

    #[test]
    fn the_oldest_goes_when_enough_are_kept() {
        for keep in [1, 2, 3] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("log");
            let mut log = LogFile::open(&plan(&path, 4, keep)).unwrap();
            for line in ["one\n", "two\n", "six\n", "ten\n", "."] {
                log.write(line.as_bytes());
            }
            let kept: Vec<String> = (1..=keep).map(|n| read(&dir.path().join(format!("log.{n}")))).collect();
            assert_eq!(kept, ["ten\n", "six\n", "two\n"][..keep as usize]);
            assert_eq!(
                (read(&path).as_str(), std::fs::read_dir(dir.path()).unwrap().count()),
                (".", keep as usize + 1)
            );
        }
    }

    #[test]
    fn a_failure_is_told_and_the_old_file_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let (path, blocked) = (dir.path().join("log"), dir.path().join("log.1"));
        // A file cannot take a directory's name.
        std::fs::create_dir(&blocked).unwrap();
        let mut log = LogFile::open(&plan(&path, 8, 1)).unwrap();
        log.write(b"one two\nthree\n");
        assert_eq!(log.rotation_problem(), Some(Errno::ISDIR));
        assert_eq!((log.problem(), read(&path).as_str()), (None, "one two\nthree\n"));
        // Not again before as much has been written again.
        std::fs::remove_dir(&blocked).unwrap();
        log.write(b"4\n");
        assert_eq!((log.rotation_problem(), read(&path).as_str()), (None, ""));
        assert_eq!(read(&blocked), "one two\nthree\n4\n");
    }

    #[test]
    fn a_log_that_cannot_be_made_again_keeps_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let (real, link) = (dir.path().join("real"), dir.path().join("log"));
        std::fs::write(&real, "").unwrap();
        let mut log = LogFile::open(&plan(&link, 4, 3)).unwrap();
        // The name leads nowhere now, and cannot be made: its directory is gone.
        let gone = dir.path().join("gone");
        std::fs::create_dir(&gone).unwrap();
        let moved = dir.path().join("moved");
        let mut other = LogFile::open(&plan(&gone.join("log"), 4, 3)).unwrap();
        std::fs::rename(&gone, &moved).unwrap();
        other.write(b"one\ntwo\n");
        assert_eq!(other.rotation_problem(), Some(Errno::NOENT));
        assert_eq!(read(&moved.join("log")), "one\ntwo\n");
        // While what somebody else has moved is only made again.
        std::fs::remove_file(&link).unwrap();
        log.write(b"one\ntwo\n");
        assert_eq!(log.rotation_problem(), None);
        assert!(!dir.path().join("log.2").exists());
        assert_eq!(read(&dir.path().join("log.1")), "two\n");
    }

    #[test]
    fn what_a_file_holds_already_counts() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        std::fs::write(&path, "before\n").unwrap();
        let mut log = LogFile::open(&plan(&path, 10, 1)).unwrap();
        log.write(b"one\ntwo\n");
        assert_eq!(read(&dir.path().join("log.1")), "before\none\n");
        assert_eq!(read(&path), "two\n");
    }
}
