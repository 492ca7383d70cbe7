//! `linux.resources.devices`: the ordered rules, reduced to a default and its exceptions.
//!
//! The reduction follows the kernel's v1 controller, because the list is defined by what happens when it is written
//! there line by line; the v2 program is made from the same result, so a list means one thing on every host. A rule for
//! all devices starts over; others add to the exceptions or take from them. Taking a part out of a wildcard exception is
//! what v1 silently ignores: here it is refused.

use std::collections::BTreeMap;

use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType};
use podwright_plan::wire::CgroupWrite;

use super::limits::write;
use crate::error::{CompileError, invalid};

/// `BPF_DEVCG_ACC_*`
pub(super) const MKNOD: u8 = 1;
pub(super) const READ: u8 = 2;
pub(super) const WRITE: u8 = 4;
const ALL: u8 = MKNOD | READ | WRITE;

/// Which devices an exception is for; `None` is every number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Match {
    pub(super) block: bool,
    pub(super) major: Option<u32>,
    pub(super) minor: Option<u32>,
}

/// What is left of the rules: a default, and the access that differs from it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct DeviceAccess {
    pub(super) allowed: bool,
    pub(super) exceptions: BTreeMap<Match, u8>,
}

/// What every container may use, after the specification's own rules: making any node (opening it is another matter), and
/// the devices that the specification puts into every /dev, with the terminals behind /dev/pts and /dev/ptmx.
const DEFAULTS: [(bool, Option<u32>, Option<u32>, u8); 10] = [
    (false, None, None, MKNOD),
    (true, None, None, MKNOD),
    (false, Some(1), Some(3), ALL),
    (false, Some(1), Some(5), ALL),
    (false, Some(1), Some(7), ALL),
    (false, Some(1), Some(8), ALL),
    (false, Some(1), Some(9), ALL),
    (false, Some(5), Some(0), ALL),
    (false, Some(5), Some(2), ALL),
    (false, Some(136), None, ALL),
];

impl DeviceAccess {
    /// Reduces a container's rules, the defaults behind them.
    pub(super) fn from_rules(rules: &[LinuxDeviceCgroup]) -> Result<Self, CompileError> {
        let mut access = Self::default();
        for (index, rule) in rules.iter().enumerate() {
            access.apply(rule, &format!("linux.resources.devices[{index}]"))?;
        }
        for (block, major, minor, bits) in DEFAULTS {
            access.change(true, Match { block, major, minor }, bits, "linux.resources.devices")?;
        }
        Ok(access)
    }

    fn apply(&mut self, rule: &LinuxDeviceCgroup, field: &str) -> Result<(), CompileError> {
        let bits = access_bits(rule.access().as_deref(), field)?;
        let major = number(rule.major(), field, "major")?;
        let minor = number(rule.minor(), field, "minor")?;
        let block = match rule.typ().unwrap_or_default() {
            LinuxDeviceType::B => true,
            LinuxDeviceType::C | LinuxDeviceType::U => false,
            LinuxDeviceType::P => return Err(invalid(format!("{field}.type"), "p", "is not under device control")),
            LinuxDeviceType::A => {
                // The kernel reads such a line as all devices with all access, whatever else it says.
                if major.is_some() || minor.is_some() || bits != ALL {
                    return Err(invalid(
                        field,
                        rule.to_string(),
                        "is for all devices, so it takes no numbers and all of rwm",
                    ));
                }
                *self = Self { allowed: rule.allow(), exceptions: BTreeMap::new() };
                return Ok(());
            }
        };
        self.change(rule.allow(), Match { block, major, minor }, bits, field)
    }

    fn change(&mut self, allow: bool, which: Match, bits: u8, field: &str) -> Result<(), CompileError> {
        if allow != self.allowed {
            *self.exceptions.entry(which).or_insert(0) |= bits;
            return Ok(());
        }
        let wider = [
            Match { major: None, ..which },
            Match { minor: None, ..which },
            Match { major: None, minor: None, ..which },
        ];
        if wider.iter().any(|wider| *wider != which && self.exceptions.get(wider).is_some_and(|it| it & bits != 0)) {
            return Err(invalid(field, line(&which, bits), "takes a part out of an earlier rule with a wildcard"));
        }
        if let Some(present) = self.exceptions.get_mut(&which) {
            *present &= !bits;
            if *present == 0 {
                self.exceptions.remove(&which);
            }
        }
        Ok(())
    }

    /// Tells whether nothing is forbidden.
    pub(super) fn is_everything(&self) -> bool {
        self.allowed && self.exceptions.is_empty()
    }

    /// Returns the writes that bring a v1 devices cgroup there from any state.
    pub(super) fn v1_writes(&self) -> Vec<CgroupWrite> {
        let (default, exception) =
            if self.allowed { ("devices.allow", "devices.deny") } else { ("devices.deny", "devices.allow") };
        let start = write(default, "a");
        let exceptions = self.exceptions.iter().map(|(which, bits)| write(exception, line(which, *bits)));
        [start].into_iter().chain(exceptions).collect()
    }
}

/// Writes an exception as the v1 controller reads it.
fn line(which: &Match, bits: u8) -> String {
    let number = |number: Option<u32>| number.map_or_else(|| "*".to_owned(), |number| number.to_string());
    let kind = if which.block { 'b' } else { 'c' };
    format!("{kind} {}:{} {}", number(which.major), number(which.minor), letters(bits))
}

/// Spells an access out.
pub(super) fn letters(bits: u8) -> String {
    [(READ, 'r'), (WRITE, 'w'), (MKNOD, 'm')].iter().filter(|(bit, _)| bits & bit != 0).map(|(_, it)| it).collect()
}

fn access_bits(access: Option<&str>, field: &str) -> Result<u8, CompileError> {
    let refuse = |access: &str| invalid(format!("{field}.access"), access, "takes one to three of r, w and m");
    // Without it: all, as the rule's other fields.
    let Some(access) = access else { return Ok(ALL) };
    if access.is_empty() {
        return Err(refuse(access));
    }
    access.chars().try_fold(0, |bits, character| match character {
        'r' => Ok(bits | READ),
        'w' => Ok(bits | WRITE),
        'm' => Ok(bits | MKNOD),
        _ => Err(refuse(access)),
    })
}

/// Reads a device number; absent and -1 mean every one.
fn number(number: Option<i64>, field: &str, name: &str) -> Result<Option<u32>, CompileError> {
    match number {
        None | Some(-1) => Ok(None),
        Some(value) => u32::try_from(value)
            .map(Some)
            .map_err(|_| invalid(format!("{field}.{name}"), value.to_string(), "is no device number")),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Makes rules of lines such as `deny a` and `allow c 1:3 rwm`.
    pub(in crate::cgroup) fn rules(lines: &[&str]) -> Vec<LinuxDeviceCgroup> {
        lines.iter().map(|line| rule(line)).collect()
    }

    fn rule(line: &str) -> LinuxDeviceCgroup {
        let mut words = line.split(' ');
        let mut rule = LinuxDeviceCgroup::default();
        rule.set_allow(words.next() == Some("allow"));
        rule.set_typ(words.next().map(|kind| kind.parse().unwrap()));
        if let Some((major, minor)) = words.next().and_then(|numbers| numbers.split_once(':')) {
            rule.set_major(major.parse().ok()).set_minor(minor.parse().ok());
        }
        rule.set_access(words.next().map(str::to_owned));
        rule
    }

    fn lines(spec: &[&str]) -> Vec<String> {
        let access = DeviceAccess::from_rules(&rules(spec)).unwrap();
        access.v1_writes().into_iter().map(|it| format!("{} {}", it.file, it.value)).collect()
    }

    #[test]
    fn a_container_has_the_default_devices() {
        let expected = [
            "devices.deny a",
            "devices.allow c *:* m",
            "devices.allow c 1:3 rwm",
            "devices.allow c 1:5 rwm",
            "devices.allow c 1:7 rwm",
            "devices.allow c 1:8 rwm",
            "devices.allow c 1:9 rwm",
            "devices.allow c 5:0 rwm",
            "devices.allow c 5:2 rwm",
            "devices.allow c 136:* rwm",
            "devices.allow b *:* m",
        ];
        assert_eq!(lines(&["deny a"]), expected);
        assert_eq!(lines(&[]), expected);
    }

    #[test]
    fn a_privileged_container_has_everything() {
        assert!(DeviceAccess::from_rules(&rules(&["deny a", "allow a"])).unwrap().is_everything());
        assert_eq!(lines(&["allow a"]), ["devices.allow a"]);
    }

    #[test]
    fn rules_add_up_and_are_taken_back() {
        let all = lines(&["deny a", "allow c 10:200 r", "allow c 10:200 w", "allow b 8:0 rwm", "deny b 8:0 w"]);
        assert!(all.contains(&"devices.allow c 10:200 rw".to_owned()), "{all:?}");
        assert!(all.contains(&"devices.allow b 8:0 rm".to_owned()), "{all:?}");
        assert_eq!(lines(&["allow a", "deny b 8:* w"]), ["devices.allow a", "devices.deny b 8:* w"]);
    }

    #[test]
    fn what_the_kernel_would_misread_is_refused() {
        for bad in [
            &["allow c 10:* rwm", "deny c 10:200 w"][..],
            &["allow a 10:200 rwm"],
            &["allow a *:* r"],
            &["allow c 1:3 x"],
            &["allow p 1:3 r"],
        ] {
            assert!(DeviceAccess::from_rules(&rules(bad)).is_err(), "{bad:?}");
        }
    }
}
