//! Children that have ended: inits, execs, the reaper, and orphans of theirs that nobody else waits for.

use rustix::io::Errno;
use rustix::process::{WaitOptions, WaitStatus, wait};

use crate::shim::Shim;
use crate::words::say;

impl Shim {
    /// Reaps every child that has ended.
    pub(crate) fn reap(&mut self) {
        loop {
            match wait(WaitOptions::NOHANG) {
                Ok(Some((pid, status))) => {
                    let (pid, code) = (pid.as_raw_nonzero().get().unsigned_abs(), code(status));
                    if !self.container_child_ended(pid, code) && !self.exec_child_ended(pid, code) {
                        self.reaper_ended(pid);
                    }
                }
                Ok(None) | Err(Errno::CHILD) => return,
                Err(Errno::INTR) => {}
                Err(error) => return say(format_args!("cannot wait for children: {error}")),
            }
        }
    }
}

/// The exit code as a shell would give it.
fn code(status: WaitStatus) -> i32 {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => code,
        (None, Some(signal)) => 128 + signal,
        // Neither stopped nor continued children are waited for.
        (None, None) => 255,
    }
}
