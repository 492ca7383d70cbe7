//! Whether a client has hung up while what it sent is not read yet.
//!
//! A process that does not read its input stops the reading of its client's socket, and with it the news that the client
//! is gone: the process would be kept for nobody. The kernel tells of the end beside the bytes that are before it.

use std::io;
use std::net::TcpStream as Blocking;
use std::os::fd::AsFd;

use tokio::io::Interest;
use tokio::net::TcpStream;

/// Watches a connection through a descriptor of its own.
#[derive(Debug)]
pub(crate) struct Hangup(TcpStream);

impl Hangup {
    /// Watches a connection.
    ///
    /// # Errors
    /// When there is no descriptor left.
    pub(crate) fn watch(socket: &TcpStream) -> io::Result<Self> {
        TcpStream::from_std(Blocking::from(socket.as_fd().try_clone_to_owned()?)).map(Self)
    }

    /// Waits until the client has ended its side of the connection.
    pub(crate) async fn seen(&self) {
        // Of all interests this one alone is not met by bytes to read: by urgent ones, which no client sends, and by the end.
        if let Err(error) = self.0.ready(Interest::PRIORITY).await {
            tracing::debug!(%error, "a streaming client cannot be watched any more");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::pin::pin;
    use std::task::Poll;

    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn the_end_is_seen_before_the_bytes_are_read() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (socket, _) = listener.accept().await.unwrap();
        let hangup = Hangup::watch(&socket).unwrap();
        client.write_all(&[7; 1000]).await.unwrap();
        socket.readable().await.unwrap();
        let mut seen = pin!(hangup.seen());
        let early = poll_fn(|context| Poll::Ready(seen.as_mut().poll(context).is_ready())).await;
        assert!(!early);
        drop(client);
        seen.await;
        assert_eq!(socket.try_read(&mut [0; 2000]).unwrap(), 1000);
    }
}
