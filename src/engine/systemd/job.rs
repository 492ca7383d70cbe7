//! systemd's jobs: what a call begins, and a signal ends.

use futures_util::StreamExt;
use zbus::OwnedObjectPath;
use zbus::message::Type;
use zbus::{MatchRule, MessageStream};

use crate::bus::{Bus, body};
use crate::error::Error;

/// The ends of jobs, from the moment on that this was made: make it before the job.
pub(crate) struct Jobs(MessageStream);

impl Jobs {
    pub(crate) async fn of(bus: &Bus) -> Result<Self, Error> {
        // Or nobody would tell.
        bus.call("Subscribe", "jobs", &()).await?;
        let rule = MatchRule::builder().msg_type(Type::Signal);
        let rule = rule.interface("org.freedesktop.systemd1.Manager").member("JobRemoved").build();
        let stream = match rule {
            Ok(rule) => MessageStream::for_match_rule(rule, bus.connection(), None).await,
            Err(error) => Err(error),
        };
        stream.map(Self).map_err(|error| Error::of_call("AddMatch", "jobs", error))
    }

    /// Waits for the end of a job. The caller has a bound for it.
    pub(crate) async fn wait(&mut self, job: &OwnedObjectPath, step: &'static str, unit: &str) -> Result<(), Error> {
        let closed = || Error::Closed { step, unit: unit.to_owned() };
        loop {
            let signal = self.0.next().await.ok_or_else(closed)?;
            let signal = signal.map_err(|error| Error::of_call("JobRemoved", unit, error))?;
            let (_, ended, _, result): (u32, OwnedObjectPath, String, String) = body(&signal)?;
            if ended != *job {
                continue;
            }
            return match result.as_str() {
                "done" => Ok(()),
                _ => Err(Error::Job { step, unit: unit.to_owned(), result }),
            };
        }
    }
}
