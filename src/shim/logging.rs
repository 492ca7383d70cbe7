//! What a container's log needs of the loop: to hold the container while it cannot be written, to be tried again, to be
//! reopened, and to have its problems told.

use std::time::Duration;

use podwright_plan::wire::{self, Cause, Failure, event};

use crate::container::Container;
use crate::lifecycle::{Event, State};
use crate::operations::{Answer, DONE, refuse};
use crate::output::Output;
use crate::poll::{Serial, Timer};
use crate::shim::Shim;
use crate::words::say;

/// How often a log is tried again that cannot be written.
const LOG_RETRY: Duration = Duration::from_secs(1);

/// What is wrong with a log, in words; empty when nothing is.
fn problem(output: &Output) -> String {
    match (output.problem(), output.rotation_problem()) {
        (Some(errno), _) => errno.to_string(),
        (None, Some(errno)) => format!("it cannot be rotated and goes on in the old file: {errno}"),
        (None, None) => String::new(),
    }
}

impl Shim {
    /// Looks what reading did to clients, and whether the log took it; when not, the container is held until it does.
    pub(crate) fn after_output(&mut self, place: usize) {
        self.settle_clients(place);
        let container = &mut self.containers[place];
        let Some(output) = &container.output else { return };
        if output.problem().is_some() && !container.held {
            container.held = true;
            if let Err(error) = output.pause(&self.poll) {
                say(format_args!("cannot stop watching the output of {}: {error}", container.id));
            }
            self.timers.set(Timer::LogRetry(container.serial), LOG_RETRY);
        }
        self.tell_log(place);
    }

    /// Tells what is wrong with a log, or that nothing is any more, when that is news.
    fn tell_log(&mut self, place: usize) {
        let container = &mut self.containers[place];
        let Some(output) = &container.output else { return };
        let healthy = output.problem().is_none() && output.rotation_problem().is_none();
        // The way of every read: without making a text.
        if healthy && container.log_problem.is_empty() {
            return;
        }
        let problem = problem(output);
        if problem == container.log_problem {
            return;
        }
        container.log_problem.clone_from(&problem);
        let problem = wire::LogProblem { container_id: container.id.clone(), problem };
        self.publish(event::Kind::LogProblem(problem));
    }

    /// Tries a log again that could not be written.
    pub(crate) fn retry_log(&mut self, serial: Serial) {
        let Some(place) = self.place(serial) else { return };
        let container = &mut self.containers[place];
        let Some(output) = &mut container.output else { return };
        if !container.held {
            return;
        }
        if !output.log().retry() {
            return self.timers.set(Timer::LogRetry(serial), LOG_RETRY);
        }
        container.held = false;
        if let Err(error) = output.resume(&self.poll) {
            say(format_args!("cannot watch the output of {}: {error}", container.id));
        }
        let Container { output, clients, state, .. } = container;
        if let (Some(output), State::Exited(..)) = (output, state) {
            output.drain(true, clients, &self.poll, &mut self.scratch);
        }
        self.after_output(place);
        let container = &mut self.containers[place];
        if matches!(container.state, State::Exited(..)) {
            container.output.take_if(|output| output.finished());
        }
    }

    /// Switches a container to the log file that has its path now.
    pub(crate) fn reopen_log(&mut self, id: &str) -> Result<Answer, Failure> {
        let container = self.named("reopen log", id)?;
        container.permit("reopen log", Event::Use)?;
        let serial = container.serial;
        if let Some(output) = &mut container.output {
            output.log().reopen().map_err(|errno| Failure {
                errno: errno.raw_os_error(),
                ..refuse(Cause::Internal, "open log", output.log().path(), "")
            })?;
        }
        // The new file may be where there is room.
        self.retry_log(serial);
        Ok(DONE)
    }
}
