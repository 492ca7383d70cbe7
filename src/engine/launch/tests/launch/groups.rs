//! Control groups: placement, limits all or nothing, kill and removal.

use std::path::Path;

use podwright_launch::cgroup;
use podwright_plan::wire::{Cause, CgroupDir, CgroupWrite, UpdateResources};
use rustix::io::Errno;

use crate::Case;
use crate::fixture::{Fixture, group, has_v1};

pub(crate) const CASES: &[Case] = &[
    ("a_container_is_in_its_cgroups", a_container_is_in_its_cgroups),
    ("a_refused_limit_leaves_no_cgroup", a_refused_limit_leaves_no_cgroup),
    ("an_update_is_all_or_nothing", an_update_is_all_or_nothing),
    ("a_limit_below_what_is_used_is_refused", a_limit_below_what_is_used_is_refused),
    ("one_of_two_files_is_enough", one_of_two_files_is_enough),
    ("a_frozen_container_stands_still", a_frozen_container_stands_still),
    ("a_kill_reaches_the_whole_tree", a_kill_reaches_the_whole_tree),
    ("an_oom_kill_is_counted", an_oom_kill_is_counted),
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
        cgroup::update(&changed(&path, writes))
    };
    let failure = update("garbage").unwrap_err();
    assert_eq!((&*failure.step, failure.kernel_error()), ("write cgroup file", Some(Errno::INVAL)));
    assert_eq!(value(), "67108864\n");
    let updated = update("16777216").unwrap();
    assert_eq!(value(), "16777216\n");
    // Two writes of one file are taken back one by one.
    assert_eq!(updated.undo(), Vec::<String>::new());
    assert_eq!(value(), "67108864\n");
    running.kill();
    fixture.finish();
}

/// The writes of an update into one directory.
fn changed(path: &str, writes: Vec<CgroupWrite>) -> UpdateResources {
    UpdateResources { dirs: vec![CgroupDir { path: path.to_owned(), writes }], ..UpdateResources::default() }
}

fn a_limit_below_what_is_used_is_refused() {
    let fixture = Fixture::new();
    let mut plan = fixture.plan("c", "exec sleep 1000");
    let running = fixture.start(&plan).unwrap();
    let path = limit(&mut plan.cgroup.as_mut().unwrap().dirs, "memory").path.clone();
    let usage = if has_v1() { "memory.usage_in_bytes" } else { "memory.current" };
    let checked = |value: &str| CgroupWrite { not_below: usage.into(), ..write(memory_limit(), value) };
    let failure = cgroup::update(&changed(&path, vec![checked("4096")])).unwrap_err();
    assert_eq!((&*failure.step, failure.kernel_error()), ("lower limit", Some(Errno::BUSY)));
    assert!(failure.detail.starts_with("4096 is below the "), "{}", failure.detail);
    cgroup::update(&changed(&path, vec![checked("1073741824")])).unwrap();
    running.kill();
    fixture.finish();
}

fn one_of_two_files_is_enough() {
    let fixture = Fixture::new();
    let mut plan = fixture.plan("c", "exec sleep 1000");
    let running = fixture.start(&plan).unwrap();
    let path = limit(&mut plan.cgroup.as_mut().unwrap().dirs, "memory").path.clone();
    let with = |other: &str| CgroupWrite { optional_with: other.into(), ..write("memory.no-such-file", "1") };
    cgroup::update(&changed(&path, vec![with(memory_limit())])).unwrap();
    let failure = cgroup::update(&changed(&path, vec![with("memory.nor-this")])).unwrap_err();
    assert_eq!(failure.kernel_error(), Some(Errno::NOENT));
    running.kill();
    fixture.finish();
}

fn a_frozen_container_stands_still() {
    let fixture = Fixture::new();
    let plan = fixture.plan("c", "while :; do echo x; done");
    let mut running = fixture.start(&plan).unwrap();
    let podwright_launch::Stdio::Pipes { stdout, .. } = &mut running.stdio else { panic!("no pipes") };
    let dir = Path::new(&plan.cgroup.as_ref().unwrap().exec_parent);
    assert_eq!(cgroup::is_frozen(dir), Ok(false));
    cgroup::freeze(dir, std::time::Duration::from_secs(10)).unwrap();
    assert_eq!(cgroup::is_frozen(dir), Ok(true));
    // What was written before is drained; then nothing more comes.
    let mut buffer = [0; 65536];
    while rustix::io::read(&*stdout, &mut buffer).is_ok_and(|length| length > 0) {}
    assert_eq!(rustix::io::read(&*stdout, &mut buffer), Err(Errno::AGAIN));
    cgroup::thaw(dir).unwrap();
    assert_eq!(cgroup::is_frozen(dir), Ok(false));
    let mut fd = [rustix::event::PollFd::new(&*stdout, rustix::event::PollFlags::IN)];
    rustix::event::poll(&mut fd, None).unwrap();
    assert!(rustix::io::read(&*stdout, &mut buffer).unwrap() > 0);
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
