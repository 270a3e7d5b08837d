//! Durations and sizes with their units: `250ms`, `30s`, `5m`, `1h`; `512B`, `32KiB`, `10MiB`, `1GiB`.

use std::time::Duration;

/// Why a text is not a quantity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnitError {
    /// Not a duration.
    #[error("{0:?} is not a duration: write a whole number and ms, s, m or h, as in \"30s\"")]
    Duration(String),
    /// Not a size.
    #[error("{0:?} is not a size: write a whole number and B, KiB, MiB or GiB, as in \"32KiB\"")]
    Size(String),
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
    fn sizes_carry_a_unit() {
        assert_eq!(parse_size("32KiB"), Ok(32768));
        for bad in ["", "32", "32K", "1kb", "18446744073709551615GiB"] {
            assert!(parse_size(bad).is_err(), "{bad:?} passed");
        }
    }
}
