//! What a pod is, and what its containers share.

use std::os::fd::AsFd;

use podwright_launch::Pod;
use podwright_plan::wire::{Cause, NamespaceMode, PodPlan, Sysctl};

use crate::Case;
use crate::fixture::{Fixture, shared};

pub(crate) const CASES: &[Case] = &[
    ("a_pod_has_its_own_namespaces", a_pod_has_its_own_namespaces),
    ("a_host_pod_stays_in_the_hosts", a_host_pod_stays_in_the_hosts),
    ("a_sysctl_of_the_host_is_refused", a_sysctl_of_the_host_is_refused),
    ("shared_memory_is_shared_and_bounded", shared_memory_is_shared_and_bounded),
    ("a_shared_pid_namespace_has_a_powerless_init", a_shared_pid_namespace_has_a_powerless_init),
    ("the_reaper_reaps_and_its_end_ends_all", the_reaper_reaps_and_its_end_ends_all),
];

fn namespace(kind: &str) -> String {
    std::fs::read_link(format!("/proc/self/ns/{kind}")).unwrap().to_str().unwrap().to_owned()
}

fn a_pod_has_its_own_namespaces() {
    let before = ["net", "ipc", "uts", "mnt", "pid"].map(namespace);
    let fixture = Fixture::with(|plan| {
        plan.sysctls = vec![
            Sysctl { path: "net/ipv4/ip_unprivileged_port_start".into(), value: "0".into() },
            Sysctl { path: "kernel/shm_rmid_forced".into(), value: "1".into() },
        ];
    });
    let after = ["net", "ipc", "uts", "mnt", "pid"].map(namespace);
    let changed: Vec<bool> = before.iter().zip(&after).map(|(before, after)| before != after).collect();
    assert_eq!(changed, [true, true, true, false, false]);
    fixture.assert_no_mounts();

    let script = "hostname; ifconfig lo | grep -c UP; cat /proc/sys/net/ipv4/ip_unprivileged_port_start \
        /proc/sys/kernel/shm_rmid_forced";
    let ended = fixture.run(&fixture.plan("c", script));
    assert_eq!((ended.code, &*ended.stdout), (0, "thepod\n1\n0\n1\n"), "{}", ended.stderr);

    // The descriptor is that of the namespace the process is in.
    let inode = |stat: rustix::fs::Stat| (stat.st_dev, stat.st_ino);
    let own = rustix::fs::stat("/proc/self/ns/net").unwrap();
    assert_eq!(inode(rustix::fs::fstat(fixture.pod.netns().as_fd()).unwrap()), inode(own));
    fixture.finish();
}

fn a_host_pod_stays_in_the_hosts() {
    let before = ["net", "ipc", "uts"].map(namespace);
    let fixture = Fixture::with(|plan| {
        let host = NamespaceMode::NamespaceHost.into();
        (plan.network, plan.ipc, plan.uts, plan.shm_size) = (host, host, host, 0);
        plan.hostname = String::new();
    });
    assert_eq!(["net", "ipc", "uts"].map(namespace), before);
    let mut plan = fixture.plan("c", "readlink /proc/self/ns/net; hostname; ls /dev/shm >/dev/null && echo $$");
    plan.hostname = "mine".into();
    plan.pid = NamespaceMode::NamespaceHost.into();
    let running = fixture.start(&plan).unwrap();
    let pid = running.pid;
    let ended = running.end();
    assert_eq!(ended.stdout, format!("{}\nmine\n{pid}\n", before[0]), "{}", ended.stderr);
    fixture.finish();
}

fn a_sysctl_of_the_host_is_refused() {
    let before = std::fs::read("/proc/sys/vm/swappiness").unwrap();
    let sysctls = vec![Sysctl { path: "vm/swappiness".into(), value: "1".into() }];
    let failure = Pod::set_up(&PodPlan { sysctls, ..PodPlan::default() }).unwrap_err();
    assert_eq!((failure.cause, &*failure.step, &*failure.subject), (Cause::InvalidPlan, "set sysctl", "vm/swappiness"));
    assert_eq!(std::fs::read("/proc/sys/vm/swappiness").unwrap(), before);
}

fn shared_memory_is_shared_and_bounded() {
    let fixture = Fixture::new();
    let first = fixture.run(&fixture.plan("a", "echo from-a > /dev/shm/x && stat -c %a /dev/shm"));
    assert_eq!((first.code, &*first.stdout), (0, "1777\n"), "{}", first.stderr);
    let script = "cat /dev/shm/x; dd if=/dev/zero of=/dev/shm/big bs=64k count=32 2>&1 | grep -c 'No space'";
    let second = fixture.run(&fixture.plan("b", script));
    assert_eq!(second.stdout, "from-a\n1\n", "{}", second.stderr);
    assert!(!std::path::Path::new("/dev/shm/x").exists());
    fixture.assert_no_mounts();
    fixture.finish();
}

fn a_shared_pid_namespace_has_a_powerless_init() {
    let fixture = Fixture::with(|plan| plan.shared_pid = true);
    let reaper = fixture.pod.reaper_pid().unwrap();
    assert_eq!(std::fs::read_dir(format!("/proc/{reaper}/fd")).unwrap().count(), 3);
    let status = std::fs::read_to_string(format!("/proc/{reaper}/status")).unwrap();
    assert!(status.contains("CapPrm:\t0000000000000000\n"), "{status}");
    // What its /proc/1/root shows is the pod's /dev/shm, not the host.
    assert_eq!(std::fs::read_dir(format!("/proc/{reaper}/root/")).unwrap().count(), 0);

    let script = "cat /proc/1/comm; test $$ -ne 1; kill -9 1; kill -15 1; cat /proc/1/comm";
    let ended = fixture.run(&shared(fixture.plan("a", script)));
    assert_eq!((ended.code, &*ended.stdout), (0, "podwright-init\npodwright-init\n"), "{}", ended.stderr);
    // Containers see each other, and the shim forks in its own namespace again.
    let sleeper = fixture.start(&shared(fixture.plan("b", "exec sleep 1000"))).unwrap();
    let ended = fixture.run(&shared(fixture.plan("c", "ps | grep -c '[s]leep 1000'")));
    assert_eq!(ended.stdout, "1\n", "{}", ended.stderr);
    let alone = fixture.run(&fixture.plan("d", "echo $$"));
    assert_eq!(alone.stdout, "1\n");
    sleeper.kill();
    fixture.finish();
}

fn the_reaper_reaps_and_its_end_ends_all() {
    let fixture = Fixture::with(|plan| plan.shared_pid = true);
    // The inner shell's child is orphaned at once; when it is gone from /proc, it was reaped.
    let script = "orphan=$(sh -c 'sleep 0 >/dev/null & echo $!'); while test -e /proc/$orphan; do :; done; echo reaped";
    let ended = fixture.run(&shared(fixture.plan("a", script)));
    assert_eq!(ended.stdout, "reaped\n", "{}", ended.stderr);
    let sleeper = fixture.start(&shared(fixture.plan("b", "exec sleep 1000"))).unwrap();
    fixture.pod.kill_reaper().unwrap();
    assert_eq!(sleeper.end().code, 128 + 9);
    fixture.finish();
}
