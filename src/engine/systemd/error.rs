//! Why a unit could not be made, changed or removed.

use zbus::DBusError;

/// A failed step, with the unit and the manager's answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// This host is run by another init.
    #[error("systemd does not run on this host: use the cgroupfs driver")]
    NotRunning,
    /// The event loop could not be had.
    #[error("set up an event loop for D-Bus")]
    Runtime(#[source] std::io::Error),
    /// The bus is not there, or does not take us.
    #[error("connect to systemd at {address}")]
    Connect {
        /// Where it was tried last.
        address: String,
        /// Why it failed.
        source: zbus::Error,
    },
    /// The manager's answer to a request was an error.
    #[error(transparent)]
    Refused(Refused),
    /// A request that got no answer, or none that could be read.
    #[error("call {method} of systemd for {unit}")]
    Call {
        /// The method.
        method: &'static str,
        /// The unit.
        unit: String,
        /// Why it failed.
        source: zbus::Error,
    },
    /// An answer of another form than documented.
    #[error("read an answer of systemd")]
    Answer(#[source] zbus::Error),
    /// A plan with a property that has no value.
    #[error("the plan's property {0} has no value")]
    NoValue(String),
    /// The version is no number.
    #[error("systemd says its version is {0:?}")]
    Version(String),
    /// The job did not succeed.
    #[error("{step} unit {unit}: systemd's job ended as {result:?}")]
    Job {
        /// What was asked.
        step: &'static str,
        /// The unit.
        unit: String,
        /// systemd's word: failed, canceled, timeout, dependency, skipped.
        result: String,
    },
    /// The connection ended before the job did.
    #[error("{step} unit {unit}: systemd closed the connection")]
    Closed {
        /// What was asked.
        step: &'static str,
        /// The unit.
        unit: String,
    },
    /// The unit's cgroup is not where the limits would be written.
    #[error("systemd put {unit} into the cgroup {actual}, not {expected}")]
    Elsewhere {
        /// The unit.
        unit: String,
        /// Where the plan says.
        expected: String,
        /// Where it is.
        actual: String,
    },
    /// The time was up.
    #[error("{step} unit {unit}: systemd was not done in {seconds} s")]
    TimedOut {
        /// What was asked.
        step: &'static str,
        /// The unit.
        unit: String,
        /// The bound.
        seconds: u64,
    },
}

/// An error that the manager answered with; where it is about a property, its text names it.
#[derive(Debug, thiserror::Error)]
#[error("systemd refused {method} for {unit}: {name}: {text}")]
pub struct Refused {
    /// The method.
    pub method: &'static str,
    /// The unit.
    pub unit: String,
    /// The D-Bus name of the error.
    pub name: String,
    /// What it says.
    pub text: String,
}

impl Refused {
    pub(crate) const NO_SUCH_UNIT: &str = "org.freedesktop.systemd1.NoSuchUnit";

    pub(crate) fn is(&self, name: &str) -> bool {
        self.name == name
    }
}

impl Error {
    /// Tells an answer that is an error from a request that did not work out.
    pub(crate) fn of_call(method: &'static str, unit: &str, error: zbus::Error) -> Self {
        let unit = unit.to_owned();
        match error {
            zbus::Error::MethodError(name, text, _) => {
                Self::Refused(Refused { method, unit, name: name.to_string(), text: text.unwrap_or_default() })
            }
            // The errors of the bus's own names.
            zbus::Error::FDO(error) => {
                let (name, text) = (error.name().to_string(), error.description().unwrap_or_default().to_owned());
                Self::Refused(Refused { method, unit, name, text })
            }
            source => Self::Call { method, unit, source },
        }
    }
}
