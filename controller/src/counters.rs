//! A backend's counters, read from the front door's metrics, and what they mean. Pure.

use std::time::Duration;

use crate::config::Monitor;

/// What a backend's exchanges came to, since the front door started.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Counters {
    /// Exchanges that ended.
    pub requests: u64,
    /// Those with a 5xx answer: the whole class, 502 and 503 too.
    pub errors: u64,
    /// Exchanges by their duration: upper bound in seconds, and how many took no longer. Ascending.
    buckets: Vec<(f64, u64)>,
}

impl Counters {
    /// Reads them from Prometheus text.
    #[must_use]
    pub fn read(metrics: &str, service: &str, backend: &str) -> Self {
        let mut counters = Self::default();
        for line in metrics.lines() {
            let Some(sample) = Sample::read(line) else { continue };
            if sample.label("service") != Some(service) || sample.label("backend") != Some(backend) {
                continue;
            }
            match sample.name {
                "uh_proxy_requests_total" => {
                    let count = whole(sample.value);
                    counters.requests = counters.requests.saturating_add(count);
                    if sample.label("code").is_some_and(|code| code.starts_with('5')) {
                        counters.errors = counters.errors.saturating_add(count);
                    }
                }
                "uh_proxy_request_duration_seconds_bucket" => {
                    let bound = sample.label("le").and_then(|le| match le {
                        "+Inf" => Some(f64::INFINITY),
                        le => le.parse().ok(),
                    });
                    counters.buckets.extend(bound.map(|bound| (bound, whole(sample.value))));
                }
                _ => {}
            }
        }
        counters.buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
        counters
    }

    /// What has come since. A front door that started anew counts from zero.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        if self.requests < before.requests {
            return self.clone();
        }
        let earlier = |bound: f64| {
            before.buckets.iter().find(|(other, _)| other.total_cmp(&bound).is_eq()).map_or(0, |(_, n)| *n)
        };
        Self {
            requests: self.requests - before.requests,
            errors: self.errors.saturating_sub(before.errors),
            buckets: self
                .buckets
                .iter()
                .map(|(bound, n)| (*bound, n.saturating_sub(earlier(*bound))))
                .collect(),
        }
    }

    /// The share of 5xx answers, from 0 to 1.
    #[must_use]
    pub fn error_rate(&self) -> f64 {
        if self.requests == 0 { 0.0 } else { self.errors as f64 / self.requests as f64 }
    }

    /// The p95, as Prometheus estimates it: evenly spread within a bucket. `None`: nothing was measured.
    #[must_use]
    pub fn p95(&self) -> Option<Duration> {
        let total = self.buckets.last().map(|(_, count)| *count).filter(|count| *count > 0)?;
        let rank = total as f64 * 0.95;
        let (mut lower, mut below) = (0.0, 0);
        for (bound, count) in &self.buckets {
            if *count as f64 >= rank {
                if bound.is_infinite() {
                    return Duration::try_from_secs_f64(lower).ok();
                }
                let within = (count - below).max(1) as f64;
                let share = (rank - below as f64) / within;
                return Duration::try_from_secs_f64(lower + (bound - lower) * share).ok();
            }
            (lower, below) = (*bound, *count);
        }
        None
    }
}

fn whole(value: f64) -> u64 {
    if value.is_finite() && value >= 0.0 { value as u64 } else { 0 }
}

/// One line of Prometheus text with labels.
struct Sample<'a> {
    name: &'a str,
    labels: &'a str,
    value: f64,
}

impl<'a> Sample<'a> {
    fn read(line: &'a str) -> Option<Self> {
        let (name, rest) = line.split_once('{')?;
        let (labels, value) = rest.rsplit_once('}')?;
        Some(Self { name, labels, value: value.split_ascii_whitespace().next()?.parse().ok()? })
    }

    /// Our label values have no quotes and no commas.
    fn label(&self, name: &str) -> Option<&'a str> {
        self.labels
            .split(',')
            .find_map(|label| label.strip_prefix(name)?.strip_prefix("=\"")?.strip_suffix('"'))
    }
}

/// How a backend is now, beside its counters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Condition {
    /// As it should be, or not known to be otherwise.
    Well,
    /// The front door's probes fail.
    Unhealthy(String),
    /// Its instance has ended.
    Ended(String),
}

/// What a row of ticks without a breach has come to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing is wrong.
    Ok,
    /// Too few requests to tell.
    NotEnoughData,
}

/// Judges tick after tick.
#[derive(Debug)]
pub struct Judge<'a> {
    limits: &'a Monitor,
    bad_in_a_row: u32,
    judged: bool,
}

impl<'a> Judge<'a> {
    /// By these limits.
    #[must_use]
    pub fn new(limits: &'a Monitor) -> Self {
        Self { limits, bad_in_a_row: 0, judged: false }
    }

    /// One more tick: what came in it, and in all since watching began. `Some`: a breach, and why.
    pub fn tick(&mut self, tick: &Counters, total: &Counters, condition: &Condition) -> Option<String> {
        let reason = match condition {
            // It does not come back by itself, and every moment counts.
            Condition::Ended(how) => return Some(how.clone()),
            Condition::Unhealthy(why) => Some(format!("unhealthy: {why}")),
            Condition::Well => self.too_much(tick, total),
        };
        self.bad_in_a_row = if reason.is_some() { self.bad_in_a_row + 1 } else { 0 };
        reason.filter(|_| self.bad_in_a_row >= self.limits.breach_after)
    }

    /// A tick with few requests says little; then all of them together are judged.
    fn too_much(&mut self, tick: &Counters, total: &Counters) -> Option<String> {
        let enough = |counters: &&Counters| counters.requests >= self.limits.min_requests;
        let counters = [tick, total].into_iter().find(enough)?;
        self.judged = true;
        let (rate, max_rate) = (counters.error_rate(), self.limits.max_error_rate);
        if rate > max_rate {
            let (errors, requests) = (counters.errors, counters.requests);
            return Some(format!(
                "{errors} of {requests} requests failed: {:.1}%, more than {:.1}%",
                rate * 100.0,
                max_rate * 100.0
            ));
        }
        let p95 = counters.p95()?;
        (p95 > self.limits.max_p95)
            .then(|| format!("p95 is {}ms, more than {}ms", p95.as_millis(), self.limits.max_p95.as_millis()))
    }

    /// What it has come to, if there was no breach.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        if self.judged { Verdict::Ok } else { Verdict::NotEnoughData }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const METRICS: &str = r#"
# TYPE uh_proxy_requests_total counter
uh_proxy_requests_total{backend="green",code="200",method="GET",service="app"} 90
uh_proxy_requests_total{backend="green",code="499",method="GET",service="app"} 5
uh_proxy_requests_total{backend="green",code="502",method="GET",service="app"} 3
uh_proxy_requests_total{backend="green",code="500",method="POST",service="app"} 2
uh_proxy_requests_total{backend="blue",code="500",method="POST",service="app"} 1000
uh_proxy_request_duration_seconds_bucket{backend="green",service="app",le="0.1"} 90
uh_proxy_request_duration_seconds_bucket{backend="green",service="app",le="0.5"} 100
uh_proxy_request_duration_seconds_bucket{backend="green",service="app",le="+Inf"} 100
uh_proxy_request_duration_seconds_sum{backend="green",service="app"} 12
"#;

    fn limits() -> Monitor {
        Monitor {
            duration: Duration::from_secs(300),
            interval: Duration::from_secs(10),
            max_error_rate: 0.01,
            max_p95: Duration::from_millis(500),
            min_requests: 20,
            breach_after: 2,
        }
    }

    fn counters(requests: u64, errors: u64) -> Counters {
        Counters { requests, errors, buckets: vec![(0.1, requests), (f64::INFINITY, requests)] }
    }

    #[test]
    fn every_5xx_is_an_error_and_every_answer_is_in_the_total() {
        let green = Counters::read(METRICS, "app", "green");
        assert_eq!((green.requests, green.errors), (100, 5));
        assert_eq!(green.p95(), Some(Duration::from_millis(300)));
        assert_eq!(Counters::read(METRICS, "app", "red"), Counters::default());
    }

    #[test]
    fn more_than_can_be_counted_is_the_most_that_can() {
        let line = "uh_proxy_requests_total{service=\"app\",backend=\"blue\",code=\"500\"} 9e99\n";
        let blue = Counters::read(&line.repeat(2), "app", "blue");
        assert_eq!((blue.requests, blue.errors, blue.error_rate()), (u64::MAX, u64::MAX, 1.0));
    }

    #[test]
    fn a_front_door_that_started_anew_counts_from_zero() {
        assert_eq!(counters(10, 1).since(&counters(100, 5)), counters(10, 1));
        assert_eq!(counters(100, 5).since(&counters(90, 5)), counters(10, 0));
    }

    #[test]
    fn one_error_in_two_requests_is_not_enough_to_judge() {
        let limits = limits();
        let mut judge = Judge::new(&limits);
        for _ in 0..5 {
            assert_eq!(judge.tick(&counters(2, 1), &counters(10, 5), &Condition::Well), None);
        }
        assert_eq!(judge.verdict(), Verdict::NotEnoughData);
    }

    #[test]
    fn a_breach_needs_bad_ticks_in_a_row_and_an_ended_instance_none() {
        let limits = limits();
        let mut judge = Judge::new(&limits);
        let (bad, good) = (counters(100, 2), counters(100, 1));
        assert_eq!(judge.tick(&bad, &bad, &Condition::Well), None);
        assert_eq!(judge.tick(&good, &good, &Condition::Well), None);
        assert_eq!(judge.tick(&bad, &bad, &Condition::Well), None);
        let breach = judge.tick(&bad, &bad, &Condition::Well).unwrap();
        assert_eq!(breach, "2 of 100 requests failed: 2.0%, more than 1.0%");
        let ended = Condition::Ended("exit code 1".to_owned());
        assert!(Judge::new(&limits).tick(&good, &good, &ended).is_some());
    }
}
