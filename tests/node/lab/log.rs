//! The CRI's log format, read as strictly as it is specified.

use std::path::Path;

/// A line of a log file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Line {
    pub(crate) stamp: String,
    pub(crate) stream: String,
    pub(crate) partial: bool,
    pub(crate) text: Vec<u8>,
}

/// Reads a log file.
pub(crate) fn read(path: impl AsRef<Path>) -> Vec<Line> {
    let path = path.as_ref();
    let bytes = std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    if bytes.is_empty() {
        return Vec::new();
    }
    let bytes = bytes.strip_suffix(b"\n").unwrap_or_else(|| panic!("{}: the last line has no end", path.display()));
    bytes.split(|byte| *byte == b'\n').map(line).collect()
}

/// What a container printed, on one of its streams or on both.
pub(crate) fn text(path: impl AsRef<Path>, stream: Option<&str>) -> String {
    let mut text = Vec::new();
    for line in read(path).into_iter().filter(|line| stream.is_none_or(|stream| line.stream == stream)) {
        text.extend(line.text);
        if !line.partial {
            text.push(b'\n');
        }
    }
    String::from_utf8_lossy(&text).into_owned()
}

fn line(bytes: &[u8]) -> Line {
    let whole = String::from_utf8_lossy(bytes);
    let mut fields = bytes.splitn(4, |byte| *byte == b' ');
    let mut field = || fields.next().unwrap_or_else(|| panic!("a log line has four fields: {whole:?}"));
    let stamp = String::from_utf8_lossy(field()).into_owned();
    assert!(is_rfc3339_nano(&stamp), "{stamp:?} is no RFC 3339 time with nanoseconds");
    let stream = String::from_utf8_lossy(field()).into_owned();
    assert!(stream == "stdout" || stream == "stderr", "no stream in {whole:?}");
    let partial = match field() {
        b"P" => true,
        b"F" => false,
        tag => panic!("{tag:?} is no tag, in {whole:?}"),
    };
    Line { stamp, stream, partial, text: field().to_vec() }
}

/// `2006-01-02T15:04:05.999999999Z07:00`, the fraction without trailing zeros or with all nine digits.
fn is_rfc3339_nano(stamp: &str) -> bool {
    let Some((date, rest)) = stamp.split_once('T') else { return false };
    let zone = rest.find(['Z', '+', '-']).unwrap_or(rest.len());
    let (time, zone) = rest.split_at(zone);
    let (clock, fraction) = time.split_once('.').unwrap_or((time, ""));
    let shape = |text: &str, pattern: &str| {
        text.len() == pattern.len()
            && text
                .bytes()
                .zip(pattern.bytes())
                .all(|(byte, want)| if want == b'0' { byte.is_ascii_digit() } else { byte == want })
    };
    shape(date, "0000-00-00")
        && shape(clock, "00:00:00")
        && fraction.len() <= 9
        && fraction.bytes().all(|byte| byte.is_ascii_digit())
        && (zone == "Z" || (zone.len() == 6 && shape(&zone[1..], "00:00")))
}
