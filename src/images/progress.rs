//! How far a pull or a load is.

use podwright_base::Digest;
use tokio::sync::watch;

/// A snapshot: one entry for each layer of the image, bottom first; empty until the manifest is known.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PullProgress {
    /// The layers.
    pub layers: Vec<LayerProgress>,
}

/// How far one layer is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerProgress {
    /// The blob's digest, as the manifest has it.
    pub digest: Digest,
    /// Bytes of the blob.
    pub total: u64,
    /// Bytes that have come.
    pub done: u64,
    /// What is happening to it.
    pub state: LayerState,
}

/// What is happening to a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LayerState {
    /// Others go first, or another pull is fetching it.
    Waiting,
    /// It comes in, and is unpacked as it does.
    Downloading,
    /// All bytes have come; the last files are being written.
    Unpacking,
    /// It is unpacked.
    Done,
    /// It was on the node before.
    Present,
}

/// Changes one layer's entry.
#[derive(Debug, Clone)]
pub(crate) struct LayerReport<'a> {
    sender: &'a watch::Sender<PullProgress>,
    index: usize,
}

impl<'a> LayerReport<'a> {
    pub(crate) fn new(sender: &'a watch::Sender<PullProgress>, index: usize) -> Self {
        Self { sender, index }
    }

    pub(crate) fn state(&self, state: LayerState) {
        self.change(|layer| {
            layer.state = state;
            if matches!(state, LayerState::Unpacking | LayerState::Done | LayerState::Present) {
                layer.done = layer.total;
            }
        });
    }

    pub(crate) fn done(&self, bytes: u64) {
        self.change(|layer| layer.done = bytes);
    }

    fn change(&self, change: impl FnOnce(&mut LayerProgress)) {
        self.sender.send_modify(|progress| {
            if let Some(layer) = progress.layers.get_mut(self.index) {
                change(layer);
            }
        });
    }
}
