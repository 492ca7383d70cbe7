//! `linux.resources.unified`: files of the v2 cgroup by name.

use std::collections::{BTreeMap, HashMap};

use super::limits::{Limits, write};
use crate::error::{CompileError, invalid};
use crate::facts::Home;

/// The files of the core that limit. The rest moves processes, kills, freezes or delegates: no limits.
const CORE_LIMITS: [&str; 2] = ["cgroup.max.depth", "cgroup.max.descendants"];

pub(super) fn limits(limits: &mut Limits<'_>, files: &HashMap<String, String>) -> Result<(), CompileError> {
    let sorted: BTreeMap<_, _> = files.iter().collect();
    for (file, value) in sorted {
        let refuse = |problem| Err(invalid("linux.resources.unified", file, problem));
        if file.contains(['/', '\0']) {
            return refuse("is no file's name");
        }
        let Some((controller, _)) = file.split_once('.') else {
            return refuse("is not of the form controller.file");
        };
        let home = if controller != "cgroup" {
            limits.find(controller)
        } else if CORE_LIMITS.contains(&file.as_str()) {
            limits.layout().v2().map(Home::V2)
        } else {
            return refuse("is no limit");
        };
        match home {
            // The kernel takes one line a write, where a file has several (io.max).
            Some(home @ Home::V2(_)) => {
                limits.add(home, value.split('\n').filter(|line| !line.is_empty()).map(|line| write(file, line)));
            }
            _ => return refuse("belongs to a controller that this host does not have on cgroup v2"),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::tests::{hybrid, unified};

    fn compiled(file: &str, facts: &crate::HostFacts) -> Result<usize, String> {
        let path = "/a".parse().unwrap();
        let mut collected = Limits::new(&facts.cgroup, &path);
        let files = HashMap::from([(file.to_owned(), "1".to_owned())]);
        limits(&mut collected, &files).map_err(|error| error.to_string())?;
        Ok(collected.into_dirs().iter().map(|dir| dir.writes.len()).sum())
    }

    #[test]
    fn files_of_controllers_and_limits_of_the_core_are_written() {
        for file in ["memory.oom.group", "memory.high", "cgroup.max.depth"] {
            assert_eq!(compiled(file, &unified()), Ok(1), "{file}");
        }
        assert_eq!(compiled("hugetlb.2MB.max", &hybrid()), Ok(1));
    }

    #[test]
    fn what_is_no_v2_limit_is_refused() {
        for file in
            ["memory/../../x.max", "memory", "cgroup.procs", "cgroup.kill", "cgroup.subtree_control", "net_cls.x"]
        {
            assert!(compiled(file, &unified()).is_err(), "{file}");
        }
        assert!(compiled("memory.high", &hybrid()).is_err());
    }
}
