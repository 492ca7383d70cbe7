//! Whether pods can be attached: the CNI configuration is valid and its plugins say that they are ready.

use std::time::Duration;

use podwright_base::chain;
use podwright_cni::{Cni, NetworkConfig};
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};

/// How long an answer of plugins counts.
const KEPT: Duration = Duration::from_secs(5);
/// How long plugins may think about it: the kubelet asks every few seconds.
const LIMIT: Duration = Duration::from_secs(10);
/// The word that the kubelet and its peers have for it.
const NOT_READY: &str = "NetworkPluginNotReady";

/// Whether pods can be attached (CRI `NetworkReady`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// Whether they can.
    pub ready: bool,
    /// One word, for programs; empty when ready.
    pub reason: String,
    /// What is the matter and what to do, for people; empty when ready.
    pub message: String,
}

impl Status {
    fn ready() -> Self {
        Self { ready: true, reason: String::new(), message: String::new() }
    }

    fn not_ready(message: String) -> Self {
        Self { ready: false, reason: NOT_READY.to_owned(), message }
    }
}

/// The last answer of plugins.
#[derive(Debug, Default)]
pub(crate) struct Readiness(Mutex<Option<(Instant, NetworkConfig, Status)>>);

impl Readiness {
    /// Reads the configuration, and asks its plugins unless they have just answered for the same one.
    pub(crate) async fn of(&self, cni: &Cni) -> Status {
        let network = match cni.network() {
            Ok(Some(network)) => network,
            // The built-in network serves.
            Ok(None) => return Status::ready(),
            Err(error) => return Status::not_ready(chain(&error)),
        };
        // Whoever asks meanwhile gets the same answer.
        let mut last = self.0.lock().await;
        if let Some((when, of, status)) = &*last
            && when.elapsed() < KEPT
            && *of == network
        {
            return status.clone();
        }
        let status = match timeout(LIMIT, cni.status(&network)).await {
            Ok(Ok(())) => Status::ready(),
            Ok(Err(error)) => Status::not_ready(chain(&error)),
            Err(_) => Status::not_ready(format!(
                "CNI network {}: its plugins have not said within {}s whether they are ready",
                network.name,
                LIMIT.as_secs()
            )),
        };
        *last = Some((Instant::now(), network, status.clone()));
        status
    }
}
