//! Attach: clients that join a running container's streams, and the size of its terminal.
//!
//! What the container says comes to its [`crate::clients`] from [`crate::output`]; what they say goes by here to its
//! [`crate::input`].

use podwright_launch::ExecStdio;
use podwright_plan::wire::{self, Cause, Failure};
use rustix::termios::Winsize;

use crate::clients::Said;
use crate::connection::ConnectionError;
use crate::lifecycle::Event;
use crate::lines::Stream;
use crate::operations::{Answer, DONE, refuse};
use crate::poll::{Ready, Serial};
use crate::shim::Shim;
use crate::sink::MAX_WAITING;
use crate::words::say;

impl Shim {
    /// Takes the descriptors that came with a request, even when it is then refused: the next ones are another's.
    pub(crate) fn take_stdio(
        &mut self,
        connection: Serial,
        stdio: Option<wire::Stdio>,
    ) -> Result<ExecStdio, ConnectionError> {
        let stdio = stdio.unwrap_or_default();
        let Some(connection) = self.connection(connection) else { return Err(ConnectionError::Closed) };
        let mut take = |wanted: bool| wanted.then(|| connection.take_descriptor()).transpose();
        Ok(ExecStdio { stdin: take(stdio.stdin)?, stdout: take(stdio.stdout)?, stderr: take(stdio.stderr)? })
    }

    /// Attaches a client to a running container.
    pub(crate) fn attach(&mut self, id: &str, stdio: ExecStdio) -> Result<Answer, Failure> {
        let client = self.serial();
        let place = self.named_place("attach", id)?;
        let container = &mut self.containers[place];
        container.permit("attach", Event::Use)?;
        if stdio.stdin.is_none() && stdio.stdout.is_none() && stdio.stderr.is_none() {
            return Err(refuse(Cause::InvalidPlan, "attach", id, "no stream is asked for"));
        }
        if container.terminal && stdio.stderr.is_some() {
            return Err(refuse(Cause::InvalidPlan, "attach", id, "a terminal has no stderr"));
        }
        if stdio.stdin.is_some() && !container.input.wanted() {
            return Err(refuse(Cause::InvalidState, "attach", id, "the container was started without stdin"));
        }
        container.clients.add(client, stdio, &self.poll).map_err(|errno| Failure {
            errno: errno.raw_os_error(),
            ..refuse(Cause::Internal, "attach", id, "a stream cannot be watched")
        })?;
        for stream in [Stream::Stdout, Stream::Stderr] {
            if container.output.as_ref().is_none_or(|output| !output.reads(stream)) {
                container.clients.end(stream, &self.poll);
            }
        }
        self.settle_clients(place);
        Ok(DONE)
    }

    /// Sets the size of a container's terminal.
    pub(crate) fn resize(&mut self, request: &wire::Resize) -> Result<Answer, Failure> {
        let id = &request.container_id;
        let container = self.named("resize", id)?;
        container.permit("resize", Event::Use)?;
        let Some(console) = container.output.as_ref().and_then(|output| output.console()) else {
            return Err(refuse(Cause::InvalidState, "resize", id, "it has no terminal"));
        };
        let Some(size) = request.size else {
            return Err(refuse(Cause::InvalidPlan, "resize", id, "no size is given"));
        };
        let cells = |n: u32| u16::try_from(n).unwrap_or(u16::MAX);
        let size = Winsize { ws_row: cells(size.height), ws_col: cells(size.width), ws_xpixel: 0, ws_ypixel: 0 };
        rustix::termios::tcsetwinsize(console, size)
            .map_err(|errno| Failure { errno: errno.raw_os_error(), ..refuse(Cause::Internal, "resize", id, "") })?;
        Ok(DONE)
    }

    /// A client has said something, or that it will no more.
    pub(crate) fn on_client_input(&mut self, client: Serial) {
        let Some(place) = self.place_of_client(client) else { return };
        let container = &mut self.containers[place];
        let chunk = self.scratch.chunk();
        match container.clients.read(client, chunk, &self.poll) {
            Said::Something => container.input.write(chunk, &self.poll),
            Said::Nothing => return,
            Said::End => container.input.client_ended(&self.poll),
        }
        self.settle_clients(place);
    }

    /// A client can be told more, or does not listen any more.
    pub(crate) fn on_client_output(&mut self, client: Serial, stream: Stream, ready: Ready) {
        let Some(place) = self.place_of_client(client) else { return };
        self.containers[place].clients.on_output(client, stream, ready.readable, &self.poll);
        self.settle_clients(place);
    }

    /// A container takes more input, or will no more.
    pub(crate) fn on_input(&mut self, serial: Serial, ready: Ready) {
        let Some(place) = self.place(serial) else { return };
        let input = &mut self.containers[place].input;
        // Only input's other side; a console without one would stay ready for ever and take nothing.
        if ready.readable {
            input.close(&self.poll)
        } else {
            input.flush(&self.poll)
        }
        self.settle_clients(place);
    }

    /// Sees off the clients that are gone and lets the others follow what became of the container's input.
    pub(crate) fn settle_clients(&mut self, place: usize) {
        let container = &mut self.containers[place];
        // A terminal that shows nothing any more hears nothing either.
        if container.terminal && container.output.as_ref().is_none_or(|output| !output.reads(Stream::Stdout)) {
            container.input.close(&self.poll);
        }
        loop {
            container.clients.follow(container.input.reading(), &self.poll);
            let gone = container.clients.take_gone();
            if gone.is_empty() {
                return;
            }
            for client in gone {
                if client.was_slow() {
                    let id = &container.id;
                    say(format_args!("cut off a client of {id}, which left more than {MAX_WAITING} bytes unread"));
                }
                if client.could_speak() {
                    container.input.client_ended(&self.poll);
                }
                client.close(&self.poll);
            }
        }
    }

    fn place_of_client(&self, client: Serial) -> Option<usize> {
        self.containers.iter().position(|container| container.clients.has(client))
    }
}
