//! What the connection itself has to say: short, ahead of the streams' data, and bounded.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::mux::{Control, Goodbye, ProtocolError};

/// Answers that may wait for the client to read them.
const LIMIT: usize = 1024;

/// Filled by the reader and the streams, emptied by the writer.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    state: Mutex<State>,
    filled: Notify,
}

#[derive(Debug, Default)]
struct State {
    controls: VecDeque<Control>,
    /// What streams have consumed since the client was last told, so that a client which does not read lets one number
    /// grow instead of a queue.
    credits: BTreeMap<u32, u32>,
    goodbye: Option<Goodbye>,
}

impl Outbox {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues an answer.
    ///
    /// # Errors
    /// [`ProtocolError::Flood`] when the client makes us owe answers faster than it reads them.
    pub(crate) fn push(&self, control: Control) -> Result<(), ProtocolError> {
        let count = {
            let mut state = self.state();
            state.controls.push_back(control);
            state.controls.len()
        };
        self.filled.notify_one();
        if count > LIMIT { Err(ProtocolError::Flood { count }) } else { Ok(()) }
    }

    /// Lets the client send this many bytes more on a stream, or on all together with id 0.
    pub(crate) fn credit(&self, id: u32, bytes: usize) {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        {
            let mut state = self.state();
            let credit = state.credits.entry(id).or_default();
            // 2^31 - 1 is the most that a window update can carry.
            *credit = credit.saturating_add(bytes).min(i32::MAX as u32);
        }
        self.filled.notify_one();
    }

    /// Has the writer end the connection once it has sent what is queued. The first reason stays.
    pub(crate) fn say_goodbye(&self, goodbye: Goodbye) {
        self.state().goodbye.get_or_insert(goodbye);
        self.filled.notify_one();
    }

    /// Returns how the connection is to end, if it is.
    pub(crate) fn goodbye(&self) -> Option<Goodbye> {
        self.state().goodbye
    }

    /// Hands all that waits to the writer.
    pub(crate) fn drain(&self, mut send: impl FnMut(Control)) {
        let (controls, credits) = {
            let mut state = self.state();
            (std::mem::take(&mut state.controls), std::mem::take(&mut state.credits))
        };
        controls.into_iter().for_each(&mut send);
        credits.into_iter().for_each(|(id, bytes)| send(Control::Credit { id, bytes }));
    }

    /// Waits until something was put in since the last wait.
    pub(crate) async fn filled(&self) {
        self.filled.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credits_add_up_and_answers_are_bounded() {
        let outbox = Outbox::default();
        for _ in 0..10_000 {
            outbox.credit(3, WINDOW_OF_TEST);
        }
        let mut sent = Vec::new();
        outbox.drain(|control| sent.push(control));
        assert_eq!(sent, [Control::Credit { id: 3, bytes: 10_000 * 1000 }]);
        for _ in 0..LIMIT {
            outbox.push(Control::Accept { id: 1 }).unwrap();
        }
        assert!(matches!(outbox.push(Control::Accept { id: 1 }), Err(ProtocolError::Flood { .. })));
    }

    const WINDOW_OF_TEST: usize = 1000;
}
