//! The init of a pod's shared pid namespace: it reaps what containers leave behind, and does nothing else.

use nix::sys::signal::{SigSet, Signal};
use podwright_sys::caps;
use podwright_sys::clone::{Child, Fork};
use rustix::io::Errno;
use rustix::process::WaitOptions;

use crate::failure::{Failure, Named};
use crate::shared_mounts::SharedMounts;

/// Forks the reaper. It ends with SIGKILL from outside its namespace only.
pub(crate) fn spawn(mounts: &SharedMounts) -> Result<Child, Failure> {
    let keep = mounts.descriptors();
    let fork = Fork { new_pid_namespace: true, cgroup: None, keep: &keep };
    fork.spawn(|| match confine(mounts) {
        Ok(()) => reap(),
        Err(_) => 1,
    })
    .in_shim("fork the pid namespace's init", "")
}

/// Containers see this process as pid 1: through it they must reach no file of the host, and it must have no power.
fn confine(mounts: &SharedMounts) -> Result<(), Errno> {
    rustix::process::setsid()?;
    // /proc/1/root and /proc/1/cwd are the pod's /dev/shm then.
    mounts.enter()?;
    let nothing = rustix::fs::open(".", rustix::fs::OFlags::PATH, rustix::fs::Mode::empty())?;
    rustix::stdio::dup2_stdin(&nothing)?;
    rustix::stdio::dup2_stdout(&nothing)?;
    rustix::stdio::dup2_stderr(&nothing)?;
    // Closed by its owner: the range below would close it a second time.
    drop(nothing);
    // The descriptors of both mount namespaces among them: /proc/1/fd would give them away.
    podwright_sys::fds::close_all_but(&[])?;
    rustix::thread::set_name(c"podwright-init")?;
    rustix::thread::set_no_new_privs(true)?;
    caps::set(caps::Sets { effective: 0, permitted: 0, inheritable: 0 })
}

fn reap() -> i32 {
    // Blocked, every signal is kept from acting; SIGCHLD is waited for. SIGKILL cannot be blocked.
    if SigSet::all().thread_block().is_err() {
        return 1;
    }
    let mut ended = SigSet::empty();
    ended.add(Signal::SIGCHLD);
    loop {
        // All that have ended: signals of several are merged into one.
        while let Ok(Some(_)) = rustix::process::wait(WaitOptions::NOHANG) {}
        if ended.wait().is_err() {
            return 1;
        }
    }
}
