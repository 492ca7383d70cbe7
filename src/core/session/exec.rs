//! A command in a container whose streams a client has (CRI `Exec`).

use std::os::fd::OwnedFd;

use podwright_plan::wire::ExecPlan;
use rustix::termios::{Winsize, tcsetwinsize};
use tokio::sync::mpsc;

use super::{Access, Guard, SIZES, Session, Streams, pipes, plan};
use crate::error::Error;
use crate::node::Node;
use crate::shim::ShimError;

/// Starts a command.
///
/// # Errors
/// The step that failed; nothing of the command is left then.
pub(crate) async fn exec(
    node: &Node,
    access: Access,
    command: &[String],
    tty: bool,
    streams: Streams,
) -> Result<Session, Error> {
    let guard = Guard::new(&access);
    let failed = |error| Error::step(format!("run the command in container {}", access.container), error);
    if tty {
        let none = Streams { stdin: false, stdout: false, stderr: false };
        let plan = plan(node, &access, command, true, none, None)?;
        let (_, master) = access.shim.exec(plan, Vec::new()).await.map_err(failed)?;
        let master = master.ok_or_else(|| failed(ShimError::Confused { op: "exec" }))?;
        let (reader, writer) = pipes::console(&master)?;
        let (stdout, stdin) = (streams.stdout.then_some(reader), streams.stdin.then_some(writer));
        return Ok(Session { stdin, stdout, stderr: None, resize: Some(sizes(master)), end: end(access, guard) });
    }
    let plan = plan(node, &access, command, false, streams, None)?;
    let session = piped(&access, plan, streams).await?;
    Ok(Session { end: end(access, guard), ..session })
}

/// Starts a command with pipes; the session has no end yet.
async fn piped(access: &Access, plan: ExecPlan, streams: Streams) -> Result<Session, Error> {
    let mut theirs = Vec::new();
    let stdin = streams.stdin.then(pipes::input).transpose()?.map(|(writer, end)| {
        theirs.push(end);
        writer
    });
    let mut output = |wanted: bool| -> Result<Option<pipes::Reader>, Error> {
        Ok(wanted.then(pipes::output).transpose()?.map(|(reader, _, end)| {
            theirs.push(end);
            reader
        }))
    };
    let (stdout, stderr) = (output(streams.stdout)?, output(streams.stderr)?);
    let started = access.shim.exec(plan, theirs).await;
    started.map_err(|error| Error::step(format!("run the command in container {}", access.container), error))?;
    Ok(Session { stdin, stdout, stderr, resize: None, end: Box::pin(std::future::pending()) })
}

/// Waits for the command's exit. Dropped before, it ends the command.
fn end(access: Access, guard: Guard) -> super::End {
    Box::pin(async move {
        match access.exit.await {
            Ok(exit) => {
                guard.ended();
                Ok(exit.code)
            }
            Err(_) => {
                Err(Error::step(format!("follow the command in container {}", access.container), ShimError::Gone))
            }
        }
    })
}

/// Applies the sizes that a client's terminal takes.
fn sizes(master: OwnedFd) -> mpsc::Sender<(u16, u16)> {
    let (sender, mut sizes) = mpsc::channel(SIZES);
    tokio::spawn(async move {
        while let Some((width, height)) = sizes.recv().await {
            let size = Winsize { ws_row: height, ws_col: width, ws_xpixel: 0, ws_ypixel: 0 };
            if let Err(error) = tcsetwinsize(&master, size) {
                tracing::debug!(error = %error, "a terminal did not take its size");
            }
        }
    });
    sender
}
