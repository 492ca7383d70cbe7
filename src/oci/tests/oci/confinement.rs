//! What a container must not reach of the program that made it.

use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use serde_json::json;

use crate::bundle::Bundle;

/// What an unoptimised build is linked with, from the host.
fn with_libraries(bundle: &mut Bundle) {
    for directory in ["/lib", "/lib64", "/usr"] {
        bundle.config["mounts"].as_array_mut().unwrap().push(json!({
            "destination": directory, "type": "bind", "source": directory, "options": ["rbind", "ro"]
        }));
    }
}

/// Whether a file that is open can be opened again to be written to, as far as its mount goes: that it is being executed
/// keeps anyone from it for as long as that lasts.
fn is_writable(file: &fs::File) -> bool {
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    rustix::fs::access(path, rustix::fs::Access::WRITE_OK) != Err(rustix::io::Errno::ROFS)
}

#[test]
fn its_own_file_can_be_executed_in_a_container_and_not_written_to() {
    // By the path that leads to it until the execve, and as the interpreter of a script by that path.
    let script = "#!/proc/self/exe --version\n";
    for program in [vec!["/proc/self/exe", "--version"], vec!["/script"]] {
        let mut bundle = Bundle::new("");
        with_libraries(&mut bundle);
        fs::write(bundle.path("rootfs/script"), script).unwrap();
        fs::set_permissions(bundle.path("rootfs/script"), fs::Permissions::from_mode(0o755)).unwrap();
        bundle.config["process"]["args"] = json!(program);
        assert!(bundle.output().contains("podwright-oci version"));
    }
}

#[test]
fn its_file_is_on_a_mount_that_nobody_can_reach() {
    let bundle = Bundle::new("exec sleep 1000");
    bundle.create();
    let own = fs::File::open(format!("/proc/{}/exe", bundle.pid())).unwrap();
    let host = fs::File::open(env!("CARGO_BIN_EXE_podwright-oci")).unwrap();
    assert_eq!(own.metadata().unwrap().ino(), host.metadata().unwrap().ino());
    assert!(is_writable(&host) && !is_writable(&own));
    // Nor can it be made writable, by root of the host even: it is in no namespace any more.
    let remount = podwright_sys::mount::Change {
        clear: rustix::mount::MountAttrFlags::MOUNT_ATTR_RDONLY,
        ..podwright_sys::mount::Change::default()
    };
    assert_eq!(podwright_sys::mount::change(&own, remount), Err(rustix::io::Errno::INVAL));
    let flags = rustix::mount::OpenTreeFlags::OPEN_TREE_CLONE | rustix::mount::OpenTreeFlags::AT_EMPTY_PATH;
    assert_eq!(rustix::mount::open_tree(&own, "", flags).unwrap_err(), rustix::io::Errno::INVAL);
    bundle.ok(&["delete", "--force", &bundle.id]);
    assert!(!is_writable(&own));
}

#[test]
fn a_waiting_process_cannot_be_traced() {
    let bundle = Bundle::new("exec sleep 1000");
    bundle.create();
    // Its files of /proc are root's of the host, whoever it runs as: that is what a process that is not dumpable has.
    let mut other =
        Bundle::new("for file in exe cwd root fd/0; do readlink /proc/$PID/$file; done; cat /proc/$PID/environ; true");
    other.without_namespace("pid");
    other.config["process"]["env"].as_array_mut().unwrap().push(format!("PID={}", bundle.pid()).into());
    let output = other.run();
    assert!(output.stdout.is_empty(), "{output:?}");
    bundle.ok(&["delete", "--force", &bundle.id]);
}
