//! systemd's version.

use crate::error::Error;

/// Reads the number that a version begins with: `257.9-1~deb13u1`, `v245.4-1.fc32`.
pub(crate) fn parse(text: &str) -> Result<u32, Error> {
    let digits = text.trim_start_matches(['"', 'v']);
    let end = digits.find(|character: char| !character.is_ascii_digit()).unwrap_or(digits.len());
    digits[..end].parse().map_err(|_| Error::Version(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_is_what_comes_first() {
        for (text, version) in [("257.9-1~deb13u1", 257), ("v245.4-1.fc32", 245), ("\"v250", 250), ("258~rc1", 258)] {
            assert_eq!(parse(text).unwrap(), version, "{text}");
        }
        assert!(parse("unknown").is_err());
    }
}
