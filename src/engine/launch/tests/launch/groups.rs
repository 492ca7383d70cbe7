//! Control groups: placement, limits all or nothing, kill and removal.

use std::path::Path;

use podwright_launch::cgroup;
use podwright_plan::wire::{Cause, CgroupDir, CgroupWrite};
use rustix::io::Errno;

use crate::Case;
use crate::fixture::{Fixture, group, has_v1};

pub(crate) const CASES: &[Case] = &[
    ("a_container_is_in_its_cgroups", a_container_is_in_its_cgroups),
    ("a_refused_limit_leaves_no_cgroup", a_refused_limit_leaves_no_cgroup),
    ("an_update_is_all_or_nothing", an_update_is_all_or_nothing),
    ("a_kill_reaches_the_whole_tree", a_kill_reaches_the_whole_tree),
    ("an_oom_kill_is_counted", an_oom_kill_is_counted),
    ("device_rules_hold", device_rules_hold),
];

fn write(file: &str, value: &str) -> CgroupWrite {
    CgroupWrite { file: file.into(), value: value.into(), ..CgroupWrite::default() }
}

/// Gives one directory of a plan's cgroups its writes.
fn limit<'a>(dirs: &'a mut [CgroupDir], hierarchy: &str) -> &'a mut CgroupDir {
    let named = |dir: &&mut CgroupDir| !has_v1() || dir.path.starts_with(&format!("/sys/fs/cgroup/{hierarchy}/"));
    dirs.iter_mut().find(named).unwrap()
}

fn a_container_is_in_its_cgroups() {
    let fixture = Fixture::new();
    let plan = fixture.plan("c", "exec sleep 1000");
    let running = fixture.start(&plan).unwrap();
    let groups = plan.cgroup.as_ref().unwrap();
    for dir in groups.join.iter().chain([&groups.unified]) {
        let procs = std::fs::read_to_string(Path::new(dir).join("cgroup.procs")).unwrap();
        assert_eq!(procs, format!("{}\n", running.pid), "{dir}");
    }
    let pods = group("pod");
    for dir in pods.join.iter().chain([&pods.unified]) {
        let procs = std::fs::read_to_string(Path::new(dir).join("cgroup.procs")).unwrap();
        assert_eq!(procs, format!("{}\n", std::process::id()), "{dir}");
    }
    fixture.assert_no_mounts();
    assert_eq!(running.kill().code, 128 + 9);
    fixture.finish();
}

fn a_refused_limit_leaves_no_cgroup() {
    let fixture = Fixture::new();
    let mut plan = fixture.plan("c", "true");
    let groups = plan.cgroup.as_mut().unwrap();
    let dir = limit(&mut groups.dirs, "pids");
    let path = dir.path.clone();
    dir.writes = vec![write("cgroup.max.no-such-file", "1")];
    dir.writes[0].optional = true;
    dir.writes.push(write("cgroup.procs", "garbage"));
    let Err(failure) = podwright_launch::start(&fixture.pod, &plan) else { panic!("it started") };
    let seen = (failure.cause, &*failure.step, failure.subject, failure.detail);
    assert_eq!(seen, (Cause::Internal, "write cgroup file", format!("{path}/cgroup.procs"), "garbage".into()));
    let left: Vec<_> = plan.cgroup.unwrap().dirs.into_iter().filter(|dir| Path::new(&dir.path).exists()).collect();
    assert!(left.is_empty(), "{left:?}");
    fixture.finish();
}

/// The file of the memory limit, by the host's kind.
fn memory_limit() -> &'static str {
    if has_v1() { "memory.limit_in_bytes" } else { "memory.max" }
}

fn an_update_is_all_or_nothing() {
    let fixture = Fixture::new();
    let mut plan = fixture.plan("c", "exec sleep 1000");
    let file = memory_limit();
    limit(&mut plan.cgroup.as_mut().unwrap().dirs, "memory").writes = vec![write(file, "67108864")];
    let running = fixture.start(&plan).unwrap();
    let path = limit(&mut plan.cgroup.as_mut().unwrap().dirs, "memory").path.clone();
    let value = || std::fs::read_to_string(Path::new(&path).join(file)).unwrap();
    let update = |second: &str| {
        let writes = vec![write(file, "33554432"), write(file, second)];
        cgroup::update(&[CgroupDir { path: path.clone(), writes }])
    };
    let failure = update("garbage").unwrap_err();
    assert_eq!((&*failure.step, failure.kernel_error()), ("write cgroup file", Some(Errno::INVAL)));
    assert_eq!(value(), "67108864\n");
    update("16777216").unwrap();
    assert_eq!(value(), "16777216\n");
    running.kill();
    fixture.finish();
}

fn a_kill_reaches_the_whole_tree() {
    let fixture = Fixture::new();
    // Children in sessions of their own, that ignore what can be ignored.
    let script = "trap '' TERM; sleep 1000 & sh -c 'sleep 1000 & exec sleep 1000' & echo up; exec sleep 1000";
    let mut plan = fixture.plan("c", script);
    plan.pid = podwright_plan::wire::NamespaceMode::NamespaceHost.into();
    let running = fixture.start(&plan).unwrap();
    // In the host's pid namespace the init's end is not the end of the rest, which holds the pipes open: that they end
    // shows that all were killed.
    let ended = running.kill();
    assert_eq!(ended.code, 128 + 9);
    fixture.finish();
}

fn an_oom_kill_is_counted() {
    let fixture = Fixture::new();
    // `awk` holds a string that doubles until it no longer fits.
    let script = "awk 'BEGIN { s = \"0123456789abcdef\"; while (1) s = s s }'; echo ended $?";
    let mut plan = fixture.plan("c", script);
    let (files, events) = match has_v1() {
        true => (["memory.limit_in_bytes", "memory.memsw.limit_in_bytes"], "memory.oom_control"),
        false => (["memory.max", "memory.swap.max"], "memory.events"),
    };
    let dir = limit(&mut plan.cgroup.as_mut().unwrap().dirs, "memory");
    // Without swap accounting the second is missing; on v2 it bounds the swap alone.
    let swap = CgroupWrite { optional: true, ..write(files[1], if has_v1() { "33554432" } else { "0" }) };
    dir.writes = vec![write(files[0], "33554432"), swap];
    let events = Path::new(&dir.path).join(events);
    let mut running = fixture.start(&plan).unwrap();
    assert_eq!(cgroup::oom_kills(&events), Ok(0));
    let podwright_launch::Stdio::Pipes { stdout, .. } = &mut running.stdio else { panic!("no pipes") };
    let output = crate::fixture::read_all(stdout);
    assert_eq!(output, format!("ended {}\n", 128 + 9));
    assert_eq!(cgroup::oom_kills(&events), Ok(1));
    running.end();
    assert_eq!(cgroup::oom_kills(&events), Err(Errno::NOENT));
    fixture.finish();
}

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
