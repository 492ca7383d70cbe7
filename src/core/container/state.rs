//! A container's life, as a pure function.
//!
//! ```text
//!            StartRequested          Started               Exited
//!  Created ─────────────────▶ (starting) ─────────▶ Running ───────▶ Exited
//!     │                           │ StartFailed                        ▲
//!     └───────────────────────────┴────────────────────────────────────┘
//! ```
//! "Starting" is no state of the record: until the shim has answered the container is CREATED, as the CRI has it.

use crate::view::{ContainerState, ExitReason, Exited};

/// Exit code of a container whose program could not be started.
pub(crate) const START_ERROR_CODE: i32 = 128;
/// Exit code of a container whose process was lost with its shim.
pub(crate) const LOST_CODE: i32 = 255;

/// What happens to a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Event {
    /// The shim executed the user's program.
    Started {
        /// Process id on the host.
        pid: u32,
        /// Unix nanoseconds.
        started_at: i64,
    },
    /// The program could not be executed.
    StartFailed {
        /// Unix nanoseconds.
        at: i64,
        /// The cause, for people.
        message: String,
    },
    /// The process ended.
    Ended {
        /// Unix nanoseconds.
        at: i64,
        /// 0-255.
        code: i32,
        /// Whether the kernel killed for want of memory.
        oom_killed: bool,
    },
    /// The process is gone with its shim or the host; nobody saw how.
    Lost {
        /// Unix nanoseconds.
        at: i64,
        /// The cause, for people.
        message: String,
    },
}

/// What an [`Event`] does in a state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Step {
    /// The state changes.
    Next(ContainerState),
    /// The event says nothing new.
    Ignore,
}

/// Tells what an event does to a container.
pub(crate) fn on(state: &ContainerState, event: Event) -> Step {
    let started_at = match state {
        ContainerState::Created => 0,
        ContainerState::Running { started_at, .. } => *started_at,
        ContainerState::Exited(exited) => return on_exited(exited, &event),
    };
    match event {
        Event::Started { pid, started_at } => match state {
            ContainerState::Created => Step::Next(ContainerState::Running { pid, started_at }),
            _ => Step::Ignore,
        },
        Event::StartFailed { at, message } => match state {
            ContainerState::Created => exited(0, at, START_ERROR_CODE, ExitReason::StartError, message),
            _ => Step::Ignore,
        },
        Event::Ended { at, code, oom_killed } => {
            let reason = match (oom_killed, code) {
                (true, _) => ExitReason::OomKilled,
                (false, 0) => ExitReason::Completed,
                (false, _) => ExitReason::Error,
            };
            exited(started_at, at, code, reason, String::new())
        }
        Event::Lost { at, message } => match state {
            ContainerState::Running { .. } => exited(started_at, at, LOST_CODE, ExitReason::Unknown, message),
            _ => Step::Ignore,
        },
    }
}

/// The first exit is the one that counts. But the news of a short life's end can overtake that of its start.
fn on_exited(exited: &Exited, event: &Event) -> Step {
    match event {
        Event::Started { started_at, .. } if exited.started_at == 0 && exited.reason != ExitReason::StartError => {
            Step::Next(ContainerState::Exited(Exited { started_at: *started_at, ..exited.clone() }))
        }
        _ => Step::Ignore,
    }
}

fn exited(started_at: i64, finished_at: i64, code: i32, reason: ExitReason, message: String) -> Step {
    Step::Next(ContainerState::Exited(Exited { started_at, finished_at, code, reason, message }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            (1_u32..9, 1_i64..9).prop_map(|(pid, started_at)| Event::Started { pid, started_at }),
            (1_i64..9).prop_map(|at| Event::StartFailed { at, message: "no such file".to_owned() }),
            (1_i64..9, 0_i32..255, any::<bool>()).prop_map(|(at, code, oom_killed)| Event::Ended {
                at,
                code,
                oom_killed
            }),
            (1_i64..9).prop_map(|at| Event::Lost { at, message: "killed".to_owned() }),
        ]
    }

    proptest! {
        #[test]
        fn the_first_exit_is_final(events in proptest::collection::vec(event(), 1..20)) {
            let mut state = ContainerState::Created;
            let mut last: Option<Exited> = None;
            for event in events {
                if let Step::Next(next) = on(&state, event) {
                    state = next;
                }
                if let Some(first) = &last {
                    let ContainerState::Exited(now) = &state else { panic!("{state:?} after an exit") };
                    let same = Exited { started_at: now.started_at, ..first.clone() };
                    prop_assert_eq!(&same, now);
                    prop_assert!(first.started_at == 0 || first.started_at == now.started_at);
                }
                if let ContainerState::Exited(exited) = &state {
                    last = Some(exited.clone());
                }
            }
        }
    }

    #[test]
    fn reasons_are_told_apart() {
        let running = ContainerState::Running { pid: 7, started_at: 1 };
        for (code, oom_killed, reason) in
            [(0, false, ExitReason::Completed), (3, false, ExitReason::Error), (137, true, ExitReason::OomKilled)]
        {
            match on(&running, Event::Ended { at: 2, code, oom_killed }) {
                Step::Next(ContainerState::Exited(exited)) => assert_eq!(exited.reason, reason),
                other => panic!("{other:?}"),
            }
        }
    }
}
