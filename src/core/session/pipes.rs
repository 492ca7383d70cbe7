//! The daemon's ends of a process's streams: pipes, or a terminal's master read and written like one.

use std::io;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::task::{Context, Poll};

use rustix::io::Errno;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::unix::pipe;
use tokio::sync::oneshot;

use super::Streams;
use crate::error::Error;

/// What a process says, until it has said all.
pub struct Reader {
    pipe: pipe::Receiver,
    /// Dropped at the end, for whoever watches.
    open: Option<oneshot::Sender<()>>,
}

/// What a process is told.
pub struct Writer {
    /// Absent once the writer is shut down: the process reads the end of its input then.
    pipe: Option<pipe::Sender>,
}

/// Bytes that a process's output can be ahead of its reader: as much as the kernel gives without further ado.
const PIPE_SIZE: usize = 1 << 20;

/// Resolves when a reader has come to its end or was dropped.
pub(super) type Ended = oneshot::Receiver<()>;

/// The pipes of a session: the daemon's ends, and the process's in the order in which the shim takes them.
pub(super) struct Pipes {
    pub(super) stdin: Option<Writer>,
    pub(super) stdout: Option<Reader>,
    pub(super) stderr: Option<Reader>,
    /// One for each stream of output.
    pub(super) ended: Vec<Ended>,
    pub(super) theirs: Vec<OwnedFd>,
}

/// Makes the pipes of the streams that are wanted.
pub(super) fn open(streams: Streams) -> Result<Pipes, Error> {
    let (mut ended, mut theirs) = (Vec::new(), Vec::new());
    let stdin = streams.stdin.then(input).transpose()?.map(|(writer, end)| {
        theirs.push(end);
        writer
    });
    let mut wanted = |wanted: bool| -> Result<Option<Reader>, Error> {
        Ok(wanted.then(output).transpose()?.map(|(reader, end_told, end)| {
            ended.push(end_told);
            theirs.push(end);
            reader
        }))
    };
    let (stdout, stderr) = (wanted(streams.stdout)?, wanted(streams.stderr)?);
    Ok(Pipes { stdin, stdout, stderr, ended, theirs })
}

/// Makes a pipe that a process writes to: the daemon's end, what tells of its end, and the process's.
fn output() -> Result<(Reader, Ended, OwnedFd), Error> {
    let (reader, writer) = io::pipe().map_err(failed)?;
    // More for a process to run ahead by. Where the kernel does not allow it, it is as it was.
    let _ = rustix::pipe::fcntl_setpipe_size(&writer, PIPE_SIZE);
    let (open, ended) = oneshot::channel();
    let pipe = pipe::Receiver::from_owned_fd(OwnedFd::from(reader)).map_err(failed)?;
    Ok((Reader { pipe, open: Some(open) }, ended, OwnedFd::from(writer)))
}

/// Makes a pipe that a process reads from: the daemon's end and the process's.
fn input() -> Result<(Writer, OwnedFd), Error> {
    let (reader, writer) = io::pipe().map_err(failed)?;
    let pipe = pipe::Sender::from_owned_fd(OwnedFd::from(writer)).map_err(failed)?;
    Ok((Writer { pipe: Some(pipe) }, OwnedFd::from(reader)))
}

/// Reads and writes a terminal by its master.
pub(super) fn console(master: &OwnedFd) -> Result<(Reader, Writer), Error> {
    rustix::io::ioctl_fionbio(master, true).map_err(|errno| failed(errno.into()))?;
    let reading = master.try_clone().map_err(failed)?;
    let writing = master.try_clone().map_err(failed)?;
    let reader = Reader { pipe: pipe::Receiver::from_owned_fd_unchecked(reading).map_err(failed)?, open: None };
    let writer = Writer { pipe: Some(pipe::Sender::from_owned_fd_unchecked(writing).map_err(failed)?) };
    Ok((reader, writer))
}

fn failed(source: io::Error) -> Error {
    Error::step("make a stream", source)
}

impl AsyncRead for Reader {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = match Pin::new(&mut self.pipe).poll_read(context, buffer) {
            // A terminal says so when its last process is gone.
            Poll::Ready(Err(error)) if error.raw_os_error() == Some(Errno::IO.raw_os_error()) => Poll::Ready(Ok(())),
            other => other,
        };
        if matches!(read, Poll::Ready(Ok(()))) && buffer.filled().len() == before && buffer.remaining() > 0 {
            self.open = None;
        }
        read
    }
}

impl AsyncWrite for Writer {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.pipe {
            Some(pipe) => Pin::new(pipe).poll_write(context, bytes),
            None => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.pipe = None;
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn the_end_of_a_pipe_is_told() {
        let (mut reader, ended, writer) = output().unwrap();
        let mut writer = std::fs::File::from(writer);
        std::io::Write::write_all(&mut writer, b"all").unwrap();
        drop(writer);
        let mut text = String::new();
        reader.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "all");
        assert!(ended.await.is_err(), "dropped, with the reader still there");
    }

    #[tokio::test]
    async fn a_writer_that_is_shut_down_ends_the_input() {
        let (mut writer, reader) = input().unwrap();
        writer.write_all(b"all").await.unwrap();
        writer.shutdown().await.unwrap();
        let text = std::io::read_to_string(std::fs::File::from(reader)).unwrap();
        assert_eq!(text, "all");
        assert!(writer.write_all(b"more").await.is_err());
    }

    #[tokio::test]
    async fn a_terminal_ends_with_its_last_process() {
        let flags = rustix::pty::OpenptFlags::RDWR | rustix::pty::OpenptFlags::NOCTTY;
        let master = rustix::pty::openpt(flags).unwrap();
        rustix::pty::grantpt(&master).unwrap();
        rustix::pty::unlockpt(&master).unwrap();
        let slave = rustix::pty::ioctl_tiocgptpeer(&master, flags).unwrap();
        let (mut reader, mut writer) = console(&master).unwrap();
        writer.write_all(b"typed\n").await.unwrap();
        let mut line = [0; 16];
        // The kernel echoes what is typed before it hands the line out.
        assert_eq!(rustix::io::read(&slave, &mut line).unwrap(), "typed\n".len());
        rustix::io::write(&slave, b"said\n").unwrap();
        drop(slave);
        let mut text = String::new();
        reader.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "typed\r\nsaid\r\n");
    }
}
