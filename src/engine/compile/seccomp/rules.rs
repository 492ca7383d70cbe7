//! From a profile's rules to what happens at each number: sorted stretches of equal outcome for each architecture.
//!
//! - A name that the table of numbers lacks is ignored, as other runtimes do: profiles list calls of newer kernels.
//! - A rule with the default action is ignored.
//! - A rule without arguments decides over all others of its call, the first such rule over later ones. Rules with
//!   arguments are tried in the profile's order; when none applies, the default action does.
//! - A rule that tests one argument twice is split into one rule a test, as runc has always read Docker's profiles.
//! - Above the newest call that the profile names, a refusal becomes ENOSYS: the profile's author cannot have thought of
//!   that call, and only "no such call" makes a C library try the older one (runc's rule since 1.0).

use std::collections::{BTreeMap, BTreeSet};

use oci_spec::runtime::{LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompOperator, LinuxSyscall};

use super::SeccompError;
use super::arch::{ARM_PRIVATE, SeccompArch, X32_BIT};
use super::syscalls;

/// The largest errno that the kernel lets a filter return (`MAX_ERRNO`).
const MAX_ERRNO: u32 = 4095;
const EPERM: u32 = 1;
const ENOSYS: u32 = 38;
pub(super) const RET_KILL_PROCESS: u32 = 0x8000_0000;
const RET_KILL_THREAD: u32 = 0;
const RET_TRAP: u32 = 0x0003_0000;
const RET_ERRNO: u32 = 0x0005_0000;
const RET_USER_NOTIF: u32 = 0x7fc0_0000;
const RET_TRACE: u32 = 0x7ff0_0000;
const RET_LOG: u32 = 0x7ffc_0000;
const RET_ALLOW: u32 = 0x7fff_0000;

/// What the filter does at a number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Returns this value (`SECCOMP_RET_*` with data).
    Return(u32),
    /// Tries rules in order; the value is returned when none applies.
    Conditional(Vec<Rule>, u32),
}

/// Conditions that must all hold, and what is returned then.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Rule {
    pub(super) conditions: Vec<Condition>,
    pub(super) value: u32,
}

/// A test of one argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Condition {
    /// 0 to 5.
    pub(super) index: u8,
    pub(super) operator: LinuxSeccompOperator,
    /// What is compared with; the mask of `SCMP_CMP_MASKED_EQ`.
    pub(super) value: u64,
    /// What the masked argument must equal.
    pub(super) masked: u64,
    /// Whether the high word counts.
    pub(super) wide: bool,
}

/// One architecture's part of the filter: outcomes from each start to the next.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Section {
    pub(super) audit: u32,
    pub(super) stretches: Vec<(u32, Outcome)>,
}

impl Section {
    /// Tells whether some call is one that a listening process is asked about.
    pub(super) fn asks(&self) -> bool {
        self.stretches.iter().any(|(_, outcome)| match outcome {
            Outcome::Return(value) => *value == RET_USER_NOTIF,
            Outcome::Conditional(rules, otherwise) => {
                *otherwise == RET_USER_NOTIF || rules.iter().any(|rule| rule.value == RET_USER_NOTIF)
            }
        })
    }
}

/// Numbers of one convention that lie together: from `base` up to the next range.
struct Range {
    base: u32,
    calls: BTreeMap<u32, Outcome>,
    /// What happens to the numbers that no rule names, up to `newest`.
    default: u32,
    /// What happens above.
    unknown: u32,
    newest: u32,
}

/// Lays a profile out for the native architecture and the ones it lists.
pub(super) fn sections(profile: &LinuxSeccomp, native: SeccompArch) -> Result<Vec<Section>, SeccompError> {
    let default = action(profile.default_action(), profile.default_errno_ret(), || "defaultAction".to_owned())?;
    // The native convention is always there, and first, because nearly every call is its. Those of other machines are
    // left out: this kernel reports none of them.
    let mut arches = vec![native];
    for arch in profile.architectures().iter().flatten() {
        if let Some(arch) = SeccompArch::from_oci(*arch, native)
            && !arches.contains(&arch)
        {
            arches.push(arch);
        }
    }
    let mut ranges: Vec<(u32, Vec<Range>)> = Vec::new();
    for arch in arches {
        let laid_out = lay_out(profile, arch, default)?;
        match ranges.iter_mut().find(|(audit, _)| *audit == arch.audit()) {
            Some((_, present)) => present.extend(laid_out),
            None => ranges.push((arch.audit(), laid_out)),
        }
    }
    Ok(ranges.into_iter().map(|(audit, ranges)| section(audit, ranges)).collect())
}

/// Collects the outcomes of one convention, split where its numbers have a gap on purpose.
fn lay_out(profile: &LinuxSeccomp, arch: SeccompArch, default: u32) -> Result<Vec<Range>, SeccompError> {
    let mut calls: BTreeMap<u32, Outcome> = BTreeMap::new();
    let mut named: BTreeSet<u32> = BTreeSet::new();
    for (index, rule) in profile.syscalls().iter().flatten().enumerate() {
        let value = action(rule.action(), rule.errno_ret(), || format!("syscalls[{index}].action"))?;
        let rules = conditions(rule, index, arch, value)?;
        for name in rule.names() {
            let Some(number) = syscalls::find(name).map(|row| row[arch.column()]).filter(|it| *it != syscalls::X)
            else {
                continue;
            };
            let number = number + arch.bias();
            named.insert(number);
            if value != default {
                add(&mut calls, number, &rules, value, default);
            }
        }
    }
    let bases: &[u32] = match arch {
        SeccompArch::X32 => &[X32_BIT],
        SeccompArch::Arm => &[0, ARM_PRIVATE],
        _ => &[0],
    };
    let mut ranges = Vec::new();
    for base in bases.iter().rev() {
        let newest = named.split_off(base).last().copied();
        let unknown = if newest.is_none() || tolerates_new_calls(default) { default } else { RET_ERRNO | ENOSYS };
        ranges.push(Range {
            base: *base,
            calls: calls.split_off(base),
            default,
            unknown,
            newest: newest.unwrap_or(*base),
        });
    }
    Ok(ranges)
}

/// Adds a rule to a call's outcome.
fn add(calls: &mut BTreeMap<u32, Outcome>, number: u32, rules: &[Rule], value: u32, default: u32) {
    if rules.is_empty() {
        let outcome = calls.entry(number).or_insert(Outcome::Return(value));
        if matches!(outcome, Outcome::Conditional(..)) {
            *outcome = Outcome::Return(value);
        }
    } else if let Outcome::Conditional(present, _) =
        calls.entry(number).or_insert_with(|| Outcome::Conditional(Vec::new(), default))
    {
        present.extend_from_slice(rules);
    }
}

/// Tells whether a default action lets calls through that the profile's author did not know, or leaves that to others.
fn tolerates_new_calls(default: u32) -> bool {
    matches!(default & 0xffff_0000, RET_ALLOW | RET_LOG | RET_TRACE | RET_USER_NOTIF)
}

/// Joins the ranges that share an audit architecture into one line of stretches from 0 to the last number.
fn section(audit: u32, mut ranges: Vec<Range>) -> Section {
    if audit == SeccompArch::X86_64.audit() && !ranges.iter().any(|range| range.base == X32_BIT) {
        // The kernel reports x32 calls as x86-64 ones: without x32 in the profile they are of a foreign architecture.
        ranges.push(Range {
            base: X32_BIT,
            calls: BTreeMap::new(),
            default: RET_KILL_PROCESS,
            unknown: RET_KILL_PROCESS,
            newest: X32_BIT,
        });
    }
    ranges.sort_by_key(|range| range.base);
    let mut stretches: Vec<(u32, Outcome)> = Vec::new();
    let mut push = |start: u32, outcome: Outcome| {
        if stretches.last().is_none_or(|(_, last)| *last != outcome) {
            stretches.push((start, outcome));
        }
    };
    for range in ranges {
        let mut next = range.base;
        for (number, outcome) in range.calls {
            if number > next {
                push(next, Outcome::Return(range.default));
            }
            push(number, outcome);
            next = number + 1;
        }
        if next <= range.newest {
            push(next, Outcome::Return(range.default));
        }
        push((range.newest + 1).max(next), Outcome::Return(range.unknown));
    }
    if audit == SeccompArch::X86_64.audit() {
        // A tracer writes -1 as the number to have a call skipped; that is no x32 call, and the process is not to die of it.
        push(u32::MAX, Outcome::Return(RET_ERRNO | ENOSYS));
    }
    Section { audit, stretches }
}

/// Reads a rule's arguments; no rule comes back when it has none.
fn conditions(rule: &LinuxSyscall, at: usize, arch: SeccompArch, value: u32) -> Result<Vec<Rule>, SeccompError> {
    let arguments = rule.args().as_deref().unwrap_or_default();
    let conditions = arguments.iter().map(|argument| condition(argument, at, arch)).collect::<Result<Vec<_>, _>>()?;
    let twice = conditions
        .iter()
        .enumerate()
        .any(|(position, condition)| conditions[..position].iter().any(|earlier| earlier.index == condition.index));
    Ok(if conditions.is_empty() {
        Vec::new()
    } else if twice {
        conditions.into_iter().map(|condition| Rule { conditions: vec![condition], value }).collect()
    } else {
        vec![Rule { conditions, value }]
    })
}

fn condition(argument: &LinuxSeccompArg, rule: usize, arch: SeccompArch) -> Result<Condition, SeccompError> {
    let index = u8::try_from(argument.index()).ok().filter(|index| *index < 6);
    Ok(Condition {
        index: index.ok_or(SeccompError::ArgumentIndex { rule, index: argument.index() })?,
        operator: argument.op(),
        value: argument.value(),
        masked: argument.value_two().unwrap_or(0),
        wide: arch.wide(),
    })
}

/// Turns an action into what a filter returns.
fn action(action: LinuxSeccompAction, errno: Option<u32>, field: impl Fn() -> String) -> Result<u32, SeccompError> {
    let plain = match action {
        LinuxSeccompAction::ScmpActErrno | LinuxSeccompAction::ScmpActTrace => {
            let errno = errno.unwrap_or(EPERM);
            if errno > MAX_ERRNO {
                return Err(SeccompError::Errno { field: field(), errno });
            }
            return Ok(errno | if action == LinuxSeccompAction::ScmpActErrno { RET_ERRNO } else { RET_TRACE });
        }
        LinuxSeccompAction::ScmpActNotify => RET_USER_NOTIF,
        LinuxSeccompAction::ScmpActKill | LinuxSeccompAction::ScmpActKillThread => RET_KILL_THREAD,
        LinuxSeccompAction::ScmpActKillProcess => RET_KILL_PROCESS,
        LinuxSeccompAction::ScmpActTrap => RET_TRAP,
        LinuxSeccompAction::ScmpActLog => RET_LOG,
        LinuxSeccompAction::ScmpActAllow => RET_ALLOW,
    };
    // The specification: an errno for an action that returns none is an error.
    if errno.is_some() { Err(SeccompError::ErrnoUnused { field: field() }) } else { Ok(plain) }
}
