//! The home directory of a user, by the container's own /etc/passwd.

use std::fs::File;
use std::io::Read;

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags};

const PASSWD: &str = "/etc/passwd";
/// Where somebody lives that the file does not know.
const ROOT: &[u8] = b"/";
/// The most that is read of a file that the image's maker wrote.
const LONGEST: u64 = 1 << 20;

/// Looks a user up in the root directory that the calling process is in. What cannot be read knows nobody.
pub(crate) fn of(uid: u32) -> Vec<u8> {
    read().and_then(|passwd| find(&passwd, uid)).unwrap_or_else(|| ROOT.to_vec())
}

fn read() -> Option<Vec<u8>> {
    // The image may have anything there: a pipe must not hold the set-up up, and a link through /proc not lead out.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = rustix::fs::openat2(CWD, PASSWD, flags, Mode::empty(), ResolveFlags::NO_MAGICLINKS).ok()?;
    let stat = rustix::fs::fstat(&file).ok()?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return None;
    }
    let mut passwd = Vec::new();
    File::from(file).take(LONGEST).read_to_end(&mut passwd).ok()?;
    Some(passwd)
}

/// name:password:uid:gid:comment:home:shell
fn find(passwd: &[u8], uid: u32) -> Option<Vec<u8>> {
    let uid = uid.to_string();
    let home = passwd.split(|byte| *byte == b'\n').find_map(|line| {
        let mut fields = line.split(|byte| *byte == b':');
        (fields.nth(2)? == uid.as_bytes()).then(|| fields.nth(2)).flatten()
    })?;
    (!home.is_empty() && !home.contains(&0)).then(|| home.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_line_of_a_user_says_where_it_lives() {
        let passwd =
            b"root:x:0:0:root:/root:/bin/sh\n\nbroken\nweb:x:101:101::/srv/web:/bin/false\nalso:x:101:1::/x:\n";
        assert_eq!(find(passwd, 0).unwrap(), b"/root");
        assert_eq!(find(passwd, 101).unwrap(), b"/srv/web");
        assert_eq!(find(passwd, 1), None);
        assert_eq!(find(b"a:x:7:7", 7), None);
        assert_eq!(find(b"a:x:7:7:::", 7), None);
    }
}
