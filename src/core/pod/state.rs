//! A pod sandbox's life, as a pure function.
//!
//! ```text
//!              SetUp            StopRequested           TornDown
//!  Creating ───────────▶ Ready ───────────────▶ Stopping ────────▶ Stopped
//!                          │                       ▲
//!                 ShimGone ▼      StopRequested    │
//!                        Lost ─────────────────────┘
//! ```
//! A creation that fails, and a removal, end the sandbox itself: there is no phase after them.

use serde::{Deserialize, Serialize};

/// Where a pod sandbox is in its life.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Phase {
    /// Its resources are being acquired; the outside does not see it yet.
    Creating,
    /// CRI `SANDBOX_READY`.
    Ready,
    /// Its shim ended under it; nothing runs any more.
    Lost {
        /// Why, for people.
        reason: String,
    },
    /// Its resources are being given back.
    Stopping,
    /// Nothing but its record is left.
    Stopped,
}

/// What happens to a pod sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Event {
    /// Shim, namespaces and network are there.
    SetUp,
    /// The shim's connection closed and the shim is dead.
    ShimGone {
        /// Why, for people.
        reason: String,
    },
    /// The kubelet wants it stopped.
    StopRequested,
    /// Everything was given back.
    TornDown,
}

/// What an [`Event`] does in a [`Phase`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Step {
    /// The phase changes.
    Next(Phase),
    /// The event says nothing new.
    Ignore,
}

impl Phase {
    /// Tells what an event does.
    pub(crate) fn on(&self, event: Event) -> Step {
        match (self, event) {
            (Self::Creating, Event::SetUp) => Step::Next(Self::Ready),
            (Self::Ready, Event::ShimGone { reason }) => Step::Next(Self::Lost { reason }),
            (Self::Creating | Self::Ready | Self::Lost { .. }, Event::StopRequested) => Step::Next(Self::Stopping),
            (Self::Stopping, Event::TornDown) => Step::Next(Self::Stopped),
            _ => Step::Ignore,
        }
    }

    /// Whether containers can be created and run.
    pub(crate) fn is_ready(&self) -> bool {
        matches!(self, Self::Ready)
    }

    /// Says why the sandbox is not ready.
    pub(crate) fn reason(&self) -> String {
        match self {
            Self::Creating => "it is being created".to_owned(),
            Self::Ready => String::new(),
            Self::Lost { reason } => reason.clone(),
            Self::Stopping => "it is being stopped".to_owned(),
            Self::Stopped => "it was stopped".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            Just(Event::SetUp),
            Just(Event::ShimGone { reason: "killed".to_owned() }),
            Just(Event::StopRequested),
            Just(Event::TornDown),
        ]
    }

    proptest! {
        #[test]
        fn a_stopped_pod_never_comes_back(events in proptest::collection::vec(event(), 0..30)) {
            let mut phase = Phase::Creating;
            let mut stopping = false;
            for event in events {
                stopping |= event == Event::StopRequested;
                if let Step::Next(next) = phase.on(event) {
                    phase = next;
                }
                prop_assert!(!(stopping && phase.is_ready()), "ready after a stop was asked for");
                prop_assert_eq!(phase.is_ready(), phase.reason().is_empty());
            }
        }
    }
}
