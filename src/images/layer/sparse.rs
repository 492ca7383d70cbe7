//! Files with holes: where in the file the archive's bytes belong.

/// One run of bytes that the archive holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Extent {
    pub(crate) offset: u64,
    pub(crate) length: u64,
}

/// The extents of one file, checked.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Map {
    /// In rising order, none overlapping; their lengths add up to what the archive holds.
    pub(crate) extents: Vec<Extent>,
    /// The file's length with its holes.
    pub(crate) real_size: u64,
}

/// A map that cannot be of a file.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("its map of holes is not in order, or does not fit its length or its data")]
pub(crate) struct BadMap;

impl Map {
    /// Checks extents against the file's length and the bytes that the archive holds for it.
    pub(crate) fn new(extents: Vec<Extent>, real_size: u64, stored: u64) -> Result<Self, BadMap> {
        let (mut end, mut sum) = (0_u64, 0_u64);
        for extent in &extents {
            if extent.offset < end {
                return Err(BadMap);
            }
            end = extent.offset.checked_add(extent.length).ok_or(BadMap)?;
            sum = sum.checked_add(extent.length).ok_or(BadMap)?;
        }
        if end > real_size || sum != stored {
            return Err(BadMap);
        }
        Ok(Self { extents, real_size })
    }
}

/// The map that format 1.0 puts before the data: the number of extents, then offsets and lengths, each on a line.
#[derive(Default)]
pub(crate) struct Lines {
    text: Vec<u8>,
    ends: usize,
    /// Lines of the whole map, once the first is known.
    needed: Option<usize>,
}

impl Lines {
    /// Takes the next block and returns the extents once they are complete; the rest of the last block is padding.
    pub(crate) fn push(&mut self, block: &[u8]) -> Result<Option<Vec<Extent>>, BadMap> {
        self.text.extend_from_slice(block);
        self.ends += block.iter().filter(|byte| **byte == b'\n').count();
        if self.needed.is_none() && self.ends > 0 {
            let extents = self.numbers().next().ok_or(BadMap)??;
            let lines = extents.checked_mul(2).and_then(|lines| lines.checked_add(1)).ok_or(BadMap)?;
            self.needed = Some(usize::try_from(lines).map_err(|_| BadMap)?);
        }
        match self.needed {
            Some(needed) if self.ends >= needed => {
                let numbers = self.numbers().take(needed).skip(1).collect::<Result<Vec<_>, _>>()?;
                Ok(Some(numbers.chunks(2).map(|pair| Extent { offset: pair[0], length: pair[1] }).collect()))
            }
            _ => Ok(None),
        }
    }

    fn numbers(&self) -> impl Iterator<Item = Result<u64, BadMap>> {
        self.text.split(|byte| *byte == b'\n').map(|line| {
            let digits = std::str::from_utf8(line).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
            digits.and_then(|digits| digits.parse().ok()).ok_or(BadMap)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extent(offset: u64, length: u64) -> Extent {
        Extent { offset, length }
    }

    #[test]
    fn maps_that_lie_are_refused() {
        assert!(Map::new(vec![extent(0, 4), extent(8, 2)], 10, 6).is_ok());
        assert!(Map::new(vec![], 10, 0).is_ok());
        for (extents, real_size, stored) in [
            (vec![extent(0, 4)], 3, 4),
            (vec![extent(0, 4)], 4, 5),
            (vec![extent(4, 4), extent(0, 4)], 8, 8),
            (vec![extent(0, 4), extent(3, 1)], 8, 5),
            (vec![extent(u64::MAX, 2)], u64::MAX, 2),
        ] {
            assert_eq!(Map::new(extents, real_size, stored), Err(BadMap));
        }
    }

    #[test]
    fn lines_are_awaited_and_checked() {
        let mut lines = Lines::default();
        assert_eq!(lines.push(b"2\n0\n5"), Ok(None));
        assert_eq!(lines.push(b"\n9\n1\n\0\0"), Ok(Some(vec![extent(0, 5), extent(9, 1)])));
        for bad in [&b"x\n"[..], b"-1\n", b"18446744073709551615\n", b"1\n0\nx\n"] {
            assert_eq!(Lines::default().push(bad), Err(BadMap));
        }
        assert_eq!(Lines::default().push(b"4611686018427387904\n"), Ok(None));
    }
}
