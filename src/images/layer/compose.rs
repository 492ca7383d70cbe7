//! Writes the archive of a completing layer. The same places give the same bytes: one entry for each, in order, with
//! its whole name, times and attributes in a PAX header, and nothing that depends on this host.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;

use rustix::fs::{FileType, SeekFrom};
use rustix::io::Errno;
use tar::{EntryType, Header};

use crate::merged::{Names, Place};
use crate::pax;
use crate::sparse::Extent;
use crate::walk;

/// Holes that a file can have: the map has to fit into a header that readers take.
const MOST_EXTENTS: usize = 20_000;
const BLOCK: usize = 512;
const BUFFER: usize = 128 << 10;

/// Writes all places under their names; names of one inode become hard links.
pub(crate) fn write(mut archive: impl Write, places: &BTreeMap<Names, Place>) -> io::Result<()> {
    let mut written: HashMap<(u64, u64), Vec<u8>> = HashMap::new();
    for (names, place) in places {
        let path = names.join(&b'/');
        let is_directory = place.kind() == FileType::Directory;
        match written.get(&walk::identity(&place.stat)) {
            Some(first) if !is_directory => link(&mut archive, &path, first)?,
            _ => {
                entry(&mut archive, &path, place)?;
                written.insert(walk::identity(&place.stat), path);
            }
        }
    }
    archive.write_all(&[0; 2 * BLOCK])?;
    archive.flush()
}

fn link(archive: &mut impl Write, path: &[u8], target: &[u8]) -> io::Result<()> {
    let mut records = pax::record(b"path", path);
    records.extend(pax::record(b"linkpath", target));
    extension(archive, &records)?;
    let mut header = Header::new_ustar();
    header.set_entry_type(EntryType::Link);
    finish(archive, header, 0)
}

fn entry(archive: &mut impl Write, path: &[u8], place: &Place) -> io::Result<()> {
    let (stat, spot) = (&place.stat, place.spot());
    let mut records = pax::record(b"path", path);
    let nanos = u32::try_from(stat.st_mtime_nsec).unwrap_or_default();
    records.extend(pax::record(b"mtime", pax::time_text(stat.st_mtime, nanos).as_bytes()));
    for (key, value) in spot.xattrs(&mut Vec::new())? {
        // What overlayfs has marked is said by the layers already.
        if !key.starts_with(b"trusted.overlay.") {
            records.extend(pax::record(&[b"SCHILY.xattr.", key.as_slice()].concat(), &value));
        }
    }
    let mut header = Header::new_ustar();
    header.set_mode(stat.st_mode & 0o7777);
    header.set_uid(stat.st_uid.into());
    header.set_gid(stat.st_gid.into());
    header.set_mtime(0);
    let kind = match place.kind() {
        FileType::Directory => EntryType::Directory,
        FileType::Symlink => {
            records.extend(pax::record(b"linkpath", &spot.link()?));
            EntryType::Symlink
        }
        FileType::Fifo => EntryType::Fifo,
        kind @ (FileType::CharacterDevice | FileType::BlockDevice) => {
            header.set_device_major(rustix::fs::major(stat.st_rdev))?;
            header.set_device_minor(rustix::fs::minor(stat.st_rdev))?;
            if kind == FileType::CharacterDevice { EntryType::Char } else { EntryType::Block }
        }
        _ => return file(archive, records, header, place),
    };
    header.set_entry_type(kind);
    extension(archive, &records)?;
    finish(archive, header, 0)
}

fn file(archive: &mut impl Write, mut records: Vec<u8>, mut header: Header, place: &Place) -> io::Result<()> {
    let file = File::from(place.open()?);
    let size = place.stat.st_size.cast_unsigned();
    let extents = extents(&file, size)?;
    let stored: u64 = extents.iter().map(|extent| extent.length).sum();
    if stored < size {
        let map: Vec<String> = extents.iter().map(|extent| format!("{},{}", extent.offset, extent.length)).collect();
        records.extend(pax::record(b"GNU.sparse.size", size.to_string().as_bytes()));
        records.extend(pax::record(b"GNU.sparse.map", map.join(",").as_bytes()));
    }
    records.extend(pax::record(b"size", stored.to_string().as_bytes()));
    header.set_entry_type(EntryType::Regular);
    extension(archive, &records)?;
    finish(archive, header, stored)?;
    let mut buffer = vec![0; BUFFER];
    for extent in extents {
        let (mut at, end) = (extent.offset, extent.offset + extent.length);
        while at < end {
            let most = usize::try_from(end - at).map_or(BUFFER, |left| left.min(BUFFER));
            file.read_exact_at(&mut buffer[..most], at)?;
            archive.write_all(&buffer[..most])?;
            at += most as u64;
        }
    }
    pad(archive, stored)
}

/// Finds the data between a file's holes.
fn extents(file: &File, size: u64) -> io::Result<Vec<Extent>> {
    let (mut extents, mut at) = (Vec::new(), 0);
    while at < size {
        let offset = match rustix::fs::seek(file, SeekFrom::Data(at)) {
            Ok(offset) => offset,
            // Nothing but a hole is left.
            Err(Errno::NXIO) => break,
            Err(errno) => return Err(errno.into()),
        };
        at = rustix::fs::seek(file, SeekFrom::Hole(offset))?.min(size);
        extents.push(Extent { offset, length: at - offset });
        if extents.len() > MOST_EXTENTS {
            return Err(io::Error::other(format!("a hard link's target has more than {MOST_EXTENTS} holes")));
        }
    }
    Ok(extents)
}

/// Writes the records of the entry to come.
fn extension(archive: &mut impl Write, records: &[u8]) -> io::Result<()> {
    let mut header = Header::new_ustar();
    header.set_entry_type(EntryType::XHeader);
    finish(archive, header, records.len() as u64)?;
    archive.write_all(records)?;
    pad(archive, records.len() as u64)
}

fn finish(archive: &mut impl Write, mut header: Header, size: u64) -> io::Result<()> {
    header.set_size(size);
    header.set_cksum();
    archive.write_all(header.as_bytes())
}

fn pad(archive: &mut impl Write, size: u64) -> io::Result<()> {
    let missing = size.next_multiple_of(BLOCK as u64) - size;
    io::copy(&mut io::repeat(0).take(missing), archive).map(|_| ())
}
