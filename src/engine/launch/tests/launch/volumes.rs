//! Bind mounts: what may be written, what travels in which direction, and what is said of a missing source.

use std::path::Path;

use nix::mount::{MsFlags, mount, umount2};
use podwright_plan::wire::{Cause, Mount, MountAttrs, OverlayMount, Propagation, mount as wire};
use rustix::fs::{CWD, FileType, Mode, mknodat};
use rustix::io::Errno;

use crate::Case;
use crate::fixture::{Fixture, bind};

pub(crate) const CASES: &[Case] = &[
    ("a_volume_is_writable_and_a_read_only_one_not", a_volume_is_writable_and_a_read_only_one_not),
    ("recursive_read_only_reaches_below", recursive_read_only_reaches_below),
    ("a_missing_source_is_named", a_missing_source_is_named),
    ("an_overlay_shows_its_layers_and_takes_no_writes", an_overlay_shows_its_layers_and_takes_no_writes),
    ("an_overlay_is_of_any_depth_and_many_layers", an_overlay_is_of_any_depth_and_many_layers),
    ("a_missing_layer_of_an_overlay_is_named", a_missing_layer_of_an_overlay_is_named),
    ("mounts_of_the_host_travel_as_asked", mounts_of_the_host_travel_as_asked),
    ("mounts_of_a_container_travel_as_asked", mounts_of_a_container_travel_as_asked),
];

fn with(mut mount: Mount, attrs: MountAttrs) -> Mount {
    mount.attrs = Some(attrs);
    mount
}

fn a_volume_is_writable_and_a_read_only_one_not() {
    let fixture = Fixture::new();
    let volume = fixture.path("volume");
    std::fs::write(fixture.dir.path().join("file"), "one file").unwrap();
    let script = "echo x > /rw/x; (echo x > /ro/y) 2>&1; cat /ro/x; cat /etc/file; (echo > /etc/file) 2>&1; \
        chmod 755 /rw/x; (/rw/x) 2>&1; grep -E ' /(rw|ro) ' /proc/self/mountinfo | cut -d' ' -f6";
    let mut plan = fixture.plan("c", script);
    let read_only = MountAttrs { readonly: true, ..MountAttrs::default() };
    let strict = MountAttrs { noexec: true, nosuid: true, nodev: true, atime: 1, ..MountAttrs::default() };
    plan.mounts.push(with(bind(&volume, "/rw"), strict));
    plan.mounts.push(with(bind(&volume, "/ro"), read_only));
    plan.mounts.push(with(bind(&fixture.dir.path().join("file"), "/etc/file"), read_only));
    let ended = fixture.run(&plan);
    let lines: Vec<_> = ended.stdout.lines().collect();
    assert_eq!(lines.len(), 6, "{lines:?} {}", ended.stderr);
    assert!(lines[0].contains("Read-only file system"));
    assert_eq!(lines[1], "x");
    assert!(lines[2].starts_with("one file") && lines[2].contains("Read-only file system"), "{lines:?}");
    assert!(lines[3].contains("Permission denied"), "{lines:?}");
    assert_eq!(lines[4], "rw,nosuid,nodev,noexec,noatime");
    assert!(lines[5].starts_with("ro"));
    fixture.finish();
}

/// Makes the calling process's mount namespace a host of its own, with a shared mount in it.
fn private_host(volume: &Path) {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_PRIVATE | MsFlags::MS_REC, None::<&str>).unwrap();
    tmpfs(volume);
    mount(None::<&str>, volume, None::<&str>, MsFlags::MS_SHARED, None::<&str>).unwrap();
}

fn tmpfs(at: &Path) {
    std::fs::create_dir_all(at).unwrap();
    mount(Some("tmpfs"), at, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
}

fn recursive_read_only_reaches_below() {
    let top = tempfile::tempdir().unwrap();
    private_host(top.path());
    tmpfs(&top.path().join("below"));
    let fixture = Fixture::new();
    let mut plan = fixture.plan("c", "(echo x > /plain/below/x) 2>&1; (echo x > /all/below/x) 2>&1");
    plan.mounts.push(with(bind(top.path(), "/plain"), MountAttrs { readonly: true, ..MountAttrs::default() }));
    plan.mounts.push(with(bind(top.path(), "/all"), MountAttrs { recursive_readonly: true, ..MountAttrs::default() }));
    let ended = fixture.run(&plan);
    assert_eq!(ended.stdout.lines().count(), 1, "{ended:?}");
    assert!(ended.stdout.contains("/all/below/x: Read-only file system"), "{ended:?}");
    fixture.finish();
    leave(top.path());
}

fn a_missing_source_is_named() {
    let fixture = Fixture::new();
    let missing = fixture.dir.path().join("missing");
    let mut plan = fixture.plan("c", "true");
    plan.mounts.push(bind(&missing, "/volume"));
    let failure = fixture.fail(&plan);
    let seen = (failure.cause, &*failure.step, &*failure.subject, failure.kernel_error());
    assert_eq!(seen, (Cause::LaunchFailed, "open bind source", missing.to_str().unwrap(), Some(Errno::NOENT)));
    fixture.finish();
}

fn overlay(layers: &[&Path], target: &str) -> Mount {
    let lower = layers.iter().map(|layer| layer.to_str().unwrap().into()).collect();
    Mount {
        kind: Some(wire::Kind::Overlay(OverlayMount { lower, options: Vec::new() })),
        target: target.into(),
        attrs: Some(MountAttrs { readonly: true, ..MountAttrs::default() }),
        ..Mount::default()
    }
}

fn an_overlay_shows_its_layers_and_takes_no_writes() {
    let fixture = Fixture::new();
    let layers = fixture.path("layers");
    let (top, base) = (layers.join("top"), layers.join("base"));
    std::fs::create_dir(top.join("bin")).unwrap();
    mknodat(CWD, top.join("bin/awk"), FileType::CharacterDevice, Mode::empty(), 0).unwrap();
    let script = "cat /data/etc/layer; echo; /data/bin/busybox ls /data/bin/awk 2>&1; (echo x > /data/new) 2>&1; \
        mount -o remount,rw /data 2>&1; (echo x > /data/new) 2>&1; grep -c ' /data ' /proc/self/mountinfo";
    let mut plan = fixture.plan("c", script);
    plan.process.as_mut().unwrap().capabilities = Some(everything());
    plan.mounts.push(overlay(&[&top, &base], "/data"));
    let running = fixture.start(&plan).unwrap();
    fixture.assert_no_mounts();
    let ended = running.end();
    let lines: Vec<_> = ended.stdout.lines().collect();
    assert_eq!(lines.len(), 6, "{ended:?}");
    assert_eq!((lines[0], lines[5]), ("top", "1"), "{lines:?}");
    assert!(lines[1].contains("No such file"), "{lines:?}");
    assert!(lines[2].contains("Read-only file system") && lines[4].contains("Read-only file system"), "{lines:?}");
    fixture.finish();
}

fn an_overlay_is_of_any_depth_and_many_layers() {
    let fixture = Fixture::new();
    // Longer than one option takes, and more of them than fit into one page.
    let deep = format!("{0}/{0}", "d".repeat(200));
    let layers: Vec<_> = (0..200).map(|number| fixture.path(&format!("many/{number}/{deep}"))).collect();
    for (number, layer) in layers.iter().enumerate() {
        std::fs::write(layer.join("top"), number.to_string()).unwrap();
        std::fs::write(layer.join(number.to_string()), "").unwrap();
    }
    let layers: Vec<_> = layers.iter().map(|path| path.as_path()).collect();
    let mut plan = fixture.plan("c", "ls /data | wc -l; cat /data/top");
    plan.mounts.push(overlay(&layers, "/data"));
    let ended = fixture.run(&plan);
    assert_eq!(ended.stdout, "201\n0", "{}", ended.stderr);
    fixture.finish();
}

fn a_missing_layer_of_an_overlay_is_named() {
    let fixture = Fixture::new();
    let (base, missing) = (fixture.path("layers/base"), fixture.dir.path().join("missing"));
    let mut plan = fixture.plan("c", "true");
    plan.mounts.push(overlay(&[&base, &missing], "/data"));
    let failure = fixture.fail(&plan);
    let seen = (failure.cause, &*failure.step, &*failure.subject, failure.kernel_error());
    assert_eq!(seen, (Cause::LaunchFailed, "open layer", missing.to_str().unwrap(), Some(Errno::NOENT)));
    plan.mounts.pop();
    plan.mounts.push(overlay(&[], "/data"));
    assert_eq!(fixture.fail(&plan).cause, Cause::InvalidPlan);
    fixture.finish();
}

fn travelling(top: &Path, target: &str, propagation: Propagation) -> Mount {
    Mount { propagation: propagation.into(), ..bind(top, target) }
}

fn mounts_of_the_host_travel_as_asked() {
    let top = tempfile::tempdir().unwrap();
    private_host(top.path());
    let fixture = Fixture::new();
    // The container goes on once it has read a line.
    let mut plan = fixture.plan("c", "cat >/dev/null; ls /private/new /slave/new /shared/new");
    plan.stdin = true;
    plan.mounts.push(travelling(top.path(), "/private", Propagation::Private));
    plan.mounts.push(travelling(top.path(), "/slave", Propagation::Slave));
    plan.mounts.push(travelling(top.path(), "/shared", Propagation::Shared));
    let running = fixture.start(&plan).unwrap();
    tmpfs(&top.path().join("new"));
    std::fs::write(top.path().join("new/mark"), "").unwrap();
    let ended = running.end();
    assert_eq!(ended.stdout, "/private/new:\n\n/shared/new:\nmark\n\n/slave/new:\nmark\n", "{}", ended.stderr);
    leave(&top.path().join("new"));
    fixture.finish();
    leave(top.path());
}

fn mounts_of_a_container_travel_as_asked() {
    let top = tempfile::tempdir().unwrap();
    private_host(top.path());
    ["slave", "shared"].iter().for_each(|name| std::fs::create_dir(top.path().join(name)).unwrap());
    let fixture = Fixture::new();
    let script = "mount -t tmpfs x /slave/slave && mount -t tmpfs x /shared/shared && touch /shared/shared/mark";
    let mut plan = fixture.plan("c", script);
    plan.rootfs.as_mut().unwrap().shared_propagation = true;
    plan.process.as_mut().unwrap().capabilities = Some(everything());
    plan.mounts.push(travelling(top.path(), "/slave", Propagation::Slave));
    plan.mounts.push(travelling(top.path(), "/shared", Propagation::Shared));
    let ended = fixture.run(&plan);
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let seen = |name: &str| table.contains(&format!(" {} ", top.path().join(name).display()));
    assert_eq!((seen("slave"), seen("shared")), (false, true), "{table}");
    leave(&top.path().join("shared"));
    fixture.finish();
    leave(top.path());
}

fn everything() -> podwright_plan::wire::Capabilities {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let own = status.lines().find_map(|line| line.strip_prefix("CapPrm:\t")).unwrap();
    let own = u64::from_str_radix(own, 16).unwrap();
    podwright_plan::wire::Capabilities { bounding: own, effective: own, permitted: own, ..Default::default() }
}

fn leave(mounted: &Path) {
    umount2(mounted, nix::mount::MntFlags::MNT_DETACH).unwrap();
}
