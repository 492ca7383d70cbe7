//! Plugins that a killed daemon left running: they would go on attaching a pod while the next daemon detaches it.

use std::fs;
use std::path::Path;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, getpid, pidfd_open, pidfd_send_signal};

/// How long one may take to die.
const PATIENCE: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

/// Kills the processes whose environment says that they attach a container to a network namespace, and waits for their
/// end. What plugins start has the same environment.
pub(crate) fn end(container: &str, netns: &Path) {
    let words = [format!("CNI_CONTAINERID={container}"), format!("CNI_NETNS={}", netns.display())];
    let Ok(processes) = fs::read_dir("/proc") else { return };
    let ids = processes.flatten().filter_map(|entry| Pid::from_raw(entry.file_name().to_str()?.parse().ok()?));
    for pid in ids.filter(|pid| *pid != getpid()) {
        // Before the look: what is killed is what was looked at, not a later process of the same id.
        let Ok(process) = pidfd_open(pid, PidfdFlags::empty()) else { continue };
        let environment = fs::read(format!("/proc/{}/environ", pid.as_raw_nonzero())).unwrap_or_default();
        let has = |word: &String| environment.split(|byte| *byte == 0).any(|one| one == word.as_bytes());
        if !words.iter().all(has) {
            continue;
        }
        tracing::warn!(pid = %pid.as_raw_nonzero(), container, "a CNI plugin that outlived its daemon is killed");
        let killed = pidfd_send_signal(&process, Signal::KILL)
            .and_then(|()| poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&PATIENCE)));
        match killed {
            Ok(1..) => {}
            Ok(0) => tracing::warn!(pid = %pid.as_raw_nonzero(), "it has not died of SIGKILL yet"),
            Err(error) => tracing::warn!(pid = %pid.as_raw_nonzero(), %error, "it could not be killed"),
        }
    }
}
