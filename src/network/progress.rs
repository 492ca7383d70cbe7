//! Which step a piece of blocking work is in, for the error of one that does not end in time.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Why the outcome of an operation is not known.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Unfinished {
    /// The kernel has not come back from a step.
    #[error("the step {stage:?} has not ended for {}s", waited.as_secs())]
    Stalled {
        /// Where it hangs.
        stage: &'static str,
        /// Since when.
        waited: Duration,
    },
    /// An earlier operation on the same pod has not ended.
    #[error("an earlier operation on the pod's network has not ended for {}s", waited.as_secs())]
    Busy {
        /// How long this one has waited.
        waited: Duration,
    },
    /// The daemon is going down.
    #[error("the daemon ended before the work was begun")]
    Cancelled,
}

/// The step that a piece of work is in, seen from outside.
#[derive(Debug, Clone)]
pub(crate) struct Progress {
    stage: Arc<Mutex<(&'static str, Instant)>>,
    abandoned: Arc<AtomicBool>,
}

impl Progress {
    pub(crate) fn new() -> Self {
        Self {
            stage: Arc::new(Mutex::new(("wait for a thread", Instant::now()))),
            abandoned: Arc::new(AtomicBool::new(false)),
        }
    }

    /// Says which step begins.
    pub(crate) fn enter(&self, stage: &'static str) {
        *self.stage.lock().unwrap_or_else(PoisonError::into_inner) = (stage, Instant::now());
    }

    /// The error of work that has taken too long.
    pub(crate) fn stalled(&self) -> Unfinished {
        let (stage, since) = *self.stage.lock().unwrap_or_else(PoisonError::into_inner);
        Unfinished::Stalled { stage, waited: since.elapsed() }
    }

    /// Says that nobody waits for the outcome any more.
    pub(crate) fn abandon(&self) {
        self.abandoned.store(true, Ordering::Release);
    }

    /// Whether nobody waits for the outcome any more.
    pub(crate) fn is_abandoned(&self) -> bool {
        self.abandoned.load(Ordering::Acquire)
    }
}
