//! What a process is beside who it is, read back by a program in the container.

use podwright_plan::wire::{MemoryPolicy, Process, Scheduler, User};
use rustix::io::Errno;

use crate::Case;
use crate::execs;
use crate::fixture::{Fixture, exec_plan};

pub(crate) const CASES: &[Case] = &[
    ("a_scheduler_is_the_planned_one", a_scheduler_is_the_planned_one),
    ("a_deadline_is_kept", a_deadline_is_kept),
    ("io_memory_and_personality_are_as_planned", io_memory_and_personality_are_as_planned),
    ("a_container_runs_where_its_cgroup_lets_it", a_container_runs_where_its_cgroup_lets_it),
    ("an_exec_runs_where_it_is_planned", an_exec_runs_where_it_is_planned),
    ("a_container_has_a_keyring_of_its_own", a_container_has_a_keyring_of_its_own),
    ("a_home_is_found_in_the_containers_passwd", a_home_is_found_in_the_containers_passwd),
    ("attributes_that_the_kernel_refuses_are_named", attributes_that_the_kernel_refuses_are_named),
];

/// Nice value, real-time priority and policy of the reading process.
const SCHEDULING: &str = "cut -d' ' -f19,40,41 /proc/self/stat";

fn changed(fixture: &Fixture, id: &str, script: &str, change: impl FnOnce(&mut Process)) -> String {
    let mut plan = fixture.plan(id, script);
    change(plan.process.as_mut().unwrap());
    let ended = fixture.run(&plan);
    assert_eq!((ended.code, &*ended.stderr), (0, ""));
    ended.stdout
}

fn a_scheduler_is_the_planned_one() {
    let fixture = Fixture::new();
    let batch = Scheduler { policy: 3, nice: 7, ..Scheduler::default() };
    assert_eq!(changed(&fixture, "c", SCHEDULING, |it| it.scheduler = Some(batch)), "7 0 3\n");
    // An exec has one too, also where its user could not have set it.
    let container = fixture.start(&fixture.plan("e", "exec sleep 1000")).unwrap();
    let mut plan = exec_plan("1", SCHEDULING);
    let process = plan.process.as_mut().unwrap();
    process.scheduler = Some(Scheduler { policy: 0, nice: -5, ..Scheduler::default() });
    process.user = Some(User { uid: 1000, gid: 1000, ..User::default() });
    process.capabilities = None;
    assert_eq!(execs::run(&container, &plan, "").unwrap().stdout, "-5 0 0\n");
    container.kill();
    fixture.finish();
}

fn a_deadline_is_kept() {
    let fixture = Fixture::new();
    let reset_on_fork = 1;
    let deadline = Scheduler {
        policy: 6,
        flags: reset_on_fork,
        runtime: 1_000_000,
        deadline: 20_000_000,
        period: 40_000_000,
        ..Scheduler::default()
    };
    // The shell itself: what it forks is reset.
    let script = "read line < /proc/$$/stat; echo ${line##*) } > /line; cut -d' ' -f39 /line";
    assert_eq!(changed(&fixture, "c", script, |it| it.scheduler = Some(deadline)), "6\n");
    fixture.finish();
}

fn io_memory_and_personality_are_as_planned() {
    let fixture = Fixture::new();
    let script = "ionice; cat /proc/self/personality; uname -m; grep -c ' bind:0 ' /proc/self/numa_maps";
    let output = changed(&fixture, "c", script, |it| {
        it.io_priority = Some(3 << 13);
        it.personality = Some(0x4_0008);
        it.memory_policy = Some(MemoryPolicy { mode: 2, nodes: vec![1] });
    });
    let lines: Vec<_> = output.lines().collect();
    let machine = if cfg!(target_arch = "x86_64") { "i686" } else { "armv8l" };
    assert_eq!(lines[..3], ["idle", "00040008", machine]);
    assert_ne!(lines[3], "0");
    fixture.finish();
}

const CPUS: &str = "grep Cpus_allowed_list /proc/self/status | cut -f2";

/// The processors that this process may run on.
fn own_cpus() -> Vec<usize> {
    let set = rustix::thread::sched_getaffinity(None).unwrap();
    (0..rustix::thread::CpuSet::MAX_CPU).filter(|cpu| set.is_set(*cpu)).collect()
}

fn bind_to(cpu: usize) {
    let mut set = rustix::thread::CpuSet::new();
    set.set(cpu);
    rustix::thread::sched_setaffinity(None, &set).unwrap();
}

fn a_container_runs_where_its_cgroup_lets_it() {
    let fixture = Fixture::new();
    let all = changed(&fixture, "a", CPUS, |_| {});
    // What the shim is bound to is no concern of a container's.
    bind_to(own_cpus()[0]);
    assert_eq!(changed(&fixture, "c", CPUS, |_| {}), all);
    fixture.finish();
}

fn an_exec_runs_where_it_is_planned() {
    let fixture = Fixture::new();
    let cpu = own_cpus()[0];
    let mask = || {
        let mut mask = vec![0; cpu / 8 + 1];
        mask[cpu / 8] |= 1 << (cpu % 8);
        mask
    };
    let container = fixture.start(&fixture.plan("c", "exec sleep 1000")).unwrap();
    let script = format!("{CPUS}; cut -d: -f3 /proc/self/cgroup | grep -c exec");
    let all = execs::run(&container, &exec_plan("1", &script), "").unwrap().stdout;
    // It goes into its cgroup by itself then, and is in there all the same.
    let mut on_the_way = exec_plan("2", &script);
    on_the_way.process.as_mut().unwrap().cpus_initial = mask();
    assert_eq!(execs::run(&container, &on_the_way, "").unwrap().stdout, all);
    let mut bound = exec_plan("3", &script);
    let process = bound.process.as_mut().unwrap();
    (process.cpus_initial, process.cpus_final) = (mask(), mask());
    let expected = format!("{cpu}\n{}\n", all.lines().last().unwrap());
    assert_eq!(execs::run(&container, &bound, "").unwrap().stdout, expected);
    container.kill();
    fixture.finish();
}

fn a_container_has_a_keyring_of_its_own() {
    let fixture = Fixture::new();
    let name = format!("_ses.launch-{}", std::process::id());
    let script = format!("grep -F {name} /proc/keys | cut -d' ' -f1");
    // Root made it: another user sees it only as one who has it.
    let user = |process: &mut Process| process.user = Some(User { uid: 1000, gid: 1000, ..User::default() });
    let mut plan = fixture.plan("c", &format!("{script} > /dev/shm/key; exec sleep 1000"));
    user(plan.process.as_mut().unwrap());
    plan.process.as_mut().unwrap().keyring.clone_from(&name);
    let container = fixture.start(&plan).unwrap();
    // An exec finds its container's by the name.
    let mut exec = exec_plan("1", &format!("until test -s /dev/shm/key; do :; done; cat /dev/shm/key; {script}"));
    user(exec.process.as_mut().unwrap());
    exec.process.as_mut().unwrap().keyring.clone_from(&name);
    let ended = execs::run(&container, &exec, "").unwrap();
    let keys: Vec<_> = ended.stdout.lines().collect();
    assert!(keys.len() == 2 && keys[0] == keys[1] && !keys[0].is_empty(), "{keys:?}");
    assert_eq!(changed(&fixture, "n", &format!("{script} | wc -l"), user), "0\n");
    container.kill();
    fixture.finish();
}

fn a_home_is_found_in_the_containers_passwd() {
    let fixture = Fixture::new();
    let etc = fixture.path("layers/top/etc");
    std::fs::write(etc.join("passwd"), "root:x:0:0::/root:\nweb:x:101:101::/srv/web:\n").unwrap();
    let home = |id: &str, uid: u32, env: &[&str]| {
        changed(&fixture, id, "echo $HOME", |it| {
            it.user = Some(User { uid, ..User::default() });
            it.env.extend(env.iter().map(|variable| variable.as_bytes().to_vec()));
        })
    };
    assert_eq!(home("a", 101, &[]), "/srv/web\n");
    assert_eq!(home("b", 101, &["HOME="]), "/srv/web\n");
    assert_eq!(home("c", 101, &["HOME=/elsewhere"]), "/elsewhere\n");
    assert_eq!(home("d", 7, &[]), "/\n");
    // Nothing that an image may have there holds a start up or leads out of it.
    for (id, target) in [("e", "/proc/self/fd/0"), ("f", "/dev/zero"), ("g", "/no/such")] {
        std::fs::remove_file(etc.join("passwd")).unwrap();
        std::os::unix::fs::symlink(target, etc.join("passwd")).unwrap();
        assert_eq!(home(id, 101, &[]), "/\n", "{target}");
    }
    fixture.finish();
}

fn attributes_that_the_kernel_refuses_are_named() {
    type Change = fn(&mut Process);
    let fixture = Fixture::new();
    let cases: [(&str, Errno, Change); 5] = [
        ("set scheduler", Errno::INVAL, |it| it.scheduler = Some(Scheduler { policy: 4, ..Scheduler::default() })),
        ("set I/O priority", Errno::INVAL, |it| it.io_priority = Some(7 << 13)),
        ("set memory policy", Errno::INVAL, |it| {
            it.memory_policy = Some(MemoryPolicy { mode: 2, nodes: [&[0; 64][..], &[1]].concat() });
        }),
        ("set CPU affinity", Errno::INVAL, |it| it.cpus_final = [&[0; 1000][..], &[1]].concat()),
        ("join session keyring", Errno::PERM, |it| it.keyring = ".reserved".into()),
    ];
    for (step, errno, change) in cases {
        let mut plan = fixture.plan("c", "true");
        change(plan.process.as_mut().unwrap());
        let failure = fixture.fail(&plan);
        assert_eq!((&*failure.step, failure.kernel_error()), (step, Some(errno)), "{failure}");
    }
    fixture.finish();
}
