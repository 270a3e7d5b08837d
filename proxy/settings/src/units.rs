//! Durations, sizes and percentages with their units: `250ms`, `30s`, `5m`, `1h`; `512B`, `32KiB`, `10MiB`, `1GiB`;
//! `1%`.

use std::time::Duration;

/// For bounds and defaults.
pub const MS: Duration = Duration::from_millis(1);
/// For bounds and defaults.
pub const SECOND: Duration = Duration::from_secs(1);
/// For bounds and defaults.
pub const HOUR: Duration = Duration::from_secs(60 * 60);
/// For bounds and defaults.
pub const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// Why a string isn't a valid quantity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnitError {
    /// Not a duration.
    #[error("{0:?} isn't a duration: use a whole number followed by ms, s, m or h, such as \"30s\"")]
    Duration(String),
    /// Not a size.
    #[error("{0:?} isn't a size: use a whole number followed by B, KiB, MiB or GiB, such as \"32KiB\"")]
    Size(String),
    /// Not a percentage.
    #[error("{0:?} isn't a percentage: use a number from 0 to 100 followed by %, such as \"1%\" or \"0.5%\"")]
    Share(String),
}

fn split(text: &str) -> Option<(u64, &str)> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    Some((text[..digits].parse().ok()?, &text[digits..]))
}

/// Reads a duration.
///
/// # Errors
/// No unit, an unknown unit, no whole number, or too large.
pub fn parse_duration(text: &str) -> Result<Duration, UnitError> {
    let millis = split(text).and_then(|(number, unit)| {
        let factor = match unit {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            _ => return None,
        };
        number.checked_mul(factor)
    });
    millis.map(Duration::from_millis).ok_or_else(|| UnitError::Duration(text.chars().take(40).collect()))
}

/// Reads a size, in bytes.
///
/// # Errors
/// No unit, an unknown unit, no whole number, or too large.
pub fn parse_size(text: &str) -> Result<u64, UnitError> {
    let bytes = split(text).and_then(|(number, unit)| {
        let factor = match unit {
            "B" => 1,
            "KiB" => 1 << 10,
            "MiB" => 1 << 20,
            "GiB" => 1 << 30,
            _ => return None,
        };
        number.checked_mul(factor)
    });
    bytes.ok_or_else(|| UnitError::Size(text.chars().take(40).collect()))
}

/// Reads a percentage: 1 for `100%`.
///
/// # Errors
/// No `%`, no number, or not from 0 to 100.
pub fn parse_share(text: &str) -> Result<f64, UnitError> {
    let percent: Option<f64> = text.strip_suffix('%').and_then(|number| number.parse().ok());
    let percent = percent.filter(|percent| (0.0..=100.0).contains(percent));
    percent.map(|percent| percent / 100.0).ok_or_else(|| UnitError::Share(text.chars().take(40).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_carry_a_unit() {
        assert_eq!(parse_duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(parse_duration("1h"), Ok(Duration::from_secs(3600)));
        for bad in [
            "",
            "30",
            "s",
            "-1s",
            "1.5s",
            "30 s",
            "1d",
            "99999999999999999999s",
            "18446744073709551615h",
            "ä",
        ] {
            assert!(parse_duration(bad).is_err(), "{bad:?} passed");
        }
    }

    #[test]
    fn shares_carry_a_percent_sign() {
        assert_eq!(parse_share("50%"), Ok(0.5));
        for bad in ["", "1", "%", "-1%", "101%", "NaN%", "1 %"] {
            assert!(parse_share(bad).is_err(), "{bad:?} passed");
        }
    }

    #[test]
    fn sizes_carry_a_unit() {
        assert_eq!(parse_size("32KiB"), Ok(32768));
        for bad in ["", "32", "32K", "1kb", "18446744073709551615GiB"] {
            assert!(parse_size(bad).is_err(), "{bad:?} passed");
        }
    }
}
