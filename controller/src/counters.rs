//! A backend's counters from uh-proxy's metrics, and what they add up to. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use uh_protocol::status::ProxyStatus;

/// uh-proxy's status (and nginx's) for a client that left before its response was complete. It says nothing about the
/// backend.
const CLIENT_GONE: &str = "499";

/// Reasons of `exchanges_broken_total` for a response that broke off after its head, which its status doesn't show.
/// The other reasons end in a 502 or 504 and are counted by that status.
const BROKE_OFF: [&str; 3] = ["cut_short", "stalled", "garbled"];

/// How a backend's exchanges ended, since uh-proxy started or within some period.
///
/// Every series is kept separately, because each can tell on its own that uh-proxy restarted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Counters {
    /// Exchanges that ended, by method and status: `GET 200`.
    ended: BTreeMap<String, u64>,
    /// Exchanges whose response broke off after its head, by reason. Those that broke before it are 502s and 504s.
    broken: BTreeMap<String, u64>,
    /// Exchanges that became overdue while they were open. `None`: this uh-proxy doesn't count them.
    overdue: Option<u64>,
    /// Exchanges by duration: the bucket's upper bound in seconds as in the metrics, and how many took at most that
    /// long.
    took: BTreeMap<String, u64>,
}

impl Counters {
    /// Reads them from Prometheus text.
    #[must_use]
    pub fn read(metrics: &str, service: &str, backend: &str) -> Self {
        let mut counters = Self::default();
        for line in metrics.lines() {
            let Some(sample) = MetricLine::read(line) else { continue };
            if sample.label("service") != Some(service) || sample.label("backend") != Some(backend) {
                continue;
            }
            let count = whole(sample.value);
            let add = |series: &mut BTreeMap<String, u64>, key: String| {
                let sum = series.entry(key).or_default();
                *sum = sum.saturating_add(count);
            };
            let label = |name| sample.label(name).unwrap_or_default();
            match sample.name {
                "uh_proxy_requests_total" => {
                    add(&mut counters.ended, format!("{} {}", label("method"), label("code")));
                }
                "uh_proxy_exchanges_broken_total" if BROKE_OFF.contains(&label("reason")) => {
                    add(&mut counters.broken, label("reason").to_owned());
                }
                "uh_proxy_exchanges_overdue_total" => {
                    counters.overdue = Some(counters.overdue.unwrap_or(0).saturating_add(count));
                }
                "uh_proxy_request_duration_seconds_bucket" => {
                    counters.took.insert(label("le").to_owned(), count);
                }
                _ => {}
            }
        }
        counters
    }

    /// Exchanges that ended in this way, for simulations.
    #[must_use]
    pub fn of(answers: Answers) -> Self {
        let ended = [("GET 200".to_owned(), answers.good), ("GET 500".to_owned(), answers.bad)].into();
        Self { ended, ..Self::default() }
    }

    /// What was added since. A series that is smaller than before has started from zero in between.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        let one = |now: u64, before: u64| now.checked_sub(before).unwrap_or(now);
        let all = |now: &BTreeMap<String, u64>, before: &BTreeMap<String, u64>| {
            let before = |key: &String| before.get(key).copied().unwrap_or(0);
            now.iter().map(|(key, n)| (key.clone(), one(*n, before(key)))).collect()
        };
        Self {
            ended: all(&self.ended, &before.ended),
            broken: all(&self.broken, &before.broken),
            overdue: self.overdue.map(|now| one(now, before.overdue.unwrap_or(0))),
            took: all(&self.took, &before.took),
        }
    }

    /// Both together.
    #[must_use]
    pub fn plus(mut self, more: &Self) -> Self {
        let add = |sum: &mut BTreeMap<String, u64>, more: &BTreeMap<String, u64>| {
            for (key, n) in more {
                let sum = sum.entry(key.clone()).or_default();
                *sum = sum.saturating_add(*n);
            }
        };
        add(&mut self.ended, &more.ended);
        add(&mut self.broken, &more.broken);
        add(&mut self.took, &more.took);
        self.overdue = match (self.overdue, more.overdue) {
            (None, None) => None,
            (a, b) => Some(a.unwrap_or(0).saturating_add(b.unwrap_or(0))),
        };
        self
    }

    /// Whether this uh-proxy counts overdue exchanges: without that, a backend that hangs looks idle.
    #[must_use]
    pub fn knows_overdue(&self) -> bool {
        self.overdue.is_some()
    }

    /// Exchanges that ended, in whatever way.
    #[must_use]
    pub fn requests(&self) -> u64 {
        sum(self.ended.values())
    }

    /// Clients that left before their response was complete.
    #[must_use]
    pub fn clients_gone(&self) -> u64 {
        self.with_code(|code| code == CLIENT_GONE)
    }

    /// How many exchanges were good and bad, as far as the backend is concerned.
    ///
    /// No exchange counts twice as a failure. One that breaks before its response head ends as 502 or 504 and counts
    /// only as that. One that breaks off later has the app's status; if that is a 5xx, it is in both series, so the
    /// failures are capped at the exchanges that ended. An overdue one counts while it waits and usually *also* ends
    /// badly, and the series don't tell which, so the larger of the two figures is used: a lower bound.
    #[must_use]
    pub fn answers(&self) -> Answers {
        let (server_errors, broken) = (self.server_errors(), sum(self.broken.values()));
        let ended = self.requests().saturating_sub(self.clients_gone());
        let ended_badly = server_errors.saturating_add(broken).min(ended);
        Answers { good: ended - ended_badly, bad: ended_badly.max(self.overdue.unwrap_or(0)) }
    }

    /// What failed, by kind, the most frequent first: `500`, `broken off (cut_short)`, `overdue`.
    #[must_use]
    pub fn failures(&self) -> Vec<(String, u64)> {
        let mut kinds: BTreeMap<String, u64> = BTreeMap::new();
        for (series, n) in &self.ended {
            let code = code_of(series);
            if code.starts_with('5') {
                *kinds.entry(code.to_owned()).or_default() += n;
            }
        }
        kinds.extend(self.broken.iter().map(|(reason, n)| (format!("broken off ({reason})"), *n)));
        kinds.extend(self.overdue.map(|n| ("overdue".to_owned(), n)));
        let mut kinds: Vec<_> = kinds.into_iter().filter(|(_, n)| *n > 0).collect();
        kinds.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
        kinds
    }

    /// The p95 as Prometheus estimates it, by linear interpolation within a bucket. `None`: nothing was measured.
    #[must_use]
    pub fn p95(&self) -> Option<Duration> {
        self.p95_without_slowest(0)
    }

    /// The same without this many exchanges, the slowest ones.
    #[must_use]
    pub fn p95_without_slowest(&self, left_out: u64) -> Option<Duration> {
        let bound = |le: &String| if le == "+Inf" { Some(f64::INFINITY) } else { le.parse().ok() };
        let mut buckets: Vec<(f64, u64)> =
            self.took.iter().filter_map(|(le, n)| Some((bound(le)?, *n))).collect();
        buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
        let all = buckets.last().map_or(0, |(_, count)| *count);
        let total = all.checked_sub(left_out).filter(|count| *count > 0)?;
        let rank = total as f64 * 0.95;
        let (mut lower, mut below) = (0.0, 0);
        for (bound, count) in buckets {
            if count as f64 >= rank {
                if bound.is_infinite() {
                    return Duration::try_from_secs_f64(lower).ok();
                }
                let within = count.min(total).saturating_sub(below).max(1) as f64;
                let share = (rank - below as f64) / within;
                return Duration::try_from_secs_f64(lower + (bound - lower) * share).ok();
            }
            (lower, below) = (bound, count);
        }
        None
    }

    fn server_errors(&self) -> u64 {
        self.with_code(|code| code.starts_with('5'))
    }

    fn with_code(&self, wanted: impl Fn(&str) -> bool) -> u64 {
        sum(self.ended.iter().filter(|(series, _)| wanted(code_of(series))).map(|(_, n)| n))
    }
}

fn sum<'a>(counts: impl Iterator<Item = &'a u64>) -> u64 {
    counts.fold(0, |sum, n| sum.saturating_add(*n))
}

fn code_of(series: &str) -> &str {
    series.rsplit(' ').next().unwrap_or_default()
}

fn whole(value: f64) -> u64 {
    if value.is_finite() && value >= 0.0 { value as u64 } else { 0 }
}

/// One line of Prometheus text with labels.
struct MetricLine<'a> {
    name: &'a str,
    labels: &'a str,
    value: f64,
}

impl<'a> MetricLine<'a> {
    fn read(line: &'a str) -> Option<Self> {
        let (name, rest) = line.split_once('{')?;
        let (labels, value) = rest.rsplit_once('}')?;
        Some(Self { name, labels, value: value.split_ascii_whitespace().next()?.parse().ok()? })
    }

    /// uh-proxy's label values contain no quotes or commas.
    fn label(&self, name: &str) -> Option<&'a str> {
        self.labels
            .split(',')
            .find_map(|label| label.strip_prefix(name)?.strip_prefix("=\"")?.strip_suffix('"'))
    }
}

/// How many requests were answered well, and how many failed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Answers {
    /// Answered well.
    pub good: u64,
    /// Failed.
    pub bad: u64,
}

impl Answers {
    /// All of them.
    #[must_use]
    pub fn all(self) -> u64 {
        self.good.saturating_add(self.bad)
    }

    /// The share that failed, from 0 to 1; 0 if nothing was answered.
    #[must_use]
    pub fn rate(self) -> f64 {
        if self.all() == 0 { 0.0 } else { self.bad as f64 / self.all() as f64 }
    }
}

/// The uh-proxy process that counted: a restarted one starts from zero.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProxyProcess {
    pid: u32,
    /// When it started, in seconds of the monotonic clock, which a change of the wall clock doesn't affect.
    started_s: i64,
    /// The boot of the machine: the other two may repeat in another boot.
    boot: String,
}

/// How far apart two readings of one process's start may be: uptime is in whole seconds, and is read over a socket.
const START_TOLERANCE_S: i64 = 2;

impl ProxyProcess {
    /// From uh-proxy's status and the current monotonic clock.
    #[must_use]
    pub fn new(status: &ProxyStatus, monotonic: Duration, boot: &str) -> Self {
        let seconds = |s: u64| i64::try_from(s).unwrap_or(i64::MAX);
        let started_s = seconds(monotonic.as_secs()).saturating_sub(seconds(status.uptime_s));
        Self { pid: status.pid, started_s, boot: boot.to_owned() }
    }

    /// Whether it is the same process. In a container every uh-proxy is process 1, so the start counts too.
    #[must_use]
    pub fn is(&self, other: &Self) -> bool {
        let apart = self.started_s.abs_diff(other.started_s);
        self.pid == other.pid && self.boot == other.boot && apart <= START_TOLERANCE_S.unsigned_abs()
    }
}

/// What one process had counted at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reading {
    /// The process.
    pub process: ProxyProcess,
    /// Its counters.
    pub counters: Counters,
}

impl Reading {
    /// What was added since an earlier reading. A process that started since then counts from zero; what its
    /// predecessor counted after `before` is lost.
    #[must_use]
    pub fn since(&self, before: &Self) -> Counters {
        if self.process.is(&before.process) {
            self.counters.since(&before.counters)
        } else {
            self.counters.clone()
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
