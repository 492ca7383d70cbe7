//! Plans for the tests' pods: a busybox image, cgroups of this host's kind.

use std::fs;
use std::path::Path;

use podwright_plan::wire::{
    CgroupDir, CgroupPlan, CgroupWrite, ContainerPlan, Device, DeviceKind, ExecPlan, FsMount, Log, MemoryEvents, Mount,
    NamespaceMode, PodPlan, Process, Rootfs, Stdio, mount,
};

use super::Shim;

/// The v2 hierarchy, and where memory is limited: in it, or in a v1 hierarchy beside it.
struct Hierarchies {
    v2: &'static str,
    memory: &'static str,
}

fn hierarchies() -> Hierarchies {
    if Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        Hierarchies { v2: "/sys/fs/cgroup", memory: "/sys/fs/cgroup" }
    } else {
        Hierarchies { v2: "/sys/fs/cgroup/unified", memory: "/sys/fs/cgroup/memory" }
    }
}

impl Shim {
    pub(crate) fn pod(&self) -> PodPlan {
        PodPlan {
            pod_id: self.id.clone(),
            hostname: "pod".into(),
            shm_size: 1 << 20,
            cgroup: Some(self.cgroup("shim", None)),
            ..Default::default()
        }
    }

    /// A container that runs a script, logging to a file of its name.
    pub(crate) fn container(&self, id: &str, script: &str) -> ContainerPlan {
        let writable = self.path(&format!("rootfs-{id}"));
        for dir in ["upper", "work"] {
            fs::create_dir_all(writable.join(dir)).unwrap();
        }
        ContainerPlan {
            id: id.into(),
            pid: NamespaceMode::NamespacePrivate.into(),
            rootfs: Some(Rootfs {
                layers_dir: self.path("layers").to_str().unwrap().into(),
                lower: vec!["busybox".into()],
                writable_dir: writable.to_str().unwrap().into(),
                ..Default::default()
            }),
            mounts: vec![fs_mount("proc", "/proc"), fs_mount("tmpfs", "/dev"), fs_mount("devpts", "/dev/pts")],
            devices: vec![device("/dev/null", 3), device("/dev/zero", 5)],
            cgroup: Some(self.cgroup(id, None)),
            process: Some(process(script)),
            log: Some(Log { path: self.path(id).to_str().unwrap().into(), ..Default::default() }),
            ..Default::default()
        }
    }

    pub(crate) fn exec(&self, container: &str, id: &str, script: &str) -> ExecPlan {
        ExecPlan {
            container_id: container.into(),
            exec_id: id.into(),
            process: Some(process(script)),
            ..Default::default()
        }
    }

    /// A cgroup of the pod's, with a limit on memory in bytes.
    pub(crate) fn cgroup(&self, name: &str, memory: Option<u64>) -> CgroupPlan {
        let Hierarchies { v2, memory: limited } = hierarchies();
        let leaf = |mount: &str| format!("{mount}/{}-{name}", self.id);
        let unified = CgroupDir { path: leaf(v2), writes: Vec::new() };
        let (file, events, join) = if v2 == limited {
            ("memory.max", "memory.events", Vec::new())
        } else {
            ("memory.limit_in_bytes", "memory.oom_control", vec![leaf(limited)])
        };
        let write = |value: u64| CgroupWrite { file: file.into(), value: value.to_string(), ..Default::default() };
        let limits = CgroupDir { path: leaf(limited), writes: memory.map(write).into_iter().collect() };
        CgroupPlan {
            unified: unified.path.clone(),
            exec_parent: unified.path.clone(),
            memory_events: Some(MemoryEvents { path: format!("{}/{events}", limits.path) }),
            join,
            dirs: if v2 == limited { vec![limits] } else { vec![unified, limits] },
            ..Default::default()
        }
    }
}

/// An exec whose output goes to a pipe.
pub(crate) fn with_stdout(plan: ExecPlan) -> ExecPlan {
    ExecPlan { stdio: Some(Stdio { stdin: false, stdout: true, stderr: false }), ..plan }
}

fn process(script: &str) -> Process {
    Process {
        args: ["sh", "-c", script].map(|arg| arg.as_bytes().to_vec()).to_vec(),
        env: vec![b"PATH=/bin".to_vec()],
        cwd: "/".into(),
        ..Default::default()
    }
}

fn fs_mount(fs_type: &str, target: &str) -> Mount {
    let fs = FsMount { fs_type: fs_type.into(), source: fs_type.into(), ..Default::default() };
    Mount { kind: Some(mount::Kind::Fs(fs)), target: target.into(), ..Default::default() }
}

fn device(path: &str, minor: u32) -> Device {
    let kind = DeviceKind::DeviceChar.into();
    Device { path: path.into(), kind, major: 1, minor, mode: 0o666, ..Default::default() }
}
