//! A command run in a container to its end, its output collected (CRI `ExecSync`).

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::time::Duration;

use oci_spec::runtime::Spec;
use podwright_base::{ContainerId, PodId};
use podwright_compile::ExecRequest;
use podwright_plan::wire::{Cause, ExecPlan, Exit, Stdio};
use tokio::net::unix::pipe;
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::error::{Error, chain};
use crate::node::Node;
use crate::shim::{ShimClient, ShimError};

/// What is kept of each of a command's output streams, in bytes; the rest is read and dropped, so that the command
/// is never held up.
const OUTPUT_LIMIT: usize = 16 << 20;
const CHUNK: usize = 32 << 10;
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

/// Runs a planned command and waits for its end. `exited` is told by the driver, which hears the shim's events.
///
/// # Errors
/// [`Error::ExecTimeout`] when the limit was reached (the processes are gone then), or the step that failed.
pub(crate) async fn run(
    shim: &ShimClient,
    plan: ExecPlan,
    limit: Option<Duration>,
    exited: oneshot::Receiver<Exit>,
    given_up: impl Future<Output = ()>,
) -> Result<ExecOutput, Error> {
    let (container, exec) = (plan.container_id.clone(), plan.exec_id.clone());
    let failed = |error: ShimError| match (error.cause(), limit, &error) {
        (Some(Cause::TimedOut), Some(limit), _) => Error::ExecTimeout { limit },
        (_, _, ShimError::TooLarge { .. }) => Error::invalid("cmd", error.to_string()),
        _ => Error::step(format!("run the command in container {container}"), error),
    };
    let (stdout, stdout_end) = Output::new()?;
    let (stderr, stderr_end) = Output::new()?;
    shim.exec(plan, vec![stdout_end, stderr_end]).await.map_err(failed)?;
    let collecting = collect(stdout, stderr, exited);
    // Nobody wants the outcome any more: the command ends now, and its outcome is waited for, to be forgotten.
    let abandoned = async {
        given_up.await;
        if let Err(error) = shim.kill_exec(&container, &exec).await {
            tracing::debug!(container.id = container, error = %chain(&error), "an abandoned command was not killed");
        }
        std::future::pending().await
    };
    let collecting = async {
        tokio::select! {
            collected = collecting => collected,
            never = abandoned => never,
        }
    };
    let collected = match limit {
        None => collecting.await,
        Some(limit) => match timeout(limit + GRACE, collecting).await {
            Ok(collected) => collected,
            Err(_) => {
                let what = format!("the command in container {container}");
                return Err(Error::Stalled { what, stage: "kill its processes", waited: limit + GRACE });
            }
        },
    };
    // The exit has been told; a shim that is gone has nothing to forget.
    drop(shim.forget(&container, &exec).await);
    match (collected?, limit) {
        (None, _) => Err(failed(ShimError::Gone)),
        (Some((exit, _, _)), Some(limit)) if exit.timed_out => Err(Error::ExecTimeout { limit }),
        (Some((exit, stdout, stderr)), _) => Ok(ExecOutput { stdout, stderr, exit_code: exit.code }),
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
    fn finish(mut self) -> Result<Vec<u8>, Error> {
        if self.open {
            let pipe = File::from(self.pipe.into_nonblocking_fd().map_err(unreadable)?);
            drain(&mut self.kept, |chunk| (&pipe).read(chunk))?;
        }
        Ok(self.kept)
    }

    fn take(&mut self) -> Result<(), Error> {
        self.open = drain(&mut self.kept, |chunk| self.pipe.try_read(chunk))?;
        Ok(())
    }
}

/// Keeps what a pipe has now, and returns whether more may come.
fn drain(kept: &mut Vec<u8>, mut read: impl FnMut(&mut [u8]) -> io::Result<usize>) -> Result<bool, Error> {
    let mut chunk = [0; CHUNK];
    loop {
        match read(&mut chunk) {
            Ok(0) => return Ok(false),
            Ok(count) => {
                let room = OUTPUT_LIMIT - kept.len();
                kept.extend_from_slice(&chunk[..count.min(room)]);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(true),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(unreadable(error)),
        }
    }
}

fn unreadable(source: io::Error) -> Error {
    Error::step("read the command's output", source)
}

/// Plans a command: everything but its arguments is as the container's own process has it.
///
/// # Errors
/// When the container's configuration cannot be read or the command is empty.
pub(crate) fn plan(
    node: &Node,
    pod: &PodId,
    container: &ContainerId,
    exec_id: &str,
    command: &[String],
    limit: Option<Duration>,
) -> Result<ExecPlan, Error> {
    let path = node.layout.container_config(pod, container);
    let spec = Spec::load(&path).map_err(|source| Error::step(format!("read {}", path.display()), source))?;
    let process = podwright_spec::exec_process(&spec, command, false)
        .map_err(|error| Error::invalid(error.field(), error.to_string()))?;
    let request = ExecRequest {
        container_id: container.as_str(),
        exec_id,
        stdio: Stdio { stdin: false, stdout: true, stderr: true },
        tied_to_connection: true,
        timeout_ms: limit.map_or(0, |limit| u64::try_from(limit.as_millis()).unwrap_or(u64::MAX)),
    };
    podwright_compile::exec(&process, &spec, &request, &node.facts)
        .map_err(|source| Error::step(format!("plan the command in container {container}"), source))
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
