//! A file system before it is mounted: `fsopen`, `fsconfig`, `fsmount`, and the kernel's words on what went wrong.

use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};

use crate::failure::Failure;

/// A file system that is being configured.
#[derive(Debug)]
pub(crate) struct FsContext(OwnedFd);

impl FsContext {
    /// Begins with a type.
    pub(crate) fn open(fs_type: &str) -> Result<Self, Errno> {
        rustix::mount::fsopen(fs_type, FsOpenFlags::FSOPEN_CLOEXEC).map(Self)
    }

    /// Sets an option that has a value, of at most 255 bytes.
    pub(crate) fn set_string(&self, key: &str, value: &str) -> Result<(), Errno> {
        rustix::mount::fsconfig_set_string(&self.0, key, value)
    }

    /// Sets an option that has none.
    pub(crate) fn set_flag(&self, key: &str) -> Result<(), Errno> {
        rustix::mount::fsconfig_set_flag(&self.0, key)
    }

    /// Makes the file system and a detached mount of it.
    pub(crate) fn mount(&self, attributes: MountAttrFlags) -> Result<OwnedFd, Errno> {
        rustix::mount::fsconfig_create(&self.0)?;
        rustix::mount::fsmount(&self.0, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
    }

    /// Makes the failure of a step that the file system was asked for, with its own words on it.
    pub(crate) fn refused(&self, step: &str, subject: &str, errno: Errno) -> Failure {
        Failure::launch(step, subject, errno).with_detail(self.words())
    }

    /// What the file system has said since the last call: its own reason for an error, empty when it gave none.
    fn words(&self) -> String {
        let mut words = Vec::new();
        let mut message = [0; 1024];
        while let Ok(length @ 1..) = rustix::io::read(&self.0, &mut message) {
            // Each begins with its level and a space: "e overlay: ...".
            words.push(String::from_utf8_lossy(message[..length].trim_ascii()).into_owned());
        }
        words.join("; ")
    }
}
