//! The last steps before the user's program, alike for a container's init and for an exec: limits, working directory,
//! attributes, user, capabilities, seccomp, and the exec itself.

use std::borrow::Cow;
use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};

use podwright_plan::wire::{Capabilities, Cause, Process, User};
use podwright_sys::{caps, fds, rlimit, seccomp, signals};
use rustix::fs::{CWD, Gid, Mode, OFlags, ResolveFlags, Uid};
use rustix::io::Errno;
use rustix::thread::{
    set_keep_capabilities, set_no_new_privs, set_thread_groups, set_thread_res_gid, set_thread_res_uid,
};

use crate::failure::{Failure, Named};
use crate::listener::Messenger;
use crate::procfs::Procfs;
use crate::status::Reporter;
use crate::{attributes, home};

/// Where a program without a slash in its name is looked for when the environment does not say.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// The umask of a process that did not ask for one.
const DEFAULT_UMASK: u32 = 0o022;

/// Arguments and environment as execve(2) takes them.
pub(crate) struct Program {
    paths: Vec<CString>,
    args: Vec<CString>,
    env: Vec<CString>,
}

impl Program {
    /// Takes them from a plan.
    pub(crate) fn of(process: &Process) -> Result<Self, Failure> {
        let strings = |list: &[Vec<u8>], what: &str| {
            let string = |bytes: &Vec<u8>| CString::new(bytes.clone());
            list.iter().map(string).collect::<Result<Vec<_>, _>>().map_err(|_| Failure::plan(what, "", "a NUL byte"))
        };
        let args = strings(&process.args, "arguments")?;
        let env = strings(&process.env, "environment")?;
        let name = args.first().ok_or_else(|| Failure::plan("arguments", "", "there is no program"))?;
        Ok(Self { paths: candidates(name, &env), args, env })
    }

    /// Adds a home directory to an environment that has none.
    fn with_home(&self, uid: u32) -> Cow<'_, [CString]> {
        let value = |entry: &CString| entry.as_bytes().strip_prefix(b"HOME=").map(|home| !home.is_empty());
        if self.env.iter().any(|entry| value(entry) == Some(true)) {
            return Cow::Borrowed(&*self.env);
        }
        let mut env: Vec<CString> = self.env.iter().filter(|entry| value(entry).is_none()).cloned().collect();
        env.extend(CString::new([b"HOME=", &*home::of(uid)].concat()));
        Cow::Owned(env)
    }

    /// Executes the first candidate that there is. Returns only if none can be.
    fn execute(&self, env: &[CString]) -> Failure {
        let mut refused = None;
        for path in &self.paths {
            let Err(errno) = nix::unistd::execve(path, &self.args, env);
            match Errno::from_raw_os_error(errno as i32) {
                // Not here: the next directory may have it.
                Errno::NOENT | Errno::NOTDIR => {}
                // What is there but must not be executed is the better answer, unless another directory has a good one.
                Errno::ACCESS => refused = Some(Errno::ACCESS),
                errno => return self.failed(errno),
            }
        }
        self.failed(refused.unwrap_or(Errno::NOENT))
    }

    fn failed(&self, errno: Errno) -> Failure {
        let name = self.args.first().map(|name| name.to_string_lossy()).unwrap_or_default();
        Failure::new(Cause::ExecFailed, "execve", name, errno)
    }
}

fn candidates(name: &CString, env: &[CString]) -> Vec<CString> {
    let name = name.as_bytes();
    if name.is_empty() || name.contains(&b'/') {
        return CString::new(name).into_iter().collect();
    }
    // The last one wins, as it does in a shell.
    let path = env.iter().rev().find_map(|entry| entry.as_bytes().strip_prefix(b"PATH="));
    let directories = path.unwrap_or(DEFAULT_PATH.as_bytes()).split(|byte| *byte == b':');
    let join = |directory: &[u8]| {
        let directory: &[u8] = if directory.is_empty() { b"." } else { directory };
        CString::new([directory, b"/", name].concat()).ok()
    };
    directories.filter_map(join).collect()
}

/// Tells the security module which domain the program is to run in. The host's /proc must be in view: in the container it
/// may be anything.
pub(crate) fn label(process: &Process) -> Result<(), Failure> {
    if process.apparmor_profile.is_empty() && process.selinux_label.is_empty() {
        return Ok(());
    }
    let procfs = Procfs::open().in_child("open the host's", "/proc")?;
    if !process.apparmor_profile.is_empty() {
        let command = format!("exec {}", process.apparmor_profile);
        // The second is AppArmor's only where no other module is in use beside it, and on kernels before 5.8.
        let own = procfs.write("self/attr/apparmor/exec", command.as_bytes());
        let result = match own {
            Err(Errno::NOENT) => procfs.write("self/attr/exec", command.as_bytes()),
            result => result,
        };
        result.in_child("set AppArmor profile", &process.apparmor_profile)?;
    }
    if !process.selinux_label.is_empty() {
        procfs
            .write("self/attr/exec", process.selinux_label.as_bytes())
            .in_child("set SELinux label", &process.selinux_label)?;
        // Those that it makes; the exec forgets this one.
        procfs
            .write("self/attr/keycreate", process.selinux_label.as_bytes())
            .in_child("set SELinux label of keys", &process.selinux_label)?;
    }
    Ok(())
}

/// Becomes the user's program. The calling process is inside the container's root and namespaces, with full
/// capabilities. Returns only with a failure.
pub(crate) fn run(process: &Process, program: &Program, reporter: &Reporter) -> Failure {
    let env = program.with_home(process.user.as_ref().map_or(0, |user| user.uid));
    match prepare(process, reporter) {
        Ok(()) => program.execute(&env),
        Err(failure) => failure,
    }
}

fn prepare(process: &Process, reporter: &Reporter) -> Result<(), Failure> {
    let messenger = process.seccomp_listener.as_ref().map(|_| Messenger::hire(reporter)).transpose()?;
    for limit in &process.rlimits {
        rlimit::set(limit.resource, limit.soft, limit.hard)
            .in_child("set resource limit", format!("{}={}:{}", limit.resource, limit.soft, limit.hard))?;
    }
    attributes::set(process)?;
    let user = process.user.clone().unwrap_or_default();
    let directory = open_directory(&process.cwd)?;
    // Without no_new_privs a filter takes CAP_SYS_ADMIN, which is about to go.
    if !process.no_new_privileges {
        filter(process, messenger.as_ref())?;
    }
    become_user(&user, &process.capabilities.unwrap_or_default())?;
    enter_directory(directory, &process.cwd)?;
    rustix::process::umask(Mode::from_raw_mode(user.umask.unwrap_or(DEFAULT_UMASK)));
    // Signals were blocked for the shim's own reading of them.
    signals::reset().in_child("reset signals", "")?;
    fds::close_on_exec_above_stdio(process.preserve_fds).in_child("close descriptors on exec", "")?;
    // The last message but a failure of the two steps below, which the filter may not let through.
    reporter.ready().in_child("report", "ready")?;
    if process.no_new_privileges {
        set_no_new_privs(true).in_child("set no_new_privs", "")?;
        filter(process, messenger.as_ref())?;
    }
    Ok(())
}

fn filter(process: &Process, messenger: Option<&Messenger>) -> Result<(), Failure> {
    if process.seccomp.is_empty() {
        return Ok(());
    }
    let subject = || format!("{} bytes", process.seccomp.len());
    let Some(messenger) = messenger else {
        return seccomp::install(&process.seccomp, process.seccomp_flags).in_child("install seccomp filter", subject());
    };
    messenger.prepare();
    let listener = seccomp::install_with_listener(&process.seccomp, process.seccomp_flags)
        .in_child("install seccomp filter", subject())?;
    messenger.send(listener);
    Ok(())
}

/// Opens the working directory as root, who may enter what the user may not; `None` where it is the other way round, as
/// on NFS that maps root to nobody.
fn open_directory(path: &str) -> Result<Option<OwnedFd>, Failure> {
    match open_without_magic(path) {
        Ok(directory) => Ok(Some(directory)),
        Err(Errno::ACCESS | Errno::PERM) => Ok(None),
        Err(errno) => Err(Failure::launch("open working directory", path, errno)),
    }
}

fn enter_directory(directory: Option<OwnedFd>, path: &str) -> Result<(), Failure> {
    let directory = match directory {
        Some(directory) => directory,
        None => open_without_magic(path).in_child("open working directory", path)?,
    };
    match rustix::process::fchdir(directory.as_fd()) {
        Err(errno) => Err(Failure::launch("enter working directory", path, errno)),
        Ok(()) => Ok(()),
    }
}

/// A directory by a path that must not go through /proc/self/fd: what this process holds open is the host's.
fn open_without_magic(path: &str) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat2(CWD, path, flags, Mode::empty(), ResolveFlags::NO_MAGICLINKS)
}

/// Whether the user namespace lets anyone change groups; where the container has no /proc to tell, it does.
fn may_set_groups() -> bool {
    !matches!(std::fs::read("/proc/self/setgroups"), Ok(answer) if answer.starts_with(b"deny"))
}

/// Gives up root for the user and the capabilities of a plan; the order is the kernel's: each step needs a privilege that
/// a later one takes away.
fn become_user(user: &User, wanted: &Capabilities) -> Result<(), Failure> {
    // Takes CAP_SETPCAP.
    caps::limit_bounding(wanted.bounding)
        .map_err(|(capability, errno)| Failure::launch("drop from bounding set", capability, errno))?;
    // Or the change of user would clear the permitted set.
    set_keep_capabilities(true).in_child("keep capabilities", "")?;
    let groups: Vec<_> = user.additional_gids.iter().copied().map(Gid::from_raw).collect();
    match set_thread_groups(&groups) {
        // In a user namespace that a user without privilege has made, the kernel keeps their groups.
        Err(Errno::PERM) if groups.is_empty() && !may_set_groups() => {}
        set => set.in_child("set groups", format!("{:?}", user.additional_gids))?,
    }
    let gid = Gid::from_raw(user.gid);
    set_thread_res_gid(gid, gid, gid).in_child("set group", user.gid)?;
    let uid = Uid::from_raw(user.uid);
    set_thread_res_uid(uid, uid, uid).in_child("set user", user.uid)?;
    set_keep_capabilities(false).in_child("keep capabilities", "")?;
    caps::set(caps::Sets { effective: wanted.effective, permitted: wanted.permitted, inheritable: wanted.inheritable })
        .in_child("set capabilities", format!("{:#x}", wanted.permitted))?;
    caps::set_ambient(wanted.ambient)
        .map_err(|(capability, errno)| Failure::launch("raise ambient capability", capability, errno))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(name: &str, env: &[&str]) -> Vec<String> {
        let env: Vec<_> = env.iter().map(|entry| CString::new(*entry).unwrap()).collect();
        let name = CString::new(name).unwrap();
        candidates(&name, &env).into_iter().map(|path| path.into_string().unwrap()).collect()
    }

    #[test]
    fn a_name_with_a_slash_is_taken_as_it_is() {
        assert_eq!(found("./run", &["PATH=/bin"]), ["./run"]);
        assert_eq!(found("", &["PATH=/bin"]), [""]);
    }

    #[test]
    fn a_bare_name_is_looked_for_along_path() {
        assert_eq!(found("sh", &["PATH=/old", "A=b", "PATH=/bin::/x"]), ["/bin/sh", "./sh", "/x/sh"]);
        assert_eq!(found("sh", &[]).last().unwrap(), "/bin/sh");
    }
}
