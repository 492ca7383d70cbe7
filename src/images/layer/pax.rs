//! PAX extended headers: `<length> <key>=<value>\n` records.
//!
//! The `tar` crate splits them at newlines, which breaks on binary values (`security.capability`) and silently drops
//! what follows an empty line; here the length field alone says where a record ends, as POSIX has it.

use std::str::FromStr;

use crate::sparse::Extent;

/// What the records of one member say; absent fields leave the tar header's value.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Records {
    pub(crate) path: Option<Vec<u8>>,
    pub(crate) link: Option<Vec<u8>>,
    pub(crate) size: Option<u64>,
    pub(crate) uid: Option<u64>,
    pub(crate) gid: Option<u64>,
    /// Seconds and nanoseconds.
    pub(crate) mtime: Option<(i64, u32)>,
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub(crate) sparse: Sparse,
}

/// The GNU sparse records, formats 0.0, 0.1 and 1.0.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Sparse {
    pub(crate) major: Option<u64>,
    pub(crate) minor: Option<u64>,
    pub(crate) name: Option<Vec<u8>>,
    /// The file's length with its holes.
    pub(crate) real_size: Option<u64>,
    /// 0.1's map and 0.0's pairs of records alike.
    pub(crate) map: Vec<Extent>,
    offset: Option<u64>,
}

/// A header that does not follow the format.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PaxError {
    #[error("a PAX record has no valid length")]
    Length,
    #[error("a PAX record has no key")]
    Key,
    #[error("the PAX record {key:?} has the bad value {value:?}")]
    Value { key: String, value: String },
}

/// Parses one extended header.
pub(crate) fn parse(mut data: &[u8]) -> Result<Records, PaxError> {
    let mut records = Records::default();
    // GNU tar and others pad the data with NULs in places.
    while data.first().is_some_and(|byte| *byte != 0) {
        let length = record_length(data)?;
        let (key, value) = pair(&data[..length])?;
        records.take(key, value)?;
        data = &data[length..];
    }
    Ok(records)
}

/// The length of the whole record, that of its own digits included.
fn record_length(data: &[u8]) -> Result<usize, PaxError> {
    let space = data.iter().position(|byte| *byte == b' ').ok_or(PaxError::Length)?;
    let length: usize = number(&data[..space]).ok_or(PaxError::Length)?;
    if length > space && length <= data.len() { Ok(length) } else { Err(PaxError::Length) }
}

fn pair(record: &[u8]) -> Result<(&[u8], &[u8]), PaxError> {
    let record = record.strip_suffix(b"\n").ok_or(PaxError::Length)?;
    let space = record.iter().position(|byte| *byte == b' ').ok_or(PaxError::Length)?;
    let pair = &record[space + 1..];
    match pair.iter().position(|byte| *byte == b'=') {
        None | Some(0) => Err(PaxError::Key),
        Some(equals) => Ok((&pair[..equals], &pair[equals + 1..])),
    }
}

/// Decimal digits only: Rust's own parsers take a sign too.
fn number<T: FromStr>(text: &[u8]) -> Option<T> {
    let digits = std::str::from_utf8(text).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()))?;
    digits.parse().ok()
}

/// `-1.5` is one and a half seconds before 1970: seconds -2, nanoseconds 500 000 000.
fn time(text: &[u8]) -> Option<(i64, u32)> {
    let text = std::str::from_utf8(text).ok()?;
    let (negative, text) = text.strip_prefix('-').map_or((false, text), |rest| (true, rest));
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = number(seconds.as_bytes())?;
    if !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let nanos: u32 = format!("{:0<9.9}", fraction).parse().ok()?;
    match (negative, nanos) {
        (false, _) => Some((seconds, nanos)),
        (true, 0) => Some((-seconds, 0)),
        (true, _) => Some((-seconds - 1, 1_000_000_000 - nanos)),
    }
}

/// Writes a record; the length counts itself.
pub(crate) fn record(key: &[u8], value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length.to_string().len() + rest != length {
        length += 1;
    }
    let length = length.to_string();
    [length.as_bytes(), b" ", key, b"=", value, b"\n"].concat()
}

/// Writes a time as [`time`] reads it.
pub(crate) fn time_text(seconds: i64, nanos: u32) -> String {
    match (seconds, nanos) {
        (_, 0) => seconds.to_string(),
        (0.., _) => format!("{seconds}.{nanos:09}"),
        // The fraction leads away from 1970.
        _ => format!("-{}.{:09}", (seconds + 1).unsigned_abs(), 1_000_000_000 - nanos),
    }
}

impl Records {
    fn take(&mut self, key: &[u8], value: &[u8]) -> Result<(), PaxError> {
        let bad = || PaxError::Value {
            key: String::from_utf8_lossy(key).into_owned(),
            value: String::from_utf8_lossy(&value[..value.len().min(80)]).into_owned(),
        };
        if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
            self.xattrs.retain(|(known, _)| known != name);
            self.xattrs.push((name.to_owned(), value.to_owned()));
            return Ok(());
        }
        // POSIX: an empty value takes an earlier record back.
        let bytes = || (!value.is_empty()).then(|| value.to_owned());
        let integer = || if value.is_empty() { Ok(None) } else { number(value).map(Some).ok_or_else(bad) };
        match key {
            b"path" => self.path = bytes(),
            b"linkpath" => self.link = bytes(),
            b"size" => self.size = integer()?,
            b"uid" => self.uid = integer()?,
            b"gid" => self.gid = integer()?,
            b"mtime" if value.is_empty() => self.mtime = None,
            b"mtime" => self.mtime = Some(time(value).ok_or_else(bad)?),
            b"GNU.sparse.major" => self.sparse.major = integer()?,
            b"GNU.sparse.minor" => self.sparse.minor = integer()?,
            b"GNU.sparse.name" => self.sparse.name = bytes(),
            b"GNU.sparse.realsize" | b"GNU.sparse.size" => self.sparse.real_size = integer()?,
            b"GNU.sparse.offset" => self.sparse.offset = integer()?,
            b"GNU.sparse.numbytes" => {
                let offset = self.sparse.offset.take().ok_or_else(bad)?;
                self.sparse.map.push(Extent { offset, length: number(value).ok_or_else(bad)? });
            }
            b"GNU.sparse.map" => self.sparse.map = map(value).ok_or_else(bad)?,
            // Comments, user names, access times, what other programs keep for themselves.
            _ => {}
        }
        Ok(())
    }
}

/// `offset,length,offset,length…`
fn map(value: &[u8]) -> Option<Vec<Extent>> {
    let numbers: Vec<u64> = value.split(|byte| *byte == b',').map(number).collect::<Option<_>>()?;
    let pairs = numbers.chunks_exact(2);
    pairs.remainder().is_empty().then(|| pairs.map(|pair| Extent { offset: pair[0], length: pair[1] }).collect())
}

#[cfg(test)]
mod tests {
    use super::{record as bytes_record, *};
    use proptest::prelude::*;

    fn record(key: &str, value: &[u8]) -> Vec<u8> {
        bytes_record(key.as_bytes(), value)
    }

    #[test]
    fn binary_values_and_what_follows_them_survive() {
        let mut data = record("SCHILY.xattr.security.capability", b"\x01\n\n=\x00\n");
        data.extend(record("size", b"77"));
        data.extend(record("path", "ä/b".as_bytes()));
        data.extend([0, 0, 0]);
        let records = parse(&data).unwrap();
        assert_eq!(records.xattrs, [(b"security.capability".to_vec(), b"\x01\n\n=\x00\n".to_vec())]);
        assert_eq!((records.size, records.path.as_deref()), (Some(77), Some("ä/b".as_bytes())));
    }

    #[test]
    fn times_before_1970_and_fractions() {
        for (text, value) in [
            ("0", Some((0, 0))),
            ("12.5", Some((12, 500_000_000))),
            ("12.1234567891", Some((12, 123_456_789))),
            ("-1.5", Some((-2, 500_000_000))),
            ("-3", Some((-3, 0))),
            ("-0.25", Some((-1, 750_000_000))),
            ("1.x", None),
            ("+1", None),
            ("", None),
        ] {
            assert_eq!(time(text.as_bytes()), value, "{text}");
            if let Some((seconds, nanos)) = value {
                assert_eq!(time(time_text(seconds, nanos).as_bytes()), value, "{text}");
            }
        }
    }

    #[test]
    fn broken_records_are_errors() {
        for bad in [
            &b"x"[..],
            b"99 a=b\n",
            b"6 a=b\n\n",
            b"5 =b\n",
            b"5 ab\n",
            b" a=b\n",
            b"-6 a=b\n",
            b"10 size=x\n",
            b"11 size=-1\n",
            b"18446744073709551616 a=b\n",
            b"0 a=b\n",
            b"22 GNU.sparse.map=1,2,3\n",
            b"27 GNU.sparse.numbytes=123\n",
        ] {
            assert!(parse(bad).is_err(), "{:?}", String::from_utf8_lossy(bad));
        }
    }

    proptest! {
        #[test]
        fn anything_may_come(data in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&data);
        }

        #[test]
        fn records_come_back(path in proptest::collection::vec(1_u8.., 1..300), value in proptest::collection::vec(any::<u8>(), 0..2000)) {
            let mut data = record("SCHILY.xattr.user.x", &value);
            data.extend(record("path", &path));
            let records = parse(&data).unwrap();
            prop_assert_eq!(records.path.unwrap(), path);
            prop_assert_eq!(&records.xattrs[0].1, &value);
        }
    }
}
