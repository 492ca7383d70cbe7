//! `update`: new limits for a running container.

use std::fs::File;
use std::io::{Read, stdin};
use std::path::Path;

use oci_spec::runtime::LinuxResources;
use podwright_plan::wire::SystemdUnit;
use serde_json::{Map, Value};

use crate::args::{Globals, Update};
use crate::error::Error;
use crate::limits;
use crate::state::{Container, Status};

/// A flag, and the field of `linux.resources` that it is.
#[derive(Debug)]
pub(crate) struct Limit {
    pub(crate) flag: &'static str,
    path: [&'static str; 2],
    kind: Kind,
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Number,
    /// A number with a unit behind it, or -1.
    Bytes,
    Text,
}

const fn limit(flag: &'static str, path: [&'static str; 2], kind: Kind) -> Limit {
    Limit { flag, path, kind }
}

/// All that can be changed by a flag.
pub(crate) const LIMITS: [Limit; 15] = [
    limit("blkio-weight", ["blockIO", "weight"], Kind::Number),
    limit("cpu-period", ["cpu", "period"], Kind::Number),
    limit("cpu-quota", ["cpu", "quota"], Kind::Number),
    limit("cpu-burst", ["cpu", "burst"], Kind::Number),
    limit("cpu-share", ["cpu", "shares"], Kind::Number),
    limit("cpu-idle", ["cpu", "idle"], Kind::Number),
    limit("cpu-rt-period", ["cpu", "realtimePeriod"], Kind::Number),
    limit("cpu-rt-runtime", ["cpu", "realtimeRuntime"], Kind::Number),
    limit("cpuset-cpus", ["cpu", "cpus"], Kind::Text),
    limit("cpuset-mems", ["cpu", "mems"], Kind::Text),
    limit("memory", ["memory", "limit"], Kind::Bytes),
    limit("memory-reservation", ["memory", "reservation"], Kind::Bytes),
    limit("memory-swap", ["memory", "swap"], Kind::Bytes),
    limit("memory-swappiness", ["memory", "swappiness"], Kind::Number),
    limit("pids-limit", ["pids", "limit"], Kind::Number),
];

/// Does `update`.
pub(crate) fn update(globals: &Globals, args: &Update) -> Result<(), Error> {
    let container = Container::find(&globals.root, &args.id)?;
    let mut resources = match &args.resources {
        Some(path) => read(path)?,
        None => from_flags(&args.limits)?,
    };
    let _lock = container.home.lock()?;
    match container.status()? {
        Status::Stopped => return Err(container.refuse("update", Status::Stopped)),
        Status::Created | Status::Running | Status::Paused => {}
    }
    let (path, mut specification) = container.raw_specification()?;
    limits::complete(&mut resources, &specification["linux"]["resources"]);
    limits::record(&mut specification, &resources);
    let resources = parsed(resources)?;
    let facts = podwright_host::facts()?;
    let update = podwright_compile::update(&args.id, &resources, &container.place()?, &facts.cgroup);
    let update = update.map_err(|source| Error::Specification { path: path.clone(), source })?;
    let updated = podwright_launch::cgroup::update(&update)?;
    if let Err(error) = settle(&container, update.systemd.as_ref(), &specification) {
        let lost = updated.undo();
        return Err(if lost.is_empty() { error } else { Error::CleanUp([vec![error.to_string()], lost].concat()) });
    }
    Ok(())
}

/// Tells systemd, whose next reload would bring back what it believes, and keeps the specification.
fn settle(container: &Container, unit: Option<&SystemdUnit>, specification: &Value) -> Result<(), Error> {
    if let Some(unit) = unit {
        podwright_systemd::update(unit)?;
    }
    container.home.keep_specification(specification)
}

fn read(path: &Path) -> Result<Value, Error> {
    let mut bytes = Vec::new();
    let read = match path == Path::new("-") {
        true => stdin().read_to_end(&mut bytes),
        false => File::open(path).and_then(|mut file| file.read_to_end(&mut bytes)),
    };
    read.map_err(Error::file("read", path))?;
    serde_json::from_slice(&bytes).map_err(|source| Error::Json { path: path.to_owned(), source })
}

fn parsed(resources: Value) -> Result<LinuxResources, Error> {
    let wrong = |source: serde_json::Error| Error::argument("limits", source, "is what is wrong with them");
    serde_json::from_value(resources).map_err(wrong)
}

fn from_flags(flags: &[(String, String)]) -> Result<Value, Error> {
    let mut resources = Map::new();
    for (flag, text) in flags {
        let Some(limit) = LIMITS.iter().find(|limit| limit.flag == flag) else { continue };
        let value = match limit.kind {
            Kind::Text => Some(Value::from(text.as_str())),
            Kind::Number => text.parse::<i64>().ok().map(Value::from),
            Kind::Bytes => bytes(text).map(Value::from),
        };
        let value = value.ok_or_else(|| Error::argument(limit.flag, text, "is no number"))?;
        let [group, field] = limit.path;
        if let Some(group) = resources.entry(group).or_insert_with(|| Map::new().into()).as_object_mut() {
            group.insert(field.to_owned(), value);
        }
    }
    Ok(resources.into())
}

/// Reads an amount: bytes, or k, m, g, t of 1024, with a `b` or `ib` behind it.
fn bytes(text: &str) -> Option<i64> {
    let text = text.trim().to_ascii_lowercase();
    let end = text.find(|c: char| !(c.is_ascii_digit() || c == '-')).unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let shift = match unit.trim_end_matches('b').trim_end_matches('i') {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        _ => return None,
    };
    number.parse::<i64>().ok()?.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_become_limits() {
        let flags =
            [("memory", "64m"), ("memory-swap", "-1"), ("cpu-share", "512"), ("cpuset-cpus", "0"), ("pids-limit", "9")];
        let flags = flags.map(|(flag, value)| (flag.to_owned(), value.to_owned()));
        let resources = parsed(from_flags(&flags).unwrap()).unwrap();
        let memory = resources.memory().as_ref().unwrap();
        assert_eq!((memory.limit(), memory.swap()), (Some(64 << 20), Some(-1)));
        let cpu = resources.cpu().as_ref().unwrap();
        assert_eq!((cpu.shares(), cpu.cpus().as_deref(), cpu.quota()), (Some(512), Some("0"), None));
        assert_eq!(resources.pids().as_ref().unwrap().limit(), 9);
        for bad in ["", "x", "1q", "9999999999g"] {
            assert!(from_flags(&[("memory".to_owned(), bad.to_owned())]).is_err(), "{bad}");
        }
    }

    #[test]
    fn amounts_have_units() {
        for (text, amount) in [("1", 1), ("2k", 2048), ("3MiB", 3 << 20), ("1Gb", 1 << 30), ("-1", -1)] {
            assert_eq!(bytes(text), Some(amount), "{text}");
        }
    }
}
