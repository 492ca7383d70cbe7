//! What makes data and names outlive a power cut, and how many flushes of the disk that takes.
//!
//! Data is synced while it has temporary names, all of it at once; then names are given, in an order in which any
//! beginning may survive; then the names are synced, once. ext4 and XFS write names to their journals in the order in
//! which they were given, so that syncing the directory with the last one makes all of them durable. Where that is not
//! so (btrfs keeps a log for each directory, ext4 can be made without a journal), or where the directories are on several
//! file systems, the file systems are synced whole instead.

use std::fs::File;
use std::io;
use std::path::Path;

/// Magic numbers of `statfs(2)`.
const EXT4: i64 = 0xEF53;
const XFS: i64 = 0x5846_5342;

/// Syncs the file systems that the directories are on, each once: everything written to them so far.
pub(crate) fn sync_data(directories: &[&Path]) -> io::Result<()> {
    each_file_system(directories)?.iter().try_for_each(|directory| Ok(rustix::fs::syncfs(directory)?))
}

/// Makes the names in `directories` durable that were given last in the last one.
pub(crate) fn sync_names(directories: &[&Path]) -> io::Result<()> {
    let systems = each_file_system(directories)?;
    match (systems.as_slice(), directories.last()) {
        ([only], Some(last)) if is_ordered(only)? => File::open(last)?.sync_all(),
        _ => systems.iter().try_for_each(|directory| Ok(rustix::fs::syncfs(directory)?)),
    }
}

/// Opens a directory of each file system, in order.
fn each_file_system(directories: &[&Path]) -> io::Result<Vec<File>> {
    let (mut systems, mut seen) = (Vec::new(), Vec::new());
    for directory in directories {
        let directory = File::open(directory)?;
        let device = rustix::fs::fstat(&directory)?.st_dev;
        if !seen.contains(&device) {
            seen.push(device);
            systems.push(directory);
        }
    }
    Ok(systems)
}

fn is_ordered(directory: &File) -> io::Result<bool> {
    // The type's width differs between architectures, the numbers do not.
    #[allow(clippy::unnecessary_cast, reason = "it is no cast on some architectures")]
    let kind = rustix::fs::fstatfs(directory)?.f_type as i64;
    match kind {
        EXT4 => has_journal(directory),
        kind => Ok(kind == XFS),
    }
}

/// ext4 shows its journal's thread, if it has one, under the name of the device.
fn has_journal(directory: &File) -> io::Result<bool> {
    let device = rustix::fs::fstat(directory)?.st_dev;
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let link = std::fs::read_link(format!("/sys/dev/block/{major}:{minor}"));
    let name = link.ok().and_then(|link| Some(link.file_name()?.to_owned()));
    Ok(name.is_some_and(|name| Path::new("/sys/fs/ext4").join(name).join("journal_task").exists()))
}
