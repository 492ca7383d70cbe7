//! Filters that ask: the listener reaches its socket with the state, and calls are answered.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use podwright_launch::{ExecStdio, Facts, Pending, Stdio, exec, start};
use podwright_plan::wire::{Cause, Process, SeccompListener};
use podwright_sys::seccomp_supervisor::{Verdict, receive, respond};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketAddrUnix, SocketFlags, SocketType,
};

use crate::Case;
use crate::containers::filter;
use crate::fixture::{Fixture, exec_plan, read_all, reap, remove_groups};

pub(crate) const CASES: &[Case] = &[
    ("a_listener_is_told_and_asked", a_listener_is_told_and_asked),
    ("any_call_may_be_asked_about", any_call_may_be_asked_about),
    ("an_exec_has_a_listener_of_its_own", an_exec_has_a_listener_of_its_own),
    ("calls_fail_when_a_listener_has_gone", calls_fail_when_a_listener_has_gone),
    ("a_listener_that_is_not_there_is_named", a_listener_that_is_not_there_is_named),
];

const ASK: u32 = 0x7fc0_0000;

/// The socket of the one who answers.
struct Supervisor {
    socket: OwnedFd,
    listener: Option<OwnedFd>,
    state: String,
}

impl Supervisor {
    fn at(path: &Path) -> Self {
        let flags = SocketFlags::CLOEXEC;
        let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).unwrap();
        rustix::net::bind(&socket, &SocketAddrUnix::new(path).unwrap()).unwrap();
        rustix::net::listen(&socket, 4).unwrap();
        Self { socket, listener: None, state: String::new() }
    }

    /// Takes a listener off the socket.
    fn accept(&mut self) {
        let connection = rustix::net::accept_with(&self.socket, SocketFlags::CLOEXEC).unwrap();
        let mut bytes = [0; 4096];
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut parts = [std::io::IoSliceMut::new(&mut bytes)];
        let length =
            rustix::net::recvmsg(&connection, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC).unwrap().bytes;
        self.listener = control.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
            _ => None,
        });
        self.state = String::from_utf8(bytes[..length].to_vec()).unwrap();
    }

    /// Answers until something else can be read, or has ended.
    fn serve(&mut self, other: &impl AsFd, verdict: impl Fn(i32) -> Verdict) {
        loop {
            let own = self.listener.as_ref().unwrap_or(&self.socket);
            let mut fds = [PollFd::new(other, PollFlags::IN), PollFd::new(own, PollFlags::IN)];
            poll(&mut fds, None).unwrap();
            let asked = fds[1].revents().contains(PollFlags::IN);
            if !fds[0].revents().is_empty() {
                return;
            }
            match &self.listener {
                Some(listener) if asked => {
                    let call = receive(listener).unwrap();
                    respond(listener, call, verdict(call.number)).unwrap();
                }
                // Hung up: no process is under the filter any more.
                Some(_) => self.listener = None,
                None => self.accept(),
            }
        }
    }

    /// Answers until a process runs its program.
    fn settle(&mut self, pending: &mut Pending, verdict: impl Fn(i32) -> Verdict) {
        loop {
            match pending.outcome() {
                Some(outcome) => break outcome.unwrap(),
                None => self.serve(&pending.status(), &verdict),
            }
        }
        // A program that has not asked yet may run before its listener was taken off the socket.
        if self.listener.is_none() {
            self.accept();
        }
    }
}

fn ask(process: &mut Process, path: &Path, program: Vec<u8>) {
    process.seccomp = program;
    let state = ["pid=", " init=", "."].map(str::to_owned).to_vec();
    process.seccomp_listener = Some(SeccompListener { path: path.to_str().unwrap().into(), state });
}

fn mkdir() -> u32 {
    // Busybox calls the one or the other.
    u32::try_from(if cfg!(target_arch = "x86_64") { libc::SYS_mkdir } else { libc::SYS_mkdirat }).unwrap()
}

/// Starts a container and runs it to its end; its output and the state that came with the listener.
fn run(
    fixture: &Fixture,
    supervisor: &mut Supervisor,
    id: &str,
    script: &str,
    change: impl Fn(&mut Process),
) -> String {
    let mut plan = fixture.plan(id, script);
    change(plan.process.as_mut().unwrap());
    let mut pending = start(&fixture.pod, &plan).unwrap();
    let verdict = |number: i32| match u32::try_from(number) {
        Ok(number) if number == mkdir() => Verdict::Fail(Errno::XDEV),
        _ => Verdict::Continue,
    };
    supervisor.settle(&mut pending, verdict);
    assert_eq!(supervisor.state, format!("pid={} init={}.", pending.pid, pending.pid));
    let Stdio::Pipes { stdout, stderr, .. } = pending.take_stdio() else { panic!("no pipes") };
    supervisor.serve(&pending.pidfd, verdict);
    reap(pending.pid);
    remove_groups(&Facts::of(&plan));
    supervisor.listener = None;
    read_all(&stdout) + &read_all(&stderr)
}

fn a_listener_is_told_and_asked() {
    let fixture = Fixture::new();
    let path = fixture.dir.path().join("listener");
    let mut supervisor = Supervisor::at(&path);
    for (id, no_new_privileges) in [("with", true), ("without", false)] {
        let output = run(&fixture, &mut supervisor, id, "mkdir /x; ls /proc/self/fd; ls -d /x", |process| {
            ask(process, &path, filter(mkdir(), ASK));
            process.no_new_privileges = no_new_privileges;
        });
        assert!(output.contains("'/x': Invalid cross-device link"), "{output}");
        // The listener itself is not the container's to hold, or it could answer itself.
        assert!(output.starts_with("0\n1\n2\n3\n") && output.contains("/x: No such file"), "{output}");
    }
    fixture.finish();
}

fn any_call_may_be_asked_about() {
    let fixture = Fixture::new();
    let path = fixture.dir.path().join("listener");
    let mut supervisor = Supervisor::at(&path);
    // write, sendmsg, read, close, execve: whatever else a runtime would need to hand the listener over.
    let everything = [&0x06_u16.to_ne_bytes()[..], &[0, 0], &ASK.to_ne_bytes()].concat();
    for (id, no_new_privileges) in [("with", true), ("without", false)] {
        let output = run(&fixture, &mut supervisor, id, "echo said", |process| {
            ask(process, &path, everything.clone());
            process.no_new_privileges = no_new_privileges;
        });
        assert_eq!(output, "said\n");
    }
    fixture.finish();
}

fn an_exec_has_a_listener_of_its_own() {
    let fixture = Fixture::new();
    let path = fixture.dir.path().join("listener");
    let mut supervisor = Supervisor::at(&path);
    let container = fixture.start(&fixture.plan("c", "exec sleep 1000")).unwrap();
    let mut plan = exec_plan("1", "mkdir /x");
    ask(plan.process.as_mut().unwrap(), &path, filter(mkdir(), ASK));
    let (from_stderr, stderr) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    let stdio = ExecStdio { stderr: Some(stderr), ..ExecStdio::default() };
    let mut pending = exec(container.target(), &plan, stdio).unwrap();
    supervisor.settle(&mut pending, |_| Verdict::Fail(Errno::XDEV));
    assert_eq!(supervisor.state, format!("pid={} init={}.", pending.pid, container.pid));
    supervisor.serve(&pending.pidfd, |_| Verdict::Fail(Errno::XDEV));
    assert_eq!(reap(pending.pid), 1);
    assert!(read_all(&from_stderr).contains("Invalid cross-device link"));
    container.kill();
    fixture.finish();
}

fn calls_fail_when_a_listener_has_gone() {
    let fixture = Fixture::new();
    let path = fixture.dir.path().join("listener");
    let mut supervisor = Supervisor::at(&path);
    let mut plan = fixture.plan("c", "cat; mkdir /x");
    plan.stdin = true;
    ask(plan.process.as_mut().unwrap(), &path, filter(mkdir(), ASK));
    let running = fixture.start(&plan).unwrap();
    supervisor.accept();
    drop(supervisor);
    let ended = running.end();
    assert!(ended.stderr.contains("Function not implemented"), "{ended:?}");
    fixture.finish();
}

fn a_listener_that_is_not_there_is_named() {
    let fixture = Fixture::new();
    let path = fixture.dir.path().join("listener");
    for errno in [Errno::NOENT, Errno::CONNREFUSED] {
        if errno == Errno::CONNREFUSED {
            // A socket at which nobody listens any more.
            drop(Supervisor::at(&path));
        }
        let mut plan = fixture.plan("c", "true");
        ask(plan.process.as_mut().unwrap(), &path, filter(mkdir(), ASK));
        let failure = fixture.fail(&plan);
        let seen = (failure.cause, &*failure.step, &*failure.subject, failure.kernel_error());
        assert_eq!(seen, (Cause::LaunchFailed, "connect to seccomp listener", path.to_str().unwrap(), Some(errno)));
    }
    fixture.finish();
}
