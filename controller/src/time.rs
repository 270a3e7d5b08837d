//! Times and durations as text, and what uh-proxy's times mean.

use jiff::Timestamp;

/// ISO 8601 in UTC, to the millisecond.
#[must_use]
pub(crate) fn iso_millis(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%S%.3fZ").to_string()
}

/// A duration for messages: `850ms`, `12.3s`, `3m 45s`, `72h 15m`.
#[must_use]
pub(crate) fn span(length: std::time::Duration) -> String {
    let (millis, seconds) = (length.as_millis(), length.as_secs());
    match seconds {
        0 => format!("{millis}ms"),
        1..60 if millis % 1000 == 0 => format!("{seconds}s"),
        1..60 => format!("{:.1}s", length.as_secs_f64()),
        60..3600 => format!("{}m {}s", seconds / 60, seconds % 60),
        _ => format!("{}h {}m", seconds / 3600, seconds / 60 % 60),
    }
}

/// Whether two values of uh-proxy's `last_switch` mean the same switch. A restarted uh-proxy knows it only to the
/// second. Two values that are more exact, and differ, are two switches.
#[must_use]
pub(crate) fn same_switch(one: Option<&str>, other: Option<&str>) -> bool {
    let parse = |at: &str| at.parse::<Timestamp>().ok();
    let to_the_second = |at: Timestamp| at.subsec_nanosecond() == 0;
    match (one, other) {
        (None, None) => true,
        (Some(one), Some(other)) if one == other => true,
        (Some(one), Some(other)) => parse(one).zip(parse(other)).is_some_and(|(one, other)| {
            one.as_second() == other.as_second() && (to_the_second(one) || to_the_second(other))
        }),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::same_switch;

    #[test]
    fn durations_are_shown_in_at_most_two_units() {
        let text =
            [850, 12_300, 30_000, 225_000, 260_100_000].map(|ms| super::span(Duration::from_millis(ms)));
        assert_eq!(text, ["850ms", "12.3s", "30s", "3m 45s", "72h 15m"]);
    }

    #[test]
    fn last_switch_times_that_differ_only_in_precision_are_the_same_switch() {
        let at = "2026-11-25T10:00:01.767Z";
        for (other, same) in [
            (at, true),
            ("2026-11-25T10:00:01Z", true),
            ("2026-11-25T10:00:02Z", false),
            ("2026-11-25T10:00:01.9Z", false),
            ("?", false),
        ] {
            assert_eq!(same_switch(Some(at), Some(other)), same, "{other}");
        }
        assert!(same_switch(None, None) && !same_switch(None, Some(at)));
    }
}
