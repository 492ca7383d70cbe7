//! The resize stream: JSON objects, one after the other.

use bytes::{Buf, BytesMut};
use tokio::io::AsyncReadExt;
use tokio::sync::mpsc;

use crate::backend::TerminalSize;
use crate::mux::stream::Input;

/// An object has about thirty bytes.
const LIMIT: usize = 1024;

/// Passes on sizes until the client ends the stream or sends what is none. One that the session has no room for yet
/// gives way to the next: only the last size is the terminal's.
pub(crate) async fn pass_on(mut from: Input, to: mpsc::Sender<TerminalSize>) {
    let mut buffer = BytesMut::new();
    let mut size = None;
    loop {
        tokio::select! {
            read = from.read_buf(&mut buffer) => {
                if !matches!(read, Ok(1..)) {
                    break;
                }
                match take(&mut buffer) {
                    Ok(taken) => size = taken.or(size),
                    Err(error) => return tracing::debug!(%error, "the client's terminal sizes make no sense"),
                }
            }
            room = to.reserve(), if size.is_some() => match (room, size.take()) {
                (Ok(room), Some(size)) => room.send(size),
                _ => return,
            },
        }
    }
    if let Some(size) = size {
        // A session that is over needs no size.
        to.send(size).await.ok();
    }
}

/// Takes all whole objects off the buffer's front and returns the last.
fn take(buffer: &mut BytesMut) -> Result<Option<TerminalSize>, serde_json::Error> {
    let mut objects = serde_json::Deserializer::from_slice(buffer).into_iter();
    let mut size = None;
    let taken = loop {
        match objects.next() {
            Some(Ok(object)) => size = Some(object),
            Some(Err(error)) if error.is_eof() && buffer.len() - objects.byte_offset() < LIMIT => {
                break objects.byte_offset();
            }
            Some(Err(error)) => return Err(error),
            None => break buffer.len(),
        }
    };
    buffer.advance(taken);
    Ok(size)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size(width: u16, height: u16) -> Option<TerminalSize> {
        Some(TerminalSize { width, height })
    }

    #[test]
    fn objects_may_come_in_pieces_and_the_last_whole_one_counts() {
        let mut buffer = BytesMut::new();
        for (piece, expected) in [
            (r#"{"Width":80,"#, None),
            (r#""Height":24}{"Width":1,"Height":2} {"wid"#, size(1, 2)),
            (r#"th":120,"height":40}"#, size(120, 40)),
            ("\n  ", None),
        ] {
            buffer.extend_from_slice(piece.as_bytes());
            assert_eq!(take(&mut buffer).unwrap(), expected, "{piece}");
        }
        assert!(buffer.is_empty());
    }

    #[test]
    fn what_is_no_size_is_refused_before_it_piles_up() {
        for bad in [r#"{"Width":-1,"Height":2}"#, "[", r#"{"Width":1}"#, "x"] {
            assert!(take(&mut BytesMut::from(format!("{bad}{}", "[".repeat(LIMIT)).as_bytes())).is_err(), "{bad}");
        }
        assert!(take(&mut BytesMut::from(format!("\"{}", "x".repeat(LIMIT)).as_bytes())).is_err());
    }
}
