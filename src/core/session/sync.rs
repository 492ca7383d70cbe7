//! A command run in a container to its end, its output collected (CRI `ExecSync`).

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::time::Duration;

use podwright_plan::wire::{Cause, Exit};
use tokio::net::unix::pipe;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::{Access, Guard, Streams, plan};
use crate::error::Error;
use crate::node::Node;
use crate::shim::ShimError;

/// What is kept of each of a command's output streams, in bytes; the rest is read and dropped, so that the command
/// is never held up.
const OUTPUT_LIMIT: usize = 16 << 20;
const CHUNK: usize = 32 << 10;
/// More than an unprivileged process can make a pipe hold.
const PIPE_LIMIT: usize = 1 << 20;
/// What the shim may take beyond a command's own limit to kill its processes.
const GRACE: Duration = Duration::from_secs(15);

/// What a command came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecOutput {
    /// The first 16 MiB of its standard output.
    pub stdout: Vec<u8>,
    /// The first 16 MiB of its standard error.
    pub stderr: Vec<u8>,
    /// 0-255, 128 + signal for a killed process.
    pub exit_code: i32,
}

/// Runs a command and waits for its end. Dropped before, it ends the command.
///
/// # Errors
/// [`Error::ExecTimeout`] when the limit was reached (the processes are gone then), or the step that failed.
pub(crate) async fn run(
    node: &Node,
    access: Access,
    command: &[String],
    limit: Option<Duration>,
) -> Result<ExecOutput, Error> {
    let failed = |error: ShimError| match (error.cause(), limit, &error) {
        (Some(Cause::TimedOut), Some(limit), _) => Error::ExecTimeout { limit },
        (_, _, ShimError::TooLarge { .. }) => Error::invalid("cmd", error.to_string()),
        _ => Error::step(format!("run the command in container {}", access.container), error),
    };
    let streams = Streams { stdin: false, stdout: true, stderr: true };
    let plan = plan(node, &access, command, false, streams, limit)?;
    let (stdout, stdout_end) = Output::new()?;
    let (stderr, stderr_end) = Output::new()?;
    let guard = Guard::new(&access);
    access.shim.exec(plan, vec![stdout_end, stderr_end]).await.map_err(failed)?;
    let collecting = collect(stdout, stderr, access.exit);
    let collected = match limit {
        None => collecting.await,
        Some(limit) => match timeout(limit + GRACE, collecting).await {
            Ok(collected) => collected,
            Err(_) => {
                let what = format!("the command in container {}", access.container);
                return Err(Error::Stalled { what, stage: "kill its processes", waited: limit + GRACE });
            }
        },
    };
    match (collected?, limit) {
        (None, _) => Err(failed(ShimError::Gone)),
        (Some((exit, stdout, stderr)), limit) => {
            guard.ended();
            match limit {
                Some(limit) if exit.timed_out => Err(Error::ExecTimeout { limit }),
                _ => Ok(ExecOutput { stdout, stderr, exit_code: exit.code }),
            }
        }
    }
}

/// Reads both streams until the command has ended. What it wrote is in the pipes by then; a process that it left
/// behind and that holds them open is not waited for.
async fn collect(
    mut stdout: Output,
    mut stderr: Output,
    mut exited: oneshot::Receiver<Exit>,
) -> Result<Option<(Exit, Vec<u8>, Vec<u8>)>, Error> {
    let exit = loop {
        tokio::select! {
            exit = &mut exited => break exit,
            read = stdout.read(), if stdout.open => read?,
            read = stderr.read(), if stderr.open => read?,
        }
    };
    let Ok(exit) = exit else { return Ok(None) };
    Ok(Some((exit, stdout.finish()?, stderr.finish()?)))
}

/// One output stream of a command.
struct Output {
    pipe: pipe::Receiver,
    kept: Vec<u8>,
    open: bool,
}

impl Output {
    /// Makes a pipe: what is read here, and the end the command writes to.
    fn new() -> Result<(Self, OwnedFd), Error> {
        let failed = |source: io::Error| Error::step("make a pipe for the command's output", source);
        let (reader, writer) = io::pipe().map_err(failed)?;
        let pipe = pipe::Receiver::from_owned_fd(OwnedFd::from(reader)).map_err(failed)?;
        Ok((Self { pipe, kept: Vec::new(), open: true }, OwnedFd::from(writer)))
    }

    /// Waits for output and takes what there is. Safe to cancel.
    async fn read(&mut self) -> Result<(), Error> {
        self.pipe.readable().await.map_err(unreadable)?;
        self.take()
    }

    /// Takes what is left in the pipe, without waiting for more. It asks the kernel: tokio would refuse to read from a pipe
    /// of whose bytes it has not heard yet, and the news of the exit may have overtaken that of the last ones.
    /// A process that the command left behind may write on: no more is taken than a pipe can hold.
    fn finish(mut self) -> Result<Vec<u8>, Error> {
        let pipe = File::from(self.pipe.into_nonblocking_fd().map_err(unreadable)?);
        let mut left = PIPE_LIMIT / CHUNK;
        while left > 0 && keep(&mut self.kept, |chunk| (&pipe).read(chunk))? == Taken::Some {
            left -= 1;
        }
        Ok(self.kept)
    }

    /// Takes one chunk: a command that writes without end must not keep its exit from being noticed.
    fn take(&mut self) -> Result<(), Error> {
        self.open = keep(&mut self.kept, |chunk| self.pipe.try_read(chunk))? != Taken::End;
        Ok(())
    }
}

/// What a read came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Taken {
    Some,
    Nothing,
    End,
}

/// Reads once, and keeps what there is room for.
fn keep(kept: &mut Vec<u8>, read: impl FnOnce(&mut [u8]) -> io::Result<usize>) -> Result<Taken, Error> {
    let mut chunk = [0; CHUNK];
    match read(&mut chunk) {
        Ok(0) => Ok(Taken::End),
        Ok(count) => {
            let room = OUTPUT_LIMIT - kept.len();
            kept.extend_from_slice(&chunk[..count.min(room)]);
            Ok(Taken::Some)
        }
        Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
            Ok(Taken::Nothing)
        }
        Err(error) => Err(unreadable(error)),
    }
}

fn unreadable(source: io::Error) -> Error {
    Error::step("read the command's output", source)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[tokio::test]
    async fn output_that_the_exit_overtook_is_kept() {
        let (output, writer) = Output::new().unwrap();
        let mut writer = File::from(writer);
        writer.write_all(b"last words").unwrap();
        // The runtime has not looked at the pipe since, and another process still holds its other end.
        assert_eq!(output.finish().unwrap(), b"last words");
        drop(writer);
    }
}
