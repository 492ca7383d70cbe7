//! Which pods and containers a list holds. All criteria of a filter must fit; an empty one always does.

use std::collections::BTreeMap;

use podwright_core::Error;
use podwright_core::view::{ContainerView, PodView};
use podwright_proto::runtime::v1;

use crate::convert;
use crate::parse::field::{Field, known};

/// Criteria for pods.
#[derive(Debug, Default)]
pub(crate) struct PodFilter {
    id: String,
    state: Option<v1::PodSandboxState>,
    labels: BTreeMap<String, String>,
}

impl PodFilter {
    /// Reads a request's filter; an absent one lets all through.
    pub(crate) fn parse(filter: Option<v1::PodSandboxFilter>) -> Result<Self, Error> {
        let Some(filter) = filter else { return Ok(Self::default()) };
        let at = Field::root("filter");
        let state = filter.state.map(|state| known(state.state, at.child("state"))).transpose()?;
        Ok(Self { id: filter.id, state, labels: filter.label_selector })
    }

    /// Tells whether a pod is in the list.
    pub(crate) fn fits(&self, pod: &PodView) -> bool {
        pod.id.as_str().starts_with(&self.id)
            && self.state.is_none_or(|state| state == convert::pod::state(pod))
            && has_all(&pod.config.labels, &self.labels)
    }
}

/// Criteria for containers.
#[derive(Debug, Default)]
pub(crate) struct ContainerFilter {
    id: String,
    pod: String,
    state: Option<v1::ContainerState>,
    labels: BTreeMap<String, String>,
}

impl ContainerFilter {
    /// Reads a request's filter; an absent one lets all through.
    pub(crate) fn parse(filter: Option<v1::ContainerFilter>) -> Result<Self, Error> {
        let Some(filter) = filter else { return Ok(Self::default()) };
        let at = Field::root("filter");
        let state = filter.state.map(|state| known(state.state, at.child("state"))).transpose()?;
        Ok(Self { id: filter.id, pod: filter.pod_sandbox_id, state, labels: filter.label_selector })
    }

    /// Tells whether a container is in the list.
    pub(crate) fn fits(&self, container: &ContainerView) -> bool {
        container.id.as_str().starts_with(&self.id)
            && container.pod.as_str().starts_with(&self.pod)
            && self.state.is_none_or(|state| state == convert::container::state(&container.state))
            && has_all(&container.config.labels, &self.labels)
    }
}

fn has_all(labels: &BTreeMap<String, String>, wanted: &BTreeMap<String, String>) -> bool {
    wanted.iter().all(|(key, value)| labels.get(key) == Some(value))
}

#[cfg(test)]
mod tests {
    use podwright_core::view::ContainerState;

    use super::*;
    use crate::fixtures;

    fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect()
    }

    #[test]
    fn an_absent_filter_lets_all_through() {
        assert!(PodFilter::parse(None).unwrap().fits(&fixtures::pod()));
        assert!(ContainerFilter::parse(None).unwrap().fits(&fixtures::container(ContainerState::Created)));
    }

    #[test]
    fn all_criteria_for_pods_must_fit() {
        let pod = fixtures::pod();
        let ready = v1::PodSandboxStateValue { state: v1::PodSandboxState::SandboxReady.into() };
        let fitting = v1::PodSandboxFilter {
            id: pod.id.short().to_owned(),
            state: Some(ready),
            label_selector: labels(&[("app", "web")]),
        };
        let fits = |filter: v1::PodSandboxFilter| PodFilter::parse(Some(filter)).unwrap().fits(&pod);
        assert!(fits(fitting.clone()));
        let not_ready = v1::PodSandboxStateValue { state: v1::PodSandboxState::SandboxNotready.into() };
        assert!(!fits(v1::PodSandboxFilter { id: "other".to_owned(), ..fitting.clone() }));
        assert!(!fits(v1::PodSandboxFilter { state: Some(not_ready), ..fitting.clone() }));
        assert!(!fits(v1::PodSandboxFilter { label_selector: labels(&[("app", "db")]), ..fitting.clone() }));
        assert!(!fits(v1::PodSandboxFilter { label_selector: labels(&[("app", "web"), ("x", "")]), ..fitting }));
    }

    #[test]
    fn all_criteria_for_containers_must_fit() {
        let container = fixtures::container(ContainerState::Running { pid: 7, started_at: 1 });
        let running = v1::ContainerStateValue { state: v1::ContainerState::ContainerRunning.into() };
        let fitting = v1::ContainerFilter {
            id: container.id.short().to_owned(),
            state: Some(running),
            pod_sandbox_id: container.pod.short().to_owned(),
            label_selector: labels(&[("tier", "front")]),
        };
        let fits = |filter: v1::ContainerFilter| ContainerFilter::parse(Some(filter)).unwrap().fits(&container);
        assert!(fits(fitting.clone()));
        let exited = v1::ContainerStateValue { state: v1::ContainerState::ContainerExited.into() };
        assert!(!fits(v1::ContainerFilter { id: "other".to_owned(), ..fitting.clone() }));
        assert!(!fits(v1::ContainerFilter { state: Some(exited), ..fitting.clone() }));
        assert!(!fits(v1::ContainerFilter { pod_sandbox_id: "other".to_owned(), ..fitting.clone() }));
        assert!(!fits(v1::ContainerFilter { label_selector: labels(&[("tier", "back")]), ..fitting }));
    }

    #[test]
    fn an_unknown_state_is_refused_by_its_field() {
        let state = Some(v1::PodSandboxStateValue { state: 9 });
        let error = PodFilter::parse(Some(v1::PodSandboxFilter { state, ..Default::default() })).unwrap_err();
        assert!(error.to_string().starts_with("filter.state: "), "{error}");
    }
}
