//! Percentiles, and the table.

use std::fmt::Write;

use serde::Serialize;

use crate::client::Cycle;
use crate::pods::{Report, Runtime};
use crate::pull::{Pull, Pulls};

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
pub(crate) fn pods(report: &Report) -> String {
    let names: Vec<&str> = report.runtimes.iter().map(|runtime| runtime.name.as_str()).collect();
    let mut text = head("ms, p50 (p90)", &names);
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

/// Draws a Markdown table of pulls: medians, with the least and the most in brackets, and as shares of the last runtime's.
pub(crate) fn pulls(report: &[Pulls]) -> String {
    let names: Vec<&str> = report.iter().map(|runtime| runtime.name.as_str()).collect();
    let mut text = head("seconds, p50 (least–most), share", &names);
    let Some(last) = report.last() else { return text };
    let mut row = |name: &str, value: fn(&Pull) -> f64, digits: usize| {
        let of = |runtime: &Pulls| Series::new(runtime.pulls.iter().map(value).collect());
        let base = of(last).percentile(0.5);
        let _ = write!(text, "| {name} |");
        for runtime in report {
            let series = of(runtime);
            let (least, p50, most) = (series.percentile(0.0), series.percentile(0.5), series.percentile(1.0));
            let _ = write!(text, " {p50:.digits$} ({least:.digits$}–{most:.digits$})");
            let share = if base > 0.0 { format!(" {:.2} |", p50 / base) } else { " – |".to_owned() };
            text.push_str(&share);
        }
        text.push('\n');
    };
    row("wall, until PullImage answers", |pull| pull.answered / 1e3, 2);
    row("wall, until all is on disk", |pull| pull.synced / 1e3, 2);
    row("processor time of the daemon and its children", |pull| pull.cpu / 1e3, 2);
    #[allow(clippy::cast_precision_loss)] // far below 2^53
    row("served by the registry, MB", |pull| pull.served as f64 / 1e6, 1);
    text
}

/// The first two lines of a table.
pub(crate) fn head(what: &str, names: &[&str]) -> String {
    format!("| {what} | {} |\n|---|{}\n", names.join(" | "), "---:|".repeat(names.len()))
}

fn row(text: &mut String, report: &Report, name: &str, cell: impl Fn(&Runtime) -> String) {
    let _ = write!(text, "| {name} |");
    for runtime in &report.runtimes {
        let _ = write!(text, " {} |", cell(runtime));
    }
    text.push('\n');
}

fn times(cycles: &[Cycle], value: impl Fn(&Cycle) -> f64) -> String {
    cell(&Series::new(cycles.iter().map(value).collect()))
}

/// Median and 90th percentile.
pub(crate) fn cell(series: &Series) -> String {
    format!("{:.1} ({:.1})", series.percentile(0.5), series.percentile(0.9))
}

fn memory(runtime: &Runtime, value: impl Fn(&crate::memory::Memory) -> u64) -> String {
    runtime.memory.as_ref().map_or_else(|| "–".to_owned(), |memory| value(memory).to_string())
}
