//! What a plan depends on beyond the specification: facts of this host, read by the caller and handed in as values.

use std::path::{Path, PathBuf};

use crate::cgroup::CgroupPath;
use crate::seccomp::SeccompArch;

/// Facts of the host that containers are compiled for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostFacts {
    /// Where control groups are.
    pub cgroup: CgroupLayout,
    /// The highest capability the kernel knows (`/proc/sys/kernel/cap_last_cap`).
    pub last_cap: u8,
    /// The native calling convention.
    pub seccomp_arch: SeccompArch,
    /// The kernel's major and minor version.
    pub kernel: (u32, u32),
    /// Whether AppArmor is on.
    pub apparmor: bool,
    /// Whether SELinux is on.
    pub selinux: bool,
}

/// Where the host's control groups are mounted: unified (v2 alone), legacy (v1) or hybrid (both).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CgroupLayout {
    v1: Vec<V1Hierarchy>,
    v2: Option<V2Hierarchy>,
}

/// One mounted v1 hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct V1Hierarchy {
    pub(crate) mount: String,
    /// The controllers that share it; none in a named hierarchy.
    pub(crate) controllers: Vec<String>,
    /// What a hierarchy without controllers is told by, such as `systemd`.
    pub(crate) name: Option<String>,
}

/// The v2 hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct V2Hierarchy {
    pub(crate) mount: String,
    /// What its root's `cgroup.controllers` lists: all that no v1 hierarchy has taken.
    pub(crate) controllers: Vec<String>,
}

/// Where a controller's files are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Home<'a> {
    V1(&'a V1Hierarchy),
    V2(&'a V2Hierarchy),
}

/// Why the texts of `/proc` describe no usable control groups.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FactsError {
    /// Neither version is mounted.
    #[error("/proc/self/mountinfo lists no cgroup file system")]
    NoCgroups,
    /// A line that is not of the kernel's form.
    #[error("/proc/self/mountinfo: malformed line {line:?}")]
    Malformed {
        /// The line.
        line: String,
    },
}

impl Home<'_> {
    /// Where the hierarchy is mounted.
    pub(crate) fn mount(&self) -> &str {
        match self {
            Home::V1(hierarchy) => &hierarchy.mount,
            Home::V2(hierarchy) => &hierarchy.mount,
        }
    }
}

impl CgroupLayout {
    /// Reads the layout from `/proc/self/mountinfo`, `/proc/cgroups` and the v2 root's `cgroup.controllers` (empty when there
    /// is no v2 mount).
    ///
    /// # Errors
    /// When no control groups are mounted, or a line is malformed.
    pub fn parse(mountinfo: &str, proc_cgroups: &str, v2_controllers: &str) -> Result<Self, FactsError> {
        let known: Vec<&str> = proc_cgroups
            .lines()
            .filter(|line| !line.starts_with('#'))
            .filter_map(|line| line.split_ascii_whitespace().next())
            .collect();
        let mut layout = Self { v1: Vec::new(), v2: None };
        for line in mountinfo.lines().filter(|line| !line.is_empty()) {
            let mount = MountLine::parse(line).ok_or_else(|| FactsError::Malformed { line: line.to_owned() })?;
            match mount.fs_type {
                "cgroup2" if layout.v2.is_none() => {
                    let controllers = v2_controllers.split_ascii_whitespace().map(str::to_owned).collect();
                    layout.v2 = Some(V2Hierarchy { mount: mount.point, controllers });
                }
                "cgroup" => layout.add_v1(mount, &known),
                _ => {}
            }
        }
        if layout.v1.is_empty() && layout.v2.is_none() { Err(FactsError::NoCgroups) } else { Ok(layout) }
    }

    fn add_v1(&mut self, mount: MountLine<'_>, known: &[&str]) {
        let words = || mount.super_options.split(',');
        let controllers: Vec<String> = words().filter(|word| known.contains(word)).map(str::to_owned).collect();
        let name = words().find_map(|word| word.strip_prefix("name=")).map(str::to_owned);
        // The same hierarchy may be mounted twice; the first place is as good as any.
        let seen = self.v1.iter().any(|present| present.controllers == controllers && present.name == name);
        if !seen && (!controllers.is_empty() || name.is_some()) {
            self.v1.push(V1Hierarchy { mount: mount.point, controllers, name });
        }
    }

    /// Where the v2 hierarchy is mounted, if anywhere.
    pub fn v2_mount(&self) -> Option<&Path> {
        self.v2.as_ref().map(|v2| Path::new(&v2.mount))
    }

    /// Tells whether the host has v2 alone.
    pub fn is_v2(&self) -> bool {
        self.v1.is_empty()
    }

    /// Returns every directory that a cgroup has, for clean-up.
    pub fn directories(&self, path: &CgroupPath) -> Vec<PathBuf> {
        let mounts = self.v2.iter().map(|v2| &v2.mount).chain(self.v1.iter().map(|v1| &v1.mount));
        mounts.map(|mount| path.below(mount).into()).collect()
    }

    /// Returns the directory through which all of a cgroup's processes are best killed: that of v2 with its
    /// `cgroup.kill`, else the freezer's, which holds them still meanwhile, else any that lists them.
    pub fn kill_directory(&self, path: &CgroupPath) -> Option<PathBuf> {
        let freezer = || self.v1.iter().find(|v1| v1.controllers.iter().any(|controller| controller == "freezer"));
        let v1 = || freezer().or_else(|| self.v1.first()).map(|v1| &v1.mount);
        self.v2.as_ref().map(|v2| &v2.mount).or_else(v1).map(|mount| path.below(mount).into())
    }

    /// Returns where a controller's hierarchy is mounted, and whether that is v2; `None` when this host lacks it.
    pub fn controller(&self, controller: &str) -> Option<(&Path, bool)> {
        self.home(controller).map(|home| match home {
            Home::V1(hierarchy) => (Path::new(&hierarchy.mount), false),
            Home::V2(hierarchy) => (Path::new(&hierarchy.mount), true),
        })
    }

    pub(crate) fn v1(&self) -> &[V1Hierarchy] {
        &self.v1
    }

    pub(crate) fn v2(&self) -> Option<&V2Hierarchy> {
        self.v2.as_ref()
    }

    /// Finds where a controller lives. The v1 and v2 names differ for one: `blkio` and `io`.
    pub(crate) fn home(&self, controller: &str) -> Option<Home<'_>> {
        let v1_name = if controller == "io" { "blkio" } else { controller };
        let v1 = self.v1.iter().find(|hierarchy| hierarchy.controllers.iter().any(|it| it == v1_name));
        let v2 = || self.v2.as_ref().filter(|v2| v2.controllers.iter().any(|it| it == controller));
        v1.map(Home::V1).or_else(|| v2().map(Home::V2))
    }
}

/// The fields of a line of `mountinfo` (proc_pid_mountinfo(5)) that matter here.
struct MountLine<'a> {
    point: String,
    fs_type: &'a str,
    super_options: &'a str,
}

impl<'a> MountLine<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        // A variable number of optional fields ends with a lone dash.
        let (before, after) = line.split_once(" - ")?;
        let mut after = after.split(' ');
        Some(Self { point: unescape(before.split(' ').nth(4)?), fs_type: after.next()?, super_options: after.nth(1)? })
    }
}

/// Undoes the kernel's octal escapes of space, tab, newline and backslash.
fn unescape(text: &str) -> String {
    text.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    const PROC_CGROUPS: &str = "#subsys_name\thierarchy\tnum_cgroups\tenabled\n\
        cpuset\t3\t1\t1\ncpu\t1\t1\t1\ncpuacct\t1\t1\t1\nblkio\t7\t1\t1\nmemory\t4\t1\t1\ndevices\t5\t1\t1\n\
        freezer\t6\t1\t1\nnet_cls\t0\t1\t1\nnet_prio\t0\t1\t1\nhugetlb\t0\t1\t1\npids\t8\t1\t1\nrdma\t0\t1\t1\n";
    const V1_MOUNTS: &str = "\
        31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755\n\
        32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct\n\
        34 31 0:31 / /sys/fs/cgroup/cpuset rw,relatime - cgroup cgroup rw,cpuset\n\
        35 31 0:32 / /sys/fs/cgroup/memory rw,relatime shared:7 - cgroup cgroup rw,memory\n\
        36 31 0:33 / /sys/fs/cgroup/devices rw,relatime - cgroup cgroup rw,devices\n\
        37 31 0:34 / /sys/fs/cgroup/freezer rw,relatime - cgroup cgroup rw,freezer\n\
        38 31 0:35 / /sys/fs/cgroup/blkio rw,relatime - cgroup cgroup rw,blkio\n\
        39 31 0:36 / /sys/fs/cgroup/pids rw,relatime - cgroup cgroup rw,pids\n\
        40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,name=systemd\n";

    fn facts(cgroup: CgroupLayout) -> HostFacts {
        HostFacts {
            cgroup,
            last_cap: 40,
            seccomp_arch: SeccompArch::X86_64,
            kernel: (6, 18),
            apparmor: false,
            selinux: false,
        }
    }

    /// A host with v2 alone.
    pub(crate) fn unified() -> HostFacts {
        let mountinfo = "24 20 0:22 / /sys/fs/cgroup rw,nosuid,nodev - cgroup2 cgroup2 rw,nsdelegate\n";
        let controllers = "cpuset cpu io memory hugetlb pids rdma misc\n";
        facts(CgroupLayout::parse(mountinfo, PROC_CGROUPS, controllers).unwrap())
    }

    /// A host with v1 alone.
    pub(crate) fn legacy() -> HostFacts {
        facts(CgroupLayout::parse(V1_MOUNTS, PROC_CGROUPS, "").unwrap())
    }

    /// A host with its limits on v1 and an almost empty v2.
    pub(crate) fn hybrid() -> HostFacts {
        let v2 = "41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n";
        facts(CgroupLayout::parse(&format!("{V1_MOUNTS}{v2}"), PROC_CGROUPS, "hugetlb\n").unwrap())
    }

    #[test]
    fn a_unified_host() {
        let layout = unified().cgroup;
        assert!(layout.is_v2());
        assert!(matches!(layout.home("memory"), Some(Home::V2(_))));
        assert_eq!(layout.home("devices"), None);
        let path: CgroupPath = "/podwright/a".parse().unwrap();
        assert_eq!(layout.kill_directory(&path).unwrap(), Path::new("/sys/fs/cgroup/podwright/a"));
        assert_eq!(layout.directories(&path), [PathBuf::from("/sys/fs/cgroup/podwright/a")]);
    }

    #[test]
    fn a_hybrid_host_keeps_each_controller_where_it_is() {
        let layout = hybrid().cgroup;
        assert!(!layout.is_v2());
        let Some(Home::V1(cpu)) = layout.home("cpu") else { panic!("cpu is on v1") };
        assert_eq!(cpu.mount, "/sys/fs/cgroup/cpu,cpuacct");
        assert!(matches!(layout.home("io"), Some(Home::V1(_))));
        assert!(matches!(layout.home("hugetlb"), Some(Home::V2(_))));
        let path: CgroupPath = "podwright".parse().unwrap();
        assert_eq!(layout.directories(&path).len(), 9);
        assert_eq!(layout.kill_directory(&path).unwrap(), Path::new("/sys/fs/cgroup/unified/podwright"));
    }

    #[test]
    fn a_legacy_host_kills_through_the_freezer() {
        let layout = legacy().cgroup;
        let dir = layout.kill_directory(&"/a".parse().unwrap());
        assert_eq!(dir.as_deref(), Some(Path::new("/sys/fs/cgroup/freezer/a")));
        assert!(layout.directories(&"/a".parse().unwrap()).contains(&PathBuf::from("/sys/fs/cgroup/systemd/a")));
    }

    #[test]
    fn a_second_mount_of_a_hierarchy_is_passed_over() {
        let twice = format!("{V1_MOUNTS}50 31 0:32 / /mnt/my\\040memory rw - cgroup cgroup rw,memory\n");
        assert_eq!(CgroupLayout::parse(&twice, PROC_CGROUPS, "").unwrap(), legacy().cgroup);
    }

    #[test]
    fn no_cgroups_and_nonsense_are_told_apart() {
        let tmpfs = "31 23 0:28 / /tmp rw,relatime - tmpfs tmpfs rw\n";
        assert_eq!(CgroupLayout::parse(tmpfs, PROC_CGROUPS, ""), Err(FactsError::NoCgroups));
        assert!(matches!(CgroupLayout::parse("31 23", PROC_CGROUPS, ""), Err(FactsError::Malformed { .. })));
    }
}
