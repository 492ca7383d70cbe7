//! Filters run on an interpreter of classic BPF and held against a plain reading of their profile.

use oci_spec::runtime::{Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompOperator, LinuxSyscall};
use proptest::prelude::*;

use super::arch::SeccompArch;
use super::{SeccompError, assemble, default, syscalls};

const ALLOW: u32 = 0x7fff_0000;
const EPERM: u32 = 0x0005_0001;
const ENOSYS: u32 = 0x0005_0026;
const KILL: u32 = 0x8000_0000;
/// The bit of x32 calls.
const X32: u32 = 0x4000_0000;
/// Every number that tests ask for: all calls, what lies around them, and the seams of the numbers' ranges.
fn numbers() -> impl Iterator<Item = u32> {
    let seams = [0x000e_ffff, 0x000f_0000, 0x000f_0001, 0x000f_0007, X32 - 1, u32::MAX - 1, u32::MAX];
    (0..600).chain(X32..X32 + 600).chain(seams)
}

/// Runs a program on `struct seccomp_data` as the kernel does (`___bpf_prog_run` of converted classic BPF).
fn run(program: &[u8], audit: u32, number: u32, args: [u64; 6]) -> u32 {
    let mut data = Vec::new();
    data.extend_from_slice(&number.to_le_bytes());
    data.extend_from_slice(&audit.to_le_bytes());
    data.extend_from_slice(&[0; 8]);
    args.iter().for_each(|arg| data.extend_from_slice(&arg.to_le_bytes()));
    let (mut at, mut accumulator) = (0_usize, 0_u32);
    loop {
        let raw: &[u8; 8] = program[at * 8..].first_chunk().expect("a jump stays inside the program");
        let k = u32::from_le_bytes([raw[4], raw[5], raw[6], raw[7]]);
        let mut branch = |holds: bool| at += usize::from(if holds { raw[2] } else { raw[3] });
        match u16::from_le_bytes([raw[0], raw[1]]) {
            0x20 => {
                let word = data[k as usize..].first_chunk().expect("a load stays inside the data");
                accumulator = u32::from_le_bytes(*word);
            }
            0x54 => accumulator &= k,
            0x05 => at += k as usize,
            0x15 => branch(accumulator == k),
            0x25 => branch(accumulator > k),
            0x35 => branch(accumulator >= k),
            0x06 => return k,
            other => panic!("code {other:#x}"),
        }
        at += 1;
    }
}

/// A profile read rule by rule, its names looked up once.
struct Reading<'a> {
    profile: &'a LinuxSeccomp,
    /// For every rule, the numbers it names in each column of the table.
    numbers: Vec<[Vec<u32>; 5]>,
}

const COLUMNS: [Arch; 5] =
    [Arch::ScmpArchX86_64, Arch::ScmpArchX86, Arch::ScmpArchX32, Arch::ScmpArchAarch64, Arch::ScmpArchArm];

impl<'a> Reading<'a> {
    fn new(profile: &'a LinuxSeccomp) -> Self {
        let rules = profile.syscalls().iter().flatten();
        let numbers = rules.map(|rule| {
            let rows: Vec<_> = rule.names().iter().filter_map(|name| syscalls::find(name)).collect();
            [0, 1, 2, 3, 4].map(|column| rows.iter().map(|row| row[column]).filter(|it| *it != syscalls::X).collect())
        });
        Self { numbers: numbers.collect(), profile }
    }

    /// What the profile says about a call on an x86-64 machine.
    fn verdict(&self, audit: u32, number: u32, args: [u64; 6]) -> u32 {
        let default = self.profile.default_action().as_u32(self.profile.default_errno_ret());
        let (arch, plain) = match audit {
            0xc000_003e if number == u32::MAX => return ENOSYS,
            0xc000_003e if number & X32 != 0 => (Arch::ScmpArchX32, number - X32),
            0xc000_003e => (Arch::ScmpArchX86_64, number),
            0x4000_0003 => (Arch::ScmpArchX86, number),
            0xc000_00b7 => (Arch::ScmpArchAarch64, number),
            _ => (Arch::ScmpArchArm, number),
        };
        if arch != Arch::ScmpArchX86_64 && !self.profile.architectures().iter().flatten().any(|it| *it == arch) {
            return KILL;
        }
        let column = COLUMNS.iter().position(|it| *it == arch).unwrap();
        let wide = matches!(arch, Arch::ScmpArchX86_64 | Arch::ScmpArchAarch64);
        let value = |rule: &LinuxSyscall| rule.action().as_u32(rule.errno_ret());
        let rules = self.profile.syscalls().iter().flatten().zip(&self.numbers);
        let about: Vec<&LinuxSyscall> = rules
            .filter(|(rule, numbers)| numbers[column].contains(&plain) && value(rule) != default)
            .map(|(rule, _)| rule)
            .collect();
        if let Some(whole) = about.iter().find(|rule| rule.args().as_ref().is_none_or(Vec::is_empty)) {
            return value(whole);
        }
        let holds = |test: &LinuxSeccompArg| compare(test, args[test.index()], wide);
        for rule in about {
            let tests = rule.args().as_deref().unwrap_or_default();
            let twice = tests.iter().enumerate().any(|(i, a)| tests[..i].iter().any(|b| a.index() == b.index()));
            if if twice { tests.iter().any(holds) } else { tests.iter().all(holds) } {
                return value(rule);
            }
        }
        // ARM's private calls are a range of their own.
        let private = |number: u32| arch == Arch::ScmpArchArm && number >= 0x000f_0000;
        let named = self.numbers.iter().flat_map(|numbers| &numbers[column]);
        let newest = named.filter(|it| private(**it) == private(plain)).max();
        if newest.is_some_and(|newest| plain > *newest) { default_above(default) } else { default }
    }
}

/// What the default becomes for calls that are newer than the profile.
fn default_above(default: u32) -> u32 {
    if matches!(default & 0xffff_0000, 0x7fff_0000 | 0x7ffc_0000 | 0x7ff0_0000 | 0x7fc0_0000) {
        default
    } else {
        ENOSYS
    }
}

fn compare(test: &LinuxSeccompArg, arg: u64, wide: bool) -> bool {
    let cut = |value: u64| if wide { value } else { value & 0xffff_ffff };
    let (arg, value, two) = (cut(arg), cut(test.value()), cut(test.value_two().unwrap_or(0)));
    match test.op() {
        LinuxSeccompOperator::ScmpCmpEq => arg == value,
        LinuxSeccompOperator::ScmpCmpNe => arg != value,
        LinuxSeccompOperator::ScmpCmpLt => arg < value,
        LinuxSeccompOperator::ScmpCmpLe => arg <= value,
        LinuxSeccompOperator::ScmpCmpGt => arg > value,
        LinuxSeccompOperator::ScmpCmpGe => arg >= value,
        LinuxSeccompOperator::ScmpCmpMaskedEq => arg & value == two,
    }
}

/// Words whose halves meet each other's edges.
fn word() -> impl Strategy<Value = u64> {
    let half = || prop_oneof![Just(0_u64), Just(1), Just(2), Just(0x7fff_ffff), Just(0x8000_0000), Just(0xffff_ffff)];
    (half(), half()).prop_map(|(high, low)| high << 32 | low)
}

fn argument() -> impl Strategy<Value = LinuxSeccompArg> {
    use LinuxSeccompOperator as Op;
    let operator = prop_oneof![
        Just(Op::ScmpCmpEq),
        Just(Op::ScmpCmpNe),
        Just(Op::ScmpCmpLt),
        Just(Op::ScmpCmpLe),
        Just(Op::ScmpCmpGt),
        Just(Op::ScmpCmpGe),
        Just(Op::ScmpCmpMaskedEq),
    ];
    (0_usize..6, operator, word(), word()).prop_map(|(index, op, value, two)| {
        serde_json::from_value(serde_json::json!({"index": index, "op": op, "value": value, "valueTwo": two})).unwrap()
    })
}

fn action() -> impl Strategy<Value = (LinuxSeccompAction, Option<u32>)> {
    use LinuxSeccompAction as Action;
    prop_oneof![
        Just((Action::ScmpActAllow, None)),
        Just((Action::ScmpActErrno, None)),
        Just((Action::ScmpActErrno, Some(38))),
        Just((Action::ScmpActKillThread, None)),
        Just((Action::ScmpActTrap, None)),
        Just((Action::ScmpActLog, None)),
        Just((Action::ScmpActTrace, Some(7))),
        Just((Action::ScmpActNotify, None)),
    ]
}

fn rule() -> impl Strategy<Value = LinuxSyscall> {
    let names = proptest::collection::vec((0..syscalls::TABLE.len()).prop_map(|row| syscalls::TABLE[row].0), 1..40);
    (names, action(), proptest::collection::vec(argument(), 0..4)).prop_map(|(names, (action, errno), args)| {
        let mut rule = LinuxSyscall::default();
        rule.set_names(names.into_iter().chain(["no_such_call"]).map(str::to_owned).collect())
            .set_action(action)
            .set_errno_ret(errno)
            .set_args(Some(args));
        rule
    })
}

fn profile() -> impl Strategy<Value = LinuxSeccomp> {
    let arches = prop_oneof![
        Just(Arch::ScmpArchNative),
        Just(Arch::ScmpArchX86),
        Just(Arch::ScmpArchX32),
        Just(Arch::ScmpArchAarch64),
        Just(Arch::ScmpArchArm),
        Just(Arch::ScmpArchPpc64le),
    ];
    (action(), proptest::collection::vec(arches, 0..4), proptest::collection::vec(rule(), 0..8)).prop_map(
        |((action, errno), arches, rules)| {
            let mut profile = LinuxSeccomp::default();
            profile
                .set_default_action(action)
                .set_default_errno_ret(errno)
                .set_architectures(Some(arches))
                .set_listener_path(Some("/run/listener".into()))
                .set_syscalls(Some(rules));
            profile
        },
    )
}

fn audits() -> [u32; 4] {
    [SeccompArch::X86_64, SeccompArch::X86, SeccompArch::Aarch64, SeccompArch::Arm].map(SeccompArch::audit)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn a_filter_decides_as_its_profile_reads(
        profile in profile(),
        args in proptest::collection::vec([word(), word(), word(), word(), word(), word()], 4),
    ) {
        let filter = assemble(&profile, SeccompArch::X86_64);
        // Many calls with many tests each can be more than the kernel takes.
        prop_assume!(!matches!(filter, Err(SeccompError::TooLong { .. })));
        let filter = filter.unwrap();
        let reading = Reading::new(&profile);
        for audit in audits() {
            for (turn, number) in numbers().enumerate() {
                let args = args[turn % args.len()];
                prop_assert_eq!(
                    run(&filter.program, audit, number, args),
                    reading.verdict(audit, number, args),
                    "{:#x} {:#x} {:x?}", audit, number, args
                );
            }
        }
    }

    #[test]
    fn conditions_hold_in_every_corner(test in argument(), args in [word(), word(), word(), word(), word(), word()]) {
        let mut rule = LinuxSyscall::default();
        rule.set_names(vec!["read".to_owned()]).set_action(LinuxSeccompAction::ScmpActAllow).set_args(Some(vec![test]));
        let mut profile = LinuxSeccomp::default();
        profile
            .set_default_action(LinuxSeccompAction::ScmpActErrno)
            .set_architectures(Some(vec![Arch::ScmpArchX86]))
            .set_syscalls(Some(vec![rule]));
        let program = assemble(&profile, SeccompArch::X86_64).unwrap().program;
        for (audit, number, wide) in [(0xc000_003e, 0, true), (0x4000_0003, 3, false)] {
            let expected = if compare(&test, args[test.index()], wide) { ALLOW } else { EPERM };
            prop_assert_eq!(run(&program, audit, number, args), expected);
        }
    }
}

/// The default profile's verdict on a call by name.
fn verdict(capabilities: u64, arch: SeccompArch, name: &str, args: [u64; 6]) -> u32 {
    let native = if matches!(arch, SeccompArch::Aarch64 | SeccompArch::Arm) {
        SeccompArch::Aarch64
    } else {
        SeccompArch::X86_64
    };
    let program = assemble(&default::profile(capabilities, (6, 18), native), native).unwrap().program;
    let number = syscalls::find(name).unwrap()[arch.column()] + arch.bias();
    run(&program, arch.audit(), number, args)
}

#[test]
fn the_default_profile_is_what_it_reads_like_on_every_call() {
    for capabilities in [0, 1 << 21, u64::MAX] {
        let profile = default::profile(capabilities, (6, 18), SeccompArch::X86_64);
        let filter = assemble(&profile, SeccompArch::X86_64).unwrap();
        let reading = Reading::new(&profile);
        for audit in audits() {
            for number in numbers() {
                for first in [0, 2, 16, 38, 39, 40, 41, 45, 63, 64, 0x2000_0000, 0xffff_ffff, 1 << 32 | 38] {
                    let args = [first, 0, 0, 0, 0, 0];
                    let expected = reading.verdict(audit, number, args);
                    assert_eq!(run(&filter.program, audit, number, args), expected, "{audit:#x} {number} {first:#x}");
                }
            }
        }
    }
}

#[test]
fn the_default_profile_keeps_what_it_promises() {
    let plain = |name: &str| verdict(0, SeccompArch::X86_64, name, [0; 6]);
    for name in ["read", "execve", "futex", "openat2", "io_uring_setup", "clone3", "mount", "unshare", "bpf", "ptrace"]
    {
        let expected = match name {
            "io_uring_setup" | "mount" | "unshare" | "bpf" => EPERM,
            "clone3" => ENOSYS,
            _ => ALLOW,
        };
        assert_eq!(plain(name), expected, "{name}");
    }
    for (capability, name) in [(21, "mount"), (21, "clone3"), (18, "chroot"), (39, "bpf"), (2, "open_by_handle_at")] {
        assert_ne!(plain(name), ALLOW, "{name}");
        assert_eq!(verdict(1 << capability, SeccompArch::X86_64, name, [0; 6]), ALLOW, "{name}");
    }
}

#[test]
fn namespaces_and_odd_sockets_need_more() {
    let first = |name: &str, value: u64| verdict(0, SeccompArch::X86_64, name, [value, 0, 0, 0, 0, 0]);
    assert_eq!(first("clone", 0x11), ALLOW);
    for flag in [0x0002_0000, 0x0200_0000, 0x0400_0000, 0x0800_0000, 0x1000_0000, 0x2000_0000, 0x4000_0000] {
        assert_eq!(first("clone", flag | 0x11), EPERM, "{flag:#x}");
    }
    for family in 0..=63 {
        let expected = if matches!(family, 38 | 40) { EPERM } else { ALLOW };
        assert_eq!(first("socket", family), expected, "{family}");
        assert_eq!(first("socket", family | 1 << 32), EPERM, "{family} in the low word alone");
    }
    assert_eq!(first("personality", 0xffff_ffff), ALLOW);
    assert_eq!(first("personality", 0x004_0000), EPERM);
}

#[test]
fn other_conventions_have_tables_of_their_own() {
    for arch in [SeccompArch::X86, SeccompArch::X32, SeccompArch::Aarch64, SeccompArch::Arm] {
        assert_eq!(verdict(0, arch, "read", [0; 6]), ALLOW, "{arch:?}");
        assert_eq!(verdict(0, arch, "init_module", [0; 6]), EPERM, "{arch:?}");
    }
    assert_eq!(verdict(0, SeccompArch::Arm, "set_tls", [0; 6]), ALLOW);
    assert_eq!(verdict(0, SeccompArch::X86, "socketcall", [0; 6]), ALLOW);
}

#[test]
fn calls_newer_than_the_profile_do_not_exist() {
    let program = assemble(&default::profile(0, (6, 18), SeccompArch::X86_64), SeccompArch::X86_64).unwrap().program;
    for number in [469, 600, X32 - 1, X32 + 600] {
        assert_eq!(run(&program, 0xc000_003e, number, [0; 6]), ENOSYS, "{number}");
    }
    assert_eq!(run(&program, 0xc000_00b7, 63, [0; 6]), KILL, "an architecture that is not this machine's");
}

#[test]
fn the_default_filter_is_small() {
    let filter = assemble(&default::profile(0, (6, 18), SeccompArch::X86_64), SeccompArch::X86_64).unwrap();
    assert!(filter.program.len() / 8 < 700, "{} instructions", filter.program.len() / 8);
}

#[test]
fn flags_default_to_what_other_runtimes_set() {
    let with = |flags: &str| {
        let json = format!(r#"{{"defaultAction": "SCMP_ACT_ALLOW"{flags}}}"#);
        assemble(&serde_json::from_str(&json).unwrap(), SeccompArch::X86_64).map(|filter| filter.flags)
    };
    assert_eq!(with(""), Ok(4));
    assert_eq!(with(r#", "flags": []"#), Ok(0));
    assert_eq!(with(r#", "flags": ["SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_TSYNC"]"#), Ok(3));
    // Without a listener the kernel does not know the one, with one the other would hold who hands it over.
    let both = r#", "flags": ["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV", "SECCOMP_FILTER_FLAG_TSYNC"]"#;
    assert_eq!(with(both), Ok(1));
    let asking = r#", "listenerPath": "/run/x", "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_NOTIFY"}]"#;
    assert_eq!(with(&format!("{both}{asking}")), Ok(1 << 5));
}

#[test]
fn what_a_filter_cannot_do_is_named() {
    let error = |rule: &str, more: &str| {
        let json = format!(r#"{{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{rule}]{more}}}"#);
        assemble(&serde_json::from_str(&json).unwrap(), SeccompArch::X86_64).unwrap_err()
    };
    let field = || "syscalls[0].action".to_owned();
    assert_eq!(error(r#"{"names": ["read"], "action": "SCMP_ACT_NOTIFY"}"#, ""), SeccompError::NoListener);
    assert_eq!(
        error(r#"{"names": ["read"], "action": "SCMP_ACT_ERRNO", "errnoRet": 5000}"#, ""),
        SeccompError::Errno { field: field(), errno: 5000 }
    );
    assert_eq!(
        error(r#"{"names": ["read"], "action": "SCMP_ACT_KILL", "errnoRet": 1}"#, ""),
        SeccompError::ErrnoUnused { field: field() }
    );
    let argument =
        r#"{"names": ["read"], "action": "SCMP_ACT_ERRNO", "args": [{"index": 6, "value": 0, "op": "SCMP_CMP_EQ"}]}"#;
    assert_eq!(error(argument, ""), SeccompError::ArgumentIndex { rule: 0, index: 6 });
}
