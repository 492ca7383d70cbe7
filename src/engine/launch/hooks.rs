//! Hooks: programs of the host's, run to their end at fixed points of a container's life, with its state on their stdin.

use std::ffi::OsStr;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use podwright_plan::wire::{Cause, Hook};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::MemfdFlags;
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal};

use crate::failure::{Failure, Named};

/// Bytes of a hook's output that are told when it fails: its last words.
const LAST_WORDS: u64 = 1024;

/// Runs hooks one by one; `state` writes what they are told.
///
/// # Errors
/// The first one that could not be executed, exited with another code than 0, or was not done in time (it was killed with
/// its process group then). The ones after it are not run.
pub fn run(kind: &str, hooks: &[Hook], state: &dyn Fn() -> Vec<u8>) -> Result<(), Failure> {
    if hooks.is_empty() {
        return Ok(());
    }
    let state = state();
    hooks.iter().try_for_each(|hook| run_one(kind, hook, &state))
}

fn run_one(kind: &str, hook: &Hook, state: &[u8]) -> Result<(), Failure> {
    let failed = |errno| Failure::launch(&format!("run {kind} hook"), &hook.path, errno);
    let told = |detail: String| Failure {
        cause: Cause::LaunchFailed,
        step: format!("run {kind} hook"),
        subject: hook.path.clone(),
        errno: 0,
        detail,
    };
    // Files, not pipes: a hook that does not read, or that leaves a process behind, holds nobody up.
    let input = file("state", state).map_err(failed)?;
    let output = file("output", b"").map_err(failed)?;
    let child =
        command(hook, &input, &output).map_err(failed)?.spawn().in_child(&format!("run {kind} hook"), &hook.path)?;
    let status = match wait(child, hook.timeout_s).map_err(failed)? {
        Some(status) => status,
        None => return Err(told(format!("it was not done after {} s", hook.timeout_s))),
    };
    if status.success() {
        return Ok(());
    }
    let words = last_words(output);
    Err(told(if words.is_empty() { status.to_string() } else { format!("{status}: {words}") }))
}

fn command(hook: &Hook, input: &OwnedFd, output: &OwnedFd) -> Result<Command, Errno> {
    let mut command = Command::new(&hook.path);
    if let Some((name, arguments)) = hook.args.split_first() {
        command.arg0(OsStr::from_bytes(name)).args(arguments.iter().map(|argument| OsStr::from_bytes(argument)));
    }
    // Without a list it has the caller's, as hooks of other runtimes do.
    if !hook.env.is_empty() {
        command.env_clear();
    }
    for variable in &hook.env {
        let equals = variable.iter().position(|byte| *byte == b'=').unwrap_or(variable.len());
        let value = variable.get(equals + 1..).unwrap_or_default();
        command.env(OsStr::from_bytes(&variable[..equals]), OsStr::from_bytes(value));
    }
    command.stdin(input.try_clone().map_err(errno_of)?);
    command.stdout(output.try_clone().map_err(errno_of)?).stderr(output.try_clone().map_err(errno_of)?);
    // So that what it started is killed with it.
    command.process_group(0);
    Ok(command)
}

/// Waits for a hook's end, `None` when its time was up first and it was killed.
fn wait(mut child: Child, timeout_s: u32) -> Result<Option<ExitStatus>, Errno> {
    if timeout_s > 0 {
        let pid = Pid::from_child(&child);
        let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty())?;
        if !ended_before(&pidfd, Instant::now() + Duration::from_secs(timeout_s.into()))? {
            let killed = rustix::process::kill_process_group(pid, Signal::KILL);
            child.wait().map_err(errno_of)?;
            return killed.map(|()| None);
        }
    }
    child.wait().map(Some).map_err(errno_of)
}

fn ended_before(pidfd: &OwnedFd, deadline: Instant) -> Result<bool, Errno> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() };
        match poll(&mut [PollFd::new(pidfd, PollFlags::IN)], Some(&left)) {
            Err(Errno::INTR) => {}
            answer => return answer.map(|ready| ready > 0),
        }
    }
}

fn file(name: &str, content: &[u8]) -> Result<OwnedFd, Errno> {
    let mut file = std::fs::File::from(rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC)?);
    file.write_all(content).and_then(|()| file.rewind()).map_err(errno_of)?;
    Ok(file.into())
}

/// What a failure is explained with; without it the exit code has to do.
fn last_words(output: OwnedFd) -> String {
    let mut file = std::fs::File::from(output);
    let mut bytes = Vec::new();
    let length = file.seek(SeekFrom::End(0)).unwrap_or_default();
    let from = SeekFrom::Start(length.saturating_sub(LAST_WORDS));
    match file.seek(from).and_then(|_| file.take(LAST_WORDS).read_to_end(&mut bytes)) {
        Ok(_) => String::from_utf8_lossy(&bytes).trim().to_owned(),
        Err(_) => String::new(),
    }
}

fn errno_of(error: std::io::Error) -> Errno {
    Errno::from_io_error(&error).unwrap_or(Errno::IO)
}
