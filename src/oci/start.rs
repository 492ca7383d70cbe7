//! `start`: lets a created container's process become the user's program.

use podwright_launch::{Phase, Stage, hooks};

use crate::args::Globals;
use crate::error::Error;
use crate::log::Log;
use crate::state::{Container, Status};

/// Does `start`.
pub(crate) fn start(globals: &Globals, id: &str) -> Result<(), Error> {
    let container = Container::find(&globals.root, id)?;
    release(globals, &container)
}

/// Starts a container, and runs the hooks that are for afterwards.
pub(crate) fn release(globals: &Globals, container: &Container) -> Result<(), Error> {
    let _lock = container.home.lock()?;
    match container.status()? {
        Status::Created => {}
        status => return Err(container.refuse("start", status)),
    }
    let pid = container.record.pid;
    let plan = container.plan()?;
    let listener = plan.process.as_ref().and_then(|process| process.seccomp_listener.as_ref());
    let mut progress = podwright_launch::release(container.home.directory(), pid, listener)?;
    while !matches!(progress.advance()?, Stage::Running) {}
    if let Some(list) = plan.hooks.as_ref().map(|hooks| &hooks.poststart) {
        let state = || container.record.for_hooks(Phase::Running, pid);
        if let Err(failure) = hooks::run("poststart", list, &state) {
            // The program runs: that a hook failed is no reason to say that it does not.
            Log::new(globals).warning(&failure.to_string());
        }
    }
    Ok(())
}
