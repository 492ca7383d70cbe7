//! The command line, which is runc's: global flags, a command, its flags before or after its arguments.

use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;

use lexopt::{Arg, Parser, ValueExt};

use crate::error::Error;
use crate::state;

/// Global flags.
#[derive(Debug, Clone)]
pub(crate) struct Globals {
    pub(crate) root: PathBuf,
    pub(crate) log: Option<PathBuf>,
    pub(crate) log_format: Format,
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
    pub(crate) cgroup: Option<String>,
    pub(crate) detach: bool,
    pub(crate) console_socket: Option<PathBuf>,
    pub(crate) pid_file: Option<PathBuf>,
    pub(crate) preserve_fds: u32,
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
    let mut globals = Globals { root: state::default_root(), log: None, log_format: Format::Text };
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
                flag(&mut parser)?;
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
        "spec" => spec(parser).map(Command::Spec),
        "features" => nothing(parser).map(|()| Command::Features),
        "help" => Ok(Command::Help),
        _ => Err(Error::argument("command", name, "is none: see --help")),
    }
}

fn create(parser: &mut Parser) -> Result<Create, Error> {
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

fn run(parser: &mut Parser) -> Result<Run, Error> {
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

fn kill(parser: &mut Parser) -> Result<Kill, Error> {
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

fn delete(parser: &mut Parser) -> Result<Delete, Error> {
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
fn exec(parser: &mut Parser) -> Result<Exec, Error> {
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
        // The process joins a container that stands still, and stands still with it.
        "ignore-paused" | "no-subreaper" => drop(flag(parser)?),
        other => return Err(Error::argument("flag", other, "is not one of this command's")),
    }
    Ok(())
}

fn ps(parser: &mut Parser) -> Result<Ps, Error> {
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

fn list(parser: &mut Parser) -> Result<List, Error> {
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

fn spec(parser: &mut Parser) -> Result<Spec, Error> {
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

fn only_id(parser: &mut Parser) -> Result<String, Error> {
    let mut words = Words::default();
    while let Some(arg) = parser.next()? {
        if let Some(other) = words.take(arg) {
            return Err(other_flag(Flag::of(&other)));
        }
    }
    words.id()
}

fn nothing(parser: &mut Parser) -> Result<(), Error> {
    match parser.next()? {
        None => Ok(()),
        Some(other) => Err(other.unexpected().into()),
    }
}

/// A flag's name without its dashes; a word that is none has the empty name.
struct Flag(String);

impl Flag {
    fn of(arg: &Arg<'_>) -> Self {
        match arg {
            Arg::Short(letter) => Self(letter.to_string()),
            Arg::Long(name) => Self((*name).to_owned()),
            Arg::Value(_) => Self(String::new()),
        }
    }

    /// Takes a flag that `create` and `run` share; `false` for another one.
    fn take_for_create(&self, parser: &mut Parser, create: &mut Create) -> Result<bool, Error> {
        match self.0.as_str() {
            "b" | "bundle" => create.bundle = Some(PathBuf::from(parser.value()?)),
            "console-socket" => create.console_socket = Some(PathBuf::from(parser.value()?)),
            "pid-file" => create.pid_file = Some(PathBuf::from(parser.value()?)),
            "preserve-fds" => create.preserve_fds = number(parser.value()?, "--preserve-fds")?,
            // Nothing is pivoted on a root that cannot be, and no keyring is made.
            "no-pivot" | "no-new-keyring" => drop(flag(parser)?),
            _ => return Ok(false),
        }
        Ok(true)
    }
}

fn other_flag(name: Flag) -> Error {
    Error::argument("flag", name.0, "is not one of this command's")
}

/// What is no flag.
#[derive(Debug, Default)]
struct Words(Vec<String>);

impl Words {
    /// Keeps a word; gives a flag back.
    fn take<'a>(&mut self, arg: Arg<'a>) -> Option<Arg<'a>> {
        match arg {
            Arg::Value(word) => {
                self.0.push(word.to_string_lossy().into_owned());
                None
            }
            flag => Some(flag),
        }
    }

    /// The container's id, which must be all there is.
    fn id(self) -> Result<String, Error> {
        match <[String; 1]>::try_from(self.0) {
            Ok([id]) => state::check_id(id),
            Err(words) => Err(Error::argument("arguments", words.join(" "), "take one container id")),
        }
    }
}

/// A flag that may have `=true` or `=false` behind it.
fn flag(parser: &mut Parser) -> Result<bool, Error> {
    match parser.optional_value() {
        None => Ok(true),
        Some(value) if value == "true" || value == "1" => Ok(true),
        Some(value) if value == "false" || value == "0" => Ok(false),
        Some(value) => Err(Error::argument("flag", value.to_string_lossy(), "is neither true nor false")),
    }
}

fn number(value: OsString, name: &'static str) -> Result<u32, Error> {
    let text = value.to_string_lossy();
    text.parse().map_err(|_| Error::argument(name, &text, "is no number"))
}

fn log_format(value: OsString) -> Result<Format, Error> {
    match &*value.to_string_lossy() {
        "text" => Ok(Format::Text),
        "json" => Ok(Format::Json),
        other => Err(Error::argument("--log-format", other, "is neither text nor json")),
    }
}

/// The format of a listing.
fn format(value: OsString, name: &'static str) -> Result<Format, Error> {
    match &*value.to_string_lossy() {
        "table" => Ok(Format::Text),
        "json" => Ok(Format::Json),
        other => Err(Error::argument(name, other, "is neither table nor json")),
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
    fn what_is_wrong_is_named() {
        for (text, words) in [
            ("create", "take one container id"),
            ("create a b", "take one container id"),
            ("create ../x", "id"),
            ("create --preserve-fds many x", "--preserve-fds"),
            ("fly x", "is none"),
            ("--log-format yaml list", "--log-format"),
            ("start --now x", "now"),
        ] {
            let error = line(text).unwrap_err();
            assert!(error.contains(words), "{text}: {error}");
        }
    }
}
