//! Lists of small numbers as the kernel writes them (`0-3,7`), to bit masks: processors and memory nodes.

use crate::error::{CompileError, invalid};

/// Reads a list into a mask, bit n of byte n / 8 for number n; empty text is an empty mask. No number is above `last`.
pub(crate) fn mask(list: &str, last: usize, field: &str) -> Result<Vec<u8>, CompileError> {
    let mut mask = Vec::new();
    for range in list.split(',').filter(|_| !list.is_empty()) {
        let (first, end) = range.split_once('-').unwrap_or((range, range));
        let number = |text: &str| match text.parse::<usize>() {
            Ok(_) if !text.bytes().all(|byte| byte.is_ascii_digit()) => None,
            result => result.ok(),
        };
        let (Some(first), Some(end)) = (number(first), number(end)) else {
            return Err(invalid(field, list, "is no list of numbers and ranges such as 0-3,7"));
        };
        if first > end {
            return Err(invalid(field, list, "has a range that ends before it begins"));
        }
        if end > last {
            return Err(invalid(field, list, "has a number above what any kernel knows"));
        }
        mask.resize(mask.len().max(end / 8 + 1), 0);
        (first..=end).for_each(|number| mask[number / 8] |= 1 << (number % 8));
    }
    Ok(mask)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_become_bits() {
        assert!(mask("", 100, "x").unwrap().is_empty());
        assert_eq!(mask("0", 100, "x").unwrap(), [1]);
        assert_eq!(mask("0-3,7,9", 100, "x").unwrap(), [0x8f, 2]);
        assert_eq!(mask("16", 16, "x").unwrap(), [0, 0, 1]);
    }

    #[test]
    fn other_text_is_refused() {
        for (list, words) in
            [("1,", "no list"), ("a", "no list"), ("+1", "no list"), ("3-1", "ends before"), ("17", "above")]
        {
            let error = mask(list, 16, "process.x").unwrap_err().to_string();
            assert!(error.starts_with("process.x") && error.contains(words), "{error}");
        }
    }
}
