//! Execs into a running container.

use std::path::Path;

use podwright_launch::{ExecStdio, Failure, Stdio, cgroup, exec};
use podwright_plan::wire::{Cause, ConsoleSize, ContainerPlan, ExecPlan, NamespaceMode, User};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};

use crate::Case;
use crate::fixture::{Ended, Fixture, Running, exec_plan, read_all, reap, settle, shared};

pub(crate) const CASES: &[Case] = &[
    ("an_exec_is_in_the_container", an_exec_is_in_the_container),
    ("an_exec_is_the_callers_child_in_every_pid_mode", an_exec_is_the_callers_child_in_every_pid_mode),
    ("an_exec_has_a_user_and_input", an_exec_has_a_user_and_input),
    ("an_exec_has_a_terminal", an_exec_has_a_terminal),
    ("an_exec_of_nothing_is_told_apart", an_exec_of_nothing_is_told_apart),
    ("an_execs_tree_dies_with_its_cgroup", an_execs_tree_dies_with_its_cgroup),
    ("an_exec_into_a_dead_container_leaves_nothing", an_exec_into_a_dead_container_leaves_nothing),
];

/// Runs an exec to its end and removes its cgroup.
pub(crate) fn run(container: &Running, plan: &ExecPlan, input: &str) -> Result<Ended, Failure> {
    let (stdin, to_stdin) = pipe_with(PipeFlags::CLOEXEC).unwrap();
    let (from_stdout, stdout) = pipe_with(PipeFlags::CLOEXEC).unwrap();
    let (from_stderr, stderr) = pipe_with(PipeFlags::CLOEXEC).unwrap();
    let stdio = ExecStdio { stdin: Some(stdin), stdout: Some(stdout), stderr: Some(stderr) };
    let leaf = container.facts.exec_dir(&plan.exec_id).unwrap();
    let pending = exec(container.target(), plan, stdio)?;
    rustix::io::write(&to_stdin, input.as_bytes()).unwrap();
    drop(to_stdin);
    let settled = settle(pending, container.facts.clone());
    let ended = settled.map(|running| {
        let output = (read_all(&from_stdout), read_all(&from_stderr));
        Ended { code: reap(running.pid), stdout: output.0, stderr: output.1 }
    });
    cgroup::remove(&leaf).unwrap();
    ended
}

fn sleeper(fixture: &Fixture) -> ContainerPlan {
    fixture.plan("c", "echo in-container > /mark; exec sleep 1000")
}

fn an_exec_is_in_the_container() {
    let fixture = Fixture::new();
    let mut plan = sleeper(&fixture);
    plan.hostname = "own".into();
    let container = fixture.start(&plan).unwrap();
    let script = "until test -s /mark; do :; done; cat /mark; hostname; cat /proc/1/comm; echo $A; pwd; \
        ls /proc/self/fd | wc -l; grep -E 'NoNew|CapEff' /proc/self/status; cut -d: -f3 /proc/self/cgroup | grep -c exec; \
        echo err >&2; exit 42";
    let mut plan = exec_plan("1", script);
    let process = plan.process.as_mut().unwrap();
    process.env.push(b"A=from-env".to_vec());
    process.cwd = "/etc".into();
    let ended = run(&container, &plan, "").unwrap();
    let expected = "in-container\nown\nsleep\nfrom-env\n/etc\n4\nCapEff:\t00000000a80425fb\nNoNewPrivs:\t1\n1\n";
    assert_eq!((ended.code, &*ended.stdout, &*ended.stderr), (42, expected, "err\n"));
    container.kill();
    fixture.finish();
}

fn an_exec_is_the_callers_child_in_every_pid_mode() {
    let fixture = Fixture::with(|plan| plan.shared_pid = true);
    let host = ContainerPlan { pid: NamespaceMode::NamespaceHost.into(), ..sleeper(&fixture) };
    for plan in [sleeper(&fixture), shared(sleeper(&fixture)), host] {
        let container = fixture.start(&plan).unwrap();
        // The same pid namespace as the container's init, seen from inside and out.
        let script = "readlink /proc/self/ns/pid; readlink /proc/self/ns/mnt";
        let ended = run(&container, &exec_plan("1", script), "").unwrap();
        let namespace = |kind: &str| {
            let link = std::fs::read_link(format!("/proc/{}/ns/{kind}", container.pid)).unwrap();
            link.to_str().unwrap().to_owned()
        };
        assert_eq!(ended.stdout, format!("{}\n{}\n", namespace("pid"), namespace("mnt")), "{}", ended.stderr);
        container.kill();
    }
    fixture.finish();
}

fn an_exec_has_a_user_and_input() {
    let fixture = Fixture::new();
    let container = fixture.start(&sleeper(&fixture)).unwrap();
    let mut plan = exec_plan("1", "id -u; id -g; cat; echo again > /dev/stdout");
    plan.process.as_mut().unwrap().user = Some(User { uid: 7, gid: 8, ..User::default() });
    let ended = run(&container, &plan, "input\n").unwrap();
    assert_eq!((ended.code, &*ended.stdout), (0, "7\n8\ninput\nagain\n"), "{}", ended.stderr);
    container.kill();
    fixture.finish();
}

fn an_exec_has_a_terminal() {
    let fixture = Fixture::new();
    let container = fixture.start(&sleeper(&fixture)).unwrap();
    let mut plan = exec_plan("1", "tty; stty size; echo > /dev/tty && exit 5");
    let process = plan.process.as_mut().unwrap();
    process.terminal = true;
    process.console_size = Some(ConsoleSize { width: 100, height: 20 });
    let pending = exec(container.target(), &plan, ExecStdio::default()).unwrap();
    let running = settle(pending, container.facts.clone()).unwrap();
    let Stdio::Console(master) = &running.stdio else { panic!("no console") };
    assert_eq!(read_all(master), "/dev/pts/0\r\n20 100\r\n\r\n");
    assert_eq!(reap(running.pid), 5);
    cgroup::remove(&container.facts.exec_dir("1").unwrap()).unwrap();
    container.kill();
    fixture.finish();
}

fn an_exec_of_nothing_is_told_apart() {
    let fixture = Fixture::new();
    let container = fixture.start(&sleeper(&fixture)).unwrap();
    let mut plan = exec_plan("1", "");
    plan.process.as_mut().unwrap().args = vec![b"no-such".to_vec()];
    let failure = run(&container, &plan, "").unwrap_err();
    let seen = (failure.cause, &*failure.step, &*failure.subject, failure.kernel_error());
    assert_eq!(seen, (Cause::ExecFailed, "execve", "no-such", Some(Errno::NOENT)));

    let mut plan = exec_plan("2", "true");
    plan.process.as_mut().unwrap().cwd = "/no/such".into();
    let failure = run(&container, &plan, "").unwrap_err();
    let seen = (failure.cause, &*failure.step, failure.kernel_error());
    assert_eq!(seen, (Cause::LaunchFailed, "open working directory", Some(Errno::NOENT)));
    container.kill();
    fixture.finish();
}

fn an_execs_tree_dies_with_its_cgroup() {
    let fixture = Fixture::new();
    let container = fixture.start(&sleeper(&fixture)).unwrap();
    let (from_stdout, stdout) = pipe_with(PipeFlags::CLOEXEC).unwrap();
    let plan = exec_plan("1", "sleep 1000 & sleep 1000 & echo up; exec sleep 1000");
    let stdio = ExecStdio { stdout: Some(stdout), ..ExecStdio::default() };
    let pending = exec(container.target(), &plan, stdio).unwrap();
    let running = settle(pending, container.facts.clone()).unwrap();
    let mut line = [0; 3];
    rustix::io::read(&from_stdout, &mut line).unwrap();
    assert_eq!(&line, b"up\n");
    let leaf = container.facts.exec_dir("1").unwrap();
    let inside = std::fs::read_to_string(leaf.join("cgroup.procs")).unwrap();
    assert_eq!(inside.lines().count(), 3, "{inside}");
    cgroup::kill(&leaf).unwrap();
    // The end of file comes when the last one of the tree is gone.
    assert_eq!(read_all(&from_stdout), "");
    assert_eq!(reap(running.pid), 128 + 9);
    cgroup::remove(&leaf).unwrap();
    assert!(!leaf.exists());
    // The container is untouched.
    assert!(Path::new(&format!("/proc/{}", container.pid)).exists());
    assert_eq!(run(&container, &exec_plan("2", "exit 9"), "").unwrap().code, 9);
    container.kill();
    fixture.finish();
}

fn an_exec_into_a_dead_container_leaves_nothing() {
    let fixture = Fixture::new();
    let container = fixture.start(&sleeper(&fixture)).unwrap();
    cgroup::kill(container.facts.kill_dir().unwrap()).unwrap();
    crate::fixture::wait_readable(&container.pidfd);
    let failure = run(&container, &exec_plan("1", "true"), "").unwrap_err();
    assert_eq!((failure.cause, failure.kernel_error()), (Cause::Internal, Some(Errno::SRCH)), "{failure}");
    assert!(!container.facts.exec_dir("1").unwrap().exists());
    container.end();
    fixture.finish();
}
