//! Keeps a container's process from writing to this program's file.
//!
//! A container's process is this program until it executes the user's. The path of that may be `/proc/self/exe`, or name it
//! as a script's interpreter: then this very file is executed inside the container, where a second process can open it by
//! `/proc`, and write to it as soon as nobody runs it: on the host. So whatever enters a container is executed from a copy
//! of the file's mount that is read-only and in no mount namespace, where no container can reach it to change that. It costs
//! an `execve` of a small static program. Where such a mount cannot be made (without root), the copy is a sealed file in
//! memory.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;

use podwright_sys::mount::{Change, change};
use rustix::fs::{CWD, MemfdFlags, SealFlags, StatVfsMountFlags};
use rustix::io::Errno;
use rustix::mount::{MountAttrFlags, MountPropagationFlags, OpenTreeFlags, open_tree};

use crate::error::Error;

const OWN: &str = "/proc/self/exe";

/// Returns at once in a process that runs from such a copy; else executes this program anew from one.
pub(crate) fn protect() -> Result<(), Error> {
    let own = File::open(OWN).map_err(Error::file("open", OWN))?;
    if is_protected(&own).map_err(Error::step("look at", OWN))? {
        return Ok(());
    }
    let copy = match read_only_mount() {
        Err(Errno::PERM | Errno::NOSYS) => sealed_copy(own).map_err(Error::file("copy", OWN))?,
        mount => mount.map_err(Error::step("clone the mount of", OWN))?,
    };
    let errno = execute(&copy);
    Err(Error::step("execute", OWN)(errno))
}

/// Whether the file is on a read-only mount or cannot be written to by anyone.
fn is_protected(own: &File) -> Result<bool, Errno> {
    let sealed = rustix::fs::fcntl_get_seals(own).is_ok_and(|seals| seals.contains(SealFlags::WRITE));
    Ok(sealed || rustix::fs::fstatvfs(own)?.f_flag.contains(StatVfsMountFlags::RDONLY))
}

fn read_only_mount() -> Result<OwnedFd, Errno> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = open_tree(CWD, OWN, flags)?;
    let read_only = Change {
        set: MountAttrFlags::MOUNT_ATTR_RDONLY,
        // Nobody makes another mount of it.
        propagation: MountPropagationFlags::UNBINDABLE,
        ..Change::default()
    };
    change(&tree, read_only)?;
    Ok(tree)
}

fn sealed_copy(mut own: File) -> io::Result<OwnedFd> {
    let mut copy =
        File::from(rustix::fs::memfd_create("podwright-oci", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?);
    io::copy(&mut own, &mut copy)?;
    let seals = SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL;
    rustix::fs::fcntl_add_seals(&copy, seals)?;
    Ok(copy.into())
}

/// The descriptor closes on the exec; the mount lives on for as long as the program runs from it, in no namespace.
fn execute(copy: &OwnedFd) -> Errno {
    // A command line and an environment come from the kernel, which has them without a NUL.
    let strings = |words: Vec<std::ffi::OsString>| {
        words.into_iter().filter_map(|word| CString::new(word.into_vec()).ok()).collect::<Vec<_>>()
    };
    let args = strings(std::env::args_os().collect());
    let env = strings(
        std::env::vars_os()
            .map(|(mut name, value)| {
                name.push("=");
                name.push(value);
                name
            })
            .collect(),
    );
    let Err(errno) = nix::unistd::execveat(copy.as_fd(), c"", &args, &env, nix::fcntl::AtFlags::AT_EMPTY_PATH);
    Errno::from_raw_os_error(errno as i32)
}
