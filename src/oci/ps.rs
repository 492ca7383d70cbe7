//! `ps`: the processes of a container.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::args::{Globals, Ps, print};
use crate::error::Error;
use crate::state::Container;

/// Does `ps`.
pub(crate) fn ps(globals: &Globals, args: &Ps) -> Result<(), Error> {
    let container = Container::find(&globals.root, &args.id)?;
    let facts = container.facts()?;
    let mut pids = Vec::new();
    match facts.kill_dir() {
        Some(dir) => collect(dir, &mut pids)?,
        // Without a cgroup nobody knows of more than the first.
        None => pids.extend(container.pidfd()?.map(|_| container.record.pid)),
    }
    pids.sort_unstable();
    if args.json {
        return print(&format!("{}\n", serde_json::json!(pids)));
    }
    print(&table(&pids, &args.options)?)
}

fn collect(dir: &Path, pids: &mut Vec<u32>) -> Result<(), Error> {
    let file = dir.join("cgroup.procs");
    let procs = match fs::read_to_string(&file) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        procs => procs.map_err(Error::file("read", file))?,
    };
    // 0 is a process that this pid namespace does not see.
    pids.extend(procs.lines().filter_map(|line| line.parse::<u32>().ok()).filter(|pid| *pid != 0));
    for entry in fs::read_dir(dir).map_err(Error::file("list", dir))?.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            collect(&entry.path(), pids)?;
        }
    }
    Ok(())
}

/// What ps(1) says about them.
fn table(pids: &[u32], options: &[String]) -> Result<String, Error> {
    let mut command = Command::new("ps");
    match options {
        [] => command.arg("-ef"),
        options => command.args(options),
    };
    let output = command.output().map_err(Error::file("execute", "ps"))?;
    if !output.status.success() {
        let words = String::from_utf8_lossy(&output.stderr);
        return Err(Error::argument("options of ps", words.trim(), "is what ps says about them"));
    }
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let column = text.lines().next().and_then(|header| header.split_ascii_whitespace().position(|it| it == "PID"));
    let column = column.ok_or_else(|| Error::argument("options of ps", options.join(" "), "leave no column PID"))?;
    let ours = |line: &&str| {
        let pid = line.split_ascii_whitespace().nth(column).and_then(|pid| pid.parse().ok());
        pid.is_some_and(|pid| pids.contains(&pid))
    };
    let lines = text.lines().take(1).chain(text.lines().skip(1).filter(ours));
    Ok(lines.map(|line| format!("{line}\n")).collect())
}
