//! The terminal of a container or an exec, opened in the container's own devpts.

use std::os::fd::OwnedFd;

use podwright_plan::wire::ConsoleSize;
use rustix::fs::{OFlags, Uid};
use rustix::io::Errno;
use rustix::pty::OpenptFlags;
use rustix::termios::Winsize;

use crate::failure::{Failure, Named};
use crate::inroot::{Kind, Root};
use crate::{mounts, sources};

const PTMX: &str = "/dev/pts/ptmx";

/// Both sides of a terminal.
pub(crate) struct Console {
    pub(crate) master: OwnedFd,
    pub(crate) terminal: OwnedFd,
}

/// Opens a new terminal, owned by a user.
pub(crate) fn open(root: Root<'_>, size: Option<&ConsoleSize>, user: u32) -> Result<Console, Failure> {
    let master = root.open(PTMX, OFlags::RDWR | OFlags::NOCTTY).in_child("open terminal", PTMX)?;
    // What an image or a volume may have there instead must not pass for a terminal.
    let real = rustix::fs::fstatfs(&master).in_child("look at terminal", PTMX)?;
    // DEVPTS_SUPER_MAGIC; the field's type is another on each architecture.
    if real.f_type != 0x1cd1 {
        return Err(Failure::launch("open terminal", PTMX, Errno::NODEV).with_detail("it is not on a devpts"));
    }
    rustix::pty::unlockpt(&master).in_child("unlock terminal", PTMX)?;
    // By the master, not by a name in /dev/pts that might lead elsewhere by now.
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let terminal = rustix::pty::ioctl_tiocgptpeer(&master, flags).in_child("open terminal's other side", PTMX)?;
    if let Some(size) = size {
        let cells = |n: u32| u16::try_from(n).unwrap_or(u16::MAX);
        let size = Winsize { ws_row: cells(size.height), ws_col: cells(size.width), ws_xpixel: 0, ws_ypixel: 0 };
        rustix::termios::tcsetwinsize(&master, size).in_child("set terminal size", PTMX)?;
    }
    // The group stays the one that devpts gave it.
    rustix::fs::fchown(&terminal, Some(Uid::from_raw(user)), None).in_child("set terminal owner", user)?;
    Ok(Console { master, terminal })
}

impl Console {
    /// Shows the terminal as /dev/console too.
    pub(crate) fn bind(&self, root: Root<'_>) -> Result<(), Failure> {
        let path = "/dev/console";
        let tree = sources::clone_place(&self.terminal, false).in_child("clone terminal", path)?;
        // A link here would have the terminal cover another file, such as one that is to be masked.
        let place = root.without_links().ensure(path, Kind::File).in_child("make mount target", path)?;
        mounts::attach_at(&tree, &place).in_child("attach mount", path)
    }

    /// Makes it the controlling terminal of the calling process, which leads a session, and its standard streams.
    pub(crate) fn take(self) -> Result<(), Failure> {
        rustix::process::ioctl_tiocsctty(&self.terminal).in_child("set controlling terminal", PTMX)?;
        rustix::stdio::dup2_stdin(&self.terminal).in_child("set standard input", PTMX)?;
        rustix::stdio::dup2_stdout(&self.terminal).in_child("set standard output", PTMX)?;
        rustix::stdio::dup2_stderr(&self.terminal).in_child("set standard error", PTMX)
    }
}
