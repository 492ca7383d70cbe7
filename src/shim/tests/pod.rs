//! Drives the real shim over its wire: pods, containers, logs, execs, clients, and what goes wrong with them. Needs root.

// Allowed in tests; the rig around them counts as one.
#![allow(clippy::unwrap_used)]

mod attach;
mod rig;
mod rotation;

use std::fs;
use std::io::Read;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Command, Stdio};

use podwright_plan::wire::reply::Result as Answer;
use podwright_plan::wire::request::Op;
use podwright_plan::wire::{self, Cause, ContainerPlan, ExecPlan, NamespaceMode, event};

use rig::plans::with_stdout;
use rig::{Client, Shim, alive, texts};

const DONE: Answer = Answer::Done(wire::Done {});
/// Not an exit: runs until it is killed.
const FOREVER: &str = "exec sleep 100000";

fn forget(container: &str) -> Op {
    Op::Forget(wire::Forget { container_id: container.into(), exec_id: String::new() })
}

fn reopen(container: &str) -> Op {
    Op::ReopenLog(wire::ReopenLog { container_id: container.into() })
}

#[test]
fn the_command_line_is_checked() {
    let shim = || Command::new(env!("CARGO_BIN_EXE_podwright-shim"));
    let version = shim().arg("--version").output().unwrap();
    let (major, minor) = (podwright_plan::MAJOR, podwright_plan::MINOR);
    let expected = format!("podwright-shim {} protocol {major}.{minor}\n", env!("CARGO_PKG_VERSION"));
    assert_eq!(String::from_utf8(version.stdout).unwrap(), expected);
    assert_eq!(shim().arg("--pods").output().unwrap().status.code(), Some(2));
    let deaf = shim().args(["--pod", "x"]).stdin(Stdio::null()).output().unwrap();
    assert_eq!(deaf.status.code(), Some(1));
    assert!(String::from_utf8(deaf.stderr).unwrap().contains("stdin is no listening socket"));
}

#[test]
fn versions_and_pods_are_compared() {
    let shim = Shim::start();
    let mut client = shim.connect();
    let hello = |major, pod: &str| Op::Hello(wire::Hello { major, minor: 0, pod_id: pod.into() });
    match client.ask(hello(podwright_plan::MAJOR, &shim.id)) {
        Answer::Hello(reply) => assert_eq!((reply.pod_id, reply.pid), (shim.id.clone(), shim.process.id())),
        other => panic!("{other:?}"),
    }
    assert_eq!(client.refused(hello(99, &shim.id)).cause(), Cause::UnsupportedVersion);
    assert_eq!(client.refused(hello(podwright_plan::MAJOR, "other")).cause(), Cause::NotFound);
    assert_eq!(client.refused(Op::Start(shim.container("c", "true"))).cause(), Cause::InvalidState);
    shim.end(client);
}

#[test]
fn a_pod_is_set_up_once_and_told_again() {
    let (shim, mut client) = Shim::with_pod();
    let mut other = shim.connect();
    let (again, fds) = other.ask_for(Op::SetupPod(shim.pod()), &[]);
    let Answer::PodReady(ready) = again else { panic!("{again:?}") };
    assert_eq!((ready.pid, ready.reaper_pid), (shim.process.id(), 0));
    let given = rustix::fs::fstat(&fds[0]).unwrap().st_ino;
    let own = rustix::fs::stat(format!("/proc/{}/ns/net", shim.process.id())).unwrap().st_ino;
    let host = rustix::fs::stat("/proc/self/ns/net").unwrap().st_ino;
    assert!(given == own && given != host);
    let stranger = wire::PodPlan { pod_id: "other".into(), ..shim.pod() };
    assert_eq!(client.refused(Op::SetupPod(stranger)).cause(), Cause::InvalidPlan);
    shim.end(client);
}

#[test]
fn a_container_runs_is_logged_and_ends() {
    let (shim, mut client) = Shim::with_pod();
    let plan = shim.container("c", "echo out; echo err >&2; printf rest; exit 7");
    let started = client.started(plan.clone());
    let exit = client.container_exit("c");
    assert_eq!((exit.code, exit.oom_killed, exit.timed_out), (7, false, false));
    assert!(exit.at >= started.started_at);
    let mut log = shim.log("c");
    log.sort();
    assert_eq!(log, ["stderr F err", "stdout F out", "stdout F rest"]);
    let state = client.inspect().containers.remove(0);
    assert_eq!((state.pid, state.exit), (started.pid, Some(exit)));

    // A retry that comes when it is over learns that it was begun; it is not begun again.
    assert_eq!(client.started(plan), started);
    assert_eq!(client.refused(reopen("c")).cause(), Cause::InvalidState);
    assert_eq!(client.ask(forget("c")), DONE);
    assert_eq!(client.refused(forget("c")).cause(), Cause::NotFound);
    assert!(client.inspect().containers.is_empty());
    shim.end(client);
}

#[test]
fn a_start_is_joined_while_under_way_and_when_done() {
    let (shim, mut client) = Shim::with_pod();
    let plan = shim.container("c", FOREVER);
    let first = client.send(Op::Start(plan.clone()), &[]);
    let second = client.send(Op::Start(plan.clone()), &[]);
    let (first, second) = (client.answer(first), client.answer(second));
    assert!(matches!(first, Answer::Started(_)), "{first:?}");
    assert_eq!(first, second);
    assert_eq!(shim.connect().ask(Op::Start(plan)), first);
    assert_eq!(client.inspect().containers.len(), 1);
    assert_eq!(client.refused(forget("c")).cause(), Cause::InvalidState);
    shim.end(client);
}

#[test]
fn a_failed_start_leaves_nothing_and_can_be_tried_again() {
    let (shim, mut client) = Shim::with_pod();
    let good = shim.container("c", "exit 3");
    let mut missing = good.clone();
    missing.process.as_mut().unwrap().args = vec![b"/no/such/program".to_vec()];
    let failure = client.refused(Op::Start(missing));
    assert_eq!((failure.cause(), failure.errno), (Cause::ExecFailed, 2), "{failure:?}");
    let mut nowhere = good.clone();
    nowhere.log.as_mut().unwrap().path = shim.path("no/such/dir/log").to_str().unwrap().into();
    let failure = client.refused(Op::Start(nowhere));
    assert_eq!((failure.step.as_str(), failure.errno), ("open log", 2));
    assert!(client.inspect().containers.is_empty());
    assert!(!shim.remains().iter().any(|dir| dir.to_str().unwrap().ends_with("-c")));
    client.started(good);
    assert_eq!(client.container_exit("c").code, 3);
    shim.end(client);
}

/// Puts the processes of a plan to sleep before they have run one instruction.
fn frozen(plan: ContainerPlan) -> ContainerPlan {
    let mut group = plan.cgroup.clone().unwrap();
    let freeze = wire::CgroupWrite { file: "cgroup.freeze".into(), value: "1".into(), ..Default::default() };
    group.dirs.iter_mut().find(|dir| dir.path == group.unified).unwrap().writes.push(freeze);
    ContainerPlan { cgroup: Some(group), ..plan }
}

#[test]
fn a_start_that_hangs_holds_nobody_up_and_can_be_killed() {
    let (shim, mut client) = Shim::with_pod();
    let start = client.send(Op::Start(frozen(shim.container("c", "true"))), &[]);
    let known = client.inspect();
    assert_eq!((known.starting, known.containers), (vec!["c".to_owned()], vec![]));
    client.started(shim.container("d", "true"));
    assert_eq!(client.container_exit("d").code, 0);
    client.kill("c");
    let Answer::Failure(failure) = client.answer(start) else { panic!("a frozen process has run") };
    assert_eq!(failure.cause(), Cause::LaunchFailed);
    assert!(client.inspect().starting.is_empty());
    shim.end(client);
}

#[test]
fn an_exec_whose_time_is_up_before_it_runs_is_told_apart() {
    let (shim, mut client) = Shim::with_pod();
    client.started(shim.container("c", FOREVER));
    let group = shim.cgroup("c", None).unified;
    fs::write(Path::new(&group).join("cgroup.freeze"), "1").unwrap();
    let plan = ExecPlan { timeout_ms: 50, ..shim.exec("c", "e", "true") };
    assert_eq!(client.refused(Op::Exec(plan)).cause(), Cause::TimedOut);
    assert!(!Path::new(&group).join("exec-e").exists());
    shim.end(client);
}

#[test]
fn a_failed_pod_ends_its_shim() {
    let mut shim = Shim::start();
    let mut client = shim.connect();
    let sysctls = vec![wire::Sysctl { path: "net/no/such".into(), value: "1".into() }];
    let failure = client.refused(Op::SetupPod(wire::PodPlan { sysctls, ..shim.pod() }));
    assert_eq!(failure.errno, 2, "{failure:?}");
    assert_eq!(shim.process.wait().unwrap().code(), Some(1));
    shim.remove_own_cgroups();
    assert_eq!(shim.remains(), Vec::<std::path::PathBuf>::new());
    assert_eq!(shim.words(), "podwright-shim: the pod could not be set up\n");
}

#[test]
fn signals_reach_the_init() {
    let (shim, mut client) = Shim::with_pod();
    client.started(shim.container("c", "trap 'exit 42' TERM; echo ready; while :; do sleep 0.01; done"));
    shim.wait_for_log("c", &mut client, "stdout F ready");
    let signal =
        |number, all| Op::Signal(wire::Signal { container_id: "c".into(), signal: number, all, ..Default::default() });
    assert_eq!(client.refused(signal(15, true)).cause(), Cause::InvalidPlan);
    assert_eq!(client.refused(signal(0, false)).cause(), Cause::InvalidPlan);
    assert_eq!(client.refused(signal(999, false)).errno, 22);
    assert_eq!(client.ask(signal(15, false)), DONE);
    assert_eq!(client.container_exit("c").code, 42);
    assert_eq!(client.refused(signal(15, false)).cause(), Cause::InvalidState);
    shim.end(client);
}

#[test]
fn a_rotation_under_load_by_daemons_that_come_and_go_loses_nothing() {
    const LINES: usize = 200_000;
    let (shim, mut client) = Shim::with_pod();
    client.started(shim.container("c", &format!("seq 1 {LINES}; echo end; {FOREVER}")));
    let mut rotated = Vec::new();
    loop {
        let old = shim.path(&format!("c.{}", rotated.len()));
        fs::rename(shim.path("c"), &old).unwrap();
        let mut daemon = shim.connect();
        daemon.subscribe();
        assert_eq!(daemon.ask(reopen("c")), DONE);
        assert!(shim.path("c").exists());
        rotated.extend(texts(&old));
        if rotated.last().is_some_and(|line| line == "stdout F end") {
            break;
        }
    }
    let expected = (1..=LINES).map(|line| format!("stdout F {line}")).chain(["stdout F end".to_owned()]);
    assert!(rotated.into_iter().eq(expected));
    client.kill("c");
    client.container_exit("c");
    shim.end(client);
}

#[test]
fn an_exit_that_nobody_saw_is_told_by_inspect() {
    let (shim, client) = Shim::with_pod();
    let mut client = client;
    let started = client.started(shim.container("c", &format!("echo before; {FOREVER}")));
    shim.wait_for_log("c", &mut client, "stdout F before");
    drop(client);
    let pid = rustix::process::Pid::from_raw(started.pid.cast_signed()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    let mut client = shim.connect();
    let mut state = client.subscribe().containers.remove(0);
    if state.exit.is_none() {
        state.exit = Some(client.container_exit("c"));
    }
    let exit = state.exit.unwrap();
    assert_eq!((state.pid, exit.code, exit.oom_killed), (started.pid, 137, false));
    assert_eq!(shim.log("c"), ["stdout F before"]);
    assert_eq!(client.inspect().containers[0].exit, Some(exit));
    shim.end(client);
}

/// A container's exec that writes to a pipe; gives its exit and all it wrote.
fn exec_output(client: &mut Client, plan: ExecPlan) -> (wire::Exit, String) {
    let (mut read, write) = std::io::pipe().unwrap();
    let id = plan.exec_id.clone();
    client.execed(with_stdout(plan), &[write.as_fd()]);
    drop(write);
    let exit = client.exec_exit(&id);
    let mut output = String::new();
    // To its end: every process that could write is gone.
    read.read_to_string(&mut output).unwrap();
    (exit, output)
}

#[test]
fn an_exec_writes_to_its_descriptors_and_ends() {
    let (shim, mut client) = Shim::with_pod();
    client.started(shim.container("c", FOREVER));
    let (exit, output) = exec_output(&mut client, shim.exec("c", "e", "echo hello; exit 3"));
    assert_eq!((exit.code, exit.timed_out, output.as_str()), (3, false, "hello\n"));
    assert!(!Path::new(&shim.cgroup("c", None).exec_parent).join("exec-e").exists());
    assert_eq!(client.inspect().execs.len(), 1);
    assert_eq!(client.refused(Op::Exec(shim.exec("c", "e", "true"))).cause(), Cause::InvalidState);
    let forget = Op::Forget(wire::Forget { container_id: "c".into(), exec_id: "e".into() });
    assert_eq!(client.ask(forget), DONE);
    assert!(client.inspect().execs.is_empty());

    let mut missing = shim.exec("c", "e", "");
    missing.process.as_mut().unwrap().args = vec![b"nope".to_vec()];
    assert_eq!(client.refused(Op::Exec(missing)).cause(), Cause::ExecFailed);
    assert_eq!(client.refused(Op::Exec(shim.exec("d", "e", "true"))).cause(), Cause::NotFound);
    assert!(client.inspect().execs.is_empty());
    shim.end(client);
}

#[test]
fn a_timeout_kills_the_whole_tree() {
    let (shim, mut client) = Shim::with_pod();
    client.started(shim.container("c", FOREVER));
    let script = "echo begun; sleep 5000 & (sleep 5001 & exec sleep 5002) & wait";
    let plan = ExecPlan { timeout_ms: 200, ..shim.exec("c", "e", script) };
    let (exit, output) = exec_output(&mut client, plan);
    assert_eq!((exit.code, exit.timed_out, output.as_str()), (137, true, "begun\n"));
    assert!(client.inspect().containers[0].exit.is_none());
    shim.end(client);
}

#[test]
fn what_an_exec_leaves_runs_until_the_container_ends() {
    let (shim, mut client) = Shim::with_pod();
    client.started(shim.container("c", FOREVER));
    client.execed(shim.exec("c", "e", "sleep 5000 & echo $! >/left"), &[]);
    assert_eq!(client.exec_exit("e").code, 0);
    let (exit, output) = exec_output(&mut client, shim.exec("c", "f", "kill -0 $(cat /left) && echo alive"));
    assert_eq!((exit.code, output.as_str()), (0, "alive\n"));
    client.kill("c");
    client.container_exit("c");
    assert!(!shim.remains().iter().any(|dir| dir.to_str().unwrap().ends_with("-c")));
    shim.end(client);
}

#[test]
fn a_tied_exec_dies_with_its_connection() {
    let (shim, mut client) = Shim::with_pod();
    client.started(shim.container("c", FOREVER));
    let mut other = shim.connect();
    let plan = ExecPlan { tied_to_connection: true, ..shim.exec("c", "e", FOREVER) };
    let execed = other.execed(plan, &[]);
    assert!(alive(execed.pid));
    drop(other);
    assert_eq!(client.exec_exit("e").code, 137);
    assert!(!alive(execed.pid));
    assert!(client.inspect().execs.is_empty());
    shim.end(client);
}

#[test]
fn garbage_closes_its_connection_only() {
    let (shim, mut client) = Shim::with_pod();
    let mut hostile = shim.connect();
    hostile.send_raw(&[0xff; 4096]);
    assert!(hostile.closed());
    let mut descriptors = shim.connect();
    descriptors.send(Op::Inspect(wire::Inspect {}), &[shim.any_fd().as_fd()]);
    assert!(descriptors.closed());
    let mut short = shim.connect();
    short.send(Op::Exec(with_stdout(shim.exec("c", "e", "true"))), &[]);
    assert!(short.closed());
    assert!(client.inspect().pod_ready);
    shim.end_with_words(client, 3);
}

/// The next event must be about the log; gives its words.
fn log_problem(client: &mut Client) -> String {
    match client.event() {
        event::Kind::LogProblem(problem) => problem.problem,
        other => panic!("{other:?}"),
    }
}

const FULL: &str = "No space left on device (os error 28)";
/// With the 36 bytes in front of each, more than two MiB; without, more than a pipe and a read take.
const LINES: usize = 50_000;

fn numbered() -> impl Iterator<Item = String> {
    (1..=LINES).map(|line| format!("stdout F {line}")).chain(["stdout F end".to_owned()])
}

#[test]
fn a_full_disk_holds_the_container_and_loses_nothing() {
    let (shim, mut client) = Shim::with_pod();
    let disk = rig::SmallDisk::new(4 << 20);
    fs::write(disk.path("filler"), vec![0; 3 << 20]).unwrap();
    let mut plan = shim.container("c", &format!("seq 1 {LINES}; echo end"));
    plan.log.as_mut().unwrap().path = disk.path("log").to_str().unwrap().into();
    client.started(plan);
    assert_eq!(log_problem(&mut client), FULL);
    let state = client.inspect().containers.remove(0);
    assert_eq!((state.log_problem.as_str(), state.exit), (FULL, None));
    fs::remove_file(disk.path("filler")).unwrap();
    assert_eq!(log_problem(&mut client), "");
    assert_eq!(client.container_exit("c").code, 0);
    assert!(texts(&disk.path("log")).into_iter().eq(numbered()));
    shim.end(client);
}

#[test]
fn a_log_moved_off_a_full_disk_goes_on_at_once() {
    let (shim, mut client) = Shim::with_pod();
    let disk = rig::SmallDisk::new(1 << 20);
    let (logs, roomy) = (shim.path("logs"), shim.path("roomy"));
    std::os::unix::fs::symlink(disk.path(""), &logs).unwrap();
    fs::create_dir(&roomy).unwrap();
    let mut plan = shim.container("c", &format!("seq 1 {LINES}; echo end"));
    plan.log.as_mut().unwrap().path = logs.join("log").to_str().unwrap().into();
    client.started(plan);
    assert_eq!(log_problem(&mut client), FULL);
    fs::remove_file(&logs).unwrap();
    std::os::unix::fs::symlink(&roomy, &logs).unwrap();
    assert_eq!(client.ask(reopen("c")), DONE);
    assert_eq!(log_problem(&mut client), "");
    assert_eq!(client.container_exit("c").code, 0);
    // The cut is where the disk was full, in the middle of a line as likely as not.
    let whole = [fs::read(disk.path("log")).unwrap(), fs::read(roomy.join("log")).unwrap()].concat();
    fs::write(shim.path("whole"), whole).unwrap();
    assert!(shim.log("whole").into_iter().eq(numbered()));
    shim.end(client);
}

#[test]
fn a_container_that_ends_with_a_full_disk_is_reported_and_its_log_finished_later() {
    let (shim, mut client) = Shim::with_pod();
    let disk = rig::SmallDisk::new(1 << 20);
    fs::write(disk.path("filler"), vec![0; 1 << 20]).unwrap();
    let mut plan = shim.container("c", "echo one; echo two; exit 5");
    plan.log.as_mut().unwrap().path = disk.path("log").to_str().unwrap().into();
    client.started(plan);
    assert_eq!(log_problem(&mut client), FULL);
    assert_eq!(client.container_exit("c").code, 5);
    fs::remove_file(disk.path("filler")).unwrap();
    assert_eq!(log_problem(&mut client), "");
    assert_eq!(texts(&disk.path("log")), ["stdout F one", "stdout F two"]);
    assert_eq!(client.inspect().containers[0].log_problem, "");
    shim.end(client);
}

#[test]
fn an_oom_kill_is_told_apart() {
    let (shim, mut client) = Shim::with_pod();
    let eat = "x=aaaaaaaaaaaaaaaa; while :; do x=$x$x; done";
    let plan = ContainerPlan { cgroup: Some(shim.cgroup("c", Some(16 << 20))), ..shim.container("c", eat) };
    client.started(plan);
    let exit = client.container_exit("c");
    assert_eq!((exit.code, exit.oom_killed), (137, true));
    // A child's OOM kill is not the init's end, and a SIGKILL afterwards is none.
    let script = format!("sh -c '{eat}'; echo $?; {FOREVER}");
    let plan = ContainerPlan { cgroup: Some(shim.cgroup("d", Some(16 << 20))), ..shim.container("d", &script) };
    client.started(plan);
    shim.wait_for_log("d", &mut client, "stdout F 137");
    client.kill("d");
    let exit = client.container_exit("d");
    assert_eq!((exit.code, exit.oom_killed), (137, false));
    shim.end(client);
}

#[test]
fn a_terminal_is_logged_as_stdout() {
    let (shim, mut client) = Shim::with_pod();
    let mut plan = shim.container("c", "tty; echo err >&2");
    plan.process.as_mut().unwrap().terminal = true;
    client.started(plan);
    assert_eq!(client.container_exit("c").code, 0);
    assert_eq!(shim.log("c"), ["stdout F /dev/pts/0\r", "stdout F err\r"]);
    shim.end(client);
}

#[test]
fn what_an_init_leaves_in_the_hosts_pid_namespace_is_killed() {
    let (shim, mut client) = Shim::with_pod();
    let mut plan = shim.container("c", "sleep 5000 & echo $!");
    plan.pid = NamespaceMode::NamespaceHost.into();
    client.started(plan);
    assert_eq!(client.container_exit("c").code, 0);
    let pid: u32 = shim.log("c")[0].strip_prefix("stdout F ").unwrap().parse().unwrap();
    assert!(!alive(pid));
    shim.end(client);
}

#[test]
fn a_shared_pid_namespace_ends_with_the_pod() {
    let shim = Shim::start();
    let mut client = shim.connect();
    let pod = wire::PodPlan { shared_pid: true, ..shim.pod() };
    let (answer, _netns) = client.ask_for(Op::SetupPod(pod), &[]);
    let Answer::PodReady(ready) = answer else { panic!("{answer:?}") };
    assert!(alive(ready.reaper_pid));
    client.subscribe();
    let mut plan = shim.container("c", "sleep 5000 & exit 0");
    plan.pid = NamespaceMode::NamespacePod.into();
    client.started(plan);
    assert_eq!(client.container_exit("c").code, 0);
    assert!(alive(ready.reaper_pid));
    shim.end(client);
    assert!(!alive(ready.reaper_pid));
}

#[test]
fn what_is_over_holds_no_descriptor() {
    let (shim, mut client) = Shim::with_pod();
    let before = shim.descriptors();
    for round in 0..10 {
        let mut plan = shim.container("c", "read line; exit 1");
        plan.stdin = true;
        plan.process.as_mut().unwrap().terminal = round % 2 == 1;
        client.started(plan);
        let id = format!("e{round}");
        exec_output(
            &mut client,
            ExecPlan { tied_to_connection: true, timeout_ms: 60_000, ..shim.exec("c", &id, "echo") },
        );
        let mut missing = shim.exec("c", "missing", "");
        missing.process.as_mut().unwrap().cwd = "/dev/null/x".into();
        client.refused(Op::Exec(missing));
        client.kill("c");
        client.container_exit("c");
        assert_eq!(client.ask(forget("c")), DONE);
    }
    assert_eq!(shim.descriptors(), before);
    assert_eq!(client.inspect().execs, []);
    shim.end(client);
}

#[test]
fn a_shutdown_ends_all_that_runs() {
    let (shim, mut client) = Shim::with_pod();
    let started = client.started(shim.container("c", FOREVER));
    let execed = client.execed(shim.exec("c", "e", FOREVER), &[]);
    shim.end(client);
    assert!(!alive(started.pid) && !alive(execed.pid));
}
