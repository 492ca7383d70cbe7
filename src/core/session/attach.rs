//! A client on the streams of a container's own process (CRI `Attach`).

use std::time::Duration;

use podwright_plan::wire::{Attach, Stdio};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::pipes::{self, Ended, Pipes};
use super::{Access, End, SIZES, Session, Streams};
use crate::error::Error;
use crate::shim::ShimClient;

/// How long after the end of its streams the container's exit is told at the latest, if there is one to tell.
const EXIT_LIMIT: Duration = Duration::from_secs(10);

/// Joins a container's streams.
///
/// # Errors
/// When the container does not run, or has no stdin.
pub(crate) async fn attach(access: Access, streams: Streams) -> Result<Session, Error> {
    // A terminal has one stream of output.
    let streams = Streams { stderr: streams.stderr && !access.tty, ..streams };
    let Pipes { stdin, stdout, stderr, ended, theirs } = pipes::open(streams)?;
    let stdio = Stdio { stdin: streams.stdin, stdout: streams.stdout, stderr: streams.stderr };
    let request = Attach { container_id: access.container.to_string(), stdio: Some(stdio) };
    let attached = access.shim.attach(request, theirs).await;
    attached.map_err(|error| Error::step(format!("attach to container {}", access.container), error))?;
    let resize = access.tty.then(|| sizes(access.shim.clone(), access.container.to_string()));
    Ok(Session { stdin, stdout, stderr, resize, end: end(access, ended) })
}

/// Waits for the container's exit; streams that end without it were cut off.
fn end(mut access: Access, open: Vec<Ended>) -> End {
    Box::pin(async move {
        let exited = access.exited.wait_for(|exited| *exited);
        let cut_off = async {
            if open.is_empty() {
                std::future::pending::<()>().await;
            }
            for ended in open {
                // Its sender is dropped at the end of the stream.
                drop(ended.await);
            }
        };
        tokio::select! {
            _ = exited => return Ok(0),
            () = cut_off => {}
        }
        match timeout(EXIT_LIMIT, access.exited.wait_for(|exited| *exited)).await {
            Ok(_) => Ok(0),
            Err(_) => Err(Error::WrongState {
                container: access.container,
                problem: "it runs on, but this client was cut off: it read too slowly, or the pod's shim is gone"
                    .to_owned(),
            }),
        }
    })
}

fn sizes(shim: ShimClient, container: String) -> mpsc::Sender<(u16, u16)> {
    let (sender, mut sizes) = mpsc::channel(SIZES);
    tokio::spawn(async move {
        while let Some((width, height)) = sizes.recv().await {
            if let Err(error) = shim.resize(&container, width, height).await {
                tracing::debug!(container.id = container, error = %error, "a terminal did not take its size");
            }
        }
    });
    sender
}
