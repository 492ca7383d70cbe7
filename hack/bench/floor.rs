//! What the kernel alone charges for one pod with one container: the namespaces, an overlay root by the detached mount
//! API, `pivot_root`, `execve` of a static program and its end. No runtime can be faster.

use std::ffi::CString;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, ensure};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::execv;
use podwright_sys::clone::Fork;
use rustix::fs::CWD;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MountPropagationFlags, MoveMountFlags, UnmountFlags,
    fsconfig_create, fsconfig_set_string, fsmount, fsopen, mount, mount_change, move_mount, unmount,
};
use rustix::process::{Pid, WaitOptions, chdir, pivot_root, waitpid};

use crate::stats::Series;

/// Where the root file system is put together, in the container's own mount namespace.
const TARGET: &str = "/mnt";

/// Measures rounds of a whole pod. `root` has a static `bin/true` in it.
pub(crate) fn measure(root: &Path, rounds: usize) -> anyhow::Result<Series> {
    let work = std::env::temp_dir().join(format!("podwright-floor-{}", std::process::id()));
    let times: anyhow::Result<Vec<f64>> = (0..rounds).map(|round| pod(root, &work.join(round.to_string()))).collect();
    fs::remove_dir_all(&work).with_context(|| format!("remove {}", work.display()))?;
    times.map(Series::new)
}

/// One pod: its namespaces, then its container.
fn pod(lower: &Path, dir: &Path) -> anyhow::Result<f64> {
    let (upper, work) = (dir.join("upper"), dir.join("work"));
    fs::create_dir_all(&upper)?;
    fs::create_dir_all(&work)?;
    let clock = Instant::now();
    let pod = Fork::default().spawn(|| {
        if unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWUTS).is_err() {
            return 1;
        }
        let container = Fork { new_pid_namespace: true, ..Fork::default() };
        container.spawn(|| container_init(lower, &upper, &work)).map_or(2, |child| end_of(child.pid))
    })?;
    let code = end_of(pod.pid);
    let elapsed = clock.elapsed().as_secs_f64() * 1e3;
    ensure!(code == 0, "a round of the floor failed with code {code}: is {} static?", lower.join("bin/true").display());
    Ok(elapsed)
}

/// Waits for a child; its exit code, or 255 when it did not exit.
fn end_of(pid: u32) -> i32 {
    let pid = Pid::from_raw(pid.cast_signed());
    let status = waitpid(pid, WaitOptions::empty()).ok().flatten();
    status.and_then(|(_, status)| status.exit_status()).unwrap_or(255)
}

fn container_init(lower: &Path, upper: &Path, work: &Path) -> i32 {
    match enter(lower, upper, work) {
        Ok(()) => {}
        Err(_) => return 3,
    }
    let program = CString::from(c"/bin/true");
    // It returns only when it failed.
    let _ = execv(&program, &[&program]);
    4
}

fn enter(lower: &Path, upper: &Path, work: &Path) -> rustix::io::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWCGROUP).map_err(|_| rustix::io::Errno::PERM)?;
    mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)?;
    let overlay = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (key, value) in [("lowerdir", lower), ("upperdir", upper), ("workdir", work)] {
        fsconfig_set_string(&overlay, key, value)?;
    }
    fsconfig_create(&overlay)?;
    let root = fsmount(&overlay, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?;
    move_mount(&root, "", CWD, TARGET, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    chdir(TARGET)?;
    for (kind, data) in [("proc", None), ("tmpfs", Some(c"mode=755"))] {
        let target = PathBuf::from(if kind == "proc" { "proc" } else { "dev" });
        // The image may have it already.
        drop(fs::create_dir(&target));
        mount(kind, &target, kind, MountFlags::empty(), data)?;
    }
    pivot_root(".", ".")?;
    unmount(".", UnmountFlags::DETACH)?;
    chdir("/")
}
