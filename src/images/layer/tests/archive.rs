//! The tar reader.

use std::io::Read;

use proptest::prelude::*;
use tar::EntryType;

use crate::archive::{ArchiveError, Kind, Member, Members};
use crate::testing::{Entry, Tar};

fn read_all(bytes: &[u8]) -> Result<Vec<(Member, Vec<u8>)>, ArchiveError> {
    let mut members = Members::new(bytes);
    let mut all = Vec::new();
    while let Some(member) = members.next()? {
        let mut data = Vec::new();
        if let Err(source) = members.read_to_end(&mut data) {
            return Err(ArchiveError::Read { position: 0, source });
        }
        all.push((member, data));
    }
    Ok(all)
}

fn path(member: &Member) -> &str {
    std::str::from_utf8(&member.path).unwrap()
}

#[test]
fn long_names_come_in_three_forms() {
    let long = format!("{}/{}", "d".repeat(90), "f".repeat(200));
    let gnu = Tar::default()
        .entry(Entry::new(EntryType::GNULongName, "././@LongLink"), format!("{long}\0").as_bytes())
        .entry(Entry::new(EntryType::GNULongLink, "././@LongLink"), b"target\0")
        .symlink("short", "x");
    let pax = Tar::default().pax(&[("path", long.as_bytes()), ("linkpath", b"target")]).symlink("short", "x");
    for tar in [gnu, pax] {
        let all = read_all(&tar.end()).unwrap();
        assert_eq!(path(&all[0].0), long);
        assert_eq!(all[0].0.kind, Kind::Symlink { target: b"target".to_vec() });
    }
    let mut ustar = tar::Header::new_ustar();
    ustar.set_path(format!("{}/{}", "p".repeat(150), "n".repeat(90))).unwrap();
    ustar.set_size(0);
    ustar.set_mode(0o600);
    ustar.set_uid(1);
    ustar.set_gid(1);
    ustar.set_mtime(0);
    let mut tar = Tar::default();
    tar.raw(ustar, b"");
    assert_eq!(read_all(&tar.end()).unwrap()[0].0.path.len(), 241);
}

#[test]
fn pax_sizes_and_owners_count_where_the_header_has_no_room() {
    let tar = Tar::default()
        .pax(&[("size", b"5"), ("uid", b"4000000000"), ("mtime", b"-1.5"), ("SCHILY.xattr.user.k", b"v\n\n")])
        .file("a", "hello");
    let (member, data) = read_all(&tar.end()).unwrap().remove(0);
    assert_eq!((member.uid, member.mtime, data.as_slice()), (4_000_000_000, (-2, 500_000_000), &b"hello"[..]));
    assert_eq!(member.xattrs, [(b"user.k".to_vec(), b"v\n\n".to_vec())]);
}

#[test]
fn global_headers_are_passed_over() {
    let global = Entry::new(EntryType::XGlobalHeader, "pax_global_header");
    let tar = Tar::default().entry(global, b"52 comment=0123456789012345678901234567890123456789\n").file("a", "x");
    assert_eq!(path(&read_all(&tar.end()).unwrap()[0].0), "a");
}

#[test]
fn links_and_directories_have_no_data_whatever_their_size_says() {
    let mut header = Entry::new(EntryType::Directory, "d").header;
    header.set_size(4096);
    let mut tar = Tar::default();
    tar.raw(header, b"");
    let all = read_all(&tar.file("after", "x").end()).unwrap();
    assert_eq!((path(&all[0].0), path(&all[1].0)), ("d", "after"));
}

#[test]
fn old_archives_mark_directories_by_a_slash() {
    let mut header = tar::Header::new_old();
    header.as_old_mut().name[..4].copy_from_slice(b"dir/");
    // Old programs left numbers blank.
    header.as_old_mut().size = *b"           \0";
    let mut tar = Tar::default();
    tar.raw(header, b"");
    assert_eq!(read_all(&tar.end()).unwrap()[0].0.kind, Kind::Directory);
}

fn sparse(all: &[(Member, Vec<u8>)]) -> (Vec<(u64, u64)>, u64, &[u8]) {
    let Kind::File { sparse: Some(map), .. } = &all[0].0.kind else { panic!("{:?}", all[0].0) };
    (map.extents.iter().map(|extent| (extent.offset, extent.length)).collect(), map.real_size, &all[0].1)
}

#[test]
fn all_four_sparse_forms_say_the_same() {
    let expected = (vec![(512, 3), (4096, 2)], 10_000, &b"abcde"[..]);
    let v0 = Tar::default()
        .pax(&[
            ("GNU.sparse.size", b"10000"),
            ("GNU.sparse.numblocks", b"2"),
            ("GNU.sparse.offset", b"512"),
            ("GNU.sparse.numbytes", b"3"),
            ("GNU.sparse.offset", b"4096"),
            ("GNU.sparse.numbytes", b"2"),
        ])
        .file("s", "abcde");
    let v01 = Tar::default()
        .pax(&[("GNU.sparse.size", b"10000"), ("GNU.sparse.map", b"512,3,4096,2"), ("GNU.sparse.name", b"real")])
        .file("s", "abcde");
    let mut data = b"2\n512\n3\n4096\n2\n".to_vec();
    data.resize(512, 0);
    data.extend_from_slice(b"abcde");
    let v1: &[(&str, &[u8])] = &[
        ("GNU.sparse.major", b"1"),
        ("GNU.sparse.minor", b"0"),
        ("GNU.sparse.realsize", b"10000"),
        ("GNU.sparse.name", b"real"),
    ];
    let v1 = Tar::default().pax(v1).file("GNUSparseFile.0/s", data);
    for tar in [v0, v01.clone(), v1] {
        let all = read_all(&tar.file("after", "x").end()).unwrap();
        assert_eq!(sparse(&all), expected);
        assert_eq!(path(&all[1].0), "after");
    }
    assert_eq!(path(&read_all(&v01.end()).unwrap()[0].0), "real");
}

#[test]
fn the_old_gnu_form_goes_on_in_more_blocks() {
    let mut header = Entry::new(EntryType::GNUSparse, "s").header;
    let gnu = header.as_gnu_mut().unwrap();
    for (index, run) in gnu.sparse.iter_mut().enumerate() {
        run.set_offset(index as u64 * 1000);
        run.set_length(1);
    }
    gnu.set_is_extended(true);
    gnu.set_real_size(9000);
    header.set_size(5);
    let mut more = tar::GnuExtSparseHeader::new();
    more.sparse_mut()[0].set_offset(8000);
    more.sparse_mut()[0].set_length(1);
    let mut tar = Tar::default();
    tar.raw(header, b"");
    tar.blocks(more.as_bytes());
    tar.blocks(b"abcde");
    let all = read_all(&tar.file("after", "x").end()).unwrap();
    assert_eq!(sparse(&all), (vec![(0, 1), (1000, 1), (2000, 1), (3000, 1), (8000, 1)], 9000, &b"abcde"[..]));
    assert_eq!(path(&all[1].0), "after");
}

#[test]
fn broken_archives_are_errors() {
    let whole = Tar::default().file("a", "x".repeat(600)).end();
    assert!(matches!(read_all(&whole[..100]), Err(ArchiveError::Truncated { .. })));
    assert!(read_all(&whole[..700]).is_err());
    let mut flipped = whole.clone();
    flipped[0] ^= 1;
    assert!(matches!(read_all(&flipped), Err(ArchiveError::Checksum { .. })));
    let dangling = Tar::default().pax(&[("path", b"x")]).end();
    assert!(matches!(read_all(&dangling), Err(ArchiveError::Dangling { .. })));
    let volume = Tar::default().entry(Entry::new(EntryType::new(b'V'), "label"), b"").end();
    assert!(matches!(read_all(&volume), Err(ArchiveError::Kind { kind: 'V', .. })));
    // A long name of a terabyte must not be read into memory.
    let mut header = Entry::new(EntryType::GNULongName, "././@LongLink").header;
    header.set_size(1 << 40);
    let mut tar = Tar::default();
    tar.raw(header, b"");
    assert!(matches!(read_all(&tar.end()), Err(ArchiveError::ExtensionTooLong { .. })));
    assert!(read_all(b"").unwrap().is_empty());
}

proptest! {
    #[test]
    fn any_bytes_end_in_an_answer(bytes in proptest::collection::vec(any::<u8>(), 0..3000)) {
        let _ = read_all(&bytes);
    }

    #[test]
    fn a_flipped_header_byte_ends_in_an_answer(at in 0_usize..1536, bit in 0_u8..8, kind in proptest::sample::select(vec![b'0', b'S', b'x', b'L', b'5', b'3'])) {
        let mut header = Entry::new(EntryType::new(kind), "name").header;
        header.set_size(20);
        header.as_mut_bytes()[at % 512] ^= 1 << bit;
        let mut tar = Tar::default();
        tar.raw(header, b"14 path=abcde\n\0\0\0\0\0\0");
        let _ = read_all(&tar.end());
    }
}
