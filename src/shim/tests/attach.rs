//! Clients that attach to containers.

use std::fs;
use std::io::{BufRead, BufReader, PipeReader, PipeWriter, Read, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::thread;

use podwright_plan::wire::reply::Result as Answer;
use podwright_plan::wire::request::Op;
use podwright_plan::wire::{self, Cause, ConsoleSize, ContainerPlan, Stdio};
use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;

use crate::rig::{Client, Shim};
use crate::{DONE, FOREVER, forget, frozen};

const OUTPUTS: Stdio = Stdio { stdin: false, stdout: true, stderr: true };
const TALK: Stdio = Stdio { stdin: true, stdout: true, stderr: false };
const LISTEN: Stdio = Stdio { stdin: false, stdout: true, stderr: false };

/// The other ends of what an attach was given.
struct Attached {
    stdin: Option<PipeWriter>,
    stdout: Option<PipeReader>,
    stderr: Option<PipeReader>,
}

impl Attached {
    fn say(&mut self, text: &str) {
        self.stdin.as_mut().unwrap().write_all(text.as_bytes()).unwrap();
    }

    /// Reads stdout until it has said this.
    fn hear(&mut self, text: &str) {
        let mut heard = String::new();
        let mut stdout = BufReader::with_capacity(1, self.stdout.as_mut().unwrap());
        while !heard.contains(text) {
            assert_ne!(stdout.read_line(&mut heard).unwrap(), 0, "{heard}");
        }
    }

    /// What stdout still says until it ends.
    fn rest(&mut self) -> String {
        let mut rest = String::new();
        self.stdout.as_mut().unwrap().read_to_string(&mut rest).unwrap();
        rest
    }
}

/// Asks for an attach; gives the answer with the ends.
fn try_attach(client: &mut Client, container: &str, stdio: Stdio) -> (Answer, Attached) {
    let pipe = |wanted: bool| wanted.then(|| std::io::pipe().unwrap()).unzip();
    let (stdin, our_stdin) = pipe(stdio.stdin);
    let (our_stdout, stdout) = pipe(stdio.stdout);
    let (our_stderr, stderr) = pipe(stdio.stderr);
    let stdin = stdin.iter().map(AsFd::as_fd);
    let fds: Vec<_> = stdin.chain(stdout.iter().chain(&stderr).map(AsFd::as_fd)).collect();
    let op = Op::Attach(wire::Attach { container_id: container.into(), stdio: Some(stdio) });
    let answer = client.ask_for(op, &fds).0;
    (answer, Attached { stdin: our_stdin, stdout: our_stdout, stderr: our_stderr })
}

fn attach(client: &mut Client, container: &str, stdio: Stdio) -> Attached {
    let (answer, attached) = try_attach(client, container, stdio);
    assert_eq!(answer, DONE);
    attached
}

/// Says something to a container and leaves.
pub(crate) fn say(client: &mut Client, container: &str, text: &str) {
    attach(client, container, Stdio { stdin: true, ..Default::default() }).say(text);
}

/// Asks for an attach that must not be; gives the cause, once all ends are seen to be closed.
fn refused(client: &mut Client, container: &str, stdio: Stdio) -> Cause {
    let (answer, attached) = try_attach(client, container, stdio);
    let Answer::Failure(failure) = answer else { panic!("not refused: {answer:?}") };
    assert!(!failure.detail.is_empty(), "{failure:?}");
    for mut output in attached.stdout.into_iter().chain(attached.stderr) {
        assert_eq!(output.read(&mut [0]).unwrap(), 0);
    }
    if let Some(stdin) = attached.stdin {
        await_closed(&stdin);
    }
    failure.cause()
}

/// Waits until nobody reads a pipe any more.
fn await_closed(stdin: &PipeWriter) {
    let mut fds = [PollFd::new(stdin, PollFlags::empty())];
    rustix::event::poll(&mut fds, None).unwrap();
    assert!(fds[0].revents().contains(PollFlags::ERR));
}

/// Waits until the shim has this many descriptors. Each question is answered after a round of its loop.
fn await_descriptors(shim: &Shim, client: &mut Client, count: usize) {
    while shim.descriptors() != count {
        client.inspect();
    }
}

/// How many descriptors the shim has once what it does now is done.
fn settled(shim: &Shim, client: &mut Client) -> usize {
    client.inspect();
    shim.descriptors()
}

fn reader(mut pipe: PipeReader) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let mut text = String::new();
        pipe.read_to_string(&mut text).unwrap();
        text
    })
}

fn with_stdin(plan: ContainerPlan, once: bool) -> ContainerPlan {
    ContainerPlan { stdin: true, stdin_once: once, ..plan }
}

fn with_terminal(mut plan: ContainerPlan) -> ContainerPlan {
    plan.process.as_mut().unwrap().terminal = true;
    with_stdin(plan, true)
}

fn numbers(from: usize, to: usize) -> String {
    (from..=to).map(|number| format!("{number}\n")).collect()
}

#[test]
fn clients_and_the_log_are_told_the_same() {
    let (shim, mut client) = Shim::with_pod();
    let plan = shim.container("c", "read go; seq 1 50000; seq 50001 60000 >&2; exit 3");
    client.started(with_stdin(plan, false));
    let listeners = [attach(&mut client, "c", OUTPUTS), attach(&mut shim.connect(), "c", OUTPUTS)];
    let readers = listeners.map(|it| [it.stdout, it.stderr].map(|pipe| reader(pipe.unwrap())));
    let mut speaker = attach(&mut client, "c", Stdio { stdin: true, ..Default::default() });
    speaker.say("go\n");
    assert_eq!(client.container_exit("c").code, 3);
    for [stdout, stderr] in readers {
        assert!(stdout.join().unwrap() == numbers(1, 50_000));
        assert!(stderr.join().unwrap() == numbers(50_001, 60_000));
    }
    let log = shim.log("c");
    let logged = |tag: &str| {
        log.iter().filter_map(|line| line.strip_prefix(tag)).fold(String::new(), |text, line| text + line + "\n")
    };
    assert!(logged("stdout F ") == numbers(1, 50_000) && logged("stderr F ") == numbers(50_001, 60_000));
    await_closed(&speaker.stdin.unwrap());
    shim.end(client);
}

#[test]
fn a_client_that_does_not_read_is_cut_off_and_holds_nobody_up() {
    const BLOCKS: usize = 30;
    const LINES: usize = 10_000;
    let (shim, mut client) = Shim::with_pod();
    let plan =
        shim.container("c", &format!("while read n; do seq $((n * {LINES} + 1)) $((n * {LINES} + {LINES})); done"));
    client.started(with_stdin(plan, true));
    let mut slow = attach(&mut client, "c", LISTEN);
    let mut good = attach(&mut client, "c", TALK);
    // Block by block, so that the good one is never far behind itself.
    for block in 0..BLOCKS {
        good.say(&format!("{block}\n"));
        let expected = numbers(block * LINES + 1, (block + 1) * LINES);
        let mut heard = vec![0; expected.len()];
        good.stdout.as_mut().unwrap().read_exact(&mut heard).unwrap();
        assert!(heard == expected.into_bytes());
    }
    let all = numbers(1, BLOCKS * LINES);
    assert!(all.len() > (1 << 20) + (64 << 10));
    let begin = slow.rest();
    assert!(!begin.is_empty() && begin.len() < all.len() && all.starts_with(&begin), "{}", begin.len());
    good.stdin = None;
    assert_eq!(client.container_exit("c").code, 0);
    assert_eq!(good.rest(), "");
    assert!(shim.log("c").into_iter().eq((1..=BLOCKS * LINES).map(|number| format!("stdout F {number}"))));
    assert_eq!(shim.words(), "podwright-shim: cut off a client of c, which left more than 1048576 bytes unread\n");
    shim.end_with_words(client, 1);
}

#[test]
fn with_stdin_once_the_first_client_ends_the_input() {
    let (shim, mut client) = Shim::with_pod();
    let plan = shim.container("c", "cat; read more || echo over; exec sleep 100000");
    client.started(with_stdin(plan, true));
    let mut first = attach(&mut client, "c", TALK);
    let mut second = attach(&mut client, "c", TALK);
    first.say("one\n");
    first.hear("one\n");
    second.say("two\n");
    second.hear("one\ntwo\n");
    first.stdin = None;
    first.hear("two\nover\n");
    second.hear("over\n");
    await_closed(&second.stdin.unwrap());
    // One that comes later listens, and is not heard.
    let late = attach(&mut client, "c", TALK);
    await_closed(&late.stdin.unwrap());
    client.kill("c");
    assert_eq!((first.rest(), late.stdout.map(reader).unwrap().join().unwrap()), (String::new(), String::new()));
    client.container_exit("c");
    shim.end(client);
}

#[test]
fn without_stdin_once_clients_come_and_go() {
    let (shim, mut client) = Shim::with_pod();
    client.started(with_stdin(shim.container("c", "exec cat"), false));
    let before = settled(&shim, &mut client);
    let mut first = attach(&mut client, "c", TALK);
    first.say("one\n");
    first.hear("one\n");
    first.stdin = None;
    let mut second = attach(&mut client, "c", TALK);
    second.say("two\n");
    first.hear("two\n");
    second.hear("two\n");
    drop((first, second));
    await_descriptors(&shim, &mut client, before);
    let mut third = attach(&mut client, "c", TALK);
    third.say("three\n");
    third.hear("three\n");
    assert_eq!(client.inspect().containers[0].exit, None);
    client.kill("c");
    client.container_exit("c");
    assert_eq!(shim.log("c"), ["stdout F one", "stdout F two", "stdout F three"]);
    shim.end(client);
}

fn resize(container: &str, width: u32, height: u32) -> Op {
    Op::Resize(wire::Resize { container_id: container.into(), size: Some(ConsoleSize { width, height }) })
}

#[test]
fn a_terminal_is_spoken_to_resized_and_left() {
    let (shim, mut client) = Shim::with_pod();
    let script = "read a; stty size; read b; stty size; read c; echo got $c; exec sleep 100000";
    client.started(with_terminal(shim.container("c", script)));
    assert_eq!(refused(&mut client, "c", OUTPUTS), Cause::InvalidPlan);
    let mut first = attach(&mut client, "c", TALK);
    for (width, height) in [(100, 40), (132, 50)] {
        assert_eq!(client.ask(resize("c", width, height)), DONE);
        first.say("go\n");
        first.hear(&format!("{height} {width}\r\n"));
    }
    // The end of a client's input is not the terminal's, for all that the plan says of the first client.
    drop(first);
    let mut second = attach(&mut client, "c", TALK);
    second.say("more\n");
    second.hear("got more\r\n");
    assert_eq!(client.inspect().containers[0].exit, None);
    client.kill("c");
    client.container_exit("c");
    assert_eq!(second.rest(), "");
    await_closed(&second.stdin.unwrap());
    shim.end(client);
}

#[test]
fn a_terminal_takes_more_than_it_holds() {
    const BYTES: usize = 1 << 20;
    let (shim, mut client) = Shim::with_pod();
    let script = format!("stty raw -echo; echo ready; exec head -c {BYTES} >/out");
    client.started(with_terminal(shim.container("c", &script)));
    shim.wait_for_log("c", &mut client, "stdout F ready");
    let mut speaker = attach(&mut client, "c", TALK);
    let sent: Vec<u8> = (0..BYTES).map(|n| (n % 251) as u8).collect();
    speaker.stdin.as_mut().unwrap().write_all(&sent).unwrap();
    assert_eq!(client.container_exit("c").code, 0);
    assert!(fs::read(shim.path("rootfs-c/upper/out")).unwrap() == sent);
    shim.end(client);
}

#[test]
fn what_cannot_be_attached_to_is_refused() {
    let (shim, mut client) = Shim::with_pod();
    assert_eq!(refused(&mut client, "c", TALK), Cause::NotFound);
    let start = client.send(Op::Start(frozen(shim.container("s", "true"))), &[]);
    // The frozen process would keep what came together with its start.
    assert_eq!(client.inspect().starting, ["s"]);
    assert_eq!(refused(&mut client, "s", OUTPUTS), Cause::InvalidState);
    client.kill("s");
    assert!(matches!(client.answer(start), Answer::Failure(_)));
    client.started(shim.container("c", FOREVER));
    assert_eq!(refused(&mut client, "c", TALK), Cause::InvalidState);
    assert_eq!(refused(&mut client, "c", Stdio::default()), Cause::InvalidPlan);
    assert_eq!(client.refused(resize("c", 80, 25)).cause(), Cause::InvalidState);
    client.kill("c");
    client.container_exit("c");
    assert_eq!(refused(&mut client, "c", OUTPUTS), Cause::InvalidState);
    assert_eq!(client.refused(resize("c", 80, 25)).cause(), Cause::InvalidState);
    // What is no stream that anybody could wait for.
    client.started(with_stdin(shim.container("d", FOREVER), false));
    let before = settled(&shim, &mut client);
    let file = fs::File::open(shim.path("c")).unwrap();
    let op =
        Op::Attach(wire::Attach { container_id: "d".into(), stdio: Some(Stdio { stdin: true, ..Default::default() }) });
    let Answer::Failure(failure) = client.ask_for(op, &[file.as_fd()]).0 else { panic!("not refused") };
    assert_eq!((failure.cause(), failure.errno), (Cause::Internal, Errno::PERM.raw_os_error()));
    assert_eq!(shim.descriptors(), before);
    shim.end(client);
}

#[test]
fn a_client_may_leave_at_any_time() {
    let (shim, mut client) = Shim::with_pod();
    let plan = shim.container("c", &format!("read go; seq 1 30000; exec >&-; read go; seq 1 1000 >&2; {FOREVER}"));
    client.started(with_stdin(plan, false));
    let before = settled(&shim, &mut client);
    let mut stays = attach(&mut client, "c", Stdio { stdin: true, ..OUTPUTS });
    let mut leaves = attach(&mut client, "c", OUTPUTS);
    stays.say("go\n");
    let mut begin = [0; 1000];
    leaves.stdout.as_mut().unwrap().read_exact(&mut begin).unwrap();
    drop(leaves);
    // A stream that the container closes ends for its clients, the other goes on.
    assert!(stays.rest() == numbers(1, 30_000));
    stays.say("go\n");
    let expected = numbers(1, 1000);
    let mut heard = vec![0; expected.len()];
    stays.stderr.as_mut().unwrap().read_exact(&mut heard).unwrap();
    assert!(heard == expected.into_bytes());
    // And to what has ended already.
    assert_eq!(attach(&mut client, "c", OUTPUTS).rest(), "");
    assert_eq!(client.inspect().containers[0].exit, None);
    drop(stays);
    // The container's stdout is gone too.
    await_descriptors(&shim, &mut client, before - 1);
    client.kill("c");
    client.container_exit("c");
    assert_eq!(shim.log("c").len(), 31_000);
    shim.end(client);
}

#[test]
fn a_client_that_never_reads_the_end_is_dropped_with_the_container() {
    let (shim, mut client) = Shim::with_pod();
    let before = settled(&shim, &mut client);
    client.started(with_stdin(shim.container("c", "read go; seq 1 50000"), false));
    let mut attached = attach(&mut client, "c", TALK);
    let mut reads_late = attach(&mut client, "c", LISTEN);
    attached.say("go\n");
    assert_eq!(client.container_exit("c").code, 0);
    assert!(reads_late.rest() == numbers(1, 50_000));
    assert_eq!(shim.descriptors(), before + 1);
    assert_eq!(client.ask(forget("c")), DONE);
    assert_eq!(shim.descriptors(), before);
    shim.end(client);
}

/// The most memory that the shim has had, in KiB.
fn peak(shim: &Shim) -> usize {
    let status = fs::read_to_string(format!("/proc/{}/status", shim.process.id())).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    peak.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn input_waits_for_the_container_and_arrives_whole() {
    const BYTES: usize = 64 << 20;
    let (shim, mut client) = Shim::with_pod();
    client.started(with_stdin(shim.container("c", "exec cat >/out"), true));
    let mut attached = attach(&mut client, "c", TALK);
    let before = peak(&shim);
    let sent: Vec<u8> = (0..BYTES).map(|n| (n % 65_521 % 251) as u8).collect();
    let cgroup = shim.cgroup("c", None).unified;
    let freezer = Path::new(&cgroup).join("cgroup.freeze");
    fs::write(&freezer, "1").unwrap();
    while !fs::read_to_string(Path::new(&cgroup).join("cgroup.events")).unwrap().contains("frozen 1") {
        client.inspect();
    }
    // Until nothing moves any more: what is on the way then is two pipes' content and one read.
    let mut stdin = attached.stdin.take().unwrap();
    rustix::io::ioctl_fionbio(&stdin, true).unwrap();
    let mut written = 0;
    loop {
        match rustix::io::write(&stdin, &sent[written..]) {
            Ok(count) => written += count,
            Err(Errno::AGAIN) => {
                client.inspect();
                client.inspect();
                match rustix::io::write(&stdin, &sent[written..]) {
                    Ok(count) => written += count,
                    Err(_) => break,
                }
            }
            Err(error) => panic!("{error}"),
        }
    }
    assert!((64 << 10..=3 * (64 << 10)).contains(&written), "{written}");
    rustix::io::ioctl_fionbio(&stdin, false).unwrap();
    fs::write(&freezer, "0").unwrap();
    stdin.write_all(&sent[written..]).unwrap();
    drop(stdin);
    assert_eq!(client.container_exit("c").code, 0);
    assert!(fs::read(shim.path("rootfs-c/upper/out")).unwrap() == sent);
    let grown = peak(&shim) - before;
    assert!(grown < 2048, "{grown} KiB");
    shim.end(client);
}

#[test]
fn a_client_hears_what_a_full_disk_holds_back() {
    let (shim, mut client) = Shim::with_pod();
    let disk = crate::rig::SmallDisk::new(1 << 20);
    fs::write(disk.path("filler"), vec![0; 1 << 20]).unwrap();
    let mut plan = with_stdin(shim.container("c", "read go; echo one; read go; echo two"), false);
    plan.log.as_mut().unwrap().path = disk.path("log").to_str().unwrap().into();
    client.started(plan);
    let mut attached = attach(&mut client, "c", TALK);
    attached.say("go\n");
    attached.hear("one\n");
    // From here on the container is held.
    let mut late = attach(&mut client, "c", LISTEN);
    attached.say("go\n");
    fs::remove_file(disk.path("filler")).unwrap();
    assert_eq!(client.container_exit("c").code, 0);
    assert_eq!((attached.rest().as_str(), late.rest().as_str()), ("two\n", "two\n"));
    shim.end(client);
}
