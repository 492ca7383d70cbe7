//! A container's process: streams, identity, limits, terminal, and how a start fails.

use podwright_launch::{Facts, Stdio};
use podwright_plan::wire::{Capabilities, Cause, CgroupWrite, ConsoleSize, Rlimit, User};
use rustix::io::Errno;

use crate::Case;
use crate::fixture::{DEFAULT_CAPABILITIES, Fixture, read_all, reap, remove_groups, wait_readable};

pub(crate) const CASES: &[Case] = &[
    ("output_and_exit_code_come_back", output_and_exit_code_come_back),
    ("input_goes_in", input_goes_in),
    ("nothing_of_the_shim_leaks", nothing_of_the_shim_leaks),
    ("a_user_has_its_groups_and_streams", a_user_has_its_groups_and_streams),
    ("capabilities_are_as_planned", capabilities_are_as_planned),
    ("a_seccomp_filter_holds", a_seccomp_filter_holds),
    ("limits_and_scores_are_set", limits_and_scores_are_set),
    ("a_terminal_is_the_containers_own", a_terminal_is_the_containers_own),
    ("a_program_that_cannot_run_is_told_apart", a_program_that_cannot_run_is_told_apart),
    ("a_killed_set_up_is_not_a_start", a_killed_set_up_is_not_a_start),
];

fn output_and_exit_code_come_back() {
    let fixture = Fixture::new();
    let ended = fixture.run(&fixture.plan("c", "echo $$; cat /etc/layer; echo bad >&2; exit 7"));
    assert_eq!((ended.code, &*ended.stdout, &*ended.stderr), (7, "1\ntop", "bad\n"));
    let killed = fixture.run(&fixture.plan("k", "sh -c 'kill -9 $$'; exit $?"));
    assert_eq!(killed.code, 128 + 9);
    fixture.finish();
}

fn input_goes_in() {
    let fixture = Fixture::new();
    let mut plan = fixture.plan("c", "cat");
    plan.stdin = true;
    let mut running = fixture.start(&plan).unwrap();
    let Stdio::Pipes { stdin, .. } = &mut running.stdio else { panic!("no pipes") };
    rustix::io::write(stdin.take().unwrap(), b"in and out").unwrap();
    assert_eq!(running.end().stdout, "in and out");

    let without = fixture.run(&fixture.plan("n", "cat; readlink /proc/self/fd/0"));
    assert_eq!((without.code, &*without.stdout), (0, "/dev/null\n"), "{}", without.stderr);
    fixture.finish();
}

fn nothing_of_the_shim_leaks() {
    let fixture = Fixture::new();
    // An inheritable descriptor of the shim's, which a set-up must not pass on.
    let leak = rustix::fs::open("/", rustix::fs::OFlags::PATH, rustix::fs::Mode::empty()).unwrap();
    let ended = fixture.run(&fixture.plan("c", "ls /proc/1/fd; readlink /proc/1/exe; cut -d' ' -f5 /proc/1/mountinfo"));
    let lines: Vec<_> = ended.stdout.lines().collect();
    assert_eq!(lines[..4], ["0", "1", "2", "/bin/busybox"], "{}", ended.stderr);
    let inside = |path: &&str| *path == "/" || ["/proc", "/dev", "/sys"].iter().any(|top| path.starts_with(top));
    assert!(lines[4..].iter().all(inside), "mounts of the host are in view: {lines:?}");

    // Without a shell, which has signals of its own: what the shim and this test program ignore is not ignored here.
    let mut plan = fixture.plan("s", "");
    let args = ["grep", "-E", "Sig(Blk|Ign)|NSsid", "/proc/self/status"];
    plan.process.as_mut().unwrap().args = args.map(|arg| arg.as_bytes().to_vec()).to_vec();
    let ended = fixture.run(&plan);
    assert_eq!(ended.stdout, "NSsid:\t1\nSigBlk:\t0000000000000000\nSigIgn:\t0000000000000000\n");
    drop(leak);
    fixture.finish();
}

fn a_user_has_its_groups_and_streams() {
    let fixture = Fixture::new();
    let script = "id; echo to-stdout > /dev/stdout; umask; cat /proc/self/status | grep CapEff";
    let mut plan = fixture.plan("c", script);
    let process = plan.process.as_mut().unwrap();
    process.user = Some(User { uid: 1000, gid: 1001, additional_gids: vec![5, 2000], umask: Some(0o27) });
    process.capabilities = Some(Capabilities { bounding: DEFAULT_CAPABILITIES, ..Capabilities::default() });
    let ended = fixture.run(&plan);
    let expected = "uid=1000 gid=1001 groups=1001,5,2000\nto-stdout\n0027\nCapEff:\t0000000000000000\n";
    assert_eq!(ended.stdout.replace("groups=5,2000", "groups=1001,5,2000"), expected, "{}", ended.stderr);
    fixture.finish();
}

fn capabilities_are_as_planned() {
    let fixture = Fixture::new();
    let mut plan = fixture.plan("c", "grep -E 'Cap|NoNew' /proc/self/status");
    let process = plan.process.as_mut().unwrap();
    // NET_BIND_SERVICE (10) stays with a user that is not root by the ambient set alone.
    let (bind, chown) = (1 << 10, 1);
    process.user = Some(User { uid: 1000, gid: 1000, ..User::default() });
    process.no_new_privileges = false;
    process.capabilities = Some(Capabilities {
        bounding: bind | chown,
        effective: bind,
        permitted: bind,
        inheritable: bind,
        ambient: bind,
    });
    let ended = fixture.run(&plan);
    let expected = "CapInh:\t0000000000000400\nCapPrm:\t0000000000000400\nCapEff:\t0000000000000400\n\
        CapBnd:\t0000000000000401\nCapAmb:\t0000000000000400\nNoNewPrivs:\t0\n";
    assert_eq!(ended.stdout, expected, "{}", ended.stderr);

    let root = fixture.run(&fixture.plan("r", "grep -E 'CapEff|NoNew' /proc/self/status"));
    assert_eq!(root.stdout, format!("CapEff:\t{DEFAULT_CAPABILITIES:016x}\nNoNewPrivs:\t1\n"));
    fixture.finish();
}

/// `struct sock_filter[]`: one system call is answered so, all others go on.
pub(crate) fn filter(call: u32, answer: u32) -> Vec<u8> {
    let instruction =
        |code: u16, jt: u8, jf: u8, k: u32| [&code.to_ne_bytes()[..], &[jt, jf], &k.to_ne_bytes()].concat();
    let (load, equal, give) = (0x20, 0x15, 0x06);
    [
        instruction(load, 0, 0, 0),
        instruction(equal, 0, 1, call),
        instruction(give, 0, 0, answer),
        instruction(give, 0, 0, 0x7fff_0000),
    ]
    .concat()
}

fn a_seccomp_filter_holds() {
    let fixture = Fixture::new();
    let uname = u32::try_from(libc::SYS_uname).unwrap();
    for (id, no_new_privileges) in [("with", true), ("without", false)] {
        let mut plan = fixture.plan(id, "hostname >/dev/null 2>&1; grep -E 'NoNew|Seccomp:' /proc/self/status");
        let process = plan.process.as_mut().unwrap();
        process.seccomp = filter(uname, 0x0005_0001);
        process.no_new_privileges = no_new_privileges;
        process.user = Some(User { uid: 1000, gid: 1000, ..User::default() });
        let ended = fixture.run(&plan);
        let expected = format!("NoNewPrivs:\t{}\nSeccomp:\t2\n", u8::from(no_new_privileges));
        assert_eq!(ended.stdout, expected, "{}", ended.stderr);
    }
    let mut plan = fixture.plan("bad", "true");
    plan.process.as_mut().unwrap().seccomp = vec![0; 12];
    let failure = fixture.fail(&plan);
    assert_eq!((&*failure.step, failure.kernel_error()), ("install seccomp filter", Some(Errno::INVAL)));
    fixture.finish();
}

fn limits_and_scores_are_set() {
    let fixture = Fixture::new();
    let mut plan = fixture.plan("c", "ulimit -n; ulimit -Hn; cat /proc/self/oom_score_adj");
    let process = plan.process.as_mut().unwrap();
    process.rlimits = vec![Rlimit { resource: 7, soft: 100, hard: 200 }];
    process.oom_score_adj = Some(500);
    let ended = fixture.run(&plan);
    assert_eq!(ended.stdout, "100\n200\n500\n", "{}", ended.stderr);
    process_fails(&fixture, Rlimit { resource: 7, soft: 2, hard: 1 });
    fixture.finish();
}

fn process_fails(fixture: &Fixture, limit: Rlimit) {
    let mut plan = fixture.plan("l", "true");
    plan.process.as_mut().unwrap().rlimits = vec![limit];
    let failure = fixture.fail(&plan);
    let seen = (failure.cause, &*failure.step, &*failure.subject, failure.kernel_error());
    assert_eq!(seen, (Cause::LaunchFailed, "set resource limit", "7=2:1", Some(Errno::INVAL)));
}

fn a_terminal_is_the_containers_own() {
    let fixture = Fixture::new();
    let script = "tty; stty size; stat -c %u $(tty); test -c /dev/console && echo console; \
        echo lead $(cut -d' ' -f7 /proc/1/stat | grep -c -v '^0$'); cat; exit 3";
    let mut plan = fixture.plan("c", script);
    let process = plan.process.as_mut().unwrap();
    process.terminal = true;
    process.console_size = Some(ConsoleSize { width: 132, height: 43 });
    process.user = Some(User { uid: 1000, gid: 1000, ..User::default() });
    let mut running = fixture.start(&plan).unwrap();
    let Stdio::Console(master) = std::mem::replace(&mut running.stdio, Stdio::Passed) else { panic!("no console") };
    // ^D, the terminal's end of input.
    rustix::io::write(&master, b"typed\n\x04").unwrap();
    let output = read_all(&master).replace("\r\n", "\n");
    let expected = ["/dev/pts/0", "43 132", "1000", "console", "lead 1"];
    let lines: Vec<_> = output.lines().filter(|line| *line != "typed" && *line != "^D").collect();
    assert_eq!(lines, expected);
    assert_eq!(output.matches("typed").count(), 2, "echoed by the terminal and by cat: {output:?}");
    assert_eq!(running.end().code, 3);
    fixture.finish();
}

fn a_program_that_cannot_run_is_told_apart() {
    let fixture = Fixture::new();
    let top = fixture.path("layers/top");
    std::fs::write(top.join("etc/script"), "no program").unwrap();
    std::fs::create_dir_all(top.join("bin")).unwrap();
    std::fs::write(top.join("bin/noexec"), "x").unwrap();
    std::fs::write(top.join("bin/garbage"), "\0\x01garbage").unwrap();
    let chmod = std::process::Command::new("chmod").arg("755").arg(top.join("bin/garbage")).status().unwrap();
    assert!(chmod.success());
    let cases = [
        ("no-such", Errno::NOENT),
        ("/no/such", Errno::NOENT),
        ("/etc/script", Errno::ACCESS),
        ("noexec", Errno::ACCESS),
        ("garbage", Errno::NOEXEC),
        ("/etc", Errno::ACCESS),
    ];
    for (program, errno) in cases {
        let mut plan = fixture.plan("c", "");
        plan.process.as_mut().unwrap().args = vec![program.as_bytes().to_vec()];
        let failure = fixture.fail(&plan);
        let seen = (failure.cause, &*failure.step, &*failure.subject, failure.kernel_error());
        assert_eq!(seen, (Cause::ExecFailed, "execve", program, Some(errno)));
    }
    fixture.finish();
}

fn a_killed_set_up_is_not_a_start() {
    let fixture = Fixture::new();
    let mut plan = fixture.plan("c", "true");
    // A frozen cgroup holds the process off from its first step.
    let group = plan.cgroup.as_mut().unwrap();
    let unified = group.dirs.iter_mut().find(|dir| dir.path == group.unified).unwrap();
    unified.writes.push(CgroupWrite { file: "cgroup.freeze".into(), value: "1".into(), ..CgroupWrite::default() });
    let mut pending = podwright_launch::start(&fixture.pod, &plan).unwrap();
    assert_eq!(pending.outcome(), None);
    rustix::process::pidfd_send_signal(&pending.pidfd, rustix::process::Signal::KILL).unwrap();
    wait_readable(&pending.status());
    let failure = pending.outcome().unwrap().unwrap_err();
    assert_eq!((failure.cause, &*failure.step), (Cause::LaunchFailed, "set up"));
    assert_eq!(reap(pending.pid), 128 + 9);
    remove_groups(&Facts::of(&plan));
    fixture.finish();
}
