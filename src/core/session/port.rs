//! A connection to a port on the loopback of a pod (CRI `PortForward`), made from a thread inside the pod's network
//! namespace: no helper program, nothing installed in the pod.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream as Connected};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::Duration;

use podwright_sys::netns;
use tokio::net::TcpStream;

use crate::error::Error;
use crate::pod::driver::blocking;

/// Loopback answers at once, or its listener's queue is full.
const LIMIT: Duration = Duration::from_secs(5);

/// Connects to a port; `netns` is the pod's pin, absent with the host's network.
///
/// # Errors
/// When nobody listens there, on IPv4 or on IPv6.
pub(crate) async fn connect(netns: Option<PathBuf>, port: u16) -> Result<TcpStream, Error> {
    let failed = |source: io::Error| Error::step(format!("connect to port {port} of the pod"), source);
    let stream = blocking(move || match netns {
        None => dial(port),
        Some(pin) => {
            let netns = netns::open(&pin)?;
            netns::within(netns.as_fd(), || dial(port)).map_err(io::Error::other)?
        }
    })
    .await
    .map_err(failed)?;
    stream.set_nonblocking(true).and_then(|()| TcpStream::from_std(stream)).map_err(failed)
}

/// Tries IPv4 first, as the field does.
fn dial(port: u16) -> io::Result<Connected> {
    let dial = |address: SocketAddr| Connected::connect_timeout(&address, LIMIT);
    dial((Ipv4Addr::LOCALHOST, port).into()).or_else(|first| {
        // The error that people look for is that of the first: the second family may not even exist.
        dial((Ipv6Addr::LOCALHOST, port).into()).map_err(|_| first)
    })
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn both_families_are_reached_and_a_refusal_names_the_port() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(address).unwrap();
            let port = listener.local_addr().unwrap().port();
            connect(None, port).await.unwrap();
            drop(listener);
            let error = connect(None, port).await.unwrap_err();
            assert_eq!(error.to_string(), format!("connect to port {port} of the pod"));
        }
    }
}
