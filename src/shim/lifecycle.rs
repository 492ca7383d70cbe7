//! A container's life in the shim, as a pure function of state and event.
//!
//! ```text
//!            Launch              Executed             InitEnded            Drained
//!  (unknown) ──────▶ Starting ───────────▶ Running ────────────▶ Ending ───────────▶ Exited
//!                       │ Failed                                                        │ Forget
//!                       ▼                                                               ▼
//!                   (unknown)                                                       (unknown)
//! ```
//!
//! *Ending* lasts from the end of the container's init until the rest of its processes are gone and their output is
//! in the log. To the outside it is still running: an exit that has been reported is final.

use podwright_plan::wire;

/// Where a container is, with what belongs to that.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum State {
    /// Its process is being set up.
    Starting,
    /// The user's program runs.
    Running(wire::Started),
    /// Its init is gone, others or their output may not be.
    Ending(wire::Started, wire::Exit),
    /// Over and reported.
    Exited(wire::Started, wire::Exit),
}

/// What happens to a container.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Event {
    /// A request to start it.
    Launch,
    /// The user's program was executed.
    Executed(wire::Started),
    /// A step of the launch failed.
    Failed,
    /// Its init ended.
    InitEnded(wire::Exit),
    /// Its processes are gone and what they wrote is in the log, or the wait for that is over.
    Drained,
    /// A request to signal it; whether the signal is SIGKILL.
    Signal { kill: bool },
    /// A request that needs a running program: exec, attach, update, log rotation.
    Use,
    /// A request to drop what is known of it.
    Forget,
}

/// What follows.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Next {
    /// The state changes.
    To(State),
    /// It is dropped.
    Gone,
    /// Go ahead, the state stays.
    Allow,
    /// Nothing is to be done: what was asked for is already under way or has happened.
    Ignore,
    /// It must not be; the reason is for people.
    Deny(&'static str),
}

impl State {
    /// Says what an event leads to.
    pub(crate) fn on(&self, event: Event) -> Next {
        match (self, event) {
            (Self::Starting, Event::Executed(started)) => Next::To(Self::Running(started)),
            (Self::Starting, Event::Failed) => Next::Gone,
            // The one thing that ends a launch which hangs, on a dead file server for example.
            (Self::Starting, Event::Signal { kill: true }) => Next::Allow,
            (Self::Running(started), Event::InitEnded(exit)) => Next::To(Self::Ending(*started, exit)),
            (Self::Running(_), Event::Signal { .. } | Event::Use) => Next::Allow,
            (Self::Ending(started, exit), Event::Drained) => Next::To(Self::Exited(*started, *exit)),
            (Self::Exited(..), Event::Forget) => Next::Gone,

            // Retries join; one that comes when a short life is over learns that it was begun.
            (_, Event::Launch) => Next::Ignore,
            (Self::Ending(..), Event::Signal { .. }) => Next::Ignore,

            (Self::Starting, Event::Signal { kill: false } | Event::Use) => Next::Deny("it is being started"),
            (Self::Ending(..) | Self::Exited(..), Event::Use) => Next::Deny("it has ended"),
            (Self::Exited(..), Event::Signal { .. }) => Next::Deny("it has ended"),
            (Self::Starting | Self::Running(_) | Self::Ending(..), Event::Forget) => Next::Deny("it has not ended"),
            // What the shim itself finds out comes in one order only.
            (_, Event::Executed(_) | Event::Failed | Event::InitEnded(_) | Event::Drained) => {
                Next::Deny("it is not in the state for that")
            }
        }
    }

    /// The running program, from its start on.
    pub(crate) fn started(&self) -> Option<wire::Started> {
        match self {
            Self::Starting => None,
            Self::Running(started) | Self::Ending(started, _) | Self::Exited(started, _) => Some(*started),
        }
    }

    /// The exit, once it is final.
    pub(crate) fn exit(&self) -> Option<wire::Exit> {
        match self {
            Self::Exited(_, exit) => Some(*exit),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn event() -> impl Strategy<Value = Event> {
        let exit = (0_i32..256).prop_map(|code| wire::Exit { code, ..Default::default() });
        prop_oneof![
            Just(Event::Launch),
            (1_u32..9).prop_map(|pid| Event::Executed(wire::Started { pid, started_at: 1 })),
            Just(Event::Failed),
            exit.prop_map(Event::InitEnded),
            Just(Event::Drained),
            any::<bool>().prop_map(|kill| Event::Signal { kill }),
            Just(Event::Use),
            Just(Event::Forget),
        ]
    }

    fn rank(state: &State) -> u8 {
        match state {
            State::Starting => 0,
            State::Running(_) => 1,
            State::Ending(..) => 2,
            State::Exited(..) => 3,
        }
    }

    proptest! {
        #[test]
        fn a_life_only_goes_forward(events in prop::collection::vec(event(), 0..40)) {
            let mut state = State::Starting;
            for event in events {
                match state.on(event.clone()) {
                    Next::To(next) => {
                        prop_assert_eq!(rank(&next), rank(&state) + 1);
                        // What was learnt is kept: the pid of the start, the code of the end.
                        prop_assert!(state.started().is_none() || state.started() == next.started());
                        if let (State::Ending(_, was), State::Exited(_, is)) = (&state, &next) {
                            prop_assert_eq!(was, is);
                        }
                        state = next;
                    }
                    Next::Gone => {
                        let over = matches!((&state, &event), (State::Starting, Event::Failed) | (State::Exited(..), Event::Forget));
                        prop_assert!(over, "{:?} dropped by {:?}", state, event);
                        state = State::Starting;
                    }
                    Next::Allow | Next::Ignore => {}
                    Next::Deny(reason) => prop_assert!(!reason.is_empty()),
                }
                prop_assert_eq!(state.exit().is_some(), rank(&state) == 3);
            }
        }

        #[test]
        fn only_a_running_program_is_used(events in prop::collection::vec(event(), 0..40)) {
            let mut state = State::Starting;
            for event in events {
                prop_assert_eq!(state.on(Event::Use) == Next::Allow, rank(&state) == 1);
                match state.on(event) {
                    Next::To(next) => state = next,
                    Next::Gone => state = State::Starting,
                    _ => {}
                }
            }
        }
    }

    #[test]
    fn a_start_is_joined_and_never_repeated() {
        let started = wire::Started { pid: 7, started_at: 1 };
        let exit = wire::Exit { code: 3, ..Default::default() };
        let lives =
            [State::Starting, State::Running(started), State::Ending(started, exit), State::Exited(started, exit)];
        for state in lives {
            assert_eq!(state.on(Event::Launch), Next::Ignore);
        }
    }
}
