//! A process that is waited for: signals go to it, its terminal is shown, its exit code is this one's.

use std::os::fd::{AsFd, OwnedFd};

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::io::Errno;
use rustix::process::{Pid, WaitOptions};

use crate::console::{self, Copy, Raw};
use crate::error::Error;

/// Signals that are held back, to be read in turn.
#[derive(Debug)]
pub(crate) struct Signals(SignalFd);

impl Signals {
    /// Blocks all signals: from before the process is forked, so that none is lost. What is forked starts with none blocked.
    pub(crate) fn hold() -> Result<Self, Error> {
        let all = SigSet::all();
        let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
        let held = all.thread_block().and_then(|()| SignalFd::with_flags(&all, flags));
        held.map(Self).map_err(|errno| Error::step("hold", "signals")(Errno::from_raw_os_error(errno as i32)))
    }
}

/// Waits for a child's end and returns its exit code, 128 and the number of a signal that ended it.
pub(crate) fn wait(
    pid: u32,
    pidfd: Option<&OwnedFd>,
    console: Option<OwnedFd>,
    signals: &Signals,
) -> Result<u8, Error> {
    let failed = |errno| Error::step("wait for process", pid)(errno);
    let mut copy = console.map(Copy::new).transpose()?;
    // Until this function returns.
    let _raw = copy.as_ref().and_then(|copy| {
        console::resize(copy.master());
        Raw::set()
    });
    loop {
        let signalled = match &mut copy {
            Some(copy) => copy.turn(signals.0.as_fd()).map_err(failed)?,
            None => {
                let mut waits = [rustix::event::PollFd::new(&signals.0, rustix::event::PollFlags::IN)];
                match rustix::event::poll(&mut waits, None) {
                    Err(Errno::INTR) => false,
                    answer => answer.map_err(failed)? > 0,
                }
            }
        };
        if !signalled {
            continue;
        }
        while let Ok(Some(info)) = signals.0.read_signal() {
            let number = info.ssi_signo.cast_signed();
            if number == Signal::SIGCHLD as i32 {
                continue;
            }
            match &copy {
                Some(copy) if number == Signal::SIGWINCH as i32 => console::resize(copy.master()),
                // It may have ended just now, which is told below.
                _ => drop(pidfd.map(|pidfd| podwright_sys::signalling::send(pidfd.as_fd(), number))),
            }
        }
        if let Some(code) = reap(pid).map_err(failed)? {
            if let Some(copy) = &mut copy {
                copy.drain().map_err(failed)?;
            }
            return Ok(code);
        }
    }
}

/// Takes the exit code of a child that has ended.
pub(crate) fn reap(pid: u32) -> Result<Option<u8>, Errno> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(Errno::CHILD)?;
    let Some((_, status)) = rustix::process::waitpid(Some(pid), WaitOptions::NOHANG)? else { return Ok(None) };
    let code = status.exit_status().or_else(|| status.terminating_signal().map(|signal| 128 + signal));
    Ok(code.map(|code| u8::try_from(code).unwrap_or(u8::MAX)))
}
