//! The state of the runtime as a whole.

use podwright_proto::runtime::v1;

/// Makes the two conditions that the kubelet waits for. A daemon that answers is ready to run pods.
pub(crate) fn conditions(network_ready: bool, reason: String, message: String) -> v1::RuntimeStatus {
    let runtime = v1::RuntimeCondition { r#type: "RuntimeReady".to_owned(), status: true, ..Default::default() };
    let network = v1::RuntimeCondition { r#type: "NetworkReady".to_owned(), status: network_ready, reason, message };
    v1::RuntimeStatus { conditions: vec![runtime, network] }
}

/// Makes the list of handlers: the default one, without the features that `parse` refuses.
pub(crate) fn handlers() -> Vec<v1::RuntimeHandler> {
    let features = v1::RuntimeHandlerFeatures { recursive_read_only_mounts: false, user_namespaces: false };
    vec![v1::RuntimeHandler { name: String::new(), features: Some(features) }]
}

/// Makes the features of all handlers.
pub(crate) fn features() -> v1::RuntimeFeatures {
    v1::RuntimeFeatures { supplemental_groups_policy: true, user_namespaces_host_network: false, mount_options: false }
}
