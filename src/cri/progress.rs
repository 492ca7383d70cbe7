//! An operation's snapshots and then its outcome, as a stream.

use std::pin::Pin;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream;
use tokio::sync::watch;
use tokio::time::sleep;
use tonic::Status;

use crate::batch::Answers;

/// Time between two snapshots: what a person can follow.
const PERIOD: Duration = Duration::from_millis(100);

type Outcome<T> = Pin<Box<dyn Future<Output = Result<T, Status>> + Send>>;

/// Streams snapshots of what changed while an operation runs, and its outcome as the last item. The operation runs only
/// while the stream is read, and is given up with it.
pub(crate) fn stream<P, T>(
    receiver: watch::Receiver<P>,
    operation: impl Future<Output = Result<T, Status>> + Send + 'static,
    snapshot: fn(&P) -> T,
) -> Answers<T>
where
    P: Send + Sync + 'static,
    T: Send + 'static,
{
    let operation: Outcome<T> = Box::pin(operation);
    stream::unfold(Some((receiver, operation)), move |state| async move {
        let (mut receiver, mut operation) = state?;
        let outcome = tokio::select! {
            biased;
            outcome = &mut operation => Some(outcome),
            () = change(&mut receiver) => None,
        };
        match outcome {
            Some(outcome) => Some((outcome, None)),
            None => {
                let item = snapshot(&receiver.borrow_and_update());
                Some((Ok(item), Some((receiver, operation))))
            }
        }
    })
    .boxed()
}

/// Waits a while and then for a change; for ever once no change can come.
async fn change<P>(receiver: &mut watch::Receiver<P>) {
    sleep(PERIOD).await;
    if receiver.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn snapshots_come_while_it_runs_and_the_outcome_last() {
        let (sender, receiver) = watch::channel(0);
        let (finish, finished) = oneshot::channel();
        let operation = async move {
            sender.send_replace(1);
            sender.send_replace(2);
            finished.await.unwrap();
            Ok(-1)
        };
        let mut stream = stream(receiver, operation, |step| *step);
        assert_eq!(stream.next().await.unwrap().unwrap(), 2);
        finish.send(()).unwrap();
        assert_eq!(stream.next().await.unwrap().unwrap(), -1);
        assert!(stream.next().await.is_none());
    }

    #[tokio::test]
    async fn a_failure_is_the_last_item() {
        let (_sender, receiver) = watch::channel(());
        let failing = async { Err(Status::not_found("gone")) };
        let items: Vec<Result<(), Status>> = stream(receiver, failing, |()| ()).collect().await;
        assert_eq!(items.len(), 1);
        assert_eq!(items[0].as_ref().unwrap_err().message(), "gone");
    }

    #[tokio::test]
    async fn an_operation_goes_with_its_stream() {
        let (sender, receiver) = watch::channel(());
        let operation = async move {
            sender.closed().await;
            std::future::pending().await
        };
        let stream = stream(receiver.clone(), operation, |()| ());
        drop(stream);
        assert!(receiver.has_changed().is_err(), "its sender is still there");
    }
}
