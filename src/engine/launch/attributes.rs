//! What a process is beside who it is: its scheduling, its memory policy, its execution domain and its keyring.

use std::ffi::CString;

use podwright_plan::wire::{Process, Scheduler};
use podwright_sys::{keyring, personality, scheduling};
use rustix::io::Errno;

use crate::failure::{Failure, Named};

/// Lets the calling process run where the plan has it until it has joined its cgroup.
pub(crate) fn bind_before_join(process: &Process) -> Result<(), Failure> {
    if process.cpus_initial.is_empty() {
        return Ok(());
    }
    scheduling::set_affinity(&process.cpus_initial).in_child("set initial CPU affinity", cpus(&process.cpus_initial))
}

/// Lets it run where the plan has it from then on: without a word on all that the cgroup gives, because what the caller
/// itself was bound to is no concern of a container's.
pub(crate) fn bind_after_join(process: &Process) -> Result<(), Failure> {
    if process.cpus_final.is_empty() {
        return scheduling::reset_affinity().in_child("reset CPU affinity", "");
    }
    scheduling::set_affinity(&process.cpus_final).in_child("set CPU affinity", cpus(&process.cpus_final))
}

/// Sets the rest, with full capabilities and before a filter could refuse it.
pub(crate) fn set(process: &Process) -> Result<(), Failure> {
    join_keyring(&process.keyring)?;
    if let Some(scheduler) = &process.scheduler {
        schedule(scheduler)?;
    }
    if let Some(priority) = process.io_priority {
        scheduling::set_io_priority(priority).in_child("set I/O priority", format!("{priority:#x}"))?;
    }
    if let Some(policy) = &process.memory_policy {
        let nodes = cpus(&policy.nodes);
        personality::set_memory_policy(policy.mode, &policy.nodes)
            .in_child("set memory policy", format!("{:#x} on nodes {nodes}", policy.mode))?;
    }
    match process.personality {
        Some(persona) => personality::set_personality(persona).in_child("set personality", format!("{persona:#x}")),
        None => Ok(()),
    }
}

fn schedule(scheduler: &Scheduler) -> Result<(), Failure> {
    let policy = scheduling::Policy {
        number: scheduler.policy,
        flags: scheduler.flags,
        nice: scheduler.nice,
        priority: scheduler.priority,
        runtime: scheduler.runtime,
        deadline: scheduler.deadline,
        period: scheduler.period,
    };
    scheduling::set_policy(policy).in_child("set scheduler", format!("policy {}", scheduler.policy))
}

/// The caller's own session keyring holds keys of the host's.
fn join_keyring(name: &str) -> Result<(), Failure> {
    if name.is_empty() {
        return Ok(());
    }
    let text = CString::new(name).map_err(|_| Failure::plan("join session keyring", name, "a NUL byte"))?;
    match keyring::join(&text) {
        // A kernel without keys has none to protect.
        Err(Errno::NOSYS) => Ok(()),
        result => result.in_child("join session keyring", name),
    }
}

/// A mask as its numbers, for people.
fn cpus(mask: &[u8]) -> String {
    let numbers = (0..mask.len() * 8).filter(|bit| mask[bit / 8] & (1 << (bit % 8)) != 0);
    numbers.map(|bit| bit.to_string()).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_are_told_as_numbers() {
        assert_eq!(cpus(&[0b101, 0, 0x80]), "0,2,23");
        assert_eq!(cpus(&[]), "");
    }
}
