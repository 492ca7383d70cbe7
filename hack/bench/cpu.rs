//! The processor time of a runtime: its daemon and the processes it starts, read from `/proc`.

use std::collections::HashMap;
use std::fs;
use std::time::Duration;

use anyhow::Context;

/// Fields of `/proc/<pid>/stat` behind the command: state is the first, the parent the second.
const PARENT: usize = 1;
/// utime, stime, cutime, cstime: the last two are of children that have ended and were waited for.
const TIMES: std::ops::Range<usize> = 11..15;

/// Adds up what a process and its descendants have used, those that ended included.
pub(crate) fn time(daemon: u32) -> anyhow::Result<Duration> {
    let all: HashMap<u32, (u32, u64)> = crate::memory::processes().into_iter().filter_map(read).collect();
    anyhow::ensure!(all.contains_key(&daemon), "process {daemon} has ended");
    let ticks: u64 = all.iter().filter(|(pid, _)| descends(**pid, daemon, &all)).map(|(_, (_, ticks))| ticks).sum();
    Ok(Duration::from_millis(ticks * 1000 / rustix::param::clock_ticks_per_second()))
}

/// Tells whether a process is `ancestor`, or below it.
fn descends(mut pid: u32, ancestor: u32, all: &HashMap<u32, (u32, u64)>) -> bool {
    loop {
        if pid == ancestor {
            return true;
        }
        match all.get(&pid) {
            Some((parent, _)) if *parent != pid => pid = *parent,
            _ => return false,
        }
    }
}

/// A process's parent and its ticks; `None` once it is gone.
fn read(pid: u32) -> Option<(u32, (u32, u64))> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command is in brackets and may hold anything, brackets too.
    let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split_ascii_whitespace().collect();
    let ticks = fields.get(TIMES)?.iter().filter_map(|field| field.parse::<u64>().ok()).sum();
    Some((pid, (fields.get(PARENT)?.parse().ok()?, ticks)))
}

/// Bytes that a process has written, to sockets and files alike.
pub(crate) fn written(pid: u32) -> anyhow::Result<u64> {
    let path = format!("/proc/{pid}/io");
    let text = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    let value = text.lines().find_map(|line| line.strip_prefix("wchar: "));
    value.with_context(|| format!("{path} has no wchar"))?.parse().context("a number of bytes")
}
