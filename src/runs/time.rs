//! Date and time in UTC, for folder names and reports.

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

/// A moment in UTC, to the second (proleptic Gregorian calendar, from 1970 on).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Utc {
    year: u32,
    month: u32,
    day: u32,
    hour: u32,
    minute: u32,
    second: u32,
}

impl Utc {
    /// The time now. A clock set before 1970 reads as the first second of 1970.
    pub fn now() -> Self {
        let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
        Utc::from_unix(seconds)
    }

    /// The moment `seconds` after 1970-01-01T00:00:00Z (leap seconds not counted).
    pub fn from_unix(seconds: u64) -> Self {
        let (mut days, rest) = (seconds / 86_400, (seconds % 86_400) as u32);
        // The calendar repeats every 400 years, which keeps the walk over years short.
        let mut year = 1970 + 400 * (days / 146_097) as u32;
        days %= 146_097;
        while days >= days_in_year(year) {
            days -= days_in_year(year);
            year += 1;
        }
        let mut month = 1;
        while days >= days_in_month(year, month) {
            days -= days_in_month(year, month);
            month += 1;
        }
        Utc {
            year,
            month,
            day: days as u32 + 1,
            hour: rest / 3600,
            minute: rest / 60 % 60,
            second: rest % 60,
        }
    }

    /// `YYYYmmdd-HHMMSS`, as in the name of a run folder; sorts like the time.
    pub fn compact(&self) -> String {
        format!(
            "{:04}{:02}{:02}-{:02}{:02}{:02}",
            self.year, self.month, self.day, self.hour, self.minute, self.second
        )
    }

    /// Reads back [`compact`](Self::compact); `None` where the text is anything else.
    pub fn from_compact(text: &str) -> Option<Self> {
        let bytes = text.as_bytes();
        if bytes.len() != 15 || bytes[8] != b'-' {
            return None;
        }
        if !bytes.iter().enumerate().all(|(i, b)| i == 8 || b.is_ascii_digit()) {
            return None;
        }
        let number = |from: usize, to: usize| text[from..to].parse::<u32>().ok();
        let (year, month, day) = (number(0, 4)?, number(4, 6)?, number(6, 8)?);
        let (hour, minute, second) = (number(9, 11)?, number(11, 13)?, number(13, 15)?);
        let valid = (1..=12).contains(&month)
            && day >= 1
            && u64::from(day) <= days_in_month(year, month)
            && hour < 24
            && minute < 60
            && second < 60;
        valid.then_some(Utc { year, month, day, hour, minute, second })
    }
}

/// RFC 3339: `2026-11-21T20:53:26Z`.
impl fmt::Display for Utc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Utc { year, month, day, hour, minute, second } = self;
        write!(f, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
    }
}

/// Seconds of a length of time as people write it: `30s`, `2m`, `1h`, `500ms` or `30`.
pub fn duration(text: &str) -> Option<f64> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let factor = match &text[digits.len()..] {
        "" | "s" => 1.0,
        "ms" => 1e-3,
        "m" | "min" => 60.0,
        "h" => 3600.0,
        _ => return None,
    };
    let seconds = digits.parse::<f64>().ok()? * factor;
    (seconds.is_finite() && seconds > 0.0).then_some(seconds)
}

fn is_leap(year: u32) -> bool {
    year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
}

fn days_in_year(year: u32) -> u64 {
    if is_leap(year) { 366 } else { 365 }
}

fn days_in_month(year: u32, month: u32) -> u64 {
    match month {
        2 if is_leap(year) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Expected values from `date -u -d @SECONDS +%FT%TZ` (GNU coreutils).
    #[test]
    fn agrees_with_date() {
        for (seconds, expected) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_709_251_199, "2024-02-29T23:59:59Z"),
            (1_795_294_406, "2026-11-21T20:53:26Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
            (16_725_225_600, "2500-01-01T00:00:00Z"),
        ] {
            assert_eq!(Utc::from_unix(seconds).to_string(), expected);
        }
    }

    #[test]
    fn compact_reads_back() {
        let time = Utc::from_unix(1_795_294_406);
        assert_eq!(time.compact(), "20261121-205326");
        assert_eq!(Utc::from_compact("20261121-205326"), Some(time));
        for bad in ["", "20261321-205326", "20260229-000000", "20261121_205326", "2026112é-20532"]
        {
            assert_eq!(Utc::from_compact(bad), None, "{bad}");
        }
    }
}
