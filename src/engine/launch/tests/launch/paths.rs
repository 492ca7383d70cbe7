//! The container's file system: root, mounts, devices, masks, and the traps that an image can lay.

use std::os::unix::fs::symlink;
use std::path::Path;

use podwright_plan::wire::{Cause, MountAttrs};
use rustix::io::Errno;

use crate::Case;
use crate::fixture::{Fixture, bind, has_v1};

pub(crate) const CASES: &[Case] = &[
    ("devices_and_links_are_there", devices_and_links_are_there),
    ("masked_and_read_only_paths_hold", masked_and_read_only_paths_hold),
    ("a_mask_is_not_led_astray", a_mask_is_not_led_astray),
    ("a_link_is_no_place_for_a_terminal", a_link_is_no_place_for_a_terminal),
    ("a_read_only_root_still_gets_its_mount_points", a_read_only_root_still_gets_its_mount_points),
    ("writes_go_to_the_upper_layer", writes_go_to_the_upper_layer),
    ("links_of_an_image_lead_nowhere_outside", links_of_an_image_lead_nowhere_outside),
    ("a_magic_link_is_no_working_directory", a_magic_link_is_no_working_directory),
    ("a_missing_working_directory_is_made", a_missing_working_directory_is_made),
    ("a_missing_layer_is_named", a_missing_layer_is_named),
    ("cgroups_show_the_container_alone", cgroups_show_the_container_alone),
];

fn devices_and_links_are_there() {
    let fixture = Fixture::new();
    let script = "stat -c '%n %F %t %T %a' /dev/null /dev/zero; readlink /dev/fd; readlink /dev/ptmx; \
        head -c 3 /dev/zero | wc -c; echo x > /dev/null && ls -A /dev/mqueue | wc -l";
    let ended = fixture.run(&fixture.plan("c", script));
    let expected = "/dev/null character special file 1 3 666\n/dev/zero character special file 1 5 666\n\
        /proc/self/fd\npts/ptmx\n3\n0\n";
    assert_eq!(ended.stdout, expected, "{}", ended.stderr);
    fixture.finish();
}

fn masked_and_read_only_paths_hold() {
    let fixture = Fixture::new();
    let script = "cat /proc/kcore | wc -c; ls -A /sys/firmware | wc -l; mkdir /sys/firmware/x 2>&1; \
        (echo 1 > /proc/sys/kernel/domainname) 2>&1; (echo 1 > /proc/sys/net/ipv4/ip_forward) 2>&1";
    let ended = fixture.run(&fixture.plan("c", script));
    let lines: Vec<_> = ended.stdout.lines().collect();
    assert_eq!(lines.len(), 5, "{lines:?} {}", ended.stderr);
    assert_eq!(lines[..2], ["0", "0"]);
    assert!(lines[2..].iter().all(|line| line.contains("Read-only file system")), "{lines:?}");
    fixture.finish();
}

/// A plan whose /proc an image moves away: the masked file would stay readable by another name.
fn a_mask_is_not_led_astray() {
    let fixture = Fixture::new();
    let mut plan = fixture.plan("c", "true");
    plan.masked_paths.extend(["/proc/kcore".into(), "/proc/timer_list".into(), "/proc/scsi".into()]);
    let ended = fixture.run(&plan);
    assert_eq!(ended.code, 0, "a path that is listed twice: {ended:?}");
    let volume = fixture.path("volume");
    std::fs::write(volume.join("kcore"), "not the real one").unwrap();
    // What is mounted there by the plan itself is no trap.
    let mut other = fixture.plan("o", "cat /proc/kcore");
    other.mounts.retain(|mount| mount.target != "/proc");
    other.readonly_paths.clear();
    other.mounts.push(bind(&volume, "/proc"));
    let ended = fixture.run(&other);
    assert_eq!((ended.code, &*ended.stdout), (0, ""), "{}", ended.stderr);
    fixture.finish();
}

fn a_link_is_no_place_for_a_terminal() {
    let fixture = Fixture::new();
    symlink("/proc/sysrq-trigger", fixture.path("layers/top/dev").join("console")).unwrap();
    let mut plan = fixture.plan("c", "true");
    plan.mounts.retain(|mount| mount.target != "/dev");
    plan.process.as_mut().unwrap().terminal = true;
    let failure = fixture.fail(&plan);
    let seen = (&*failure.step, &*failure.subject, failure.kernel_error());
    assert_eq!(seen, ("make mount target", "/dev/console", Some(Errno::LOOP)), "{failure}");
    fixture.finish();
}

fn a_read_only_root_still_gets_its_mount_points() {
    let fixture = Fixture::new();
    let source = fixture.path("volume");
    let script = "(echo x > /new) 2>&1; echo y > /deep/er/volume/file && pwd";
    let mut plan = fixture.plan("c", script);
    plan.rootfs.as_mut().unwrap().readonly = true;
    plan.mounts.push(bind(&source, "/deep/er/volume"));
    plan.process.as_mut().unwrap().cwd = "/made/for/it".into();
    let ended = fixture.run(&plan);
    assert!(ended.stdout.contains("Read-only file system"), "{ended:?}");
    assert!(ended.stdout.ends_with("/made/for/it\n"), "{ended:?}");
    assert_eq!(std::fs::read_to_string(source.join("file")).unwrap(), "y\n");
    fixture.finish();
}

fn writes_go_to_the_upper_layer() {
    let fixture = Fixture::new();
    let ended = fixture.run(&fixture.plan("c", "echo new > /etc/layer; echo more > /etc/more"));
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    let upper = fixture.path("writable-c/upper");
    assert_eq!(std::fs::read_to_string(upper.join("etc/layer")).unwrap(), "new\n");
    assert_eq!(std::fs::read_to_string(fixture.path("layers/top").join("etc/layer")).unwrap(), "top");
    fixture.finish();
}

fn links_of_an_image_lead_nowhere_outside() {
    let fixture = Fixture::new();
    let outside = fixture.path("outside");
    let top = fixture.path("layers/top");
    symlink(&outside, top.join("absolute")).unwrap();
    symlink("../../../../../../../..", top.join("relative")).unwrap();
    symlink("/proc/1/root", top.join("magic")).unwrap();
    let volume = fixture.path("volume");
    std::fs::write(volume.join("mark"), "volume").unwrap();

    let script = format!("cat {}/sub/mark; cat /up/mark", outside.display());
    let mut plan = fixture.plan("c", &script);
    plan.mounts.push(bind(&volume, "/absolute/sub"));
    plan.mounts.push(bind(&volume, "/relative/up"));
    let ended = fixture.run(&plan);
    assert_eq!((ended.code, &*ended.stdout), (0, "volumevolume"), "{}", ended.stderr);
    assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0);

    let mut magic = fixture.plan("m", "true");
    magic.mounts.push(bind(&volume, "/magic/etc/x"));
    let failure = fixture.fail(&magic);
    let seen = (&*failure.step, &*failure.subject, failure.kernel_error());
    assert_eq!(seen, ("make mount target", "/magic/etc/x", Some(Errno::LOOP)));
    assert!(!Path::new("/etc/x").exists());
    fixture.finish();
}

fn a_magic_link_is_no_working_directory() {
    let fixture = Fixture::new();
    let mut plan = fixture.plan("c", "ls");
    plan.process.as_mut().unwrap().cwd = "/proc/self/cwd".into();
    let failure = fixture.fail(&plan);
    assert_eq!((&*failure.subject, failure.kernel_error()), ("/proc/self/cwd", Some(Errno::LOOP)));
    fixture.finish();
}

fn a_missing_working_directory_is_made() {
    let fixture = Fixture::new();
    let mut plan = fixture.plan("c", "pwd; stat -c '%a %u' .");
    let process = plan.process.as_mut().unwrap();
    process.cwd = "/not/there".into();
    process.user.as_mut().unwrap().uid = 1000;
    let ended = fixture.run(&plan);
    assert_eq!(ended.stdout, "/not/there\n755 0\n", "{}", ended.stderr);
    fixture.finish();
}

fn a_missing_layer_is_named() {
    let fixture = Fixture::new();
    let mut plan = fixture.plan("c", "true");
    plan.rootfs.as_mut().unwrap().lower.push("gone".into());
    let failure = fixture.fail(&plan);
    assert_eq!((failure.cause, &*failure.step, &*failure.subject), (Cause::LaunchFailed, "add layer", "gone"));
    assert_eq!(failure.kernel_error(), Some(Errno::NOENT), "{failure}");
    fixture.finish();
}

fn cgroups_show_the_container_alone() {
    let fixture = Fixture::new();
    let script = "cut -d: -f3 /proc/self/cgroup; for d in /sys/fs/cgroup /sys/fs/cgroup/*; do \
        test -e $d/cgroup.procs && grep -c '^1$' $d/cgroup.procs; done; mkdir /sys/fs/cgroup/x 2>&1";
    let mut plan = fixture.plan("c", script);
    // Those of the hierarchies that it was not placed in are the shim's.
    let planned = if has_v1() { plan.cgroup.as_ref().unwrap().join.len() } else { 1 };
    plan.mounts.iter_mut().filter(|mount| mount.target == "/sys/fs/cgroup").for_each(|mount| {
        mount.attrs = Some(MountAttrs { readonly: true, ..MountAttrs::default() });
    });
    let ended = fixture.run(&plan);
    let lines: Vec<_> = ended.stdout.lines().collect();
    assert!(lines.iter().take_while(|line| line.starts_with('/')).all(|line| *line == "/"), "{lines:?}");
    assert_eq!(lines.iter().filter(|line| **line == "1").count(), planned, "{lines:?} {}", ended.stderr);
    assert!(lines.last().unwrap().contains("Read-only file system"), "{lines:?}");
    fixture.finish();
}
