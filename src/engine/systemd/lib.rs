//! The systemd cgroup driver: a container's unit is made, changed and removed by the D-Bus interface of the system's or a
//! user's manager (org.freedesktop.systemd1(5)).
//!
//! What is asked of systemd comes as a [`SystemdUnit`] out of the compiler. The order of a container's start:
//!
//! 1. its init is forked, in the caller's cgroup, and waits
//! 2. [`start`] puts it into a scope
//! 3. the launch half makes what is left of the plan's directories, and writes limits and device program there too
//! 4. init goes on, and may now leave its cgroup namespace: where a process is becomes the root of the new one
//!
//! A unit that is changed has its files written first (`podwright_launch::cgroup::update`), where a bad value is told best and
//! can be taken back; then [`update`] tells systemd the same. When everything in it has been killed, [`stop`] removes it.
//!
//! Every function connects anew, works on the calling thread and is back after [`BOUND`] at the latest. While it runs
//! there may be other threads: call it when nothing is to be forked without an `execve`.

mod bus;
mod error;
mod job;
mod properties;
mod version;

use std::future::Future;
use std::time::Duration;

use podwright_plan::wire::SystemdUnit;
use zbus::OwnedObjectPath;

use bus::Bus;
pub use error::Error;
use error::Refused;
use job::Jobs;

/// How long any call of this crate may take.
pub const BOUND: Duration = Duration::from_secs(30);

/// Makes a unit and puts a process into it; a slice is made without one.
///
/// Slices above the unit are made as needed. A unit of that name that has failed is cleared away first.
///
/// # Errors
/// Names the unit and what the manager answered: a property it does not take, a unit of that name that is in use, a job that
/// failed. `Elsewhere` when the unit's cgroup is not where the plan says. The unit is removed again then.
pub fn start(unit: &SystemdUnit, pid: Option<u32>) -> Result<(), Error> {
    run("start", &unit.name, async {
        let bus = Bus::connect(unit.user).await?;
        let started = start_on(&bus, unit, pid).await;
        if matches!(started, Err(Error::Elsewhere { .. })) {
            // The error that is told is the first one.
            let _ = stop_on(&bus, &unit.name).await;
        }
        bus.close().await;
        started
    })
}

/// Changes the limits of a unit that runs, until it is gone.
///
/// # Errors
/// Names the unit and the property that the manager did not take.
pub fn update(unit: &SystemdUnit) -> Result<(), Error> {
    if unit.limits.is_empty() {
        return Ok(());
    }
    run("change", &unit.name, async {
        let bus = Bus::connect(unit.user).await?;
        let properties = properties::known(&bus, &unit.limits).await?;
        let runtime = true;
        let changed = bus.call("SetUnitProperties", &unit.name, &(&unit.name, runtime, properties)).await;
        bus.close().await;
        changed.map(|_| ())
    })
}

/// Stops a unit and forgets that it failed. One that is gone is no error.
///
/// What is in it should have been killed before: systemd sends SIGTERM and is patient.
///
/// # Errors
/// When the manager refuses, or the unit is not gone in time.
pub fn stop(name: &str, user: bool) -> Result<(), Error> {
    run("stop", name, async {
        let bus = Bus::connect(user).await?;
        let stopped = stop_on(&bus, name).await;
        bus.close().await;
        stopped
    })
}

/// Asks the user's manager for the cgroup that it is in itself: its units are below.
///
/// # Errors
/// When there is none, or it does not answer.
pub fn user_manager_cgroup() -> Result<String, Error> {
    run("ask", "the user's manager", async {
        let bus = Bus::connect(true).await?;
        let cgroup = bus.manager_property("ControlGroup").await;
        bus.close().await;
        cgroup
    })
}

async fn start_on(bus: &Bus, unit: &SystemdUnit, pid: Option<u32>) -> Result<(), Error> {
    let mut properties = properties::placed(unit, pid);
    properties.extend(properties::known(bus, &unit.fixed).await?);
    properties.extend(properties::known(bus, &unit.limits).await?);
    let mut jobs = Jobs::of(bus).await?;
    let auxiliary: Vec<(&str, Vec<(&str, zbus::Variant<'_>)>)> = Vec::new();
    let request = (&unit.name, "replace", properties, auxiliary);
    let answer = match bus.call("StartTransientUnit", &unit.name, &request).await {
        Err(Error::Refused(refused)) if refused.is("org.freedesktop.systemd1.UnitExists") => {
            reset_failed(bus, &unit.name).await?;
            bus.call("StartTransientUnit", &unit.name, &request).await
        }
        answer => answer,
    }?;
    let job: OwnedObjectPath = bus::body(&answer)?;
    jobs.wait(&job, "start", &unit.name).await?;
    check_place(bus, unit).await
}

async fn stop_on(bus: &Bus, name: &str) -> Result<(), Error> {
    let mut jobs = Jobs::of(bus).await?;
    match bus.call("StopUnit", name, &(name, "replace")).await {
        Err(Error::Refused(refused)) if refused.is(Refused::NO_SUCH_UNIT) => return Ok(()),
        answer => {
            let job: OwnedObjectPath = bus::body(&answer?)?;
            jobs.wait(&job, "stop", name).await?;
        }
    }
    reset_failed(bus, name).await
}

/// A unit that has not failed, or is not there, needs none.
async fn reset_failed(bus: &Bus, name: &str) -> Result<(), Error> {
    match bus.call("ResetFailedUnit", name, &(name,)).await {
        Err(Error::Refused(refused)) if refused.is(Refused::NO_SUCH_UNIT) => Ok(()),
        answer => answer.map(|_| ()),
    }
}

/// The limits go into the directories of the plan: they must be the unit's.
async fn check_place(bus: &Bus, unit: &SystemdUnit) -> Result<(), Error> {
    let actual = bus.unit_cgroup(&unit.name).await?;
    if actual == unit.cgroup {
        return Ok(());
    }
    Err(Error::Elsewhere { unit: unit.name.clone(), expected: unit.cgroup.clone(), actual })
}

/// Runs a conversation on this thread, for so long and no longer.
fn run<T>(step: &'static str, unit: &str, talk: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    if !std::path::Path::new("/run/systemd/system").is_dir() {
        return Err(Error::NotRunning);
    }
    zbus::block_on(async {
        let runtime = zruntime::SharedRuntime::current().map_err(Error::Runtime)?;
        let late = |_| Error::TimedOut { step, unit: unit.to_owned(), seconds: BOUND.as_secs() };
        runtime.timeout(BOUND, talk).await.map_err(late)?
    })
}
