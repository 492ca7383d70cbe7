//! Properties for files of the v2 cgroup that a specification names (`linux.resources.unified`).

use std::collections::{BTreeMap, HashMap};

use podwright_plan::wire::UnitProperty;

use super::properties::{INFINITY, idle, number, quota, set_of};
use crate::error::{CompileError, invalid};

/// Files that hold one limit, their properties, and the version that has them.
const LIMITS: [(&str, &str, u32); 7] = [
    ("memory.high", "MemoryHigh", 0),
    ("memory.low", "MemoryLow", 0),
    ("memory.max", "MemoryMax", 0),
    ("memory.min", "MemoryMin", 0),
    ("memory.swap.max", "MemorySwapMax", 0),
    ("memory.zswap.max", "MemoryZSwapMax", 253),
    ("pids.max", "TasksMax", 0),
];

/// Makes properties of what systemd has one for; the rest is in the cgroup's files alone.
pub(super) fn properties(files: &HashMap<String, String>) -> Result<Vec<UnitProperty>, CompileError> {
    let sorted: BTreeMap<_, _> = files.iter().collect();
    let mut properties = Vec::new();
    for (file, value) in sorted {
        let refuse = || invalid(format!("linux.resources.unified[{file}]"), value, "is no value for this file");
        properties.extend(of_file(file, value.trim()).map_err(|BadValue| refuse())?);
    }
    Ok(properties)
}

/// A value that the kernel would not take either.
struct BadValue;

fn of_file(file: &str, value: &str) -> Result<Vec<UnitProperty>, BadValue> {
    if let Some((_, name, since)) = LIMITS.iter().find(|(known, ..)| *known == file) {
        let mut limit = if value == "max" { INFINITY } else { value.parse().map_err(|_| BadValue)? };
        // systemd takes no zero for it; one is as good, since the container's first process is there.
        if file == "pids.max" {
            limit = limit.max(1);
        }
        return Ok(vec![UnitProperty { since: *since, ..number(name, limit) }]);
    }
    Ok(match file {
        "cpu.idle" if value == "1" => vec![idle()],
        "cpu.weight" => vec![number("CPUWeight", value.parse().map_err(|_| BadValue)?)],
        "cpu.max" => cpu_max(value)?,
        "cpuset.cpus" => vec![set_of("AllowedCPUs", value).ok_or(BadValue)?],
        "cpuset.mems" => vec![set_of("AllowedMemoryNodes", value).ok_or(BadValue)?],
        "io.weight" => io_weight(value).into_iter().collect(),
        _ => Vec::new(),
    })
}

fn cpu_max(value: &str) -> Result<Vec<UnitProperty>, BadValue> {
    let mut words = value.split_ascii_whitespace();
    let first = words.next().ok_or(BadValue)?;
    let limit = if first == "max" { None } else { Some(first.parse().map_err(|_| BadValue)?) };
    let period = words.next().map(|it| it.parse().ok().filter(|it| *it != 0).ok_or(BadValue)).transpose()?;
    if words.next().is_some() { Err(BadValue) } else { Ok(quota(limit, period)) }
}

/// The weight of all devices; that of one stays in the file.
fn io_weight(value: &str) -> Option<UnitProperty> {
    let value = value.strip_prefix("default").unwrap_or(value).trim();
    value.parse().ok().map(|weight| number("IOWeight", weight))
}

#[cfg(test)]
mod tests {
    use podwright_plan::wire::unit_property::Value;

    use super::*;

    fn compiled(file: &str, value: &str) -> Result<Vec<(String, Option<Value>)>, String> {
        let files = HashMap::from([(file.to_owned(), value.to_owned())]);
        let all = properties(&files).map_err(|error| error.to_string())?;
        Ok(all.into_iter().map(|property| (property.name, property.value)).collect())
    }

    #[test]
    fn files_that_systemd_writes_too_are_told_to_it() {
        for (file, value, name, expected) in [
            ("memory.high", "max", "MemoryHigh", INFINITY),
            ("memory.max", " 4096\n", "MemoryMax", 4096),
            ("pids.max", "0", "TasksMax", 1),
            ("cpu.weight", "7", "CPUWeight", 7),
            ("cpu.idle", "1", "CPUWeight", 0),
            ("cpu.max", "50000", "CPUQuotaPerSecUSec", 500_000),
            ("io.weight", "default 33", "IOWeight", 33),
        ] {
            assert_eq!(compiled(file, value).unwrap(), [(name.to_owned(), Some(Value::Number(expected)))], "{file}");
        }
        assert_eq!(compiled("cpu.max", "max 20000").unwrap().len(), 2);
    }

    #[test]
    fn others_are_left_to_the_files() {
        for (file, value) in
            [("memory.oom.group", "1"), ("hugetlb.2MB.max", "0"), ("io.weight", "8:0 3"), ("cpu.idle", "0")]
        {
            assert_eq!(compiled(file, value), Ok(Vec::new()), "{file}");
        }
    }

    #[test]
    fn a_bad_value_is_told_with_its_file() {
        for (file, value) in
            [("memory.max", "1G"), ("cpu.max", ""), ("cpu.max", "1 0"), ("cpu.max", "1 2 3"), ("cpuset.cpus", "a")]
        {
            let error = compiled(file, value).unwrap_err();
            assert!(error.starts_with(&format!("linux.resources.unified[{file}]")), "{error}");
        }
    }
}
