//! `delete`: removes what is left of a container.

use std::time::Duration;

use podwright_launch::{Phase, cgroup, hooks};
use rustix::io::Errno;

use crate::args::{Delete, Globals};
use crate::error::Error;
use crate::kill::kill_all;
use crate::log::Log;
use crate::state::{Container, Status};
use crate::wait;

/// How long killed processes may take to be gone: one in the kernel's hands may hold on.
const PATIENCE: Duration = Duration::from_secs(10);

/// Does `delete`.
pub(crate) fn delete(globals: &Globals, args: &Delete) -> Result<(), Error> {
    let container = match Container::find(&globals.root, &args.id) {
        // What is gone is what was wanted.
        Err(Error::NotFound { .. }) if args.force => return Ok(()),
        container => container?,
    };
    let _lock = container.home.lock()?;
    match container.status()? {
        Status::Stopped | Status::Created => {}
        _ if args.force => {}
        status => return Err(container.refuse("delete", status)),
    }
    remove(globals, &container)
}

/// Kills what is left, removes cgroups and state, and runs the hooks that are for afterwards.
pub(crate) fn remove(globals: &Globals, container: &Container) -> Result<(), Error> {
    let pidfd = container.pidfd()?;
    let mut problems = Vec::new();
    let mut note = |result: Result<(), Error>| {
        if let Err(error) = result {
            problems.push(podwright_base::chain(&error));
        }
    };
    if let Some(pidfd) = &pidfd {
        note(match rustix::process::pidfd_send_signal(pidfd, rustix::process::Signal::KILL) {
            Err(Errno::SRCH) => Ok(()),
            sent => sent.map_err(Error::step("kill process", container.record.pid)),
        });
    }
    // In the host's pid namespace, or after a kill of the first alone, there may be more.
    note(kill_all(container));
    if let Some(pidfd) = &pidfd {
        note(wait::ended(pidfd, PATIENCE));
    }
    let plan = container.plan()?;
    if let Some(unit) = plan.cgroup.as_ref().and_then(|group| group.systemd.as_ref()) {
        note(podwright_systemd::stop(&unit.name, unit.user).map_err(Error::from));
    }
    for dir in podwright_launch::Facts::of(&plan).cgroup_dirs() {
        note(wait::retry(PATIENCE, || cgroup::remove(dir)).map_err(Error::step("remove cgroup", dir.display())));
    }
    if !problems.is_empty() {
        return Err(Error::CleanUp(problems));
    }
    container.home.remove()?;
    if let Some(hooks) = &plan.hooks {
        let state = || container.record.for_hooks(Phase::Stopped, 0);
        for hook in &hooks.poststop {
            // The others are run all the same.
            if let Err(failure) = hooks::run("poststop", std::slice::from_ref(hook), &state) {
                Log::new(globals).warning(&failure.to_string());
            }
        }
    }
    Ok(())
}
