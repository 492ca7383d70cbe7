//! What the process makes of itself before the loop: its descriptors, session, signals and role as a reaper.

use std::os::fd::OwnedFd;

use nix::sys::signal::Signal;
use podwright_sys::signalling::{self, ChildExits};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

/// A step that failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PrepareError {
    /// Standard input is not what a daemon passes.
    #[error("stdin is no listening socket")]
    NotListening,
    /// A step of the kernel's.
    #[error("cannot {step}")]
    Step {
        step: &'static str,
        #[source]
        source: Errno,
    },
}

/// Takes the listener from stdin and readies the process for its children; gives the listener and the notices of
/// ended children.
pub(crate) fn prepare() -> Result<(OwnedFd, ChildExits), PrepareError> {
    let step = |step| move |source| PrepareError::Step { step, source };
    let stdin = rustix::stdio::stdin();
    if !rustix::net::sockopt::socket_acceptconn(stdin).unwrap_or(false) {
        return Err(PrepareError::NotListening);
    }
    // Away from 0, where every child would inherit it.
    let listener = rustix::io::fcntl_dupfd_cloexec(stdin, 3).map_err(step("move the listener"))?;
    rustix::io::ioctl_fionbio(&listener, true).map_err(step("make the listener non-blocking"))?;
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty());
    rustix::stdio::dup2_stdin(null.map_err(step("open /dev/null"))?).map_err(step("replace stdin"))?;

    // A daemon's terminal or its end must not reach the pod. EPERM: it leads a session already.
    match rustix::process::setsid() {
        Ok(_) | Err(Errno::PERM) => {}
        Err(error) => return Err(step("start a session")(error)),
    }
    // Orphans of execs, and of containers in the host's pid namespace, come here to be reaped.
    rustix::process::set_child_subreaper(Some(rustix::process::getpid())).map_err(step("become a subreaper"))?;
    for signal in [Signal::SIGPIPE, Signal::SIGHUP] {
        signalling::ignore(signal).map_err(step("ignore a signal"))?;
    }
    let children = ChildExits::open().map_err(step("watch children"))?;
    // No directory of the daemon's stays in use because of the pod, and log files get the mode they are made with.
    rustix::process::chdir("/").map_err(step("change to /"))?;
    rustix::process::umask(Mode::from_raw_mode(0o022));
    Ok((listener, children))
}
