//! `run`: `create` and `start` in one, and the wait for the end unless it is to be in the background.

use crate::args::{Globals, Run};
use crate::error::Error;
use crate::foreground::{self, Signals};
use crate::{create, delete, own_binary, start};

/// Does `run`; the code is the container's.
pub(crate) fn run(globals: &Globals, args: &Run) -> Result<u8, Error> {
    own_binary::protect()?;
    if args.detach {
        let made = create::make(globals, &args.create, false)?;
        return start::release(globals, &made.container).map(|()| 0).inspect_err(|_| {
            // The start's failure is the one to tell; what stays is seen as a stopped container.
            let _ = delete::remove(globals, &made.container);
        });
    }
    let signals = Signals::hold()?;
    let made = create::make(globals, &args.create, true)?;
    let started = start::release(globals, &made.container);
    let ended =
        started.and_then(|()| foreground::wait(made.container.record.pid, made.pidfd.as_ref(), made.console, &signals));
    if args.keep && ended.is_ok() {
        return ended;
    }
    let removed = delete::remove(globals, &made.container);
    ended.and_then(|code| removed.map(|()| code))
}
