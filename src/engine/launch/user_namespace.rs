//! A user namespace of a container: made and mapped by a helper process, or joined, and entered as its root.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::{Command, Stdio};

use podwright_plan::wire::IdMap;
use podwright_sys::clone::Fork;
use rustix::fs::{Gid, Mode, OFlags, Uid};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, WaitOptions};
use rustix::thread::{
    LinkNameSpaceType, move_into_link_name_space, set_thread_groups, set_thread_res_gid, set_thread_res_uid,
};

use crate::failure::{Failure, Named};
use crate::procfs::Procfs;

/// One that can be entered.
#[derive(Debug)]
pub(crate) struct UserNamespace {
    namespace: OwnedFd,
    /// Where it came from, for messages.
    path: String,
}

impl AsFd for UserNamespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.namespace.as_fd()
    }
}

impl UserNamespace {
    /// Takes one that is there already.
    pub(crate) fn joined(namespace: OwnedFd, path: &str) -> Self {
        Self { namespace, path: path.to_owned() }
    }

    /// Makes a new one. A helper process holds it for as long as its ids are mapped from here, by who may do that.
    pub(crate) fn make(uids: &[IdMap], gids: &[IdMap]) -> Result<Self, Failure> {
        let (wait, hold) = pipe_with(PipeFlags::CLOEXEC).in_shim("make a pipe", "")?;
        let fork = Fork { new_user_namespace: true, keep: &[wait.as_fd()], ..Fork::default() };
        let helper =
            fork.spawn(|| i32::from(rustix::io::read(&wait, &mut [0]).is_err())).in_shim("make user namespace", "")?;
        let path = format!("/proc/{}/ns/user", helper.pid);
        let mapped = map(helper.pid, uids, gids).and_then(|()| {
            rustix::fs::open(&path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).in_shim("open namespace", &path)
        });
        drop(hold);
        let pid = i32::try_from(helper.pid).ok().and_then(Pid::from_raw);
        rustix::process::waitpid(pid, WaitOptions::empty()).in_shim("wait for the helper", helper.pid)?;
        Ok(Self { namespace: mapped?, path: "a new user namespace".to_owned() })
    }

    /// Moves the calling process in, as the namespace's root with all capabilities over it.
    pub(crate) fn enter(&self) -> Result<(), Failure> {
        move_into_link_name_space(self.namespace.as_fd(), Some(LinkNameSpaceType::User))
            .in_child("join namespace", &self.path)?;
        become_root(&self.path)
    }
}

/// Makes the calling process, which has just come into a user namespace, that namespace's root: what it makes from here on
/// is to have an owner there.
pub(crate) fn become_root(path: &str) -> Result<(), Failure> {
    match set_thread_groups(&[]) {
        // Where a user without privilege has made it, groups are not to be dropped.
        Ok(()) | Err(Errno::PERM) => {}
        Err(errno) => return Err(Failure::launch("set groups", "[]", errno)),
    }
    set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT).in_child("become root of", path)?;
    set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT).in_child("become root of", path)
}

/// The host's id of one of the container's, itself where nothing is mapped.
pub(crate) fn outside(maps: &[IdMap], id: u32) -> u32 {
    let map = maps.iter().find(|map| id.checked_sub(map.inside).is_some_and(|offset| offset < map.count));
    map.map_or(id, |map| map.outside.wrapping_add(id - map.inside))
}

fn map(pid: u32, uids: &[IdMap], gids: &[IdMap]) -> Result<(), Failure> {
    let procfs = Procfs::open().in_shim("open the host's", "/proc")?;
    let file = |name: &str| format!("{pid}/{name}");
    let own = |maps: &[IdMap], id: u32| matches!(maps, [only] if only.count == 1 && only.outside == id);
    let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
    let write = |name: &str, maps: &[IdMap]| {
        procfs
            .write(file(name), lines(maps).as_bytes())
            .map_err(|errno| Failure::internal("map ids", file(name), errno).with_detail(lines(maps).trim_end()))
    };
    if uid.is_root() {
        return write("uid_map", uids).and_then(|()| write("gid_map", gids));
    }
    match own(uids, uid.as_raw()) {
        true => write("uid_map", uids)?,
        false => map_by_program("newuidmap", pid, uids)?,
    }
    if own(gids, gid.as_raw()) {
        // Or a user could shed a group that denies them something.
        procfs.write(file("setgroups"), b"deny").in_shim("deny setgroups", file("setgroups"))?;
        return write("gid_map", gids);
    }
    map_by_program("newgidmap", pid, gids)
}

fn lines(maps: &[IdMap]) -> String {
    maps.iter().map(|map| format!("{} {} {}\n", map.inside, map.outside, map.count)).collect()
}

/// Ids that are not the user's own are given by a program with the privilege, from /etc/subuid and /etc/subgid.
fn map_by_program(program: &str, pid: u32, maps: &[IdMap]) -> Result<(), Failure> {
    let words = maps.iter().flat_map(|map| [map.inside, map.outside, map.count]).map(|number| number.to_string());
    let output = Command::new(program).arg(pid.to_string()).args(words).stdin(Stdio::null()).output();
    let output = output.in_shim("execute (it is in Debian's package uidmap)", program)?;
    if output.status.success() {
        return Ok(());
    }
    let words = String::from_utf8_lossy(&output.stderr);
    Err(Failure::internal("map ids", program, Errno::PERM).with_detail(words.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_found_on_the_host() {
        let maps = [IdMap { inside: 0, outside: 100_000, count: 10 }, IdMap { inside: 1000, outside: 5, count: 1 }];
        assert_eq!([0, 9, 10, 1000, 1001].map(|id| outside(&maps, id)), [100_000, 100_009, 10, 5, 1001]);
        assert_eq!(lines(&maps), "0 100000 10\n1000 5 1\n");
    }
}
