//! Questions and farewells to control groups that the launch crate, which makes and kills them, does not need.

use std::fs;
use std::path::{Path, PathBuf};

use podwright_plan::wire::CgroupPlan;
use rustix::io::Errno;

/// Whether any process is in a cgroup or below it. A directory that is missing has none.
pub(crate) fn populated(dir: &Path) -> bool {
    // v2 keeps the answer for the whole subtree; only its root directory, which nobody kills, has no such file.
    if let Ok(events) = fs::read_to_string(dir.join("cgroup.events")) {
        return events.lines().any(|line| line == "populated 1");
    }
    if fs::read(dir.join("cgroup.procs")).is_ok_and(|processes| !processes.is_empty()) {
        return true;
    }
    let Ok(entries) = fs::read_dir(dir) else { return false };
    entries.flatten().any(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()) && populated(&entry.path()))
}

/// Removes a cgroup directory if nothing is in it; whether it is gone.
pub(crate) fn remove_empty(dir: &Path) -> bool {
    matches!(rustix::fs::rmdir(dir), Ok(()) | Err(Errno::NOENT))
}

/// The directories that a plan's process is in: not their parents, which others share.
pub(crate) fn leaves(plan: &CgroupPlan) -> Vec<PathBuf> {
    let mut leaves: Vec<PathBuf> = Vec::new();
    for dir in plan.join.iter().chain([&plan.unified, &plan.exec_parent]) {
        if !dir.is_empty() && !leaves.iter().any(|leaf| leaf == Path::new(dir)) {
            leaves.push(dir.into());
        }
    }
    leaves
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_v2_cgroup_answers_for_its_subtree_and_v1_is_searched() {
        let dir = tempfile::tempdir().unwrap();
        let below = dir.path().join("exec-1");
        fs::create_dir(&below).unwrap();
        fs::write(dir.path().join("cgroup.procs"), "").unwrap();
        fs::write(below.join("cgroup.procs"), "").unwrap();
        assert!(!populated(dir.path()));
        fs::write(below.join("cgroup.procs"), "12\n").unwrap();
        assert!(populated(dir.path()));
        fs::write(dir.path().join("cgroup.events"), "populated 0\nfrozen 0\n").unwrap();
        assert!(!populated(dir.path()));
        fs::write(dir.path().join("cgroup.events"), "populated 1\nfrozen 0\n").unwrap();
        assert!(populated(dir.path()));
        assert!(!populated(&dir.path().join("missing")));
    }

    #[test]
    fn the_leaves_of_a_plan_are_named_once() {
        let plan = CgroupPlan {
            unified: "/u/c".into(),
            join: vec!["/m/c".into(), "/f/c".into()],
            exec_parent: "/u/c".into(),
            ..Default::default()
        };
        assert_eq!(leaves(&plan), ["/m/c", "/f/c", "/u/c"].map(PathBuf::from));
    }
}
