//! What pods can leave on a host: looked for where the kernel and the daemon keep it, not asked of the daemon.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use podwright_base::{Layout, paths::NETNS_DIR};

/// Describes everything that a daemon's pods left; empty when all are gone without a trace. `daemon` is the daemon's own
/// process, which is no residue while it runs.
pub(crate) fn of(layout: &Layout, bridge: &str, daemon: Option<u32>) -> Vec<String> {
    let mut left = Vec::new();
    left.extend(netns_pins(layout).iter().map(|pin| format!("network namespace pin {}", pin.display())));
    let links = links(layout, bridge);
    left.extend(links.iter().map(|link| format!("link {}", link.display())));
    left.extend(mounts(layout).into_iter().map(|line| format!("mount: {line}")));
    for parent in cgroup_parents(layout) {
        left.extend(
            entries(&parent).iter().filter(|path| path.is_dir()).map(|path| format!("cgroup {}", path.display())),
        );
    }
    for dir in [layout.pods(), layout.state_pods()] {
        left.extend(entries(&dir).iter().map(|path| format!("directory {}", path.display())));
    }
    left.extend(leases(&layout.network()).iter().map(|path| format!("address lease {}", path.display())));
    for pid in processes(layout) {
        if daemon != Some(pid) {
            left.push(format!("process {pid}: {}", command_line(pid)));
        }
    }
    if let Some(daemon) = daemon {
        left.extend(children(daemon).iter().map(|pid| format!("child {pid} of the daemon: {}", command_line(*pid))));
    }
    left
}

/// Lines of the host's mount table that name the daemon's directories or its namespace pins.
pub(crate) fn mounts(layout: &Layout) -> Vec<String> {
    let table = fs::read_to_string("/proc/self/mountinfo").expect("the mount table");
    let state = format!("{}/", layout.state().display());
    let root = format!("{}/", layout.root().display());
    let pins = format!("{NETNS_DIR}/{}", layout.netns_prefix());
    table
        .lines()
        .filter(|line| line.contains(&state) || line.contains(&root) || line.contains(&pins))
        .map(str::to_owned)
        .collect()
}

/// Pins of the daemon's network namespaces.
pub(crate) fn netns_pins(layout: &Layout) -> Vec<PathBuf> {
    let prefix = layout.netns_prefix();
    let own = |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&prefix));
    entries(Path::new(NETNS_DIR)).into_iter().filter(own).collect()
}

/// The daemon's links but for its bridge: ports of the bridge, and what bears the daemon's mark as its alias.
fn links(layout: &Layout, bridge: &str) -> Vec<PathBuf> {
    let mark = format!("podwright-{} ", layout.instance().expect("the state directory is not the default one"));
    let alias = |link: &PathBuf| fs::read_to_string(link.join("ifalias")).unwrap_or_default();
    let ports = entries(&Path::new("/sys/class/net").join(bridge).join("brif"));
    let marked = entries(Path::new("/sys/class/net")).into_iter().filter(|link| alias(link).starts_with(&mark));
    marked.filter(|link| !link.ends_with(bridge)).chain(ports).collect()
}

/// Takes away what is left: for after a failed test. What a running daemon keeps between pods (its bridge, its packet filter
/// rules, its empty cgroup) goes too.
pub(crate) fn clear(layout: &Layout, bridge: &str) {
    // A cgroup is only removed once the last process in it is gone, which takes a moment after its death.
    for _ in 0..500 {
        let alive = processes(layout);
        if alive.is_empty() {
            break;
        }
        for pid in alive {
            let pid = nix::unistd::Pid::from_raw(pid.cast_signed());
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    for pin in netns_pins(layout) {
        let _ = nix::mount::umount2(&pin, nix::mount::MntFlags::MNT_DETACH);
        let _ = fs::remove_file(pin);
    }
    for parent in cgroup_parents(layout) {
        remove_cgroup(&parent);
    }
    quietly("ip", &["link", "delete", bridge]);
    let tables = std::process::Command::new("nft").args(["list", "tables"]).output();
    let tables = tables.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    let instance = layout.instance().expect("the state directory is not the default one");
    for table in tables.lines().filter(|line| line.contains(&instance) || line.contains(bridge)) {
        let name: Vec<_> = table.split_whitespace().skip(1).collect();
        quietly("nft", &[&["delete", "table"], name.as_slice()].concat());
    }
}

/// The daemon's default cgroup in every hierarchy that has it.
fn cgroup_parents(layout: &Layout) -> Vec<PathBuf> {
    let table = fs::read_to_string("/proc/self/mountinfo").expect("the mount table");
    let parent = layout.default_cgroup_parent();
    let hierarchies: BTreeSet<_> = table
        .lines()
        .filter_map(|line| {
            let (before, after) = line.split_once(" - ")?;
            after.starts_with("cgroup").then(|| before.split(' ').nth(4)).flatten()
        })
        .collect();
    hierarchies
        .into_iter()
        .map(|mount| Path::new(mount).join(parent.trim_start_matches('/')))
        .filter(|path| path.is_dir())
        .collect()
}

/// Processes that run in the daemon's cgroups or that were started with its state directory: daemon, shims, containers. A
/// zombie is its parent's affair: init's, once a shim has died.
fn processes(layout: &Layout) -> Vec<u32> {
    let parent = layout.default_cgroup_parent();
    let state = layout.state().to_string_lossy().into_owned();
    let config = layout.state().with_file_name("config.toml").to_string_lossy().into_owned();
    let own = |pid: &u32| {
        let cgroups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        let line = command_line(*pid);
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        if stat.rsplit(") ").next().is_some_and(|fields| fields.starts_with('Z')) {
            return false;
        }
        let placed = cgroups.lines().filter_map(|line| line.splitn(3, ':').nth(2));
        placed.into_iter().any(|path| path == parent || path.starts_with(&format!("{parent}/")))
            || line.contains(&state)
            || line.contains(&config)
    };
    entries(Path::new("/proc"))
        .iter()
        .filter_map(|path| path.file_name()?.to_str()?.parse().ok())
        .filter(|pid| *pid != std::process::id())
        .filter(own)
        .collect()
}

/// Child processes, zombies included.
fn children(pid: u32) -> Vec<u32> {
    entries(&PathBuf::from(format!("/proc/{pid}/task")))
        .iter()
        .filter_map(|task| fs::read_to_string(task.join("children")).ok())
        .flat_map(|pids| pids.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>())
        .collect()
}

fn command_line(pid: u32) -> String {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&line).replace('\0', " ")
}

/// Files of the built-in network that name a pod: a lease says whose it is, by its file's name or in its text.
fn leases(dir: &Path) -> Vec<PathBuf> {
    let names_pod = |text: &[u8]| text.split(|byte| !byte.is_ascii_hexdigit()).any(|word| word.len() == 64);
    let mut found = Vec::new();
    for path in entries(dir) {
        if path.is_dir() {
            found.extend(leases(&path));
        } else if names_pod(path.as_os_str().as_encoded_bytes()) || fs::read(&path).is_ok_and(|text| names_pod(&text)) {
            found.push(path);
        }
    }
    found
}

fn remove_cgroup(dir: &Path) {
    for child in entries(dir).iter().filter(|path| path.is_dir()) {
        remove_cgroup(child);
    }
    let _ = fs::remove_dir(dir);
}

fn quietly(program: &str, arguments: &[&str]) {
    let _ = std::process::Command::new(program)
        .args(arguments)
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .status();
}

/// A directory's entries, none when it does not exist.
fn entries(dir: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<_> =
        fs::read_dir(dir).map(|entries| entries.flatten().map(|entry| entry.path()).collect()).unwrap_or_default();
    paths.sort();
    paths
}
