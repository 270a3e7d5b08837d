//! How long a process that another one has replaced stays at least, even without requests: as long as it is there, it can
//! lead again.

use std::time::{Duration, Instant};

/// How long it stays if it has started the one that leads: there may be nobody else to start another one.
const STARTED_BY_US: Duration = Duration::from_secs(60);

/// How long it stays after the one that leads is ready: a fault of a new version often shows at once.
const AFTER_READY: Duration = Duration::from_secs(1);

/// How long it waits for that.
const READY_WITHIN: Duration = Duration::from_secs(10);

/// The process that leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Successor {
    /// This process has started it.
    Started,
    /// Somebody else has.
    Other,
}

/// The stay of a process that another one has replaced.
#[derive(Debug)]
pub(crate) struct Stay {
    begun: Instant,
    at_least: Duration,
    ready: Option<Instant>,
    is_dismissed: bool,
}

impl Stay {
    /// Begins when that one leads.
    pub(crate) fn begin(now: Instant, successor: Successor) -> Self {
        let at_least = match successor {
            Successor::Started => STARTED_BY_US,
            Successor::Other => Duration::ZERO,
        };
        Self { begun: now, at_least, ready: None, is_dismissed: false }
    }

    /// That one is ready.
    pub(crate) fn successor_is_ready(&mut self, now: Instant) {
        self.ready.get_or_insert(now);
    }

    /// This process isn't to lead again.
    pub(crate) fn dismiss(&mut self) {
        self.is_dismissed = true;
    }

    /// Whether it may end.
    pub(crate) fn is_over(&self, now: Instant) -> bool {
        let settled = self.ready.map_or(self.begun + READY_WITHIN, |ready| ready + AFTER_READY);
        self.is_dismissed || now >= settled.max(self.begun + self.at_least)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_process_stays_until_its_successor_has_been_ready_for_a_moment() {
        let begun = Instant::now();
        let mut stay = Stay::begin(begun, Successor::Other);
        assert!(!stay.is_over(begun + 3 * SECOND));
        stay.successor_is_ready(begun + 3 * SECOND);
        stay.successor_is_ready(begun + 5 * SECOND);
        assert!(!stay.is_over(begun + 3 * SECOND + SECOND / 2));
        assert!(stay.is_over(begun + 4 * SECOND));
    }

    #[test]
    fn a_successor_that_never_says_that_it_is_ready_is_not_waited_for_indefinitely() {
        let begun = Instant::now();
        let stay = Stay::begin(begun, Successor::Other);
        assert!(!stay.is_over(begun + 9 * SECOND));
        assert!(stay.is_over(begun + 10 * SECOND));
    }

    #[test]
    fn a_process_that_has_started_its_successor_stays_for_a_minute_unless_it_is_dismissed() {
        let begun = Instant::now();
        let mut stay = Stay::begin(begun, Successor::Started);
        stay.successor_is_ready(begun + SECOND);
        assert!(!stay.is_over(begun + 59 * SECOND));
        assert!(stay.is_over(begun + 60 * SECOND));
        stay.dismiss();
        assert!(stay.is_over(begun + 2 * SECOND));
    }
}
