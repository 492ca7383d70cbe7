//! A container as its pod's driver holds it.

use std::sync::Arc;

use podwright_base::Layout;
use podwright_images::Lease;
use podwright_spec::ContainerConfig;
use podwright_store::WriteError;
use tokio::sync::watch;

use super::state::{self, Event, Step};
use super::stop::Stopping;
use crate::pod::handle::{Command, Reply};
use crate::record::{ContainerRecord, PodRecord};
use crate::view::{ContainerState, ContainerView};

/// A container, what is under way with it, and what keeps its images' layers.
pub(crate) struct Container {
    /// What is kept on disk.
    pub(crate) record: ContainerRecord,
    /// What the outside sees.
    pub(crate) view: Arc<ContainerView>,
    /// A start under way.
    pub(crate) starting: Option<Starting>,
    /// A stop under way.
    pub(crate) stopping: Option<Stopping>,
    /// A removal under way: who waits for it.
    pub(crate) removing: Option<Vec<Reply<()>>>,
    exited: watch::Sender<bool>,
    _lease: Lease,
}

/// A start under way.
#[derive(Default)]
pub(crate) struct Starting {
    /// Who waits for it.
    pub(crate) replies: Vec<Reply<()>>,
    /// What was asked meanwhile and makes sense only afterwards.
    pub(crate) deferred: Vec<Command>,
}

impl Container {
    /// Makes the entry of a created or recovered container.
    pub(crate) fn new(layout: &Layout, pod: &PodRecord, record: ContainerRecord, lease: Lease) -> Self {
        let exited = watch::Sender::new(matches!(record.state, ContainerState::Exited(_)));
        let view = Arc::new(view(layout, pod, &record));
        Self { record, view, starting: None, stopping: None, removing: None, exited, _lease: lease }
    }

    /// Becomes true when the container has exited.
    pub(crate) fn exited(&self) -> watch::Receiver<bool> {
        self.exited.subscribe()
    }

    /// Returns the process id while it runs.
    pub(crate) fn pid(&self) -> Option<u32> {
        match self.record.state {
            ContainerState::Running { pid, .. } => Some(pid),
            _ => None,
        }
    }

    /// Applies an event; tells whether it changed anything.
    pub(crate) fn apply(&mut self, layout: &Layout, pod: &PodRecord, event: Event) -> bool {
        let Step::Next(next) = state::on(&self.record.state, event) else { return false };
        self.record.state = next;
        self.view = Arc::new(view(layout, pod, &self.record));
        true
    }

    /// Tells who waits for the exit, once everybody can see it.
    pub(crate) fn announce(&self) {
        if matches!(self.record.state, ContainerState::Exited(_)) {
            self.exited.send_replace(true);
        }
    }

    /// Whether a creation with this configuration asks for this very container. One that has exited cannot be what is
    /// asked for.
    pub(crate) fn is_what(&self, config: &ContainerConfig) -> bool {
        *self.record.config == *config && !matches!(self.record.state, ContainerState::Exited(_))
    }

    /// Writes the record.
    ///
    /// # Errors
    /// When the file system refuses; the old record is still there.
    pub(crate) fn persist(&self, layout: &Layout, pod: &PodRecord) -> Result<(), WriteError> {
        podwright_store::write(&layout.container_record(&pod.id, &self.record.id), &self.record)
    }
}

fn view(layout: &Layout, pod: &PodRecord, record: &ContainerRecord) -> ContainerView {
    ContainerView {
        id: record.id.clone(),
        pod: pod.id.clone(),
        config: Arc::clone(&record.config),
        image_id: record.image_id.clone(),
        image_ref: record.image_ref.clone(),
        volume_images: record.volumes.iter().map(|volume| (volume.mount, volume.image_id.clone())).collect(),
        created_at: record.created_at,
        state: record.state.clone(),
        log_path: log_path(pod, record),
        user: record.user.clone(),
        stop_signal: record.stop_signal,
        bundle_config: layout.container_config(&pod.id, &record.id),
    }
}

/// Returns where the container's log is, `None` when it has none.
fn log_path(pod: &PodRecord, record: &ContainerRecord) -> Option<std::path::PathBuf> {
    crate::container::create::log_path(&pod.config, &record.config)
}
