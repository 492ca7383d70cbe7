//! `process`: the program, who it runs as, and what it may.

use std::collections::HashSet;

use oci_spec::runtime::{Linux, LinuxSeccompFilterFlag, PosixRlimit, PosixRlimitType, Process, Spec};
use podwright_plan::wire;

use crate::error::{CompileError, invalid, missing, unsupported};
use crate::facts::HostFacts;
use crate::listener::{self, Owner};
use crate::mounts::absolute;
use crate::seccomp::{self, Filter};
use crate::{capabilities, personality, scheduling};

/// What the kernel accepts in /proc/self/oom_score_adj.
const OOM_SCORE_ADJ: std::ops::RangeInclusive<i32> = -1000..=1000;
/// The kernel's major and minor version that brought `SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV`.
const WAIT_KILLABLE_RECV_SINCE: (u32, u32) = (5, 19);

/// What a process has of its container: init and execs alike.
#[derive(Clone, Copy)]
pub(crate) struct Surroundings<'a> {
    pub(crate) spec: &'a Spec,
    pub(crate) linux: &'a Linux,
    pub(crate) owner: Owner<'a>,
    pub(crate) facts: &'a HostFacts,
}

/// Compiles a process.
pub(crate) fn process(process: &Process, around: Surroundings<'_>) -> Result<wire::Process, CompileError> {
    let Surroundings { spec, linux, owner, facts } = around;
    refuse_foreign(process)?;
    let args = process.args().as_deref().unwrap_or_default();
    if args.first().is_none_or(String::is_empty) {
        return Err(missing("process.args"));
    }
    if let Some(adj) = process.oom_score_adj().filter(|adj| !OOM_SCORE_ADJ.contains(adj)) {
        return Err(invalid("process.oomScoreAdj", adj.to_string(), "is not between -1000 and 1000"));
    }
    let filter = filter(linux, facts)?;
    let asked = linux.seccomp().as_ref().filter(|_| filter.asks);
    Ok(wire::Process {
        args: texts(args, "process.args")?,
        env: environment(process.env().as_deref().unwrap_or_default())?,
        cwd: absolute(process.cwd(), "process.cwd")?,
        user: Some(wire::User {
            uid: process.user().uid(),
            gid: process.user().gid(),
            additional_gids: process.user().additional_gids().clone().unwrap_or_default(),
            umask: process.user().umask(),
        }),
        capabilities: Some(capabilities::sets(process.capabilities().as_ref(), facts)?),
        no_new_privileges: process.no_new_privileges().unwrap_or(false),
        rlimits: rlimits(process.rlimits().as_deref().unwrap_or_default())?,
        oom_score_adj: process.oom_score_adj(),
        seccomp: filter.program,
        seccomp_flags: filter.flags,
        terminal: process.terminal().unwrap_or(false),
        console_size: process.console_size().map(|size| console_size(&size)).transpose()?,
        apparmor_profile: apparmor(process, facts)?,
        selinux_label: selinux(process, facts)?,
        scheduler: process.scheduler().as_ref().map(scheduling::scheduler).transpose()?,
        io_priority: process.io_priority().as_ref().map(scheduling::io_priority).transpose()?,
        // `execCPUAffinity` is that of execs alone.
        cpus_initial: Vec::new(),
        cpus_final: Vec::new(),
        memory_policy: linux.memory_policy().as_ref().map(personality::memory_policy).transpose()?,
        personality: linux.personality().as_ref().map(personality::personality).transpose()?,
        keyring: format!("_ses.{}", owner.id),
        seccomp_listener: asked.map(|profile| listener::listener(spec, profile, owner)).transpose()?,
        ..wire::Process::default()
    })
}

/// Compiles the container's system call filter; without a profile there is none.
fn filter(linux: &Linux, facts: &HostFacts) -> Result<Filter, CompileError> {
    let Some(profile) = linux.seccomp().as_ref() else { return Ok(Filter::default()) };
    let filter = seccomp::assemble(profile, facts.seccomp_arch)?;
    let killable = LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv;
    let wants_killable = profile.flags().iter().flatten().any(|flag| *flag == killable);
    if filter.asks && wants_killable && facts.kernel < WAIT_KILLABLE_RECV_SINCE {
        return Err(invalid("linux.seccomp.flags", killable.to_string(), "needs Linux 5.19"));
    }
    Ok(filter)
}

/// Refuses what other operating systems have.
fn refuse_foreign(process: &Process) -> Result<(), CompileError> {
    for (field, present) in [
        ("process.commandLine", process.command_line().is_some()),
        ("process.user.username", process.user().username().as_ref().is_some_and(|name| !name.is_empty())),
    ] {
        if present {
            return Err(unsupported(field));
        }
    }
    Ok(())
}

fn texts(texts: &[String], field: &str) -> Result<Vec<Vec<u8>>, CompileError> {
    match texts.iter().find(|text| text.contains('\0')) {
        Some(text) => Err(invalid(field, text, "has a NUL")),
        None => Ok(texts.iter().map(|text| text.clone().into_bytes()).collect()),
    }
}

fn environment(env: &[String]) -> Result<Vec<Vec<u8>>, CompileError> {
    // The value may be a secret: an error shows the name alone, and nothing when there is none.
    match env.iter().find(|variable| variable.find('=').is_none_or(|at| at == 0)) {
        Some(_) => Err(invalid("process.env", "", "is not of the form NAME=value")),
        None => match env.iter().find(|variable| variable.contains('\0')) {
            Some(variable) => {
                let name = variable.split('=').next().unwrap_or_default().replace('\0', "\\0");
                Err(invalid("process.env", name, "has a NUL"))
            }
            None => Ok(without_repeats(env)),
        },
    }
}

/// Of several values of one name the last is meant. The C library would find the first.
fn without_repeats(env: &[String]) -> Vec<Vec<u8>> {
    let name = |variable: &String| variable.split('=').next().unwrap_or_default().to_owned();
    let mut seen = HashSet::new();
    let mut kept: Vec<_> =
        env.iter().rev().filter(|variable| seen.insert(name(variable))).map(|it| it.clone().into_bytes()).collect();
    kept.reverse();
    kept
}

fn console_size(size: &oci_spec::runtime::Box) -> Result<wire::ConsoleSize, CompileError> {
    // What the terminal's struct winsize holds.
    let cells = |name: &str, value: u64| match u16::try_from(value) {
        Ok(value) => Ok(u32::from(value)),
        Err(_) => Err(invalid(format!("process.consoleSize.{name}"), value.to_string(), "is above 65535")),
    };
    Ok(wire::ConsoleSize { width: cells("width", size.width())?, height: cells("height", size.height())? })
}

fn rlimits(limits: &[PosixRlimit]) -> Result<Vec<wire::Rlimit>, CompileError> {
    let mut compiled: Vec<wire::Rlimit> = Vec::new();
    for limit in limits {
        let refuse = |problem| Err(invalid("process.rlimits", limit.typ().to_string(), problem));
        let resource = resource(limit.typ());
        if compiled.iter().any(|earlier| earlier.resource == resource) {
            return refuse("is listed twice");
        }
        if limit.soft() > limit.hard() {
            return refuse("has a soft limit above the hard one");
        }
        compiled.push(wire::Rlimit { resource, soft: limit.soft(), hard: limit.hard() });
    }
    Ok(compiled)
}

/// The numbers of asm-generic/resource.h, which x86 and ARM use.
fn resource(kind: PosixRlimitType) -> u32 {
    match kind {
        PosixRlimitType::RlimitCpu => 0,
        PosixRlimitType::RlimitFsize => 1,
        PosixRlimitType::RlimitData => 2,
        PosixRlimitType::RlimitStack => 3,
        PosixRlimitType::RlimitCore => 4,
        PosixRlimitType::RlimitRss => 5,
        PosixRlimitType::RlimitNproc => 6,
        PosixRlimitType::RlimitNofile => 7,
        PosixRlimitType::RlimitMemlock => 8,
        PosixRlimitType::RlimitAs => 9,
        PosixRlimitType::RlimitLocks => 10,
        PosixRlimitType::RlimitSigpending => 11,
        PosixRlimitType::RlimitMsgqueue => 12,
        PosixRlimitType::RlimitNice => 13,
        PosixRlimitType::RlimitRtprio => 14,
        PosixRlimitType::RlimitRttime => 15,
    }
}

fn apparmor(process: &Process, facts: &HostFacts) -> Result<String, CompileError> {
    let profile = process.apparmor_profile().clone().unwrap_or_default();
    // Where AppArmor is off every process is unconfined, which is what this profile asks for.
    if facts.apparmor || profile.is_empty() {
        Ok(profile)
    } else if profile == "unconfined" {
        Ok(String::new())
    } else {
        let field = "process.apparmorProfile";
        Err(CompileError::NoSecurityModule { field, value: profile, module: "AppArmor" })
    }
}

fn selinux(process: &Process, facts: &HostFacts) -> Result<String, CompileError> {
    let label = process.selinux_label().clone().unwrap_or_default();
    if facts.selinux || label.is_empty() {
        Ok(label)
    } else {
        Err(CompileError::NoSecurityModule { field: "process.selinuxLabel", value: label, module: "SELinux" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::tests::unified;

    fn compile(change: impl FnOnce(&mut Process) -> &mut Process) -> Result<wire::Process, String> {
        let mut it = Process::default();
        it.set_capabilities(None);
        change(&mut it);
        let (spec, linux, facts) = (Spec::default(), Linux::default(), unified());
        let owner = Owner { id: "c1", bundle: std::path::Path::new("/b"), status: "creating" };
        let around = Surroundings { spec: &spec, linux: &linux, owner, facts: &facts };
        process(&it, around).map_err(|error| error.to_string())
    }

    #[test]
    fn a_program_needs_a_name_and_an_absolute_directory() {
        assert!(compile(|it| it).is_ok());
        assert_eq!(compile(|it| it.set_args(None)).unwrap_err(), "process.args is missing");
        assert_eq!(compile(|it| it.set_args(Some(vec![String::new()]))).unwrap_err(), "process.args is missing");
        assert!(compile(|it| it.set_cwd("srv".into())).unwrap_err().contains("process.cwd"));
    }

    #[test]
    fn a_bad_variable_is_refused_without_showing_its_value() {
        for bad in ["SECRET", "=SECRET", "A=SECRET\0"] {
            let error = compile(|it| it.set_env(Some(vec![bad.to_owned()]))).unwrap_err();
            assert!(error.contains("process.env") && !error.contains("SECRET"), "{error}");
        }
        assert_eq!(compile(|it| it.set_env(Some(vec!["A=b=c".to_owned()]))).unwrap().env, [b"A=b=c".to_vec()]);
    }

    #[test]
    fn the_last_of_several_values_is_meant() {
        let env = ["A=1", "B=2", "A=3", "C=", "B=2"].map(str::to_owned).to_vec();
        let expected = ["A=3", "C=", "B=2"].map(|variable| variable.as_bytes().to_vec());
        assert_eq!(compile(|it| it.set_env(Some(env))).unwrap().env, expected);
    }

    #[test]
    fn fields_of_other_systems_are_refused_by_name() {
        let mut user = oci_spec::runtime::User::default();
        user.set_username(Some("ContainerUser".to_owned()));
        assert!(compile(|it| it.set_user(user)).unwrap_err().starts_with("process.user.username"));
        let command = |it: &mut Process| *it.command_line_mut() = Some("dir".to_owned());
        let error = compile(|it| {
            command(it);
            it
        });
        assert!(error.unwrap_err().starts_with("process.commandLine"));
    }

    #[test]
    fn limits_have_the_kernels_numbers() {
        let limit = |soft, hard| {
            let mut limit: PosixRlimit = serde_json::from_str(r#"{"type": "RLIMIT_NOFILE"}"#).unwrap();
            limit =
                serde_json::from_value(serde_json::json!({"type": limit.typ(), "soft": soft, "hard": hard})).unwrap();
            limit
        };
        let compiled = compile(|it| it.set_rlimits(Some(vec![limit(1024, u64::MAX)]))).unwrap();
        assert_eq!(compiled.rlimits, [wire::Rlimit { resource: 7, soft: 1024, hard: u64::MAX }]);
        assert!(compile(|it| it.set_rlimits(Some(vec![limit(2, 1)]))).unwrap_err().contains("RLIMIT_NOFILE"));
        let twice = vec![limit(1, 1), limit(1, 1)];
        assert!(compile(|it| it.set_rlimits(Some(twice))).unwrap_err().contains("listed twice"));
    }

    #[test]
    fn a_security_module_that_is_off_is_named() {
        let error = compile(|it| it.set_apparmor_profile(Some("nginx".to_owned()))).unwrap_err();
        assert_eq!(error, "process.apparmorProfile: \"nginx\" needs AppArmor, which this host does not run");
        let unconfined = compile(|it| it.set_apparmor_profile(Some("unconfined".to_owned()))).unwrap();
        assert_eq!(unconfined.apparmor_profile, "");
        assert!(compile(|it| it.set_selinux_label(Some("a:b:c".to_owned()))).unwrap_err().contains("SELinux"));
    }

    #[test]
    fn scores_outside_the_kernels_range_are_refused() {
        assert_eq!(compile(|it| it.set_oom_score_adj(Some(-998))).unwrap().oom_score_adj, Some(-998));
        assert!(compile(|it| it.set_oom_score_adj(Some(1001))).unwrap_err().contains("process.oomScoreAdj"));
    }
}
