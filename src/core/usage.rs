//! What containers have written to disk, counted behind the scenes: whoever asks is told the last figures at once.
//!
//! A container is counted again when somebody asks and it can have changed: not within [`PAUSE`] of the last count, nor
//! within a multiple of the time that one took, and not once it has ended. One thread counts one container at a time. A
//! new container has written nothing, which is its first figure. How a directory is counted is [`Use::of`]'s affair.

use std::collections::{HashMap, HashSet};
use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use podwright_base::ContainerId;

use crate::clock;
use crate::view::ContainerState;

/// How old a figure gets before it is counted again.
const PAUSE: Duration = Duration::from_secs(10);
/// A container is not counted for more than one part in this many of the time.
const SHARE: u32 = 20;
/// `st_blocks` counts in this unit on every file system (`stat(3type)`).
const BLOCK: u64 = 512;

/// Space and files taken.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Use {
    /// Bytes, holes left out.
    pub bytes: u64,
    /// Files, directories, links and nodes.
    pub inodes: u64,
}

impl Use {
    /// Counts a tree. Blocks. What vanishes meanwhile or cannot be read is not counted: containers go on writing.
    fn of(directory: &Path) -> Self {
        let mut total = Self::default();
        let mut unread = vec![directory.to_owned()];
        while let Some(directory) = unread.pop() {
            for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
                // Not following links, as `DirEntry::metadata` does not.
                let Ok(metadata) = entry.metadata() else { continue };
                total.add(&metadata);
                if metadata.is_dir() {
                    unread.push(entry.path());
                }
            }
        }
        total
    }

    fn add(&mut self, metadata: &Metadata) {
        self.inodes += 1;
        // A file with several names is shared out among them.
        let names = if metadata.is_dir() { 1 } else { metadata.nlink().max(1) };
        self.bytes += metadata.blocks() * BLOCK / names;
    }
}

/// What is to be known of one container.
#[derive(Debug, Clone)]
pub(crate) struct Subject {
    pub(crate) id: ContainerId,
    /// Holds all that it writes.
    pub(crate) directory: PathBuf,
    pub(crate) state: ContainerState,
}

/// One count.
#[derive(Debug, Clone, Copy)]
struct Sample {
    figure: Use,
    /// When it began, in Unix nanoseconds.
    begun_at: i64,
    begun: Instant,
    took: Duration,
}

impl Sample {
    /// Whether what it counted may be something else by now.
    fn is_old(&self, state: &ContainerState, now: Instant) -> bool {
        match state {
            ContainerState::Created => false,
            ContainerState::Running { .. } => {
                now.saturating_duration_since(self.begun) >= PAUSE.max(self.took.saturating_mul(SHARE))
            }
            ContainerState::Exited(exited) => self.begun_at <= exited.finished_at,
        }
    }
}

/// The last figures of all containers. Clones are the same.
#[derive(Debug, Clone, Default)]
pub(crate) struct Usages {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug, Default)]
struct Inner {
    samples: HashMap<ContainerId, Sample>,
    /// Whether a thread is counting.
    counting: bool,
}

impl Usages {
    /// Adds up what all containers have written, as far as it was counted, and has counted anew what may have changed.
    /// Needs tokio's blocking threads. Figures of containers that are not among `all` are forgotten.
    pub(crate) fn total(&self, all: &[Subject]) -> Use {
        let (total, due) = self.look(all, Instant::now());
        if !due.is_empty() {
            let usages = self.clone();
            tokio::task::spawn_blocking(move || usages.count(&due));
        }
        total
    }

    /// Returns the sum and what is to be counted: nothing while that is done already.
    fn look(&self, all: &[Subject], now: Instant) -> (Use, Vec<Subject>) {
        let mut inner = self.lock();
        let ids: HashSet<_> = all.iter().map(|subject| &subject.id).collect();
        inner.samples.retain(|id, _| ids.contains(id));
        let mut total = Use::default();
        let mut due = Vec::new();
        for subject in all {
            let sample = inner.samples.get(&subject.id);
            if let Some(sample) = sample {
                total.bytes += sample.figure.bytes;
                total.inodes += sample.figure.inodes;
            }
            if sample.is_none_or(|sample| sample.is_old(&subject.state, now)) && !inner.counting {
                due.push(subject.clone());
            }
        }
        inner.counting |= !due.is_empty();
        (total, due)
    }

    fn count(&self, due: &[Subject]) {
        let _ended = Ended(self);
        for subject in due {
            let (begun_at, begun) = (clock::now(), Instant::now());
            let figure = Use::of(&subject.directory);
            let sample = Sample { figure, begun_at, begun, took: begun.elapsed() };
            self.lock().samples.insert(subject.id.clone(), sample);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Every change is whole by itself, so a poisoned map is, too.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Lets the next count begin, however this one has ended.
struct Ended<'a>(&'a Usages);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.lock().counting = false;
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::view::{ExitReason, Exited};

    #[test]
    fn a_tree_is_counted_without_what_its_links_name() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(Use::of(root.path()), Use::default());
        let directory = root.path().join("a/b");
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join("file"), vec![1_u8; 1 << 20]).unwrap();
        fs::hard_link(directory.join("file"), root.path().join("again")).unwrap();
        symlink("/usr", directory.join("link")).unwrap();
        let counted = Use::of(root.path());
        assert_eq!(counted.inodes, 5);
        assert!((1 << 20..2 << 20).contains(&counted.bytes), "{counted:?}");
        assert_eq!(Use::of(&root.path().join("missing")), Use::default());
    }

    fn subject(directory: &Path, state: ContainerState) -> Subject {
        Subject { id: ContainerId::random(), directory: directory.to_owned(), state }
    }

    fn exited(finished_at: i64) -> ContainerState {
        let message = String::new();
        ContainerState::Exited(Exited { started_at: 1, finished_at, code: 0, reason: ExitReason::Completed, message })
    }

    #[test]
    fn figures_are_told_at_once_and_counted_later() {
        let root = tempfile::tempdir().unwrap();
        let usages = Usages::default();
        let all = [subject(root.path(), ContainerState::Running { pid: 1, started_at: 1 })];
        fs::write(root.path().join("first"), "x").unwrap();
        let (total, due) = usages.look(&all, Instant::now());
        assert_eq!((total, due.len()), (Use::default(), 1), "nothing is counted while somebody waits");
        assert!(usages.look(&all, Instant::now()).1.is_empty(), "it is being counted");
        usages.count(&due);
        fs::write(root.path().join("second"), "x").unwrap();
        let (total, due) = usages.look(&all, Instant::now());
        assert_eq!((total.inodes, due.len()), (1, 0), "the figure is young");
        let (total, due) = usages.look(&all, Instant::now() + PAUSE);
        assert_eq!((total.inodes, due.len()), (1, 1));
        usages.count(&due);
        assert_eq!(usages.look(&all, Instant::now()).0.inodes, 2);
        assert_eq!(usages.look(&[], Instant::now()).0, Use::default());
        assert!(usages.lock().samples.is_empty(), "a container that is gone is forgotten");
    }

    #[test]
    fn what_cannot_have_changed_is_not_counted() {
        let running = ContainerState::Running { pid: 1, started_at: 1 };
        let begun = Instant::now();
        let sample = |took| Sample { figure: Use::default(), begun_at: 100, begun, took };
        let quick = sample(Duration::ZERO);
        let later = |seconds| begun + Duration::from_secs(seconds);
        for (state, now, old) in [
            (ContainerState::Created, later(1000), false),
            (running.clone(), later(9), false),
            (running.clone(), later(10), true),
            (exited(99), later(1000), false),
            (exited(101), later(0), true),
        ] {
            assert_eq!(quick.is_old(&state, now), old, "{state:?}");
        }
        let slow = sample(Duration::from_secs(3));
        assert_eq!((slow.is_old(&running, later(59)), slow.is_old(&running, later(60))), (false, true));
    }
}
