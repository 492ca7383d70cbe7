//! `exec`: runs another process in a container.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use oci_spec::runtime::{Capabilities, Process, Spec, User};
use podwright_compile::ExecRequest;
use podwright_launch::{Progress, Stage, Target};
use podwright_plan::wire;

use crate::args::{Exec, Globals};
use crate::create::{absolute, check_descriptors, kill};
use crate::error::Error;
use crate::foreground::{self, Signals};
use crate::state::{Container, Status};
use crate::{console, own_binary};

/// Does `exec`; the code is the program's, 0 where it is not waited for.
pub(crate) fn exec(globals: &Globals, args: &Exec) -> Result<u8, Error> {
    own_binary::protect()?;
    check_descriptors(args.preserve_fds)?;
    let container = Container::find(&globals.root, &args.id)?;
    let Some(pidfd) = container.pidfd()? else { return Err(container.refuse("exec in", Status::Stopped)) };
    if !args.ignore_paused && container.status()? == Status::Paused {
        return Err(container.refuse("exec in", Status::Paused));
    }
    let process = compile(&container, args)?;
    check_terminal(args, process.terminal)?;
    let signals = if args.detach { None } else { Some(Signals::hold()?) };
    let below = args.cgroup.as_deref().map(sub_cgroup).transpose()?;
    let facts = container.facts()?;
    let target = Target { pidfd: pidfd.as_fd(), facts: &facts };
    let mut progress = podwright_launch::enter(target, &process, below.as_deref())?;
    let console = match follow(&mut progress, args) {
        Ok(console) => console,
        Err(error) => {
            kill(&progress);
            return Err(error);
        }
    };
    let pid = progress.pid();
    match signals {
        Some(signals) => foreground::wait(pid, progress.into_pidfd().as_ref(), console, &signals),
        None => Ok(0),
    }
}

/// Goes with the process until it is the program.
fn follow(progress: &mut Progress, args: &Exec) -> Result<Option<OwnedFd>, Error> {
    let mut console = None;
    loop {
        match progress.advance()? {
            Stage::Console(master) => console = console::hand_over(master, args.console_socket.as_deref())?,
            Stage::Environment | Stage::Created => {}
            Stage::Running => break,
        }
    }
    if let Some(path) = absolute(args.pid_file.as_deref())? {
        podwright_base::replace(&path, progress.pid().to_string().as_bytes()).map_err(Error::file("write", path))?;
    }
    Ok(console)
}

fn check_terminal(args: &Exec, terminal: bool) -> Result<(), Error> {
    match (terminal, &args.console_socket) {
        (true, None) if args.detach => {
            Err(Error::argument("--console-socket", "", "is missing: nobody is there to serve the terminal"))
        }
        (false, Some(path)) => {
            Err(Error::argument("--console-socket", path.display(), "is of no use without a terminal"))
        }
        _ => Ok(()),
    }
}

fn compile(container: &Container, args: &Exec) -> Result<wire::Process, Error> {
    let (path, spec) = container.specification()?;
    let process = match &args.process {
        Some(path) => read(path)?,
        None => changed(&spec, args)?,
    };
    let request = ExecRequest {
        container_id: &args.id,
        exec_id: &args.id,
        bundle: &container.record.bundle,
        stdio: wire::Stdio::default(),
        timeout_ms: 0,
        tied_to_connection: false,
    };
    let plan = podwright_compile::exec(&process, &spec, &request, &podwright_host::facts()?);
    let plan = plan.map_err(|source| Error::Specification { path: args.process.clone().unwrap_or(path), source })?;
    let process = plan.process.unwrap_or_default();
    Ok(wire::Process { preserve_fds: args.preserve_fds, ..process })
}

fn read(path: &Path) -> Result<Process, Error> {
    let bytes = fs::read(path).map_err(Error::file("read", path))?;
    serde_json::from_slice(&bytes).map_err(|source| Error::Json { path: path.to_owned(), source })
}

/// The container's own process with another command, and what the flags say.
fn changed(spec: &Spec, args: &Exec) -> Result<Process, Error> {
    if args.command.is_empty() {
        return Err(Error::argument("arguments", "", "take a command, or --process a file with one"));
    }
    let mut process = spec.process().clone().unwrap_or_default();
    process.set_args(Some(args.command.clone())).set_terminal(Some(args.terminal));
    let env = process.env().iter().flatten().chain(&args.env).cloned().collect();
    process.set_env(Some(env));
    if let Some(cwd) = &args.cwd {
        process.set_cwd(cwd.clone());
    }
    if let Some(label) = &args.process_label {
        process.set_selinux_label(Some(label.clone()));
    }
    if let Some(profile) = &args.apparmor {
        process.set_apparmor_profile(Some(profile.clone()));
    }
    if args.no_new_privs {
        process.set_no_new_privileges(Some(true));
    }
    if let Some(user) = &args.user {
        let (uid, gid) = ids(user)?;
        let mut user = User::default();
        user.set_uid(uid).set_gid(gid).set_umask(process.user().umask());
        process.set_user(user);
    }
    if !args.additional_gids.is_empty() {
        let own = process.user().additional_gids().iter().flatten();
        let gids = own.chain(&args.additional_gids).copied().collect();
        process.user_mut().set_additional_gids(Some(gids));
    }
    if !args.capabilities.is_empty() {
        add_capabilities(&mut process, &args.capabilities)?;
    }
    Ok(process)
}

/// `UID` or `UID:GID`.
fn ids(user: &str) -> Result<(u32, u32), Error> {
    let number = |text: &str| text.parse().map_err(|_| Error::argument("--user", user, "is not of the form UID[:GID]"));
    match user.split_once(':') {
        None => Ok((number(user)?, 0)),
        Some((uid, gid)) => Ok((number(uid)?, number(gid)?)),
    }
}

fn add_capabilities(process: &mut Process, names: &[String]) -> Result<(), Error> {
    let mut added = Capabilities::new();
    for name in names {
        let unknown = |_| Error::argument("--cap", name, "is no capability");
        added.insert(serde_json::from_value(name.as_str().into()).map_err(unknown)?);
    }
    let mut sets = process.capabilities().clone().unwrap_or_default();
    let with = |set: &Option<Capabilities>| Some(set.iter().flatten().chain(&added).copied().collect());
    let (bounding, effective, permitted) = (with(sets.bounding()), with(sets.effective()), with(sets.permitted()));
    sets.set_bounding(bounding).set_effective(effective).set_permitted(permitted);
    process.set_capabilities(Some(sets));
    Ok(())
}

/// A cgroup below the container's, by a path that does not leave it.
fn sub_cgroup(path: &str) -> Result<PathBuf, Error> {
    let refuse = |problem| Err(Error::argument("--cgroup", path, problem));
    if path.contains(':') {
        return refuse("names a controller, which is not supported by this version");
    }
    let path = Path::new(path.trim_start_matches('/'));
    match path.components().all(|part| matches!(part, Component::Normal(_))) {
        true => Ok(path.to_owned()),
        false => refuse("leaves the container's cgroup"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_change_the_containers_own_process() {
        let mut process = Process::default();
        process.set_env(Some(vec!["A=1".into()])).set_capabilities(None);
        let mut spec = Spec::default();
        spec.set_process(Some(process));
        let args = Exec {
            command: vec!["id".into()],
            env: vec!["B=2".into()],
            user: Some("7:8".into()),
            additional_gids: vec![9],
            capabilities: vec!["CAP_CHOWN".into()],
            ..Exec::default()
        };
        let process = changed(&spec, &args).unwrap();
        assert_eq!(process.args().as_deref(), Some(&["id".to_owned()][..]));
        assert_eq!(process.env().as_deref(), Some(&["A=1".to_owned(), "B=2".to_owned()][..]));
        assert_eq!((process.user().uid(), process.user().gid()), (7, 8));
        assert_eq!(process.user().additional_gids().as_deref(), Some(&[9][..]));
        assert!(
            process
                .capabilities()
                .as_ref()
                .unwrap()
                .bounding()
                .as_ref()
                .unwrap()
                .contains(&oci_spec::runtime::Capability::Chown)
        );
        for bad in ["x", "1:x", ":1", "1:2:3"] {
            assert!(
                changed(&spec, &Exec { user: Some(bad.into()), command: args.command.clone(), ..Exec::default() })
                    .is_err(),
                "{bad}"
            );
        }
    }

    #[test]
    fn a_sub_cgroup_is_below() {
        assert_eq!(sub_cgroup("/a/b").unwrap(), Path::new("a/b"));
        assert_eq!(sub_cgroup("a").unwrap(), Path::new("a"));
        for bad in ["../x", "a/../../x", "cpu:a"] {
            assert!(sub_cgroup(bad).is_err(), "{bad}");
        }
    }
}
