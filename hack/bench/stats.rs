//! Percentiles, and the table.

use std::fmt::Write;

use serde::Serialize;

use crate::client::Cycle;
use crate::{Report, Runtime};

/// Durations in milliseconds.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Series(Vec<f64>);

impl Series {
    /// Sorts them.
    pub(crate) fn new(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        Self(values)
    }

    /// Returns the value that this share of all stays below, 0 when there are none.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
    pub(crate) fn percentile(&self, share: f64) -> f64 {
        let index = (self.0.len() as f64 * share) as usize;
        self.0.get(index.min(self.0.len().saturating_sub(1))).copied().unwrap_or_default()
    }
}

/// Draws the report as a Markdown table: medians, with the 90th percentile in brackets.
pub(crate) fn table(report: &Report) -> String {
    let mut text = String::from("| ms, p50 (p90) |");
    for runtime in &report.runtimes {
        let _ = write!(text, " {} |", runtime.name);
    }
    text.push_str("\n|---|");
    text.push_str(&"---:|".repeat(report.runtimes.len()));
    text.push('\n');
    let pod = |runtime: &Runtime| runtime.pod_network.clone();
    let host = |runtime: &Runtime| runtime.host_network.clone();
    row(&mut text, report, "pod start (Run + Create + Start), pod network", |r| times(&pod(r), Cycle::until_started));
    row(&mut text, report, "pod start, host network", |r| times(&host(r), Cycle::until_started));
    row(&mut text, report, "· RunPodSandbox, pod network", |r| times(&pod(r), |cycle| cycle.run));
    row(&mut text, report, "· CreateContainer", |r| times(&pod(r), |cycle| cycle.create));
    row(&mut text, report, "· StartContainer", |r| times(&pod(r), |cycle| cycle.start));
    row(&mut text, report, "ExecSync /bin/true", |r| times(&pod(r), |cycle| cycle.exec));
    row(&mut text, report, "stop (container and sandbox)", |r| times(&pod(r), |cycle| cycle.stop));
    row(&mut text, report, "whole life, pod network", |r| times(&pod(r), Cycle::whole));
    row(&mut text, report, "daemon PSS, KiB", |r| memory(r, |memory| memory.daemon));
    row(&mut text, report, "runtime's own PSS per pod, KiB", |r| memory(r, |memory| memory.per_pod));
    row(&mut text, report, "MemAvailable drop per pod, KiB", |r| memory(r, |memory| memory.available_drop));
    if let Some(floor) = &report.kernel_floor {
        let (p50, p90) = (floor.percentile(0.5), floor.percentile(0.9));
        let _ = writeln!(text, "\nThe kernel's floor for a pod and a container: {p50:.1} ms ({p90:.1}).");
    }
    text
}

fn row(text: &mut String, report: &Report, name: &str, cell: impl Fn(&Runtime) -> String) {
    let _ = write!(text, "| {name} |");
    for runtime in &report.runtimes {
        let _ = write!(text, " {} |", cell(runtime));
    }
    text.push('\n');
}

fn times(cycles: &[Cycle], value: impl Fn(&Cycle) -> f64) -> String {
    let series = Series::new(cycles.iter().map(value).collect());
    format!("{:.1} ({:.1})", series.percentile(0.5), series.percentile(0.9))
}

fn memory(runtime: &Runtime, value: impl Fn(&crate::memory::Memory) -> u64) -> String {
    runtime.memory.as_ref().map_or_else(|| "–".to_owned(), |memory| value(memory).to_string())
}
