//! The init of a pod's shared pid namespace: it reaps what containers leave behind, and does nothing else.

use std::os::fd::{AsFd, OwnedFd};

use nix::sys::signal::{SigSet, Signal};
use podwright_sys::caps;
use podwright_sys::clone::{Child, Fork};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::WaitOptions;

use crate::failure::{Failure, Named};
use crate::shared_mounts::SharedMounts;

/// Forks the reaper, and returns when it has confined itself. It ends with SIGKILL from outside its namespace only.
pub(crate) fn spawn(mounts: &SharedMounts) -> Result<Child, Failure> {
    let (confined, report) = pipe_with(PipeFlags::CLOEXEC).in_shim("make pipe", "")?;
    let [pod, host] = mounts.descriptors();
    let fork = Fork { new_pid_namespace: true, keep: &[pod, host, report.as_fd()], ..Fork::default() };
    let child = fork
        .spawn(|| match confine(mounts) {
            Ok(()) => reap(),
            Err(errno) => tell(&report, errno),
        })
        .in_shim("fork the pid namespace's init", "")?;
    drop(report);
    // No container may see it before. Its last act is to close its end; it waits for nothing, so neither does this.
    let mut errno = [0; size_of::<i32>()];
    match rustix::io::retry_on_intr(|| rustix::io::read(&confined, &mut errno)).in_shim("read from the init", "")? {
        0 => Ok(child),
        _ => {
            let errno = Errno::from_raw_os_error(i32::from_ne_bytes(errno));
            Err(Failure::internal("confine the pid namespace's init", child.pid, errno))
        }
    }
}

fn tell(report: &OwnedFd, errno: Errno) -> i32 {
    // When even that fails, the namespace is found dead by its first container.
    match rustix::io::write(report, &errno.raw_os_error().to_ne_bytes()) {
        Ok(_) => 1,
        Err(_) => 2,
    }
}

/// Containers see this process as pid 1: through it they must reach no file of the host, and it must have no power.
fn confine(mounts: &SharedMounts) -> Result<(), Errno> {
    rustix::process::setsid()?;
    // /proc/1/root and /proc/1/cwd are the pod's /dev/shm then.
    mounts.enter()?;
    let nothing = rustix::fs::open(".", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    rustix::stdio::dup2_stdin(&nothing)?;
    rustix::stdio::dup2_stdout(&nothing)?;
    rustix::stdio::dup2_stderr(&nothing)?;
    // Closed by its owner: the range below would close it a second time.
    drop(nothing);
    rustix::thread::set_name(c"podwright-init")?;
    rustix::thread::set_no_new_privs(true)?;
    caps::set(caps::Sets { effective: 0, permitted: 0, inheritable: 0 })?;
    // The descriptors of both mount namespaces among them: /proc/1/fd would give them away.
    podwright_sys::fds::close_all_but(&[], 0)
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
