//! Percentiles by nearest rank, so that each one is a time that really occurred. Pure.

use std::time::Duration;

/// Times in ascending order.
#[derive(Debug, Clone, Default)]
pub struct Times {
    sorted: Vec<Duration>,
}

impl FromIterator<Duration> for Times {
    fn from_iter<I: IntoIterator<Item = Duration>>(times: I) -> Self {
        let mut sorted: Vec<Duration> = times.into_iter().collect();
        sorted.sort_unstable();
        Self { sorted }
    }
}

impl Times {
    /// The smallest time that at least `per_mille` thousandths of all times do not exceed; `None` if there are none.
    #[must_use]
    pub fn at(&self, per_mille: usize) -> Option<Duration> {
        let rank = (self.sorted.len() * per_mille).div_ceil(1000).max(1);
        self.sorted.get(rank - 1).copied()
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.sorted.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.sorted.is_empty()
    }
}

/// A time for people: `1.25 ms`, or `-` if there is none.
#[must_use]
pub fn milliseconds(time: Option<Duration>) -> String {
    time.map_or_else(|| "-".to_owned(), |time| format!("{:.2} ms", time.as_secs_f64() * 1000.0))
}

/// A count for people: `12,345`.
#[must_use]
pub fn grouped(count: usize) -> String {
    let digits = count.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    #[test]
    fn a_percentile_is_the_nearest_rank() {
        let times: Times = (1..=1000).rev().map(ms).collect();
        assert_eq!(times.at(500), Some(ms(500)));
        assert_eq!(times.at(990), Some(ms(990)));
        assert_eq!(times.at(999), Some(ms(999)));
        assert_eq!(times.at(1000), Some(ms(1000)));
        assert_eq!(times.at(0), Some(ms(1)));
    }

    #[test]
    fn few_times_give_the_longest_for_the_tail_and_none_give_nothing() {
        let times: Times = [ms(3), ms(1)].into_iter().collect();
        assert_eq!((times.at(500), times.at(990)), (Some(ms(1)), Some(ms(3))));
        assert_eq!(times.at(1000), Some(ms(3)));
        assert_eq!(Times::default().at(500), None);
        assert!(Times::default().is_empty());
    }

    #[test]
    fn numbers_for_people() {
        assert_eq!(milliseconds(Some(Duration::from_micros(1254))), "1.25 ms");
        assert_eq!(milliseconds(None), "-");
        assert_eq!([0, 999, 1000, 1_234_567].map(grouped), ["0", "999", "1,000", "1,234,567"]);
    }
}
