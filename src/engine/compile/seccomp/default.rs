//! The default profile: what a container without a profile of its own may call.
//!
//! In effect the profile of Docker and containerd (moby/profiles as of June 2026): an allow list, wider where the
//! container has the capability that guards a call in the kernel anyway, EPERM for the rest. One difference on purpose:
//! `socket` names the allowed address families in all 64 bits, because the kernel looks at the low 32 bits only and a
//! family of 2^32 + 38 (AF_ALG) would pass a test for "above 40".

use oci_spec::runtime::{
    LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompArgBuilder, LinuxSeccompOperator, LinuxSyscall,
};

use super::SeccompArch;
use crate::capabilities as cap;

const EPERM: u32 = 1;
const ENOSYS: u32 = 38;
/// Every `CLONE_NEW*` bit of clone's flags but CLONE_NEWTIME, which is unshare's and clone3's alone.
const CLONE_NAMESPACES: u64 = 0x7e02_0000;

/// When a line of the table applies.
#[derive(Clone, Copy)]
enum When {
    /// In every container.
    Always,
    /// From this kernel on.
    Kernel(u32, u32),
    /// With this capability.
    Has(u8),
    /// On this machine.
    Machine(SeccompArch),
}

/// What is allowed whatever the arguments.
const ALLOWED: &[(When, &str)] = &[
    (When::Always, ALWAYS),
    // Before 4.8 a tracer could undo the filter of its tracee.
    (When::Kernel(4, 8), "process_vm_readv process_vm_writev ptrace"),
    (When::Machine(SeccompArch::X86_64), "arch_prctl modify_ldt"),
    (
        When::Machine(SeccompArch::Aarch64),
        "arm_fadvise64_64 arm_sync_file_range breakpoint cacheflush set_tls sync_file_range2",
    ),
    (When::Has(cap::DAC_READ_SEARCH), "open_by_handle_at"),
    (When::Has(cap::SYS_ADMIN), "bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie"),
    (When::Has(cap::SYS_ADMIN), "lsm_get_self_attr lsm_list_modules lsm_set_self_attr mount mount_setattr move_mount"),
    (
        When::Has(cap::SYS_ADMIN),
        "open_tree perf_event_open quotactl quotactl_fd setdomainname sethostname setns syslog",
    ),
    (When::Has(cap::SYS_ADMIN), "umount umount2 unshare"),
    (When::Has(cap::SYS_BOOT), "reboot"),
    (When::Has(cap::SYS_CHROOT), "chroot"),
    (When::Has(cap::SYS_MODULE), "delete_module finit_module init_module"),
    (When::Has(cap::SYS_PACCT), "acct"),
    (When::Has(cap::SYS_PTRACE), "kcmp pidfd_getfd process_madvise process_vm_readv process_vm_writev ptrace"),
    (When::Has(cap::SYS_RAWIO), "ioperm iopl"),
    (When::Has(cap::SYS_TIME), "clock_settime clock_settime64 settimeofday stime"),
    (When::Has(cap::SYS_TTY_CONFIG), "vhangup"),
    (When::Has(cap::SYS_NICE), "get_mempolicy mbind set_mempolicy set_mempolicy_home_node"),
    (When::Has(cap::SYSLOG), "syslog"),
    (When::Has(cap::BPF), "bpf"),
    (When::Has(cap::PERFMON), "perf_event_open"),
];

#[rustfmt::skip]
const ALWAYS: &str = "\
    _llseek _newselect accept accept4 access adjtimex alarm bind brk cachestat capget capset chdir chmod chown \
    chown32 clock_adjtime clock_adjtime64 clock_getres clock_getres_time64 clock_gettime clock_gettime64 \
    clock_nanosleep clock_nanosleep_time64 close close_range connect copy_file_range creat dup dup2 dup3 \
    epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old eventfd \
    eventfd2 execve execveat exit exit_group faccessat faccessat2 fadvise64 fadvise64_64 fallocate fanotify_mark \
    fchdir fchmod fchmodat fchmodat2 fchown fchown32 fchownat fcntl fcntl64 fdatasync fgetxattr flistxattr flock \
    fork fremovexattr fsetxattr fstat fstat64 fstatat64 fstatfs fstatfs64 fsync ftruncate ftruncate64 futex \
    futex_requeue futex_time64 futex_wait futex_waitv futex_wake futimesat get_robust_list get_thread_area getcpu \
    getcwd getdents getdents64 getegid getegid32 geteuid geteuid32 getgid getgid32 getgroups getgroups32 getitimer \
    getpeername getpgid getpgrp getpid getppid getpriority getrandom getresgid getresgid32 getresuid getresuid32 \
    getrlimit getrusage getsid getsockname getsockopt gettid gettimeofday getuid getuid32 getxattr getxattrat \
    inotify_add_watch inotify_init inotify_init1 inotify_rm_watch io_cancel io_destroy io_getevents io_pgetevents \
    io_pgetevents_time64 io_setup io_submit ioctl ioprio_get ioprio_set ipc kill landlock_add_rule \
    landlock_create_ruleset landlock_restrict_self lchown lchown32 lgetxattr link linkat listen listmount listxattr \
    listxattrat llistxattr lremovexattr lseek lsetxattr lstat lstat64 madvise map_shadow_stack membarrier \
    memfd_create memfd_secret mincore mkdir mkdirat mknod mknodat mlock mlock2 mlockall mmap mmap2 mprotect \
    mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedreceive_time64 mq_timedsend mq_timedsend_time64 \
    mq_unlink mremap mseal msgctl msgget msgrcv msgsnd msync munlock munlockall munmap name_to_handle_at nanosleep \
    newfstatat open openat openat2 pause pidfd_open pidfd_send_signal pipe pipe2 pkey_alloc pkey_free pkey_mprotect \
    poll ppoll ppoll_time64 prctl pread64 preadv preadv2 prlimit64 process_mrelease pselect6 pselect6_time64 \
    pwrite64 pwritev pwritev2 read readahead readlink readlinkat readv recv recvfrom recvmmsg recvmmsg_time64 \
    recvmsg remap_file_pages removexattr removexattrat rename renameat renameat2 restart_syscall riscv_hwprobe rmdir \
    rseq rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait \
    rt_sigtimedwait_time64 rt_tgsigqueueinfo sched_get_priority_max sched_get_priority_min sched_getaffinity \
    sched_getattr sched_getparam sched_getscheduler sched_rr_get_interval sched_rr_get_interval_time64 \
    sched_setaffinity sched_setattr sched_setparam sched_setscheduler sched_yield seccomp select semctl semget semop \
    semtimedop semtimedop_time64 send sendfile sendfile64 sendmmsg sendmsg sendto set_robust_list set_thread_area \
    set_tid_address setfsgid setfsgid32 setfsuid setfsuid32 setgid setgid32 setgroups setgroups32 setitimer setpgid \
    setpriority setregid setregid32 setresgid setresgid32 setresuid setresuid32 setreuid setreuid32 setrlimit setsid \
    setsockopt setuid setuid32 setxattr setxattrat shmat shmctl shmdt shmget shutdown sigaltstack signalfd signalfd4 \
    sigprocmask sigreturn socketcall socketpair splice stat stat64 statfs statfs64 statmount statx symlink symlinkat \
    sync sync_file_range syncfs sysinfo tee tgkill time timer_create timer_delete timer_getoverrun timer_gettime \
    timer_gettime64 timer_settime timer_settime64 timerfd_create timerfd_gettime timerfd_gettime64 timerfd_settime \
    timerfd_settime64 times tkill truncate truncate64 ugetrlimit umask uname unlink unlinkat uretprobe utime \
    utimensat utimensat_time64 utimes vfork vmsplice wait4 waitid waitpid write writev";

/// Returns the default profile for a container with these capabilities (its bounding set, bit n = capability n) on a
/// kernel of this version.
pub fn default_profile(capabilities: u64, kernel: (u32, u32)) -> LinuxSeccomp {
    profile(capabilities, kernel, SeccompArch::NATIVE)
}

/// Returns the default profile on a machine of the given native convention.
pub(super) fn profile(capabilities: u64, kernel: (u32, u32), native: SeccompArch) -> LinuxSeccomp {
    let has = |capability: u8| capabilities & (1 << capability) != 0;
    let applies = |when: &When| match *when {
        When::Always => true,
        When::Kernel(major, minor) => kernel >= (major, minor),
        When::Has(capability) => has(capability),
        When::Machine(arch) => native == arch,
    };
    let mut syscalls: Vec<LinuxSyscall> =
        ALLOWED.iter().filter(|(when, _)| applies(when)).map(|(_, names)| allow(names, None)).collect();
    syscalls.extend(address_families().map(|test| allow("socket", Some(test))));
    syscalls.extend(personalities().map(|test| allow("personality", Some(test))));
    if !has(cap::SYS_ADMIN) {
        syscalls.push(allow("clone", Some(argument(LinuxSeccompOperator::ScmpCmpMaskedEq, CLONE_NAMESPACES, 0))));
        // Its flags are in memory, where a filter cannot look: C libraries fall back to clone.
        let mut clone3 = allow("clone3", None);
        clone3.set_action(LinuxSeccompAction::ScmpActErrno).set_errno_ret(Some(ENOSYS));
        syscalls.push(clone3);
    }
    let others = match native {
        SeccompArch::X86_64 => vec![SeccompArch::X86, SeccompArch::X32],
        SeccompArch::Aarch64 => vec![SeccompArch::Arm],
        _ => Vec::new(),
    };
    let mut profile = LinuxSeccomp::default();
    profile
        .set_default_action(LinuxSeccompAction::ScmpActErrno)
        .set_default_errno_ret(Some(EPERM))
        .set_architectures(Some([native].into_iter().chain(others).map(SeccompArch::to_oci).collect()))
        .set_syscalls(Some(syscalls));
    profile
}

/// All but AF_ALG (38) and AF_VSOCK (40), up to 63: the kernel has none above 45 yet.
fn address_families() -> impl Iterator<Item = LinuxSeccompArg> {
    use LinuxSeccompOperator::{ScmpCmpEq, ScmpCmpLt, ScmpCmpMaskedEq};
    [
        argument(ScmpCmpLt, 38, 0),
        argument(ScmpCmpEq, 39, 0),
        argument(ScmpCmpEq, 41, 0),
        argument(ScmpCmpMaskedEq, !1, 42),
        argument(ScmpCmpMaskedEq, !3, 44),
        argument(ScmpCmpMaskedEq, !15, 48),
    ]
    .into_iter()
}

/// PER_LINUX, PER_LINUX32, both with UNAME26, and the question what is set.
fn personalities() -> impl Iterator<Item = LinuxSeccompArg> {
    [0, 0x8, 0x2_0000, 0x2_0008, 0xffff_ffff]
        .into_iter()
        .map(|value| argument(LinuxSeccompOperator::ScmpCmpEq, value, 0))
}

/// A test of the first argument.
fn argument(operator: LinuxSeccompOperator, value: u64, value_two: u64) -> LinuxSeccompArg {
    LinuxSeccompArgBuilder::default()
        .index(0_usize)
        .op(operator)
        .value(value)
        .value_two(value_two)
        .build()
        .expect("a builder whose fields all have defaults")
}

fn allow(names: &str, test: Option<LinuxSeccompArg>) -> LinuxSyscall {
    let mut call = LinuxSyscall::default();
    call.set_names(names.split_ascii_whitespace().map(str::to_owned).collect())
        .set_action(LinuxSeccompAction::ScmpActAllow)
        .set_args(test.map(|test| vec![test]));
    call
}
