//! The records of a listing, as bytes.

use std::io::{self, BufRead};

use crate::contents::Contents;
use crate::listing::{Entry, Group, Kind, Link, Origin};

/// Bound on a string of a listing: paths, targets and attributes are far shorter, a damaged length is not.
const LONGEST: u64 = 16 << 20;
const END: u8 = b'.';
const LINK: u8 = b'=';
const LINKS_END: u8 = b':';

fn bad(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

pub(crate) fn write_links(bytes: &mut Vec<u8>, links: &[Link]) {
    for link in links {
        bytes.push(LINK);
        string(bytes, &link.path);
        string(bytes, &link.target);
    }
    bytes.push(LINKS_END);
}

pub(crate) fn read_links(stream: &mut impl BufRead) -> io::Result<Vec<Link>> {
    let mut links = Vec::new();
    loop {
        match byte(stream)? {
            LINK => links.push(Link { path: read_string(stream)?, target: read_string(stream)? }),
            LINKS_END => return Ok(links),
            _ => return Err(bad("a record that is no link's")),
        }
    }
}

pub(crate) fn write_end(bytes: &mut Vec<u8>, count: u64) {
    bytes.push(END);
    number(bytes, count);
}

pub(crate) fn write_entry(bytes: &mut Vec<u8>, last: &[u8], entry: &Entry) {
    bytes.push(match entry.kind {
        Kind::Directory => match entry.origin {
            Origin::Named => b'd',
            Origin::Implied => b'i',
            Origin::Renewed => b'r',
        },
        Kind::File { .. } => b'f',
        Kind::Symlink { .. } => b'l',
        Kind::Character { .. } => b'c',
        Kind::Block { .. } => b'b',
        Kind::Fifo => b'p',
    });
    let shared = last.iter().zip(&entry.path).take_while(|(one, other)| one == other).count();
    number(bytes, shared as u64);
    string(bytes, &entry.path[shared..]);
    for value in [entry.mode, entry.uid, entry.gid] {
        number(bytes, value.into());
    }
    let (seconds, nanos) = entry.mtime;
    // The sign goes to the lowest bit, so that times soon before 1970 are short too.
    number(bytes, (seconds.cast_unsigned() << 1) ^ (seconds >> 63).cast_unsigned());
    number(bytes, nanos.into());
    number(bytes, entry.xattrs.len() as u64);
    for (key, value) in &entry.xattrs {
        string(bytes, key);
        string(bytes, value);
    }
    // Nothing has one name and is a group: 1 stands for none.
    number(bytes, entry.group.map_or(1, |group| group.names));
    if let Some(group) = entry.group {
        number(bytes, group.number);
    }
    match &entry.kind {
        Kind::Directory | Kind::Fifo => {}
        Kind::File { size, contents } => {
            number(bytes, *size);
            bytes.extend_from_slice(&contents.0);
        }
        Kind::Symlink { target } => string(bytes, target),
        Kind::Character { major, minor } | Kind::Block { major, minor } => {
            number(bytes, (*major).into());
            number(bytes, (*minor).into());
        }
    }
}

/// Reads the next record into an entry and its path into `last`; `None` at the end, where `count` must be right.
pub(crate) fn read_entry(stream: &mut impl BufRead, last: &mut Vec<u8>, count: u64) -> io::Result<Option<Entry>> {
    let tag = byte(stream)?;
    if tag == END {
        return if read_number(stream)? == count { Ok(None) } else { Err(bad("a listing with entries missing")) };
    }
    let shared = usize::try_from(read_number(stream)?).ok().filter(|shared| *shared <= last.len());
    last.truncate(shared.ok_or_else(|| bad("a path that shares more than the last one has"))?);
    last.extend_from_slice(&read_string(stream)?);
    let (mode, uid, gid) = (small(stream)?, small(stream)?, small(stream)?);
    let seconds = read_number(stream)?;
    let mtime = ((seconds >> 1).cast_signed() ^ -(seconds & 1).cast_signed(), small(stream)?);
    let mut xattrs = Vec::new();
    for _ in 0..read_number(stream)? {
        xattrs.push((read_string(stream)?, read_string(stream)?));
    }
    let group = match read_number(stream)? {
        1 => None,
        names => Some(Group { number: read_number(stream)?, names }),
    };
    let kind = match tag {
        b'd' | b'i' | b'r' => Kind::Directory,
        b'f' => {
            let size = read_number(stream)?;
            let mut contents = [0; 16];
            stream.read_exact(&mut contents)?;
            Kind::File { size, contents: Contents(contents) }
        }
        b'l' => Kind::Symlink { target: read_string(stream)? },
        b'c' => Kind::Character { major: small(stream)?, minor: small(stream)? },
        b'b' => Kind::Block { major: small(stream)?, minor: small(stream)? },
        b'p' => Kind::Fifo,
        _ => return Err(bad("a record of no known kind")),
    };
    let origin = match tag {
        b'i' => Origin::Implied,
        b'r' => Origin::Renewed,
        _ => Origin::Named,
    };
    Ok(Some(Entry { path: last.clone(), kind, mode, uid, gid, mtime, xattrs, group, origin }))
}

fn number(bytes: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        bytes.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
}

fn string(bytes: &mut Vec<u8>, value: &[u8]) {
    number(bytes, value.len() as u64);
    bytes.extend_from_slice(value);
}

fn byte(stream: &mut impl BufRead) -> io::Result<u8> {
    let mut byte = [0];
    stream.read_exact(&mut byte)?;
    Ok(byte[0])
}

fn read_number(stream: &mut impl BufRead) -> io::Result<u64> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        let next = byte(stream)?;
        let bits = u64::from(next & 0x7f);
        if bits << shift >> shift != bits {
            break;
        }
        value |= bits << shift;
        if next & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(bad("a number that is too large"))
}

fn small(stream: &mut impl BufRead) -> io::Result<u32> {
    u32::try_from(read_number(stream)?).map_err(|_| bad("a number that is too large"))
}

fn read_string(stream: &mut impl BufRead) -> io::Result<Vec<u8>> {
    let length = read_number(stream)?;
    if length > LONGEST {
        return Err(bad("a string that is too long"));
    }
    let mut value = vec![0; usize::try_from(length).unwrap_or_default()];
    stream.read_exact(&mut value)?;
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bytes(longest: usize) -> impl Strategy<Value = Vec<u8>> {
        proptest::collection::vec(any::<u8>(), 0..longest)
    }

    fn kind() -> impl Strategy<Value = Kind> {
        prop_oneof![
            Just(Kind::Directory),
            Just(Kind::Fifo),
            (any::<u64>(), any::<[u8; 16]>())
                .prop_map(|(size, contents)| Kind::File { size, contents: Contents(contents) }),
            bytes(300).prop_map(|target| Kind::Symlink { target }),
            (any::<u32>(), any::<u32>()).prop_map(|(major, minor)| Kind::Character { major, minor }),
            (any::<u32>(), any::<u32>()).prop_map(|(major, minor)| Kind::Block { major, minor }),
        ]
    }

    fn entry() -> impl Strategy<Value = Entry> {
        let origin = prop_oneof![Just(Origin::Named), Just(Origin::Implied), Just(Origin::Renewed)];
        let xattrs = proptest::collection::vec((bytes(30), bytes(300)), 0..3);
        let group = proptest::option::of((any::<u64>(), 2_u64..).prop_map(|(number, names)| Group { number, names }));
        let numbers = (any::<u32>(), any::<u32>(), any::<u32>(), any::<(i64, u32)>());
        (bytes(50), kind(), numbers, xattrs, group, origin).prop_map(
            |(path, kind, (mode, uid, gid, mtime), xattrs, group, origin)| {
                let origin = if kind == Kind::Directory { origin } else { Origin::Named };
                Entry { path, kind, mode, uid, gid, mtime, xattrs, group, origin }
            },
        )
    }

    proptest! {
        #[test]
        fn entries_come_back(entries in proptest::collection::vec(entry(), 0..6)) {
            let (mut written, mut last) = (Vec::new(), Vec::new());
            for entry in &entries {
                write_entry(&mut written, &last, entry);
                last.clone_from(&entry.path);
            }
            write_end(&mut written, entries.len() as u64);
            let (mut stream, mut last) = (written.as_slice(), Vec::new());
            for (index, entry) in entries.iter().enumerate() {
                let found = read_entry(&mut stream, &mut last, index as u64).unwrap();
                prop_assert_eq!(found.as_ref(), Some(entry));
            }
            prop_assert!(read_entry(&mut stream, &mut last, entries.len() as u64).unwrap().is_none());
            prop_assert!(stream.is_empty());
        }

        #[test]
        fn anything_may_be_read(written in bytes(200)) {
            let (mut stream, mut last) = (written.as_slice(), b"some/path".to_vec());
            while let Ok(Some(_)) = read_entry(&mut stream, &mut last, 0) {}
            let _ = read_links(&mut written.as_slice());
        }
    }
}
