//! The server behind the URLs that CRI `Exec`, `Attach` and `PortForward` return: the kubelet passes its clients on to it.
//!
//! ```text
//!  CRI call ──► Server::exec ──► token, URL          once, within a minute, by the kubelet
//!                                  │
//!  client ── HTTP/1.1 upgrade ─────┴──► SPDY/3.1 or WebSocket ──► mux: streams ──► Backend's Session or Connection
//! ```
//!
//! What processes and pods are it does not know: [`Backend`] opens them. What it holds of a session is bounded, whatever
//! client and process do: 64 KiB of a stream's input, a few pieces of output, one header of a message.

mod backend;
mod copy;
mod forward;
mod hangup;
mod idle;
mod mux;
mod negotiate;
mod remote;
mod request;
mod resize;
mod server;
mod session;
mod spdy;
mod status;
mod tls;
mod token;
mod websocket;

#[cfg(test)]
mod tests;

pub use backend::{Backend, Connection, ReadWrite, Reader, Session, SessionError, TerminalSize, Writer};
pub use request::{AttachRequest, ExecRequest, PortForwardRequest, TokenError};
pub use server::{Server, StartError};
pub use tls::TlsError;
