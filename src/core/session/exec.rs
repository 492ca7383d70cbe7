//! A command in a container whose streams a client has (CRI `Exec`).

use std::os::fd::OwnedFd;

use rustix::termios::{Winsize, tcsetwinsize};
use tokio::sync::mpsc;

use super::pipes::{self, Pipes};
use super::{Access, Guard, SIZES, Session, Streams, plan};
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
    let Pipes { stdin, stdout, stderr, theirs, .. } = pipes::open(streams)?;
    access.shim.exec(plan, theirs).await.map_err(failed)?;
    Ok(Session { stdin, stdout, stderr, resize: None, end: end(access, guard) })
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
