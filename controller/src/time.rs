//! Times and durations as text.

use jiff::Timestamp;

/// ISO 8601 in UTC, to the millisecond.
#[must_use]
pub fn iso_millis(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%S%.3fZ").to_string()
}

/// A duration for messages: `850ms`, `12.3s`, `3m 45s`, `72h 15m`.
#[must_use]
pub fn span(length: std::time::Duration) -> String {
    let (millis, seconds) = (length.as_millis(), length.as_secs());
    match seconds {
        0 => format!("{millis}ms"),
        1..60 if millis % 1000 == 0 => format!("{seconds}s"),
        1..60 => format!("{:.1}s", length.as_secs_f64()),
        60..3600 => format!("{}m {}s", seconds / 60, seconds % 60),
        _ => format!("{}h {}m", seconds / 3600, seconds / 60 % 60),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    #[test]
    fn durations_are_shown_in_at_most_two_units() {
        let told =
            [850, 12_300, 30_000, 225_000, 260_100_000].map(|ms| super::span(Duration::from_millis(ms)));
        assert_eq!(told, ["850ms", "12.3s", "30s", "3m 45s", "72h 15m"]);
    }
}
