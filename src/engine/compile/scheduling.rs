//! `process.scheduler`, `process.ioPriority` and `process.execCPUAffinity`: when and where a process runs.

use std::ops::RangeInclusive;

use oci_spec::runtime::{
    ExecCPUAffinity, IOPriorityClass, LinuxIOPriority, LinuxSchedulerFlag, LinuxSchedulerPolicy, Scheduler,
};
use podwright_plan::wire;

use crate::error::{CompileError, invalid, missing};
use crate::number_list::mask;

/// The highest number of a processor: no kernel is built for more than 8192.
const LAST_CPU: usize = 8191;
const NICE: RangeInclusive<i32> = -20..=19;
/// Of `SCHED_FIFO` and `SCHED_RR`.
const PRIORITY: RangeInclusive<i32> = 1..=99;
/// Of `ioprio_set(2)`'s classes.
const IO_LEVEL: RangeInclusive<i64> = 0..=7;
const IO_CLASS_SHIFT: u32 = 13;

/// Compiles a policy with what belongs to it.
pub(crate) fn scheduler(scheduler: &Scheduler) -> Result<wire::Scheduler, CompileError> {
    use LinuxSchedulerPolicy as Policy;
    let policy = *scheduler.policy();
    let real_time = matches!(policy, Policy::SchedFifo | Policy::SchedRr);
    let bad = |name: &str, value: String, problem| invalid(format!("process.scheduler.{name}"), value, problem);
    let nice = scheduler.nice().unwrap_or(0);
    if !NICE.contains(&nice) {
        return Err(bad("nice", nice.to_string(), "is not between -20 and 19"));
    }
    let priority = scheduler.priority().unwrap_or(0);
    if real_time && !PRIORITY.contains(&priority) {
        return Err(bad("priority", priority.to_string(), "is not between 1 and 99"));
    }
    if !real_time && priority != 0 {
        return Err(bad("priority", priority.to_string(), "goes with SCHED_FIFO and SCHED_RR only"));
    }
    let time = |name: &'static str, value: &Option<u64>| match value.unwrap_or(0) {
        0 if policy == Policy::SchedDeadline && name != "period" => {
            Err(missing(format!("process.scheduler.{name} of SCHED_DEADLINE")))
        }
        value if value != 0 && policy != Policy::SchedDeadline => {
            Err(bad(name, value.to_string(), "goes with SCHED_DEADLINE only"))
        }
        value => Ok(value),
    };
    Ok(wire::Scheduler {
        policy: policy_number(policy),
        flags: scheduler.flags().iter().flatten().fold(0, |bits, flag| bits | flag_bit(*flag)),
        nice,
        priority: priority.unsigned_abs(),
        runtime: time("runtime", scheduler.runtime())?,
        deadline: time("deadline", scheduler.deadline())?,
        period: time("period", scheduler.period())?,
    })
}

/// The numbers of linux/sched.h. The kernel has reserved one for `SCHED_ISO` and refuses it.
fn policy_number(policy: LinuxSchedulerPolicy) -> u32 {
    match policy {
        LinuxSchedulerPolicy::SchedOther => 0,
        LinuxSchedulerPolicy::SchedFifo => 1,
        LinuxSchedulerPolicy::SchedRr => 2,
        LinuxSchedulerPolicy::SchedBatch => 3,
        LinuxSchedulerPolicy::SchedIso => 4,
        LinuxSchedulerPolicy::SchedIdle => 5,
        LinuxSchedulerPolicy::SchedDeadline => 6,
    }
}

fn flag_bit(flag: LinuxSchedulerFlag) -> u64 {
    match flag {
        LinuxSchedulerFlag::SchedResetOnFork => 0x01,
        LinuxSchedulerFlag::SchedFlagReclaim => 0x02,
        LinuxSchedulerFlag::SchedFlagDLOverrun => 0x04,
        LinuxSchedulerFlag::SchedFlagKeepPolicy => 0x08,
        LinuxSchedulerFlag::SchedFlagKeepParams => 0x10,
        LinuxSchedulerFlag::SchedFlagUtilClampMin => 0x20,
        LinuxSchedulerFlag::SchedFlagUtilClampMax => 0x40,
    }
}

/// Compiles to the number that `ioprio_set(2)` takes.
pub(crate) fn io_priority(priority: &LinuxIOPriority) -> Result<u32, CompileError> {
    let class: u32 = match priority.class() {
        IOPriorityClass::IoprioClassRt => 1,
        IOPriorityClass::IoprioClassBe => 2,
        IOPriorityClass::IoprioClassIdle => 3,
    };
    let level = u32::try_from(priority.priority()).ok().filter(|level| IO_LEVEL.contains(&i64::from(*level)));
    match level {
        Some(level) => Ok(class << IO_CLASS_SHIFT | level),
        None => Err(invalid("process.ioPriority.priority", priority.priority().to_string(), "is not between 0 and 7")),
    }
}

/// Compiles to two masks of processors, before and after the process has joined its cgroup; an empty one asks for nothing.
pub(crate) fn affinity(affinity: &ExecCPUAffinity) -> Result<(Vec<u8>, Vec<u8>), CompileError> {
    let read = |list: &Option<String>, name: &str| {
        mask(list.as_deref().unwrap_or_default(), LAST_CPU, &format!("process.execCPUAffinity.{name}"))
    };
    Ok((read(affinity.initial(), "initial")?, read(affinity.cpu_affinity_final(), "final")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<wire::Scheduler, String> {
        scheduler(&serde_json::from_str(json).unwrap()).map_err(|error| error.to_string())
    }

    #[test]
    fn policies_have_the_kernels_numbers() {
        let fifo = read(r#"{"policy": "SCHED_FIFO", "priority": 9, "flags": ["SCHED_RESET_ON_FORK"]}"#).unwrap();
        assert_eq!(fifo, wire::Scheduler { policy: 1, priority: 9, flags: 1, ..wire::Scheduler::default() });
        let batch = read(r#"{"policy": "SCHED_BATCH", "nice": -3}"#).unwrap();
        assert_eq!((batch.policy, batch.nice), (3, -3));
        let deadline = read(r#"{"policy": "SCHED_DEADLINE", "runtime": 1, "deadline": 2, "period": 3}"#).unwrap();
        assert_eq!((deadline.policy, deadline.runtime, deadline.deadline, deadline.period), (6, 1, 2, 3));
    }

    #[test]
    fn values_of_another_policy_are_refused() {
        for (json, words) in [
            (r#"{"policy": "SCHED_OTHER", "nice": 20}"#, "scheduler.nice"),
            (r#"{"policy": "SCHED_OTHER", "priority": 1}"#, "SCHED_FIFO and SCHED_RR only"),
            (r#"{"policy": "SCHED_RR"}"#, "between 1 and 99"),
            (r#"{"policy": "SCHED_RR", "priority": 1, "period": 1}"#, "scheduler.period"),
            (r#"{"policy": "SCHED_DEADLINE", "runtime": 5}"#, "scheduler.deadline of SCHED_DEADLINE is missing"),
        ] {
            let error = read(json).unwrap_err();
            assert!(error.contains(words), "{error}");
        }
    }

    #[test]
    fn io_priorities_are_one_number() {
        let read = |json: &str| io_priority(&serde_json::from_str(json).unwrap());
        assert_eq!(read(r#"{"class": "IOPRIO_CLASS_RT", "priority": 7}"#), Ok(0x2007));
        assert_eq!(read(r#"{"class": "IOPRIO_CLASS_IDLE", "priority": 0}"#), Ok(0x6000));
        assert!(read(r#"{"class": "IOPRIO_CLASS_BE", "priority": 8}"#).unwrap_err().to_string().contains("0 and 7"));
    }

    #[test]
    fn an_affinity_has_two_halves() {
        let read = |json: &str| affinity(&serde_json::from_str(json).unwrap());
        assert_eq!(read(r#"{"initial": "0-1", "final": "9"}"#).unwrap(), (vec![3], vec![0, 2]));
        assert_eq!(read("{}").unwrap(), (vec![], vec![]));
        assert!(read(r#"{"final": "9000"}"#).unwrap_err().to_string().contains("execCPUAffinity.final"));
    }
}
