//! Stopping a container: its stop signal, a deadline, SIGKILL. Later calls can only bring the deadline nearer.

use std::time::Duration;

use podwright_base::ContainerId;
use podwright_plan::wire::Cause;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};
use tracing::warn;

use crate::error::Error;
use crate::shim::{ShimClient, ShimError};

/// What a container may take to die of SIGKILL before the call says so: a process can hang in the kernel.
const KILL_LIMIT: Duration = Duration::from_secs(20);
/// Between two looks at whether a killed container has gone.
const KILL_PAUSE: Duration = Duration::from_millis(50);

/// A stop under way.
#[derive(Debug)]
pub(crate) struct Stopping {
    deadline: watch::Sender<Instant>,
}

/// What a stop works on.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    /// The container.
    pub(crate) id: ContainerId,
    /// Its pod's shim.
    pub(crate) shim: ShimClient,
    /// True once it has exited.
    pub(crate) exited: watch::Receiver<bool>,
}

impl Stopping {
    /// Sends the stop signal and sees to it that the container is killed at the deadline.
    pub(crate) fn begin(target: Target, signal: i32, grace: Duration) -> Self {
        let (deadline, changes) = watch::channel(Instant::now() + grace);
        tokio::spawn(stop(target, signal, grace, changes));
        Self { deadline }
    }

    /// Whether it still goes on: one whose SIGKILL could not be delivered has ended without the container.
    pub(crate) fn goes_on(&self) -> bool {
        !self.deadline.is_closed()
    }

    /// Brings the deadline nearer; one that is further away changes nothing.
    pub(crate) fn shorten(&self, grace: Duration) {
        let sooner = Instant::now() + grace;
        self.deadline.send_if_modified(|deadline| {
            let shorter = sooner < *deadline;
            if shorter {
                *deadline = sooner;
            }
            shorter
        });
    }
}

async fn stop(mut target: Target, signal: i32, grace: Duration, mut deadline: watch::Receiver<Instant>) {
    if !grace.is_zero() {
        note_kill(&target.id, target.shim.signal(target.id.as_str(), signal).await);
        loop {
            let until = *deadline.borrow_and_update();
            tokio::select! {
                _ = target.exited.wait_for(|exited| *exited) => return,
                () = sleep_until(until) => break,
                changed = deadline.changed() => if changed.is_err() { return },
            }
        }
    }
    note_kill(&target.id, target.shim.kill(target.id.as_str()).await);
}

/// The signal may come too late, which is what everybody hopes for.
fn note_kill(id: &ContainerId, result: Result<(), ShimError>) {
    match result {
        Err(error) if !matches!(error.cause(), Some(Cause::InvalidState | Cause::NotFound)) => {
            warn!(container.id = %id, error = %error, "the container could not be signalled");
        }
        _ => {}
    }
}

/// Has the shim drop a container that is being removed. One that still lives there, against all that was known of it, is
/// killed first: its root file system is about to go.
///
/// # Errors
/// When it cannot be ended.
pub(crate) async fn release(shim: &ShimClient, id: &ContainerId) -> Result<(), Error> {
    let ended = async {
        loop {
            match shim.forget(id.as_str(), "").await {
                Err(error) if matches!(error.cause(), Some(Cause::InvalidState)) => {
                    note_kill(id, shim.kill(id.as_str()).await);
                    tokio::time::sleep(KILL_PAUSE).await;
                }
                // One that was never started is unknown to the shim; a shim that is gone knows none.
                Err(error) if matches!(error.cause(), Some(Cause::NotFound)) => return Ok(()),
                Err(ShimError::Gone) => return Ok(()),
                other => return other.map_err(|source| Error::step(format!("remove container {id}"), source)),
            }
        }
    };
    match timeout(KILL_LIMIT, ended).await {
        Ok(result) => result,
        Err(_) => Err(Error::Stalled { what: format!("container {id}"), stage: "die of SIGKILL", waited: KILL_LIMIT }),
    }
}

/// Waits until a container that is being stopped has exited.
///
/// # Errors
/// [`Error::Stalled`] when it outlives its deadline and SIGKILL.
pub(crate) async fn stopped(id: ContainerId, grace: Duration, mut exited: watch::Receiver<bool>) -> Result<(), Error> {
    let limit = grace + KILL_LIMIT;
    match timeout(limit, exited.wait_for(|exited| *exited)).await {
        // The sender is gone when the container has been removed: nothing is left to wait for.
        Ok(_) => Ok(()),
        Err(_) => Err(Error::Stalled { what: format!("container {id}"), stage: "die of SIGKILL", waited: limit }),
    }
}
