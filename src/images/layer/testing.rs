//! Makes archives, hostile ones too: for this crate's tests and those of the crates that pull layers.

use std::io::Write;

use tar::{EntryType, Header};

/// Writes a PAX record; the length counts itself.
pub fn pax_record(key: &str, value: &[u8]) -> Vec<u8> {
    crate::pax::record(key.as_bytes(), value)
}

/// A tar archive in the making. Names are written as they are, however bad.
#[derive(Clone, Default)]
pub struct Tar {
    bytes: Vec<u8>,
}

/// One entry's header, before its data.
pub struct Entry {
    /// As it will be written; size and checksum follow from the data.
    pub header: Header,
}

impl Entry {
    /// Begins an entry: root's, of 2001, with the usual mode.
    pub fn new(kind: EntryType, path: &str) -> Self {
        let mut header = Header::new_gnu();
        header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
        header.set_entry_type(kind);
        header.set_mode(if kind == EntryType::Directory { 0o755 } else { 0o644 });
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_000_000_000);
        header.set_size(0);
        Self { header }
    }

    /// Sets a link's target.
    #[must_use]
    pub fn link(mut self, target: &str) -> Self {
        self.header.as_old_mut().linkname[..target.len()].copy_from_slice(target.as_bytes());
        self
    }

    /// Sets the permission bits.
    #[must_use]
    pub fn mode(mut self, mode: u32) -> Self {
        self.header.set_mode(mode);
        self
    }

    /// Sets user and group.
    #[must_use]
    pub fn owner(mut self, uid: u64, gid: u64) -> Self {
        self.header.set_uid(uid);
        self.header.set_gid(gid);
        self
    }

    /// Sets a node's device number.
    #[must_use]
    pub fn device(mut self, major: u32, minor: u32) -> Self {
        self.header.set_device_major(major).expect("GNU headers have it");
        self.header.set_device_minor(minor).expect("GNU headers have it");
        self
    }

    /// Sets the time, in Unix seconds.
    #[must_use]
    pub fn mtime(mut self, mtime: u64) -> Self {
        self.header.set_mtime(mtime);
        self
    }
}

impl Tar {
    /// Appends an entry with its data.
    #[must_use]
    pub fn entry(mut self, entry: Entry, data: &[u8]) -> Self {
        let mut header = entry.header;
        header.set_size(data.len() as u64);
        self.raw(header, data);
        self
    }

    /// Appends a header as it is, its size included.
    pub fn raw(&mut self, mut header: Header, data: &[u8]) {
        header.set_cksum();
        self.bytes.extend_from_slice(header.as_bytes());
        self.blocks(data);
    }

    /// Appends data, filled up to whole blocks.
    pub fn blocks(&mut self, data: &[u8]) {
        self.bytes.extend_from_slice(data);
        self.bytes.resize(self.bytes.len().next_multiple_of(512), 0);
    }

    /// Appends a directory.
    #[must_use]
    pub fn dir(self, path: &str) -> Self {
        self.entry(Entry::new(EntryType::Directory, path), b"")
    }

    /// Appends a file.
    #[must_use]
    pub fn file(self, path: &str, data: impl AsRef<[u8]>) -> Self {
        self.entry(Entry::new(EntryType::Regular, path), data.as_ref())
    }

    /// Appends a symbolic link.
    #[must_use]
    pub fn symlink(self, path: &str, target: &str) -> Self {
        self.entry(Entry::new(EntryType::Symlink, path).link(target), b"")
    }

    /// Appends a hard link.
    #[must_use]
    pub fn hard_link(self, path: &str, target: &str) -> Self {
        self.entry(Entry::new(EntryType::Link, path).link(target), b"")
    }

    /// Puts an extended header before the next entry.
    #[must_use]
    pub fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let data: Vec<u8> = records.iter().flat_map(|(key, value)| pax_record(key, value)).collect();
        self.entry(Entry::new(EntryType::XHeader, "PaxHeader"), &data)
    }

    /// Appends what is made already.
    #[must_use]
    pub fn joined(mut self, bytes: &[u8]) -> Self {
        self.bytes.extend_from_slice(bytes);
        self
    }

    /// Returns the archive with its end.
    pub fn end(mut self) -> Vec<u8> {
        self.bytes.extend_from_slice(&[0; 1024]);
        self.bytes
    }

    /// What is there so far, without the end.
    pub fn cut(self) -> Vec<u8> {
        self.bytes
    }
}

/// Compresses as most layers are.
pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).and_then(|()| encoder.finish()).expect("memory takes all")
}

/// Compresses as newer layers are.
pub fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 1).expect("memory takes all")
}
