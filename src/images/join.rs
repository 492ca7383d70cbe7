//! Identical pulls are one: who asks for what is being pulled waits for it. The pull is given up when nobody waits for
//! it any more.

use std::collections::HashMap;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use podwright_registry::Credentials;
use tokio::sync::watch;
use tokio::task::AbortHandle;

use crate::image::Image;
use crate::progress::PullProgress;
use crate::pull_error::PullError;

/// What makes pulls identical: the canonical name, and who is pulling.
pub(crate) type Key = (String, Option<Credentials>);

type Outcome = Result<Arc<Image>, Arc<PullError>>;

/// The pulls that are running.
#[derive(Debug, Default)]
pub(crate) struct Joint {
    running: Mutex<HashMap<Key, Weak<Running>>>,
}

/// A running pull, held by those who wait for it.
#[derive(Debug)]
struct Running {
    outcome: watch::Receiver<Option<Outcome>>,
    progress: watch::Receiver<PullProgress>,
    task: AbortHandle,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Joint {
    /// Joins the pull of this key, or starts it.
    pub(crate) async fn run<F>(
        &self,
        key: Key,
        progress: &watch::Sender<PullProgress>,
        start: impl FnOnce(watch::Sender<PullProgress>) -> F,
    ) -> Result<Arc<Image>, PullError>
    where
        F: Future<Output = Result<Arc<Image>, PullError>> + Send + 'static,
    {
        let reference = key.0.clone();
        let running = self.join(key, start);
        let (mut outcome, mut steps) = (running.outcome.clone(), running.progress.clone());
        loop {
            progress.send_replace(steps.borrow_and_update().clone());
            let ended = tokio::select! {
                biased;
                ended = outcome.wait_for(Option::is_some) => ended.ok().and_then(|outcome| outcome.clone()),
                // The pull's end of it goes with the pull, and then there is an outcome.
                Ok(()) = steps.changed() => continue,
            };
            progress.send_replace(steps.borrow().clone());
            return match ended {
                Some(outcome) => outcome.map_err(PullError::Joined),
                None => Err(PullError::Aborted { reference }),
            };
        }
    }

    fn join<F>(&self, key: Key, start: impl FnOnce(watch::Sender<PullProgress>) -> F) -> Arc<Running>
    where
        F: Future<Output = Result<Arc<Image>, PullError>> + Send + 'static,
    {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        // One that has ended, but that somebody still holds, is no longer true of the registry.
        if let Some(known) = running.get(&key).and_then(Weak::upgrade)
            && known.outcome.borrow().is_none()
            && known.outcome.has_changed().is_ok()
        {
            return known;
        }
        running.retain(|_, pull| pull.strong_count() > 0);
        let (outcome_sender, outcome) = watch::channel(None);
        let (progress_sender, progress) = watch::channel(PullProgress::default());
        let pull = start(progress_sender);
        let task = tokio::spawn(async move {
            let outcome = pull.await.map_err(Arc::new);
            outcome_sender.send_replace(Some(outcome));
        });
        let new = Arc::new(Running { outcome, progress, task: task.abort_handle() });
        running.insert(key, Arc::downgrade(&new));
        new
    }
}
