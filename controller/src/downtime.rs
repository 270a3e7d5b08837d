//! What users noticed of an operation, from uh-proxy's counters before and after it. Pure.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

/// Statuses that uh-proxy sends itself if a backend doesn't respond. If an app sends them, users see a failure as
/// well.
const FAILED_CODES: [&str; 3] = ["502", "503", "504"];

/// The counters at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TrafficSample {
    /// The id of uh-proxy's process: a new one counts from zero.
    pub pid: u32,
    /// Its uptime in seconds: in a container every process has the id 1.
    pub uptime_s: u64,
    /// Exchanges of the service that ended.
    requests: u64,
    /// Those with a 5xx status.
    errors: u64,
    /// Those with a status of a failure, by status.
    failed: BTreeMap<String, u64>,
    /// Exchanges whose response broke off.
    broken: u64,
    /// Requests that uh-proxy answered before it picked a backend, such as with the maintenance page.
    unrouted: u64,
    /// Client connections that it refused.
    refused: u64,
}

impl TrafficSample {
    /// Reads them from Prometheus text.
    #[must_use]
    pub fn read(metrics: &str, service: &str, pid: u32, uptime_s: u64) -> Self {
        Self { pid, uptime_s, ..Self::count(metrics, service) }
    }

    /// How many requests have ended since an earlier sample.
    #[must_use]
    pub fn requests_since(&self, earlier: &Self) -> u64 {
        self.requests.saturating_sub(earlier.requests)
    }

    fn count(metrics: &str, service: &str) -> Self {
        let mut sample = Self::default();
        for line in metrics.lines().filter(|line| !line.starts_with('#')) {
            let Some((series, value)) = line.rsplit_once(' ') else { continue };
            let (name, labels) = series.split_once('{').unwrap_or((series, ""));
            let count = whole(value);
            let ours = label(labels, "service") == Some(service);
            match name {
                "uh_proxy_requests_total" if ours => {
                    sample.requests = sample.requests.saturating_add(count);
                    if label(labels, "code").is_some_and(|code| code.starts_with('5')) {
                        sample.errors = sample.errors.saturating_add(count);
                    }
                    if let Some(code) = label(labels, "code").filter(|code| FAILED_CODES.contains(code)) {
                        *sample.failed.entry(code.to_owned()).or_default() += count;
                    }
                }
                "uh_proxy_exchanges_broken_total" if ours => {
                    sample.broken = sample.broken.saturating_add(count);
                }
                "uh_proxy_unrouted_requests_total" => sample.unrouted = count,
                "uh_proxy_client_connections_refused_total" => {
                    sample.refused = sample.refused.saturating_add(count);
                }
                _ => {}
            }
        }
        sample
    }
}

fn label<'a>(labels: &'a str, name: &str) -> Option<&'a str> {
    let mut pairs = labels.trim_end_matches('}').split(',');
    pairs.find_map(|pair| Some(pair.strip_prefix(name)?.strip_prefix("=\"")?.trim_end_matches('"')))
}

#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "counters are whole and not negative; what is not counts as zero"
)]
fn whole(value: &str) -> u64 {
    value.trim().parse::<f64>().unwrap_or(0.0) as u64
}

/// What users noticed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "measured")]
pub enum Downtime {
    /// Not measured.
    No {
        /// Why.
        reason: String,
    },
    /// Requests arrived.
    Yes {
        /// How many exchanges ended.
        requests: u64,
        /// Those that failed, by status.
        failed: BTreeMap<String, u64>,
        /// Those whose response broke off.
        broken: u64,
        /// Requests that uh-proxy answered before it picked a backend.
        unrouted: u64,
        /// Connections that it refused.
        refused: u64,
    },
}

impl Downtime {
    /// Not measured.
    #[must_use]
    pub fn unknown(reason: impl Into<String>) -> Self {
        Self::No { reason: reason.into() }
    }

    /// The difference between two samples, the second taken `elapsed_s` after the first.
    #[must_use]
    pub fn between(before: &TrafficSample, after: &TrafficSample, elapsed_s: u64) -> Self {
        // One second of tolerance: uptimes are whole seconds.
        if after.pid != before.pid || after.uptime_s + 1 < before.uptime_s + elapsed_s {
            return Self::unknown("uh-proxy was restarted");
        }
        let since = |after: u64, before: u64| after.saturating_sub(before);
        let mut failed = BTreeMap::new();
        for (code, count) in &after.failed {
            let count = since(*count, before.failed.get(code).copied().unwrap_or_default());
            if count > 0 {
                failed.insert(code.clone(), count);
            }
        }
        let (requests, unrouted) =
            (since(after.requests, before.requests), since(after.unrouted, before.unrouted));
        let refused = since(after.refused, before.refused);
        if requests + unrouted + refused == 0 {
            return Self::unknown("no requests arrived");
        }
        let broken = since(after.broken, before.broken);
        Self::Yes { requests, failed, broken, unrouted, refused }
    }
}

/// The text after `Downtime: `.
impl fmt::Display for Downtime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::No { reason } => write!(f, "not measured ({reason})"),
            Self::Yes { failed, broken: 0, unrouted: 0, refused: 0, .. } if failed.is_empty() => {
                f.write_str("0s")
            }
            Self::Yes { requests, failed, broken, unrouted, refused } => {
                let mut parts: Vec<String> =
                    failed.iter().map(|(code, count)| format!("{count} × {code}")).collect();
                let counts = [
                    (broken, "broken off"),
                    (unrouted, "answered by uh-proxy itself"),
                    (refused, "connections refused"),
                ];
                parts.extend(
                    counts
                        .iter()
                        .filter(|(count, _)| **count > 0)
                        .map(|(count, what)| format!("{count} {what}")),
                );
                write!(f, "{} (of {requests} requests)", parts.join(", "))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(text: &str) -> TrafficSample {
        TrafficSample::read(text, "app", 7, 100)
    }

    #[test]
    fn zero_is_reported_only_if_requests_arrived_and_none_failed() {
        let none = sample("");
        let served = sample(
            "uh_proxy_requests_total{service=\"app\",backend=\"blue\",code=\"200\",method=\"GET\"} 5\n",
        );
        let failed = sample(
            "# HELP x\nuh_proxy_requests_total{service=\"app\",backend=\"blue\",code=\"200\",method=\"GET\"} 5\n\
             uh_proxy_requests_total{service=\"app\",backend=\"blue\",code=\"502\",method=\"GET\"} 2\n\
             uh_proxy_requests_total{service=\"shop\",backend=\"blue\",code=\"502\",method=\"GET\"} 9\n\
             uh_proxy_unrouted_requests_total 3\n",
        );
        let text =
            |before: &TrafficSample, after: &TrafficSample| Downtime::between(before, after, 0).to_string();
        assert_eq!(text(&none, &served), "0s");
        assert_eq!(text(&served, &served), "not measured (no requests arrived)");
        assert_eq!(text(&none, &failed), "2 × 502, 3 answered by uh-proxy itself (of 7 requests)");
        let restarted = TrafficSample { pid: 8, ..served.clone() };
        assert_eq!(text(&none, &restarted), "not measured (uh-proxy was restarted)");
        let restarted = Downtime::between(&none, &TrafficSample { uptime_s: 3, ..served }, 20).to_string();
        assert_eq!(restarted, "not measured (uh-proxy was restarted)");
    }
}
