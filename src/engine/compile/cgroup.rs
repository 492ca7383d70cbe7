//! Control groups: where a container's directories are in every hierarchy, and what is written into them.
//!
//! On a unified host everything is in one directory; on v1 each hierarchy has one; a hybrid host has both, and its v2
//! directory, with few or no controllers, still gives `clone3` a place to start in and `cgroup.kill` one to end in.

mod counts;
mod cpu;
mod device_program;
mod device_rules;
mod io;
mod limits;
mod memory;
mod owner;
mod path;
mod place;
mod systemd;
mod unified;
mod units;

use oci_spec::runtime::{LinuxDeviceCgroup, LinuxResources, Spec};
use podwright_plan::wire::{
    CgroupDir, CgroupMount, CgroupPlan, CgroupView, CgroupWrite, DeviceUpdate, MemoryEvents, UpdateResources,
};

use crate::error::{CompileError, unsupported};
use crate::facts::{CgroupLayout, Home};
use device_rules::DeviceAccess;
use limits::{Limits, inherit, lenient};
pub use path::{CgroupPath, InvalidCgroupPath};
pub use place::{CgroupDriver, CgroupPlace};

/// The file by which a v2 cgroup gives controllers to its children.
const SUBTREE_CONTROL: &str = "cgroup.subtree_control";
const CPUSET_FILES: [&str; 2] = ["cpuset.cpus", "cpuset.mems"];

/// Plans a cgroup without limits: the shim's own.
pub(crate) fn bare(path: &CgroupPath, layout: &CgroupLayout) -> CgroupPlan {
    let leaf = |mount: &String| path.below(mount);
    let unified = layout.v2().map(|v2| leaf(&v2.mount)).unwrap_or_default();
    // Every mount point came as text out of mountinfo.
    let exec_parent = layout.kill_directory(path).map(|dir| dir.to_string_lossy().into_owned()).unwrap_or_default();
    let memory_events = layout.home("memory").map(|home| match home {
        Home::V1(hierarchy) => format!("{}/memory.oom_control", leaf(&hierarchy.mount)),
        Home::V2(hierarchy) => format!("{}/memory.events", leaf(&hierarchy.mount)),
    });
    CgroupPlan {
        dirs: directories(path, layout),
        unified,
        join: layout.v1().iter().map(|hierarchy| leaf(&hierarchy.mount)).collect(),
        device_program: Vec::new(),
        exec_parent,
        memory_events: Some(MemoryEvents { path: memory_events.unwrap_or_default() }),
        systemd: None,
        owner: None,
    }
}

/// Plans a container's cgroup with its limits and device rules: of `spec`, what is in `linux.resources`, and what says to
/// whom the cgroup belongs.
///
/// # Errors
/// When a value is bad or this host cannot enforce it.
pub(crate) fn container(place: &CgroupPlace, spec: &Spec, layout: &CgroupLayout) -> Result<CgroupPlan, CompileError> {
    let resources = spec.linux().as_ref().and_then(|linux| linux.resources().as_ref());
    let mut plan = bare(&place.path, layout);
    let mut limits = Limits::new(layout, &place.path);
    if let Some(resources) = resources {
        limits.resources(resources)?;
    }
    let access = DeviceAccess::from_rules(resources.map(device_rules).unwrap_or_default())?;
    match layout.home("devices") {
        Some(home) => limits.add(home, access.v1_writes()),
        // A new cgroup without a program may use every device.
        None if access.is_everything() => {}
        None if layout.v2().is_some() => plan.device_program = device_program::assemble(&access),
        None => limits.home("devices", "devices").map(|_| ())?,
    }
    for limited in limits.into_dirs() {
        let dir = plan.dirs.iter_mut().find(|dir| dir.path == limited.path);
        let dir = dir.expect("every hierarchy's directory of the cgroup is in the plan");
        // A value that is given takes the place of the parent's.
        dir.writes.retain(|write| !limited.writes.iter().any(|given| write.inherit && given.file == write.file));
        dir.writes.extend(limited.writes);
    }
    if let Some(unit) = &place.unit {
        plan.systemd = Some(systemd::unit(place, unit, resources, &access, layout.is_v2())?);
    }
    plan.owner = layout.v2().and_then(|_| owner::owner(spec));
    Ok(plan)
}

/// Compiles new limits of a running container (CRI `UpdateContainerResources`, OCI `update`).
///
/// What is not given stays as it is. Fields that the kernel has in one file, or checks against each other, are given
/// together: quota and period, limit and swap. Device rules, where there are any, are the whole list.
///
/// # Errors
/// When a value is bad or this host cannot enforce it.
pub fn update(
    container_id: &str,
    resources: &LinuxResources,
    place: &CgroupPlace,
    layout: &CgroupLayout,
) -> Result<UpdateResources, CompileError> {
    let mut update = UpdateResources { container_id: container_id.to_owned(), ..UpdateResources::default() };
    let mut limits = Limits::new(layout, &place.path);
    limits.resources(resources)?;
    let rules = Some(device_rules(resources)).filter(|rules| !rules.is_empty());
    let access = rules.map(DeviceAccess::from_rules).transpose()?;
    match (&access, layout.home("devices")) {
        (None, _) => {}
        (Some(access), Some(home)) => {
            limits.add(home, access.v1_writes());
            update.hold = layout.home("freezer").map(|home| place.path.below(home.mount())).unwrap_or_default();
        }
        (Some(access), None) => {
            let v2 = layout.v2().ok_or_else(|| unsupported("linux.resources.devices without a controller"))?;
            let program = device_program::assemble(access);
            update.devices = Some(DeviceUpdate { unified: place.path.below(&v2.mount), program });
        }
    }
    if let Some(unit) = &place.unit {
        update.systemd = Some(systemd::update(place, unit, resources, access.as_ref(), layout.is_v2())?);
    }
    update.dirs = limits.into_dirs();
    Ok(update)
}

fn device_rules(resources: &LinuxResources) -> &[LinuxDeviceCgroup] {
    resources.devices().as_deref().unwrap_or_default()
}

/// Lists the cgroup's directories, parents first, with what must be in them before a process may come.
fn directories(path: &CgroupPath, layout: &CgroupLayout) -> Vec<CgroupDir> {
    let mut dirs = Vec::new();
    if let Some(v2) = layout.v2() {
        // One write a controller: where one is not delegated to us the others still work, and a limit that needs it
        // fails by its own file's name.
        let enable = || v2.controllers.iter().map(|it| lenient(SUBTREE_CONTROL, format!("+{it}"))).collect();
        let parents = [v2.mount.clone()].into_iter().chain(path.ancestors_below(&v2.mount));
        dirs.extend(parents.map(|path| CgroupDir { path, writes: enable() }));
        dirs.push(CgroupDir { path: path.below(&v2.mount), writes: Vec::new() });
    }
    for hierarchy in layout.v1() {
        let cpuset = hierarchy.controllers.iter().any(|it| it == "cpuset");
        let writes: Vec<CgroupWrite> =
            if cpuset { CPUSET_FILES.iter().map(|file| inherit(*file)).collect() } else { Vec::new() };
        let below = path.ancestors_below(&hierarchy.mount).into_iter().chain([path.below(&hierarchy.mount)]);
        dirs.extend(below.map(|path| CgroupDir { path, writes: writes.clone() }));
    }
    dirs
}

/// Plans a mount of type `cgroup`: what a container sees of its own cgroup.
pub(crate) fn mount(path: &CgroupPath, layout: &CgroupLayout, namespace: bool) -> CgroupMount {
    let view = |name: &str, mount: &String| CgroupView { name: name.to_owned(), source: path.below(mount) };
    if layout.is_v2() {
        // Without a namespace of its own a fresh mount would show the host's whole tree.
        let bound = layout.v2().filter(|_| !namespace);
        return CgroupMount { views: bound.map(|v2| view("", &v2.mount)).into_iter().collect() };
    }
    let v1 = layout.v1().iter().flat_map(|hierarchy| {
        let names = hierarchy.controllers.iter().chain(&hierarchy.name);
        names.map(|name| view(name, &hierarchy.mount))
    });
    let v2 = layout.v2().map(|v2| view("unified", &v2.mount));
    CgroupMount { views: v1.chain(v2).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::tests::{hybrid, legacy, unified};

    fn path() -> CgroupPath {
        "/podwright/a".parse().unwrap()
    }

    fn planned(resources: &str, layout: &CgroupLayout) -> CgroupPlan {
        let resources: serde_json::Value = serde_json::from_str(resources).unwrap();
        let json = serde_json::json!({"ociVersion": "1.3.0", "linux": {"resources": resources}});
        container(&CgroupPlace::at(path()), &serde_json::from_value(json).unwrap(), layout).unwrap()
    }

    fn updated(resources: &str, layout: &CgroupLayout) -> UpdateResources {
        update("c", &serde_json::from_str(resources).unwrap(), &CgroupPlace::at(path()), layout).unwrap()
    }

    #[test]
    fn a_v2_cgroup_gets_its_controllers_from_every_parent() {
        let plan = bare(&path(), &unified().cgroup);
        let dirs: Vec<_> = plan.dirs.iter().map(|dir| (dir.path.as_str(), dir.writes.len())).collect();
        assert_eq!(dirs, [("/sys/fs/cgroup", 8), ("/sys/fs/cgroup/podwright", 8), ("/sys/fs/cgroup/podwright/a", 0)]);
        assert!(plan.dirs[0].writes.iter().all(|write| write.lenient));
        assert!(plan.join.is_empty());
        assert_eq!(plan.memory_events.unwrap().path, "/sys/fs/cgroup/podwright/a/memory.events");
    }

    #[test]
    fn a_v1_cpuset_is_inherited_all_the_way_unless_given() {
        let plan = planned(r#"{"cpu": {"cpus": "0-1"}}"#, &legacy().cgroup);
        let writes = |dir: &str| {
            let dir = plan.dirs.iter().find(|it| it.path == dir).unwrap();
            dir.writes.iter().map(|it| (it.file.as_str(), it.value.as_str(), it.inherit)).collect::<Vec<_>>()
        };
        let inherited = [("cpuset.cpus", "", true), ("cpuset.mems", "", true)];
        assert_eq!(writes("/sys/fs/cgroup/cpuset/podwright"), inherited);
        assert_eq!(
            writes("/sys/fs/cgroup/cpuset/podwright/a"),
            [("cpuset.mems", "", true), ("cpuset.cpus", "0-1", false)]
        );
        assert_eq!(plan.exec_parent, "/sys/fs/cgroup/freezer/podwright/a");
        assert_eq!(plan.unified, "");
    }

    #[test]
    fn a_hybrid_cgroup_joins_v1_and_starts_in_v2() {
        let plan = planned("{}", &hybrid().cgroup);
        assert_eq!(plan.join.len(), 8);
        assert_eq!(plan.unified, "/sys/fs/cgroup/unified/podwright/a");
        assert_eq!(plan.exec_parent, plan.unified);
        assert!(plan.device_program.is_empty(), "the v1 controller has the rules");
        assert_eq!(plan.memory_events.unwrap().path, "/sys/fs/cgroup/memory/podwright/a/memory.oom_control");
    }

    #[test]
    fn a_container_sees_its_own_cgroup_only() {
        assert!(mount(&path(), &unified().cgroup, true).views.is_empty());
        let whole = mount(&path(), &unified().cgroup, false).views;
        assert_eq!(whole, [CgroupView { name: String::new(), source: "/sys/fs/cgroup/podwright/a".to_owned() }]);
        let views = mount(&path(), &hybrid().cgroup, true).views;
        let source = |name: &str| views.iter().find(|view| view.name == name).map(|view| view.source.as_str());
        assert_eq!(source("cpuacct"), Some("/sys/fs/cgroup/cpu,cpuacct/podwright/a"));
        assert_eq!(source("systemd"), Some("/sys/fs/cgroup/systemd/podwright/a"));
        assert_eq!(source("unified"), Some("/sys/fs/cgroup/unified/podwright/a"));
    }

    #[test]
    fn an_update_touches_only_what_it_names() {
        let update = updated(r#"{"memory": {"limit": 1000}}"#, &unified().cgroup);
        assert_eq!(update.dirs.len(), 1);
        assert_eq!((update.dirs[0].writes.len(), update.dirs[0].writes[0].file.as_str()), (1, "memory.max"));
        assert_eq!((update.devices, update.hold.as_str(), update.systemd), (None, "", None));
    }

    #[test]
    fn updated_device_rules_take_the_place_of_the_earlier_ones() {
        let everything = r#"{"devices": [{"allow": true, "access": "rwm"}]}"#;
        let v2 = updated(everything, &unified().cgroup);
        let devices = v2.devices.unwrap();
        assert_eq!(devices.unified, "/sys/fs/cgroup/podwright/a");
        // A program that allows everything: none would leave the old one in force.
        assert!(!devices.program.is_empty() && v2.dirs.is_empty());
        let v1 = updated(everything, &legacy().cgroup);
        assert_eq!((v1.devices, v1.hold.as_str()), (None, "/sys/fs/cgroup/freezer/podwright/a"));
        assert_eq!(v1.dirs[0].writes, [limits::write("devices.allow", "a")]);
    }
}
