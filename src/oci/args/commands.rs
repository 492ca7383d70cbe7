//! The flags and arguments of each command.

use std::path::PathBuf;
use std::time::Duration;

use lexopt::{Arg, Parser, ValueExt};

use super::words::{Flag, Words, duration, flag, format, number, other_flag};
use super::{Create, Delete, Events, Exec, Format, Kill, List, Ps, Run, Spec, Update};
use crate::error::Error;
use crate::state;

pub(super) fn create(parser: &mut Parser) -> Result<Create, Error> {
    let mut create = Create::default();
    let mut words = Words::default();
    while let Some(arg) = parser.next()? {
        if let Some(other) = words.take(arg) {
            let name = Flag::of(&other);
            match name.take_for_create(parser, &mut create)? {
                true => {}
                false => return Err(other_flag(name)),
            }
        }
    }
    create.id = words.id()?;
    Ok(create)
}

pub(super) fn run(parser: &mut Parser) -> Result<Run, Error> {
    let mut run = Run::default();
    let mut words = Words::default();
    while let Some(arg) = parser.next()? {
        let Some(other) = words.take(arg) else { continue };
        let name = Flag::of(&other);
        match name.0.as_str() {
            "d" | "detach" => run.detach = flag(parser)?,
            "keep" => run.keep = flag(parser)?,
            // The container's process is this one's child whether or not its orphans are.
            "no-subreaper" => drop(flag(parser)?),
            _ if name.take_for_create(parser, &mut run.create)? => {}
            _ => return Err(other_flag(name)),
        }
    }
    run.create.id = words.id()?;
    Ok(run)
}

pub(super) fn kill(parser: &mut Parser) -> Result<Kill, Error> {
    let mut all = false;
    let mut words = Words::default();
    while let Some(arg) = parser.next()? {
        let Some(other) = words.take(arg) else { continue };
        let name = Flag::of(&other);
        match name.0.as_str() {
            "a" | "all" => all = flag(parser)?,
            _ => return Err(other_flag(name)),
        }
    }
    let signal = match words.0.len() {
        2 => crate::kill::signal(&words.0.pop().unwrap_or_default())?,
        _ => nix::sys::signal::Signal::SIGTERM as i32,
    };
    Ok(Kill { id: words.id()?, signal, all })
}

pub(super) fn delete(parser: &mut Parser) -> Result<Delete, Error> {
    let mut delete = Delete::default();
    let mut words = Words::default();
    while let Some(arg) = parser.next()? {
        let Some(other) = words.take(arg) else { continue };
        let name = Flag::of(&other);
        match name.0.as_str() {
            "f" | "force" => delete.force = flag(parser)?,
            _ => return Err(other_flag(name)),
        }
    }
    delete.id = words.id()?;
    Ok(delete)
}

/// Flags end with the container's id: what follows is the command's.
pub(super) fn exec(parser: &mut Parser) -> Result<Exec, Error> {
    let mut exec = Exec::default();
    while let Some(arg) = parser.next()? {
        if let Arg::Value(id) = arg {
            exec.id = state::check_id(id.to_string_lossy().into_owned())?;
            let words = parser.raw_args()?.map(|word| word.to_string_lossy().into_owned());
            exec.command = words.collect();
            if exec.command.first().is_some_and(|word| word == "--") {
                exec.command.remove(0);
            }
            return Ok(exec);
        }
        let name = Flag::of(&arg);
        exec_flag(&name, parser, &mut exec)?;
    }
    Err(Error::argument("arguments", "", "take a container id and a command"))
}

fn exec_flag(name: &Flag, parser: &mut Parser, exec: &mut Exec) -> Result<(), Error> {
    match name.0.as_str() {
        "p" | "process" => exec.process = Some(PathBuf::from(parser.value()?)),
        "t" | "tty" => exec.terminal = flag(parser)?,
        "cwd" => exec.cwd = Some(PathBuf::from(parser.value()?)),
        "e" | "env" => exec.env.push(parser.value()?.string()?),
        "u" | "user" => exec.user = Some(parser.value()?.string()?),
        "g" | "additional-gids" => exec.additional_gids.push(number(parser.value()?, "--additional-gids")?),
        "c" | "cap" => exec.capabilities.push(parser.value()?.string()?),
        "process-label" => exec.process_label = Some(parser.value()?.string()?),
        "apparmor" => exec.apparmor = Some(parser.value()?.string()?),
        "no-new-privs" => exec.no_new_privs = flag(parser)?,
        "cgroup" => exec.cgroup = Some(parser.value()?.string()?),
        "d" | "detach" => exec.detach = flag(parser)?,
        "console-socket" => exec.console_socket = Some(PathBuf::from(parser.value()?)),
        "pid-file" => exec.pid_file = Some(PathBuf::from(parser.value()?)),
        "preserve-fds" => exec.preserve_fds = number(parser.value()?, "--preserve-fds")?,
        "ignore-paused" => exec.ignore_paused = flag(parser)?,
        "no-subreaper" => drop(flag(parser)?),
        other => return Err(Error::argument("flag", other, "is not one of this command's")),
    }
    Ok(())
}

pub(super) fn update(parser: &mut Parser) -> Result<Update, Error> {
    let mut update = Update::default();
    let mut words = Words::default();
    while let Some(arg) = parser.next()? {
        let Some(other) = words.take(arg) else { continue };
        let name = Flag::of(&other);
        match name.0.as_str() {
            "r" | "resources" => update.resources = Some(PathBuf::from(parser.value()?)),
            flag if crate::update::LIMITS.iter().any(|limit| limit.flag == flag) => {
                update.limits.push((name.0, parser.value()?.string()?));
            }
            _ => return Err(other_flag(name)),
        }
    }
    update.id = words.id()?;
    Ok(update)
}

/// How often the numbers come when nothing is said.
const INTERVAL: Duration = Duration::from_secs(5);

pub(super) fn events(parser: &mut Parser) -> Result<Events, Error> {
    let mut events = Events { id: String::new(), stats: false, interval: INTERVAL };
    let mut words = Words::default();
    while let Some(arg) = parser.next()? {
        let Some(other) = words.take(arg) else { continue };
        let name = Flag::of(&other);
        match name.0.as_str() {
            "stats" => events.stats = flag(parser)?,
            "interval" => events.interval = duration(parser.value()?, "--interval")?,
            _ => return Err(other_flag(name)),
        }
    }
    events.id = words.id()?;
    Ok(events)
}

pub(super) fn ps(parser: &mut Parser) -> Result<Ps, Error> {
    let mut ps = Ps::default();
    while let Some(arg) = parser.next()? {
        if let Arg::Value(id) = arg {
            ps.id = state::check_id(id.to_string_lossy().into_owned())?;
            ps.options = parser.raw_args()?.map(|word| word.to_string_lossy().into_owned()).collect();
            return Ok(ps);
        }
        let name = Flag::of(&arg);
        match name.0.as_str() {
            "f" | "format" => ps.json = format(parser.value()?, "--format")? == Format::Json,
            _ => return Err(other_flag(name)),
        }
    }
    Err(Error::argument("arguments", "", "take one container id"))
}

pub(super) fn list(parser: &mut Parser) -> Result<List, Error> {
    let mut list = List::default();
    while let Some(arg) = parser.next()? {
        let name = Flag::of(&arg);
        match name.0.as_str() {
            "f" | "format" => list.json = format(parser.value()?, "--format")? == Format::Json,
            "q" | "quiet" => list.quiet = flag(parser)?,
            _ => return Err(other_flag(name)),
        }
    }
    Ok(list)
}

pub(super) fn spec(parser: &mut Parser) -> Result<Spec, Error> {
    let mut spec = Spec::default();
    while let Some(arg) = parser.next()? {
        let name = Flag::of(&arg);
        match name.0.as_str() {
            "b" | "bundle" => spec.bundle = Some(PathBuf::from(parser.value()?)),
            "rootless" => spec.rootless = flag(parser)?,
            _ => return Err(other_flag(name)),
        }
    }
    Ok(spec)
}

pub(super) fn only_id(parser: &mut Parser) -> Result<String, Error> {
    let mut words = Words::default();
    while let Some(arg) = parser.next()? {
        if let Some(other) = words.take(arg) {
            return Err(other_flag(Flag::of(&other)));
        }
    }
    words.id()
}

pub(super) fn nothing(parser: &mut Parser) -> Result<(), Error> {
    match parser.next()? {
        None => Ok(()),
        Some(other) => Err(other.unexpected().into()),
    }
}
