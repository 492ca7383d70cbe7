//! Device rules: as compiled for either version, against the kernel.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use oci_spec::runtime::Spec;
use podwright_compile::{CgroupDriver, CgroupLayout, HostFacts, SeccompArch, Standalone};
use podwright_launch::cgroup;
use podwright_plan::wire::{Cause, CgroupDir, CgroupPlan, CgroupWrite, DeviceUpdate, UpdateResources};
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use serde_json::{Value, json};

use crate::Case;
use crate::fixture::{Fixture, has_v1};

pub(crate) const CASES: &[Case] = &[
    ("device_rules_hold", device_rules_hold),
    ("updated_device_rules_replace_the_earlier_ones", updated_device_rules_replace_the_earlier_ones),
    ("device_rules_of_v1_are_taken_back", device_rules_of_v1_are_taken_back),
    ("compiled_rules_decide_alike_on_both_versions", compiled_rules_decide_alike_on_both_versions),
];

/// `struct bpf_insn[]`: every device may be made, and used unless its minor number is 5.
fn refuse_minor_5() -> Vec<u8> {
    let instruction = |code: u8, registers: u8, offset: i16, value: i32| {
        [&[code, registers][..], &offset.to_ne_bytes(), &value.to_ne_bytes()].concat()
    };
    let (load, shift, set, unless, when, give) = (0x61, 0x77, 0xb7, 0x55, 0x15, 0x95);
    [
        // r2: the access (1: mknod), r3: the minor number, r0: the answer
        instruction(load, 0x12, 0, 0),
        instruction(shift, 0x02, 0, 16),
        instruction(load, 0x13, 8, 0),
        instruction(set, 0x00, 0, 1),
        instruction(unless, 0x03, 2, 5),
        instruction(when, 0x02, 1, 1),
        instruction(set, 0x00, 0, 0),
        instruction(give, 0x00, 0, 0),
    ]
    .concat()
}

fn device_rules_hold() {
    let fixture = Fixture::new();
    let script = "head -c 1 /dev/zero 2>&1; cat /dev/null && echo null";
    let mut plan = fixture.plan("c", script);
    plan.cgroup.as_mut().unwrap().device_program = refuse_minor_5();
    let ended = fixture.run(&plan);
    assert_eq!(ended.stdout, "head: /dev/zero: Operation not permitted\nnull\n", "{}", ended.stderr);

    let mut plan = fixture.plan("bad", "true");
    plan.cgroup.as_mut().unwrap().device_program = vec![0; 8];
    let Err(failure) = podwright_launch::start(&fixture.pod, &plan) else { panic!("it started") };
    assert_eq!((failure.cause, &*failure.step), (Cause::Internal, "attach device rules"));
    assert!(!Path::new(&plan.cgroup.unwrap().unified).exists());
    fixture.finish();
}

/// Attaches a program to a running container, in the place of the one before it.
fn attach(unified: &str, program: Vec<u8>) {
    let devices = Some(DeviceUpdate { unified: unified.to_owned(), program });
    cgroup::update(&UpdateResources { devices, ..UpdateResources::default() }).unwrap();
}

fn updated_device_rules_replace_the_earlier_ones() {
    let fixture = Fixture::new();
    let mut plan = fixture.plan("c", "exec sleep 1000");
    plan.cgroup.as_mut().unwrap().device_program = refuse_minor_5();
    let unified = plan.cgroup.as_ref().unwrap().unified.clone();
    let running = fixture.start(&plan).unwrap();
    let directory = || rustix::fs::open(&unified, OFlags::DIRECTORY | OFlags::RDONLY, Mode::empty()).unwrap();
    assert_eq!(podwright_sys::bpf::device_programs(directory()), Ok(1));
    // One that refuses everything, then one that allows everything: of several, each would have to consent.
    let answer = |value: u8| [[0xb7, 0, 0, 0, value, 0, 0, 0], [0x95, 0, 0, 0, 0, 0, 0, 0]].concat();
    attach(&unified, answer(0));
    assert_eq!(podwright_sys::bpf::device_programs(directory()), Ok(1));
    assert_eq!(in_cgroup(&unified, &[("/dev/null", OFlags::RDONLY)]), [false]);
    attach(&unified, answer(1));
    assert_eq!(podwright_sys::bpf::device_programs(directory()), Ok(1));
    assert_eq!(in_cgroup(&unified, &[("/dev/null", OFlags::RDONLY)]), [true]);
    running.kill();
    fixture.finish();
}

/// v1 has files for device rules, which are not read where they are written.
fn device_rules_of_v1_are_taken_back() {
    let fixture = Fixture::new();
    if !has_v1() {
        return fixture.finish();
    }
    let group = Group::new("devices");
    let list = || std::fs::read_to_string(group.0.join("devices.list")).unwrap();
    let write = |file: &str, value: &str| CgroupWrite { file: file.into(), value: value.into(), ..Default::default() };
    let rules = |last: &str| {
        let writes = vec![write("devices.deny", "a"), write("devices.allow", "c 1:3 rw"), write("devices.allow", last)];
        let dirs = vec![CgroupDir { path: group.path(), writes }];
        UpdateResources { dirs, ..UpdateResources::default() }
    };
    cgroup::update(&rules("c 5:* m")).unwrap();
    assert_eq!(list(), "c 1:3 rw\nc 5:* m\n");
    let failure = cgroup::update(&rules("garbage")).unwrap_err();
    assert_eq!(failure.detail, "garbage");
    // The kernel puts what is allowed anew in front.
    let mut lines: Vec<String> = list().lines().map(str::to_owned).collect();
    lines.sort();
    assert_eq!(lines, ["c 1:3 rw", "c 5:* m"]);
    drop(group);
    fixture.finish();
}

/// A cgroup of this process's own in one hierarchy, removed at the end.
struct Group(PathBuf);

impl Group {
    fn new(hierarchy: &str) -> Self {
        let path = Path::new("/sys/fs/cgroup").join(hierarchy).join(format!("podwright-rules-{}", std::process::id()));
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn path(&self) -> String {
        self.0.to_str().unwrap().to_owned()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        cgroup::remove(&self.0).unwrap();
    }
}

/// Tells for each device whether a process of a cgroup may open it so.
fn in_cgroup(dir: &str, asked: &[(&str, OFlags)]) -> Vec<bool> {
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    let procs = format!("{dir}/cgroup.procs");
    let keep = [writer.as_fd()];
    let fork = podwright_sys::clone::Fork { keep: &keep, ..Default::default() };
    let child = fork.spawn(|| {
        std::fs::write(&procs, "0").unwrap();
        let answers: Vec<u8> = asked.iter().map(|(path, flags)| u8::from(may_open(path, *flags))).collect();
        i32::from(rustix::io::write(&writer, &answers) != Ok(answers.len()))
    });
    let child = child.unwrap();
    drop(writer);
    let mut answers = Vec::new();
    std::io::Read::read_to_end(&mut std::fs::File::from(reader), &mut answers).unwrap();
    let pid = rustix::process::Pid::from_raw(child.pid.try_into().unwrap()).unwrap();
    rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty()).unwrap();
    assert_eq!(answers.len(), asked.len());
    answers.into_iter().map(|answer| answer == 1).collect()
}

/// That a device is not there is another answer than that it may not be used.
fn may_open(path: &str, flags: OFlags) -> bool {
    let opened: Result<OwnedFd, Errno> =
        rustix::fs::open(path, flags | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty());
    !matches!(opened, Err(Errno::PERM))
}

/// Facts of a host with one hierarchy, at which the real one is mounted.
fn facts(mountinfo: &str) -> HostFacts {
    HostFacts {
        cgroup: CgroupLayout::parse(mountinfo, "devices\t1\t1\t1\n", "").unwrap(),
        last_cap: 40,
        seccomp_arch: SeccompArch::X86_64,
        kernel: (6, 1),
        apparmor: false,
        selinux: false,
    }
}

fn compiled(rules: &Value, facts: &HostFacts, name: &str) -> CgroupPlan {
    let spec: Spec = serde_json::from_value(json!({
        "ociVersion": "1.3.0",
        "root": {"path": "rootfs"},
        "process": {"user": {"uid": 0, "gid": 0}, "args": ["sh"], "cwd": "/"},
        "linux": {
            "namespaces": [{"type": "mount"}, {"type": "pid"}],
            "cgroupsPath": name,
            "resources": {"devices": rules}
        }
    }))
    .unwrap();
    let driver = CgroupDriver::Cgroupfs(None);
    let standalone = Standalone { id: "c", bundle: Path::new("/"), preserve_fds: 0, cgroup_driver: driver };
    podwright_compile::standalone(&spec, &standalone, facts).unwrap().cgroup.unwrap()
}

/// The rules that a container may have, and for each node of `NODES` whether reading and writing it is allowed.
fn rule_lists() -> [(Value, [(bool, bool); 4]); 5] {
    let rule = |allow: bool, kind: &str, major: i64, minor: Option<i64>, access: &str| json!({"allow": allow, "type": kind, "major": major, "minor": minor, "access": access});
    let all = |allow: bool| json!({"allow": allow, "access": "rwm"});
    let yes = (true, true);
    let no = (false, false);
    [
        (json!([all(false)]), [yes, no, no, no]),
        (json!([all(false), all(true)]), [yes, yes, yes, yes]),
        (
            json!([all(false), rule(true, "c", 10, None, "r"), rule(true, "b", 7, Some(1), "rw")]),
            [yes, (true, false), (true, false), yes],
        ),
        (
            json!([all(false), rule(true, "c", 10, Some(201), "rwm"), rule(false, "c", 10, Some(201), "r")]),
            [yes, no, (false, true), no],
        ),
        (
            json!([all(true), rule(false, "c", 10, Some(200), "w"), rule(false, "b", 7, None, "rwm")]),
            [yes, (true, false), yes, no],
        ),
    ]
}

/// Nodes in a directory of the test: /dev/null, two misc devices and a loop device, whether their drivers are there or not.
const NODES: [(FileType, u32, u32); 4] = [
    (FileType::CharacterDevice, 1, 3),
    (FileType::CharacterDevice, 10, 200),
    (FileType::CharacterDevice, 10, 201),
    (FileType::BlockDevice, 7, 1),
];

fn compiled_rules_decide_alike_on_both_versions() {
    let fixture = Fixture::new();
    let directory = fixture.dir.path().join("nodes");
    std::fs::create_dir(&directory).unwrap();
    let nodes: Vec<String> = NODES
        .iter()
        .map(|(kind, major, minor)| {
            let path = directory.join(format!("{major}-{minor}"));
            let device = rustix::fs::makedev(*major, *minor);
            rustix::fs::mknodat(rustix::fs::CWD, &path, *kind, Mode::RUSR | Mode::WUSR, device).unwrap();
            path.to_str().unwrap().to_owned()
        })
        .collect();
    let asked: Vec<(&str, OFlags)> =
        nodes.iter().flat_map(|path| [(path.as_str(), OFlags::RDONLY), (path.as_str(), OFlags::WRONLY)]).collect();
    let v2 = crate::fixture::unified();
    let mut versions = vec![format!("41 31 0:38 / {} rw - cgroup2 cgroup2 rw\n", v2.display())];
    if has_v1() {
        versions.push("36 31 0:33 / /sys/fs/cgroup/devices rw - cgroup cgroup rw,devices\n".to_owned());
    }
    for (index, (rules, expected)) in rule_lists().iter().enumerate() {
        let expected: Vec<bool> = expected.iter().flat_map(|(read, write)| [*read, *write]).collect();
        for mountinfo in &versions {
            let name = format!("/podwright-rules-{}-{index}", std::process::id());
            let plan = compiled(rules, &facts(mountinfo), &name);
            let dir = plan.join.first().unwrap_or(&plan.unified).clone();
            apply(&plan, &dir);
            let answers = in_cgroup(&dir, &asked);
            cgroup::remove(Path::new(&dir)).unwrap();
            assert_eq!(answers, expected, "{rules} on {mountinfo}");
        }
    }
    fixture.finish();
}

/// Makes a plan's directory and gives it its rules, as an update would.
fn apply(plan: &CgroupPlan, dir: &str) {
    std::fs::create_dir(dir).unwrap();
    let writes = plan.dirs.iter().find(|it| it.path == dir).unwrap().writes.clone();
    let devices = Some(DeviceUpdate { unified: plan.unified.clone(), program: plan.device_program.clone() });
    let update = UpdateResources {
        dirs: vec![CgroupDir { path: dir.to_owned(), writes }],
        devices: devices.filter(|devices| !devices.program.is_empty()),
        ..UpdateResources::default()
    };
    cgroup::update(&update).unwrap();
}
