//! `list` and `state`: containers as they are.

use crate::args::{Globals, List, print};
use crate::error::Error;
use crate::state::{Container, Shown, Status};

/// Does `state`.
pub(crate) fn state(globals: &Globals, id: &str) -> Result<(), Error> {
    let container = Container::find(&globals.root, id)?;
    let shown = show(&container)?;
    print(&format!("{}\n", json(&serde_json::to_string_pretty(&shown))?))
}

/// Does `list`.
pub(crate) fn list(globals: &Globals, args: &List) -> Result<(), Error> {
    let containers = Container::all(&globals.root)?;
    if args.quiet {
        let ids: Vec<_> = containers.iter().map(|container| format!("{}\n", container.record.id)).collect();
        return print(&ids.concat());
    }
    let shown = containers.iter().map(show).collect::<Result<Vec<_>, _>>()?;
    if args.json {
        return print(&format!("{}\n", json(&serde_json::to_string(&shown))?));
    }
    let header = ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"].map(str::to_owned);
    let rows = shown.iter().map(|it| {
        let bundle = it.bundle.display().to_string();
        [it.id.into(), it.pid.to_string(), it.status.into(), bundle, it.created.into(), it.owner.into()]
    });
    print(&table(&[header].into_iter().chain(rows).collect::<Vec<_>>()))
}

fn show(container: &Container) -> Result<Shown<'_>, Error> {
    let status = container.status()?;
    let pid = if status == Status::Stopped { 0 } else { container.record.pid };
    Ok(container.record.shown(status.as_str(), pid))
}

/// A record holds text and numbers alone, and was JSON before.
fn json(text: &serde_json::Result<String>) -> Result<&str, Error> {
    text.as_deref().map_err(|error| Error::Output(std::io::Error::other(error.to_string())))
}

fn table<const N: usize>(rows: &[[String; N]]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default();
    let widths: Vec<usize> = (0..N).map(width).collect();
    let line = |row: &[String; N]| {
        let cells: Vec<_> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        format!("{}\n", cells.join("  ").trim_end())
    };
    rows.iter().map(line).collect()
}
