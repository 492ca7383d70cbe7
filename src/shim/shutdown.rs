//! The end of a pod: everything is killed, seen off, and removed; then the shim ends.
//!
//! Its own cgroup is left to the daemon, which can remove it a moment later for nothing: to move out of it first would
//! take the kernel's lock on all forks of the host, and with it an RCU grace period of ten milliseconds and more.

use std::time::{Duration, Instant};

use podwright_plan::wire::{Cause, Done, Failure, reply};

use crate::operations::refuse;
use crate::poll::Timer;
use crate::shim::{PodState, Shim, Waiter};
use crate::words::say;

/// How long processes may take to die; daemons wait ten seconds for the answer. Only one stuck in the kernel takes longer.
const PATIENCE: Duration = Duration::from_secs(8);

/// A shutdown under way.
#[derive(Debug)]
pub(crate) struct Shutdown {
    pub(crate) waiters: Vec<Waiter>,
    deadline: Instant,
}

impl Shutdown {
    /// Begins with the first request.
    pub(crate) fn begin(waiter: Waiter) -> Self {
        Self { waiters: vec![waiter], deadline: Instant::now() + PATIENCE }
    }
}

impl Shim {
    /// Sends SIGKILL to all that the pod holds.
    pub(crate) fn kill_everything(&mut self) {
        for container in self.containers.iter().filter(|container| !container.over()) {
            container.kill();
        }
        self.kill_execs();
        if let PodState::Ready(held) = &self.pod
            && let Err(error) = held.pod.kill_reaper()
        {
            say(format_args!("cannot end the pod's pid namespace: {error}"));
        }
        self.timers.set(Timer::Shutdown, PATIENCE);
    }

    /// Ends a shutdown when nothing runs any more or patience is over; whether the process can end.
    pub(crate) fn finish_shutdown(&mut self) -> bool {
        let Some(shutdown) = &self.shutdown else { return false };
        let reaper = matches!(&self.pod, PodState::Ready(held) if held.reaper.is_some());
        let alive = reaper
            || self.containers.iter().any(|container| !container.over())
            || self.execs.iter().any(|exec| !exec.over());
        if alive && Instant::now() < shutdown.deadline {
            return false;
        }
        let serials: Vec<_> = self.containers.iter().map(|container| container.serial).collect();
        for serial in serials {
            self.retry_log(serial);
        }
        let result = match self.remove_cgroups() {
            Ok(()) => reply::Result::Done(Done {}),
            Err(failure) => reply::Result::Failure(failure),
        };
        for waiter in self.shutdown.take().map(|shutdown| shutdown.waiters).unwrap_or_default() {
            self.reply(waiter, result.clone(), None);
        }
        self.flush_all();
        true
    }

    /// Removes every container's cgroups; names one that cannot be.
    fn remove_cgroups(&mut self) -> Result<(), Failure> {
        for container in &mut self.containers {
            container.abandon_cgroups();
        }
        match self.containers.iter().find_map(|container| container.remains.first()) {
            None => Ok(()),
            Some(dir) => Err(Failure {
                errno: rustix::io::Errno::BUSY.raw_os_error(),
                ..refuse(Cause::Internal, "remove cgroup", &dir.display().to_string(), "")
            }),
        }
    }
}
