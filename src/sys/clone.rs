//! `clone3(2)` as a fork: the child gets a copy of the caller's memory and runs one closure.

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::io::Errno;

use crate::{answer, fds};

/// A forked process.
#[derive(Debug)]
pub struct Child {
    /// As the caller's pid namespace numbers it.
    pub pid: u32,
    /// Refers to the process for good: its number may be given to another one, this cannot. Close-on-exec.
    pub pidfd: OwnedFd,
}

/// What differs from a plain fork.
#[derive(Debug, Default)]
pub struct Fork<'a> {
    /// The child is the first process of a new pid namespace.
    pub new_pid_namespace: bool,
    /// The child is in a new user namespace, without any id mapped yet.
    pub new_user_namespace: bool,
    /// The child is one of the caller's parent, which is told of its end and reaps it.
    pub sibling: bool,
    /// The child starts in this cgroup v2 directory instead of the caller's.
    pub cgroup: Option<BorrowedFd<'a>>,
    /// The descriptors above 2 that the child keeps; all others are closed in it before its code runs.
    pub keep: &'a [BorrowedFd<'a>],
    /// How many descriptors from 3 on it keeps besides: what the process was started with.
    pub keep_first: u32,
}

/// `struct clone_args` up to `CLONE_ARGS_SIZE_VER2` (Linux 5.7).
#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// `CLONE_INTO_CGROUP`; libc has it for glibc alone, in a type too narrow for it.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// Exit code of a child whose closure panicked.
const PANICKED: i32 = 134;

impl Fork<'_> {
    /// Forks. The child runs `child`, then exits with the code it returned, without running exit handlers.
    ///
    /// The child must use no descriptor that is not in [`Fork::keep`]: what it captured of others is closed.
    ///
    /// # Errors
    /// The kernel's; `EBUSY` also when the calling process has more than one thread, since the child would inherit locks
    /// that no one is left to release.
    pub fn spawn(&self, child: impl FnOnce() -> i32) -> Result<Child, Errno> {
        if !single_threaded()? {
            return Err(Errno::BUSY);
        }
        let mut pidfd: libc::c_int = -1;
        let mut args = CloneArgs {
            flags: libc::CLONE_PIDFD as u64,
            pidfd: (&raw mut pidfd) as u64,
            exit_signal: libc::SIGCHLD as u64,
            ..CloneArgs::default()
        };
        if self.new_pid_namespace {
            args.flags |= libc::CLONE_NEWPID as u64;
        }
        if self.new_user_namespace {
            args.flags |= libc::CLONE_NEWUSER as u64;
        }
        if self.sibling {
            args.flags |= libc::CLONE_PARENT as u64;
            // It has the caller's own.
            args.exit_signal = 0;
        }
        if let Some(cgroup) = self.cgroup {
            args.flags |= CLONE_INTO_CGROUP;
            args.cgroup = cgroup.as_raw_fd() as u64;
        }
        // SAFETY: without CLONE_VM the child gets its own copy of memory and this very stack, so returning twice is what
        // fork(2) does. The process has one thread (checked above, and no other one exists that could make a second), so
        // the copy has no lock held by a thread that is missing in it, and any code may run in the child. `args` and
        // `pidfd` outlive the call; `args` has the size that is passed.
        let pid = answer(unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<CloneArgs>()) })?;
        if pid == 0 {
            run(child, self);
        }
        // SAFETY: the kernel has put a new descriptor there, since CLONE_PIDFD was asked for and the call succeeded.
        let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
        Ok(Child { pid: u32::try_from(pid).expect("pids are positive and below 2^22"), pidfd })
    }
}

/// The child's whole life: it never returns into the caller's frames, whose destructors belong to the parent.
fn run(child: impl FnOnce() -> i32, fork: &Fork<'_>) -> ! {
    // A panic must not unwind into the parent's frames, and must not end in raise(3) either: a C library that caches
    // thread ids would signal the parent.
    std::panic::set_hook(Box::new(|_| exit(PANICKED)));
    let code = match fds::close_all_but(fork.keep, fork.keep_first) {
        Ok(()) => child(),
        Err(_) => PANICKED,
    };
    exit(code)
}

/// Ends the calling process, all of its threads, without running exit handlers.
pub fn exit(code: i32) -> ! {
    // SAFETY: _exit has no precondition; it ends the process without running anything of the parent's.
    unsafe { libc::_exit(code) }
}

/// Whether this process has one thread: /proc/self/task has one link per thread beside its own two.
fn single_threaded() -> Result<bool, Errno> {
    Ok(rustix::fs::stat("/proc/self/task")?.st_nlink == 3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_with_threads_is_not_forked() {
        // The test harness runs this on a thread of its own, beside the main one.
        assert_eq!(Fork::default().spawn(|| 0).unwrap_err(), Errno::BUSY);
    }
}
