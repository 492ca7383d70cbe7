//! Standard streams: pipes between the shim and a process, or descriptors that came from outside.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{FileType, Mode, OFlags, Uid};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};

use crate::failure::{Failure, Named};
use crate::pending::Stdio;

/// The process's ends; what is absent is /dev/null.
#[derive(Debug, Default)]
pub(crate) struct Streams {
    pub(crate) stdin: Option<OwnedFd>,
    pub(crate) stdout: Option<OwnedFd>,
    pub(crate) stderr: Option<OwnedFd>,
}

impl Streams {
    /// Makes pipes; one to the process's input only if asked.
    pub(crate) fn pipes(with_stdin: bool) -> Result<(Self, Stdio), Errno> {
        let (stdin, our_stdin) = match with_stdin {
            true => {
                let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
                (Some(read), Some(nonblocking(write)?))
            }
            false => (None, None),
        };
        let (our_stdout, stdout) = pipe_with(PipeFlags::CLOEXEC)?;
        let (our_stderr, stderr) = pipe_with(PipeFlags::CLOEXEC)?;
        let streams = Self { stdin, stdout: Some(stdout), stderr: Some(stderr) };
        let ours =
            Stdio::Pipes { stdin: our_stdin, stdout: nonblocking(our_stdout)?, stderr: nonblocking(our_stderr)? };
        Ok((streams, ours))
    }

    /// The calling process's own, which the process is to have too.
    pub(crate) fn inherited() -> Result<Self, Errno> {
        let copy = |stream: BorrowedFd<'_>| rustix::io::fcntl_dupfd_cloexec(stream, 3).map(Some);
        Ok(Self {
            stdin: copy(rustix::stdio::stdin())?,
            stdout: copy(rustix::stdio::stdout())?,
            stderr: copy(rustix::stdio::stderr())?,
        })
    }

    /// What a forked process needs to keep.
    pub(crate) fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        [&self.stdin, &self.stdout, &self.stderr].into_iter().flatten().map(AsFd::as_fd)
    }

    /// Makes them the calling process's descriptors 0, 1 and 2. Pipes are given to the user, who could not open
    /// /dev/stdout otherwise. The host's /dev must be in view.
    pub(crate) fn install(&self, user: u32) -> Result<(), Failure> {
        let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
            .in_child("open", "/dev/null")?;
        for stream in self.descriptors() {
            give(stream, user).in_child("set owner of standard streams", user)?;
        }
        let or_null =
            |stream: &'_ Option<OwnedFd>| stream.as_ref().map_or(null.as_fd(), AsFd::as_fd).try_clone_to_owned();
        // Copies first: a stream may be below 3 itself, and would be lost to the one before it.
        let [stdin, stdout, stderr] = [&self.stdin, &self.stdout, &self.stderr]
            .map(or_null)
            .map(|copy| copy.in_child("copy a standard stream", ""));
        rustix::stdio::dup2_stdin(stdin?).in_child("set standard input", "")?;
        rustix::stdio::dup2_stdout(stdout?).in_child("set standard output", "")?;
        rustix::stdio::dup2_stderr(stderr?).in_child("set standard error", "")
    }
}

fn give(stream: BorrowedFd<'_>, user: u32) -> Result<(), Errno> {
    let stat = rustix::fs::fstat(stream)?;
    if FileType::from_raw_mode(stat.st_mode) == FileType::Fifo {
        rustix::fs::fchown(stream, Some(Uid::from_raw(user)), None)?;
    }
    Ok(())
}

fn nonblocking(fd: OwnedFd) -> Result<OwnedFd, Errno> {
    rustix::io::ioctl_fionbio(&fd, true)?;
    Ok(fd)
}
