//! The command line, which is runc's: global flags, a command, its flags before or after its arguments.

mod commands;
mod words;

use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use lexopt::{Arg, Parser, ValueExt};

use crate::error::Error;
use crate::state;
use commands::{create, delete, events, exec, kill, list, nothing, only_id, ps, run, spec, update};
use words::{flag, log_format};

/// Global flags.
#[derive(Debug, Clone)]
pub(crate) struct Globals {
    pub(crate) root: PathBuf,
    pub(crate) log: Option<PathBuf>,
    pub(crate) log_format: Format,
    pub(crate) systemd_cgroup: bool,
}

/// How log lines are written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Format {
    #[default]
    Text,
    Json,
}

/// A whole command line.
#[derive(Debug)]
pub(crate) struct Line {
    pub(crate) globals: Globals,
    pub(crate) command: Command,
}

/// What is to be done.
#[derive(Debug)]
pub(crate) enum Command {
    Create(Create),
    Run(Run),
    Start(String),
    State(String),
    List(List),
    Kill(Kill),
    Delete(Delete),
    Exec(Box<Exec>),
    Ps(Ps),
    Pause(String),
    Resume(String),
    Update(Box<Update>),
    Events(Events),
    Spec(Spec),
    Features,
    Help,
    Version,
}

impl Command {
    /// Returns the exit code of a failure that is not a program's.
    pub(crate) fn failure(&self) -> u8 {
        match self {
            // As runc has it: 1 would be the program's.
            Self::Exec(_) => 255,
            _ => 1,
        }
    }
}

/// What `create` and `run` share.
#[derive(Debug, Default)]
pub(crate) struct Create {
    pub(crate) id: String,
    pub(crate) bundle: Option<PathBuf>,
    pub(crate) console_socket: Option<PathBuf>,
    pub(crate) pid_file: Option<PathBuf>,
    pub(crate) preserve_fds: u32,
}

#[derive(Debug, Default)]
pub(crate) struct Run {
    pub(crate) create: Create,
    pub(crate) detach: bool,
    pub(crate) keep: bool,
}

#[derive(Debug, Default)]
pub(crate) struct List {
    pub(crate) json: bool,
    pub(crate) quiet: bool,
}

#[derive(Debug)]
pub(crate) struct Kill {
    pub(crate) id: String,
    pub(crate) signal: i32,
    pub(crate) all: bool,
}

#[derive(Debug, Default)]
pub(crate) struct Delete {
    pub(crate) id: String,
    pub(crate) force: bool,
}

/// What `exec` runs, and what it changes of the container's own process for that.
#[derive(Debug, Default)]
pub(crate) struct Exec {
    pub(crate) id: String,
    /// A file with the whole process, in place of `command` and what changes it.
    pub(crate) process: Option<PathBuf>,
    pub(crate) command: Vec<String>,
    pub(crate) terminal: bool,
    pub(crate) cwd: Option<PathBuf>,
    pub(crate) env: Vec<String>,
    pub(crate) user: Option<String>,
    pub(crate) additional_gids: Vec<u32>,
    pub(crate) capabilities: Vec<String>,
    pub(crate) process_label: Option<String>,
    pub(crate) apparmor: Option<String>,
    pub(crate) no_new_privs: bool,
    pub(crate) ignore_paused: bool,
    pub(crate) cgroup: Option<String>,
    pub(crate) detach: bool,
    pub(crate) console_socket: Option<PathBuf>,
    pub(crate) pid_file: Option<PathBuf>,
    pub(crate) preserve_fds: u32,
}

/// New limits: a file of `linux.resources`, or what single flags say.
#[derive(Debug, Default)]
pub(crate) struct Update {
    pub(crate) id: String,
    pub(crate) resources: Option<PathBuf>,
    /// By the flag's name.
    pub(crate) limits: Vec<(String, String)>,
}

/// What a container uses.
#[derive(Debug)]
pub(crate) struct Events {
    pub(crate) id: String,
    /// Once.
    pub(crate) stats: bool,
    pub(crate) interval: Duration,
}

#[derive(Debug, Default)]
pub(crate) struct Ps {
    pub(crate) id: String,
    pub(crate) json: bool,
    /// Passed on to ps(1).
    pub(crate) options: Vec<String>,
}

#[derive(Debug, Default)]
pub(crate) struct Spec {
    pub(crate) bundle: Option<PathBuf>,
    pub(crate) rootless: bool,
}

const HELP: &str = "\
podwright-oci - an OCI runtime

Usage: podwright-oci [--root DIR] [--log FILE] [--log-format text|json] [--debug] [--systemd-cgroup] COMMAND …

Commands:
  create [-b DIR] [--console-socket SOCKET] [--pid-file FILE] [--preserve-fds N] ID
  run    [-d] [--keep] [flags of create] ID
  start ID
  state ID
  kill [--all] ID [SIGNAL]
  delete [--force] ID
  exec [-p FILE] [-t] [-d] [--cwd DIR] [-e VAR=value]… [-u UID[:GID]] [-g GID]… [-c CAP]… [--cgroup PATH]
       [--process-label LABEL] [--apparmor PROFILE] [--no-new-privs] [flags of create] ID COMMAND…
  pause ID
  resume ID
  update [-r FILE|-] [--memory BYTES] [--memory-swap BYTES] [--memory-reservation BYTES] [--cpu-period µs] [--cpu-quota µs]
         [--cpu-burst µs] [--cpu-share N] [--cpu-idle 0|1] [--cpu-rt-period µs] [--cpu-rt-runtime µs] [--cpuset-cpus LIST]
         [--cpuset-mems LIST] [--blkio-weight N] [--pids-limit N] ID
  events [--stats] [--interval TIME] ID
  ps [--format table|json] ID [options of ps]
  list [--format table|json] [--quiet]
  spec [-b DIR] [--rootless]
  features
";

/// Prints how the command is used.
pub(crate) fn help() -> Result<(), Error> {
    print(HELP)
}

/// Prints the version, and that of the specification.
pub(crate) fn version() -> Result<(), Error> {
    print(&format!("podwright-oci version {}\nspec: {}\n", env!("CARGO_PKG_VERSION"), state::OCI_VERSION))
}

/// Writes to standard output.
pub(crate) fn print(text: &str) -> Result<(), Error> {
    std::io::stdout().write_all(text.as_bytes()).map_err(Error::Output)
}

/// Parses a command line; the first word is the program's name.
pub(crate) fn parse(words: impl IntoIterator<Item = OsString>) -> Result<Line, Error> {
    let mut parser = Parser::from_iter(words);
    let mut globals =
        Globals { root: state::default_root(), log: None, log_format: Format::Text, systemd_cgroup: false };
    loop {
        let command = match parser.next()? {
            Some(Arg::Long("root")) => {
                globals.root =
                    std::path::absolute(PathBuf::from(parser.value()?)).map_err(Error::file("resolve", "--root"))?;
                continue;
            }
            Some(Arg::Long("log")) => {
                globals.log = Some(PathBuf::from(parser.value()?)).filter(|path| !path.as_os_str().is_empty());
                continue;
            }
            Some(Arg::Long("log-format")) => {
                globals.log_format = log_format(parser.value()?)?;
                continue;
            }
            // There is no more to tell than what is told.
            Some(Arg::Long("debug")) => {
                flag(&mut parser)?;
                continue;
            }
            Some(Arg::Long("systemd-cgroup")) => {
                globals.systemd_cgroup = flag(&mut parser)?;
                continue;
            }
            Some(Arg::Long("rootless")) => {
                // Whether it is needed is seen from the user.
                parser.value()?;
                continue;
            }
            Some(Arg::Long("help") | Arg::Short('h')) | None => Command::Help,
            Some(Arg::Long("version") | Arg::Short('v')) => Command::Version,
            Some(Arg::Value(name)) => command(&name.string()?, &mut parser)?,
            Some(other) => return Err(other.unexpected().into()),
        };
        return Ok(Line { globals, command });
    }
}

fn command(name: &str, parser: &mut Parser) -> Result<Command, Error> {
    match name {
        "create" => create(parser).map(Command::Create),
        "run" => run(parser).map(Command::Run),
        "start" => only_id(parser).map(Command::Start),
        "state" => only_id(parser).map(Command::State),
        "list" => list(parser).map(Command::List),
        "kill" => kill(parser).map(Command::Kill),
        "delete" => delete(parser).map(Command::Delete),
        "exec" => exec(parser).map(|exec| Command::Exec(Box::new(exec))),
        "ps" => ps(parser).map(Command::Ps),
        "pause" => only_id(parser).map(Command::Pause),
        "resume" => only_id(parser).map(Command::Resume),
        "update" => update(parser).map(|update| Command::Update(Box::new(update))),
        "events" => events(parser).map(Command::Events),
        "spec" => spec(parser).map(Command::Spec),
        "features" => nothing(parser).map(|()| Command::Features),
        "help" => Ok(Command::Help),
        // Or it would pass for a misspelt one.
        "checkpoint" | "restore" => Err(Error::argument(
            "command",
            name,
            "is not supported by this version: containers cannot be saved to disk",
        )),
        _ => Err(Error::argument("command", name, "is none: see --help")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: &str) -> Result<Line, String> {
        let words = format!("podwright-oci {text}");
        parse(words.split_whitespace().map(OsString::from)).map_err(|error| error.to_string())
    }

    #[test]
    fn flags_stand_before_or_after_the_id() {
        for text in ["delete --force abc", "delete abc --force", "delete -f abc", "delete --force=true abc"] {
            let Command::Delete(delete) = line(text).unwrap().command else { panic!("{text}") };
            assert!(delete.force && delete.id == "abc", "{text}");
        }
    }

    #[test]
    fn global_flags_come_first() {
        let line =
            line("--root /r --log /l --log-format json --systemd-cgroup --debug create -b /b --pid-file=p x").unwrap();
        assert_eq!((line.globals.root, line.globals.log_format), (PathBuf::from("/r"), Format::Json));
        let Command::Create(create) = line.command else { panic!("no create") };
        assert_eq!((create.id.as_str(), create.bundle, create.pid_file), ("x", Some("/b".into()), Some("p".into())));
    }

    #[test]
    fn a_signal_may_be_left_out() {
        for (text, signal) in [("kill x", 15), ("kill x KILL", 9), ("kill --all x SIGUSR1", 10), ("kill x 34", 34)] {
            let Command::Kill(kill) = line(text).unwrap().command else { panic!("{text}") };
            assert_eq!(kill.signal, signal, "{text}");
        }
        assert!(line("kill x NOSUCH").is_err());
    }

    #[test]
    fn what_follows_the_id_is_the_command() {
        for text in ["exec -t -e A=b -u 1:2 x ls -l --cap", "exec --tty --env A=b --user=1:2 x -- ls -l --cap"] {
            let Command::Exec(exec) = line(text).unwrap().command else { panic!("{text}") };
            assert!(exec.terminal && exec.capabilities.is_empty(), "{text}");
            assert_eq!(
                (exec.command.join(" "), exec.env, exec.user),
                ("ls -l --cap".into(), vec!["A=b".into()], Some("1:2".into()))
            );
        }
    }

    #[test]
    fn times_have_units() {
        for (text, milliseconds) in
            [("events x", 5000), ("events --interval 200ms x", 200), ("events x --interval=1m30s", 90_000)]
        {
            let Command::Events(events) = line(text).unwrap().command else { panic!("{text}") };
            assert_eq!(events.interval, Duration::from_millis(milliseconds), "{text}");
        }
        for bad in ["0s", "5", "s", "-1s", "1d", "", "99999999999999999999h"] {
            assert!(line(&format!("events --interval={bad} x")).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, words) in [
            ("create", "take one container id"),
            ("create a b", "take one container id"),
            ("create ../x", "id"),
            ("create --preserve-fds many x", "--preserve-fds"),
            ("fly x", "is none"),
            ("checkpoint --image-path /i x", "not supported"),
            ("restore x", "not supported"),
            ("--log-format yaml list", "--log-format"),
            ("start --now x", "now"),
        ] {
            let error = line(text).unwrap_err();
            assert!(error.contains(words), "{text}: {error}");
        }
    }
}
