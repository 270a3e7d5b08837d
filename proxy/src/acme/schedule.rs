//! When to try: pure functions of the clock.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use super::failure::Cause;

const MINUTE: i64 = 60;
const HOUR: i64 = 60 * MINUTE;
const DAY: i64 = 24 * HOUR;

/// The longest that a CA can make us wait. A longer `Retry-After` is a mistake, or a clock that is wrong.
const MOST_OBEYED: i64 = 30 * DAY;

/// After this many interrupted attempts in a row, the next new order waits. A process that keeps crashing must not use up
/// the CA's limits.
pub(crate) const MOST_INTERRUPTED: u32 = 2;

/// Without renewal information from the CA, how often it is asked again.
pub(crate) const CHECK_EVERY: Duration = Duration::from_secs(12 * 60 * 60);

/// How soon, and how late, a CA may ask us to come back for renewal information.
const CHECK_BOUNDS: (Duration, Duration) = (Duration::from_secs(60 * 60), Duration::from_secs(24 * 60 * 60));

/// When to try again after the `failures`th failure in a row. `share`: a random number from 0 to 1, so that many
/// machines that failed together don't return together.
///
/// CAs count failed orders, so an hour passes before the second attempt, and later a day. A CA that can't be reached
/// counts nothing: this starts with a minute, so that a network that is late at boot costs little.
#[must_use]
pub(crate) fn back_off(
    now: Timestamp,
    cause: Cause,
    failures: u32,
    retry_after: Option<Timestamp>,
    share: f64,
) -> Timestamp {
    let (first, most) = match cause {
        Cause::Refused | Cause::Unproven => (HOUR, DAY),
        Cause::Unreachable | Cause::Local => (MINUTE, HOUR),
    };
    let doubled = first.saturating_mul(1_i64 << failures.saturating_sub(1).min(16)).min(most);
    let jittered = (doubled as f64 * (0.8 + 0.4 * share.clamp(0.0, 1.0))) as i64;
    let own = after(now, jittered.clamp(first, most.max(first)));
    retry_after.map_or(own, |asked| asked.min(after(now, MOST_OBEYED)).max(own))
}

/// When to renew a certificate: at two thirds of its lifetime.
#[must_use]
pub(crate) fn renewal(not_before: i64, not_after: i64) -> Timestamp {
    let lifetime = not_after.saturating_sub(not_before).max(0);
    Timestamp::from_second(not_after.saturating_sub(lifetime / 3)).unwrap_or_default()
}

/// The earliest and the latest moment for a renewal, whatever the CA suggests. A CA that wants each certificate to be
/// replaced at once must not get an order each second; and one that wants to wait for too long risks an outage.
#[must_use]
pub(crate) fn bounds(issued_at: i64, lifetime: i64, not_after: i64) -> (Timestamp, Timestamp) {
    let moment = |second| Timestamp::from_second(second).unwrap_or_default();
    let pause = (lifetime / 3).clamp(0, DAY);
    (moment(issued_at.saturating_add(pause)), moment(not_after.saturating_sub(lifetime.max(0) / 10)))
}

/// A moment in the window that the CA suggests (RFC 9773 §4.2).
#[must_use]
pub(crate) fn within_window((start, end): (i64, i64), share: f64) -> Timestamp {
    let length = end.saturating_sub(start).max(0) as f64;
    let at = start.saturating_add((length * share.clamp(0.0, 1.0)) as i64);
    Timestamp::from_second(at).unwrap_or_default()
}

/// When to ask for renewal information again, if the CA asked us to wait this long.
#[must_use]
pub(crate) fn next_check(now: Timestamp, asked: Duration) -> Timestamp {
    let seconds = asked.clamp(CHECK_BOUNDS.0, CHECK_BOUNDS.1).as_secs();
    after(now, i64::try_from(seconds).unwrap_or(DAY))
}

fn after(now: Timestamp, seconds: i64) -> Timestamp {
    now.checked_add(SignedDuration::from_secs(seconds)).unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> Timestamp {
        Timestamp::from_second(1_800_000_000).unwrap()
    }

    fn wait(cause: Cause, failures: u32, retry_after: Option<i64>, share: f64) -> i64 {
        let asked = retry_after.map(|seconds| after(now(), seconds));
        back_off(now(), cause, failures, asked, share).as_second() - now().as_second()
    }

    #[test]
    fn refusals_back_off_from_an_hour_to_a_day() {
        for share in [0.0, 0.5, 1.0] {
            let waits: Vec<i64> =
                (1..9).map(|failures| wait(Cause::Refused, failures, None, share)).collect();
            assert!(waits[0] >= HOUR && waits[0] <= HOUR * 12 / 10, "{waits:?}");
            assert!(waits.windows(2).all(|pair| pair[0] <= pair[1]), "{waits:?}");
            assert!(waits[7] <= DAY && waits[7] >= DAY * 8 / 10, "{waits:?}");
        }
        assert_ne!(wait(Cause::Refused, 3, None, 0.1), wait(Cause::Refused, 3, None, 0.9), "no jitter");
        assert!(wait(Cause::Refused, u32::MAX, None, 1.0) <= DAY);
    }

    #[test]
    fn a_ca_that_is_out_of_reach_is_tried_again_soon() {
        assert_eq!(wait(Cause::Unreachable, 1, None, 0.0), MINUTE);
        assert!(wait(Cause::Unreachable, 99, None, 1.0) <= HOUR);
    }

    #[test]
    fn a_ca_that_asks_for_more_time_gets_it() {
        assert_eq!(wait(Cause::Refused, 1, Some(5 * HOUR), 0.5), 5 * HOUR);
        assert_eq!(wait(Cause::Unreachable, 1, Some(5 * HOUR), 0.5), 5 * HOUR);
        assert!(wait(Cause::Refused, 1, Some(3), 0.5) >= HOUR, "less than our own pause");
        assert_eq!(wait(Cause::Refused, 1, Some(i64::from(u32::MAX)), 0.5), MOST_OBEYED);
    }

    #[test]
    fn a_certificate_is_renewed_at_two_thirds_of_its_lifetime() {
        assert_eq!(renewal(0, 90 * DAY).as_second(), 60 * DAY);
        assert_eq!(renewal(100, 700).as_second(), 500);
        assert_eq!(renewal(700, 100).as_second(), 100, "dates that make no sense");
    }

    #[test]
    fn the_suggested_window_is_kept() {
        assert_eq!(within_window((1000, 2000), 0.0).as_second(), 1000);
        assert_eq!(within_window((1000, 2000), 0.25).as_second(), 1250);
        assert_eq!(within_window((2000, 1000), 0.5).as_second(), 2000, "a window that makes no sense");
        assert_eq!(bounds(1000, 90 * DAY, 90 * DAY).0.as_second(), 1000 + DAY);
        assert_eq!(bounds(1000, 90 * DAY, 90 * DAY).1.as_second(), 81 * DAY);
        assert_eq!(bounds(1000, 600, 2000).0.as_second(), 1200);
        assert_eq!(next_check(now(), Duration::ZERO), after(now(), HOUR));
        assert_eq!(next_check(now(), Duration::MAX), after(now(), DAY));
        assert_eq!(next_check(now(), CHECK_EVERY), after(now(), 12 * HOUR));
    }
}
