//! The wall clock's time as logs and records have it: RFC 3339 in UTC with nine digits of a second, always 30 bytes.

/// Seconds of a day.
const DAY: i64 = 86_400;
/// Days from 1 March of the year 0 to 1 January 1970.
const EPOCH_FROM_MARCH_0: i64 = 719_468;
/// Days of the Gregorian calendar's whole cycle of 400 years.
const ERA: i64 = 146_097;

/// A moment as the log writes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp([u8; Stamp::LENGTH]);

impl Stamp {
    /// Bytes of a stamp.
    pub const LENGTH: usize = 30;

    /// Takes the wall clock's time.
    pub fn now() -> Self {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
        Self::at(now.tv_sec, now.tv_nsec.unsigned_abs())
    }

    /// Writes a time given in unix seconds (years 0 to 9999) and nanoseconds of that second.
    pub fn at(seconds: i64, nanoseconds: u64) -> Self {
        let (year, month, day) = date(seconds.div_euclid(DAY));
        let second = seconds.rem_euclid(DAY).unsigned_abs();
        let mut text = *b"0000-00-00T00:00:00.000000000Z";
        let mut put = |from: usize, to: usize, mut value: u64| {
            for digit in text[from..to].iter_mut().rev() {
                *digit = b'0' + (value % 10) as u8;
                value /= 10;
            }
        };
        put(0, 4, year.unsigned_abs());
        put(5, 7, month.unsigned_abs());
        put(8, 10, day.unsigned_abs());
        put(11, 13, second / 3600);
        put(14, 16, second / 60 % 60);
        put(17, 19, second % 60);
        put(20, 29, nanoseconds);
        Self(text)
    }

    /// The stamp's text.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The stamp's text.
    ///
    /// # Panics
    /// Never: it is digits and punctuation.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).expect("a stamp is ASCII")
    }
}

/// Turns days since 1970-01-01 into year, month and day. Years are counted from March, so that a leap day is a
/// year's last and months before it need no correction.
fn date(days: i64) -> (i64, i64, i64) {
    let days = days + EPOCH_FROM_MARCH_0;
    let era = days.div_euclid(ERA);
    let day_of_era = days.rem_euclid(ERA);
    // Leap days are dropped out of the count: every 1460 days one, but not each 36524, yet the era's last.
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    // March to July and August to December are 153 days each.
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year_of_era + i64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(seconds: i64, nanoseconds: u64) -> String {
        String::from_utf8(Stamp::at(seconds, nanoseconds).as_bytes().to_vec()).unwrap()
    }

    #[test]
    fn known_moments() {
        assert_eq!(text(0, 0), "1970-01-01T00:00:00.000000000Z");
        assert_eq!(text(951_782_400, 1), "2000-02-29T00:00:00.000000001Z");
        assert_eq!(text(1_709_251_199, 999_999_999), "2024-02-29T23:59:59.999999999Z");
        assert_eq!(text(4_107_542_399, 120_000_000), "2100-02-28T23:59:59.120000000Z");
        assert_eq!(text(4_107_542_400, 0), "2100-03-01T00:00:00.000000000Z");
    }

    #[test]
    fn every_day_of_four_centuries_follows_the_one_before() {
        let length = |year: i64, month: i64| match month {
            2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
            2 => 28,
            4 | 6 | 9 | 11 => 30,
            _ => 31,
        };
        let mut expected = (1970, 1, 1);
        for day in 0..ERA {
            assert_eq!(date(day), expected);
            let (year, month, day) = expected;
            expected = match (month, day) {
                (12, 31) => (year + 1, 1, 1),
                (_, day) if day == length(year, month) => (year, month + 1, 1),
                (_, day) => (year, month, day + 1),
            };
        }
    }
}
