//! Counters of the data path: plain atomics, one set per worker, summed up at a scrape.
//!
//! Counting an exchange is a handful of relaxed additions on cache lines that no other thread writes. Labels are
//! indices into closed sets, so nothing that a client sends can become a label.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use uh_http1::request::METHODS;
use uh_protocol::status::ConnectionCounts;
use uh_protocol::{BackendName, ServiceName};

use super::broken::Broken;
use super::buffered::Buffered;
use super::compressed::{CompressionCounters, CompressionReading};
use super::history::{HistoryCounters, HistoryReading};
use super::http2::Http2Meters;
use super::previous::{PreviousCounters, PreviousReading};
use super::stuck::Stuck;

/// The status codes that have a label: those registered with IANA, and nginx's 499 for a client that left. Any other
/// counts as the first of its class, such as 500.
pub const CODES: [u16; 71] = [
    100, 101, 102, 103, 200, 201, 202, 203, 204, 205, 206, 207, 208, 226, 300, 301, 302, 303, 304, 305, 307,
    308, 400, 401, 402, 403, 404, 405, 406, 407, 408, 409, 410, 411, 412, 413, 414, 415, 416, 417, 418, 421,
    422, 423, 424, 425, 426, 428, 429, 431, 451, 499, 500, 501, 502, 503, 504, 505, 506, 507, 508, 510, 511,
    520, 521, 522, 523, 600, 700, 800, 900,
];

/// Upper bounds of the duration histograms, in microseconds: half a millisecond to a minute.
pub const BOUNDS_US: [u64; 16] = [
    500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000,
    5_000_000, 10_000_000, 30_000_000, 60_000_000,
];

/// For every status code, its place in [`CODES`].
const CODE_INDEX: [u8; 1000] = {
    let mut table = [0u8; 1000];
    let mut code = 0;
    while code < 1000 {
        let hundred = if code < 100 { 500 } else { code - code % 100 };
        let mut place = 0;
        while place < CODES.len() {
            if CODES[place] as usize == hundred {
                table[code] = place as u8;
            }
            place += 1;
        }
        let mut place = 0;
        while place < CODES.len() {
            if CODES[place] as usize == code {
                table[code] = place as u8;
            }
            place += 1;
        }
        code += 1;
    }
    table
};

/// Why an exchange was retried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RetryReason {
    /// The pooled connection was dead.
    StaleConnection,
    /// The endpoint could not be reached, and there was another.
    ConnectFailed,
}

/// All reasons, by their index.
pub const RETRY_REASONS: [&str; 2] = ["stale_connection", "connect_failed"];

/// A histogram over [`BOUNDS_US`].
#[derive(Debug, Default)]
pub struct Histogram {
    buckets: [AtomicU64; BOUNDS_US.len() + 1],
    sum_us: AtomicU64,
}

impl Histogram {
    /// Counts one observation.
    pub fn observe(&self, took: Duration) {
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let place = BOUNDS_US.iter().position(|&bound| us <= bound).unwrap_or(BOUNDS_US.len());
        add(&self.buckets[place], 1);
        add(&self.sum_us, us);
    }

    /// Adds up the cumulative counts into `into`, and returns the sum in microseconds.
    pub(super) fn read(&self, into: &mut [u64; BOUNDS_US.len() + 1]) -> u64 {
        let mut cumulative = 0;
        for (bucket, total) in self.buckets.iter().zip(into) {
            cumulative += bucket.load(Ordering::Relaxed);
            *total += cumulative;
        }
        self.sum_us.load(Ordering::Relaxed)
    }
}

/// Adds to a counter that only the calling thread writes, so that it need not lock the cache line.
pub(super) fn add(counter: &AtomicU64, n: u64) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
}

/// What the old side of a split has made of requests that failed on the new one.
pub const RESCUE_RESULTS: [&str; 2] = ["failed", "answered"];

/// One worker's counters for one backend. Only that worker's thread writes them.
#[derive(Debug)]
#[repr(align(128))]
pub struct BackendLane {
    requests: [[AtomicU64; CODES.len()]; METHODS.len()],
    /// From a request's head to its response's last byte.
    pub duration: Histogram,
    /// Durations of successful connects to the backend.
    pub connect: Histogram,
    retries: [AtomicU64; RETRY_REASONS.len()],
    retries_refused: AtomicU64,
    failed_open: AtomicU64,
    cut: AtomicU64,
    broken: [AtomicU64; Broken::ALL.len()],
    overdue: AtomicU64,
    /// What trials compare other backends with.
    pub(crate) history: HistoryCounters,
    /// What was asked of it as the previous backend.
    pub(crate) previous: PreviousCounters,
    previewed: AtomicU64,
    rescued: [AtomicU64; RESCUE_RESULTS.len()],
    rate_limited: AtomicU64,
    buffering: [AtomicU64; Buffered::ALL.len()],
    stuck: [AtomicU64; Stuck::ALL.len()],
    compression: CompressionCounters,
}

impl BackendLane {
    fn new() -> Self {
        Self {
            requests: std::array::from_fn(|_| std::array::from_fn(|_| AtomicU64::new(0))),
            duration: Histogram::default(),
            connect: Histogram::default(),
            retries: std::array::from_fn(|_| AtomicU64::new(0)),
            retries_refused: AtomicU64::new(0),
            failed_open: AtomicU64::new(0),
            cut: AtomicU64::new(0),
            broken: std::array::from_fn(|_| AtomicU64::new(0)),
            overdue: AtomicU64::new(0),
            history: HistoryCounters::default(),
            previous: PreviousCounters::default(),
            previewed: AtomicU64::new(0),
            rescued: Default::default(),
            rate_limited: AtomicU64::new(0),
            buffering: std::array::from_fn(|_| AtomicU64::new(0)),
            stuck: std::array::from_fn(|_| AtomicU64::new(0)),
            compression: CompressionCounters::default(),
        }
    }

    /// Counts a finished exchange. `method` is an index into [`METHODS`].
    pub fn exchange(&self, method: usize, status: u16, took: Duration) {
        let code = usize::from(CODE_INDEX.get(usize::from(status)).copied().unwrap_or(CODE_INDEX[500]));
        add(&self.requests[method.min(METHODS.len() - 1)][code], 1);
        self.duration.observe(took);
    }

    /// Counts a retry.
    pub fn retried(&self, reason: RetryReason) {
        add(&self.retries[reason as usize], 1);
    }

    /// Counts a retry that was skipped because the budget was used up.
    pub fn retry_refused(&self) {
        add(&self.retries_refused, 1);
    }

    /// Counts an attempt on a backend whose endpoints all fail their probes.
    pub fn failed_open(&self) {
        add(&self.failed_open, 1);
    }

    /// Counts an exchange that was cut by a drain or at shutdown.
    pub fn was_cut(&self) {
        add(&self.cut, 1);
    }

    /// Counts an exchange that the backend broke. At most once each, when it breaks.
    pub fn broke(&self, how: Broken) {
        add(&self.broken[how as usize], 1);
    }

    /// Counts a request that looked at it as a preview.
    pub fn previewed(&self) {
        add(&self.previewed, 1);
    }

    /// Counts a request that failed on it as the new side of a split, and whether the old side had a good answer.
    pub fn rescued(&self, answered: bool) {
        add(&self.rescued[usize::from(answered)], 1);
    }

    /// Counts a request that was rejected because its client made too many.
    pub fn rate_limited(&self) {
        add(&self.rate_limited, 1);
    }

    /// Counts a request that was to be buffered, and what has become of it.
    pub fn buffered(&self, result: Buffered) {
        add(&self.buffering[result as usize], 1);
    }

    /// Counts a request of a sticky service, and whether it has reached its client's endpoint.
    pub fn stuck(&self, result: Stuck) {
        add(&self.stuck[result as usize], 1);
    }

    /// Counts a compressed response: bytes of content before and after.
    pub fn compressed(&self, bytes_in: u64, bytes_out: u64) {
        add(&self.compression.responses, 1);
        add(&self.compression.bytes_in, bytes_in);
        add(&self.compression.bytes_out, bytes_out);
    }

    /// Counts a response that wasn't compressed because too many were at the same time.
    pub fn compression_skipped(&self) {
        add(&self.compression.skipped, 1);
    }

    /// Counts an exchange that is overdue. At most once each, while it still waits.
    pub fn is_overdue(&self) {
        add(&self.overdue, 1);
    }
}

/// All workers' counters for one backend. They outlive its registrations and activations.
#[derive(Debug)]
pub struct BackendMeters {
    /// The service.
    pub service: ServiceName,
    /// The backend.
    pub backend: BackendName,
    lanes: Box<[BackendLane]>,
    /// Upstream connections that are open, idle ones included.
    pub open_connections: AtomicU64,
    /// When the last warning about the backend was logged, on the caller's clock, and how many were left out since.
    warned_ms: AtomicU64,
    left_out: AtomicU64,
}

/// How often a warning about the same backend is logged: often enough to be found, without flooding the log.
const WARN_EVERY_MS: u64 = 10_000;

/// What a scrape reads of one backend.
#[derive(Debug, Clone, PartialEq)]
pub struct BackendReading {
    /// By method and code, without those that never occurred.
    pub requests: Vec<(&'static str, u16, u64)>,
    /// Request durations.
    pub duration: HistogramReading,
    /// Connect durations.
    pub connect: HistogramReading,
    /// By reason.
    pub retries: [u64; RETRY_REASONS.len()],
    /// Retries skipped because the budget was used up.
    pub retries_refused: u64,
    /// Attempts while no endpoint passed its probes.
    pub failed_open: u64,
    /// Exchanges cut.
    pub cut: u64,
    /// Exchanges that the backend broke, by `Broken`.
    pub broken: [u64; Broken::ALL.len()],
    /// Exchanges whose response's head was overdue.
    pub overdue: u64,
    /// What was asked of it as the previous backend.
    pub previous: PreviousReading,
    /// Requests that looked at it as a preview.
    pub previewed: u64,
    /// Requests that failed on it as the new side of a split, by [`RESCUE_RESULTS`].
    pub rescued: [u64; RESCUE_RESULTS.len()],
    /// Requests rejected because their client made too many.
    pub rate_limited: u64,
    /// Requests that were to be buffered, by `Buffered`.
    pub buffering: [u64; Buffered::ALL.len()],
    /// Requests of a sticky service, by `Stuck`.
    pub stuck: [u64; Stuck::ALL.len()],
    /// Compressed responses.
    pub compression: CompressionReading,
}

/// What a scrape reads of a histogram.
#[derive(Debug, Clone, PartialEq)]
pub struct HistogramReading {
    /// Cumulative, by bound; the last one is the count.
    pub cumulative: [u64; BOUNDS_US.len() + 1],
    /// In seconds.
    pub sum: f64,
}

impl BackendMeters {
    fn new(service: &ServiceName, backend: &BackendName, workers: usize) -> Self {
        Self {
            service: service.clone(),
            backend: backend.clone(),
            lanes: (0..workers.max(1)).map(|_| BackendLane::new()).collect(),
            open_connections: AtomicU64::new(0),
            warned_ms: AtomicU64::new(0),
            left_out: AtomicU64::new(0),
        }
    }

    /// Connections to it, by whether they carry an exchange: `idle` don't.
    pub fn connections(&self, idle: u64) -> ConnectionCounts {
        let open = self.open_connections.load(Ordering::Relaxed);
        ConnectionCounts { active: open.saturating_sub(idle), idle }
    }

    /// A worker's counters.
    pub fn lane(&self, worker: usize) -> &BackendLane {
        &self.lanes[worker % self.lanes.len()]
    }

    /// Whether a warning about the backend may be logged now; then, how many were left out since the last one.
    pub fn may_warn(&self, now_ms: u64) -> Option<u64> {
        let (last, now, order) = (self.warned_ms.load(Ordering::Relaxed), now_ms + 1, Ordering::Relaxed);
        let due = last == 0 || now >= last + WARN_EVERY_MS;
        if due && self.warned_ms.compare_exchange(last, now, order, order).is_ok() {
            return Some(self.left_out.swap(0, order));
        }
        // Every worker writes this one.
        self.left_out.fetch_add(1, order);
        None
    }

    /// Sums up all workers.
    pub fn read(&self) -> BackendReading {
        let mut requests = Vec::new();
        for (method, name) in METHODS.iter().enumerate() {
            for (place, code) in CODES.iter().enumerate() {
                let count = self.total(|lane| &lane.requests[method][place]);
                if count > 0 {
                    requests.push((*name, *code, count));
                }
            }
        }
        BackendReading {
            requests,
            duration: self.histogram(|lane| &lane.duration),
            connect: self.histogram(|lane| &lane.connect),
            retries: std::array::from_fn(|reason| self.total(|lane| &lane.retries[reason])),
            retries_refused: self.total(|lane| &lane.retries_refused),
            failed_open: self.total(|lane| &lane.failed_open),
            cut: self.total(|lane| &lane.cut),
            broken: std::array::from_fn(|how| self.total(|lane| &lane.broken[how])),
            overdue: self.total(|lane| &lane.overdue),
            previous: PreviousReading {
                asked: std::array::from_fn(|result| self.total(|lane| &lane.previous.asked[result])),
                actions: std::array::from_fn(|result| self.total(|lane| &lane.previous.actions[result])),
                named: self.total(|lane| &lane.previous.named),
            },
            previewed: self.total(|lane| &lane.previewed),
            rescued: std::array::from_fn(|result| self.total(|lane| &lane.rescued[result])),
            rate_limited: self.total(|lane| &lane.rate_limited),
            buffering: std::array::from_fn(|result| self.total(|lane| &lane.buffering[result])),
            stuck: std::array::from_fn(|result| self.total(|lane| &lane.stuck[result])),
            compression: CompressionReading {
                responses: self.total(|lane| &lane.compression.responses),
                skipped: self.total(|lane| &lane.compression.skipped),
                bytes_in: self.total(|lane| &lane.compression.bytes_in),
                bytes_out: self.total(|lane| &lane.compression.bytes_out),
            },
        }
    }

    /// The exchanges so far, as what another backend is compared with.
    pub(crate) fn history(&self) -> HistoryReading {
        let mut reading = HistoryReading::default();
        self.lanes.iter().for_each(|lane| lane.history.add_to(&mut reading, &lane.duration));
        reading
    }

    /// Requests and tunnels that were cut.
    pub fn cut_total(&self) -> u64 {
        self.total(|lane| &lane.cut)
    }

    fn total(&self, counter: impl Fn(&BackendLane) -> &AtomicU64) -> u64 {
        self.lanes.iter().map(|lane| counter(lane).load(Ordering::Relaxed)).sum()
    }

    fn histogram(&self, histogram: impl Fn(&BackendLane) -> &Histogram) -> HistogramReading {
        let mut cumulative = [0; BOUNDS_US.len() + 1];
        let sum_us: u64 = self.lanes.iter().map(|lane| histogram(lane).read(&mut cumulative)).sum();
        HistogramReading { cumulative, sum: Duration::from_micros(sum_us).as_secs_f64() }
    }
}

/// One worker's counters that belong to no backend.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct WorkerMeters {
    /// Client connections, open.
    pub client_open: AtomicU64,
    /// Of these, those that carry a request.
    pub client_active: AtomicU64,
    /// Client connections accepted since the start.
    pub accepted: AtomicU64,
    /// Requests answered by uh-proxy itself before a backend was picked.
    pub unrouted: AtomicU64,
    /// Access log lines dropped because the disk couldn't keep up.
    pub log_lines_lost: AtomicU64,
    /// HTTP/2.
    pub http2: Http2Meters,
    /// Increases as long as the worker's thread makes progress.
    pub heartbeat: AtomicU64,
}

/// All counters of the data path.
#[derive(Debug)]
pub struct Meters {
    workers: Box<[WorkerMeters]>,
    backends: Mutex<Vec<Arc<BackendMeters>>>,
}

impl Meters {
    /// Counters for this many workers.
    #[must_use]
    pub fn new(workers: usize) -> Self {
        Self {
            workers: (0..workers.max(1)).map(|_| WorkerMeters::default()).collect(),
            backends: Mutex::default(),
        }
    }

    /// A worker's own counters.
    pub fn worker(&self, worker: usize) -> &WorkerMeters {
        &self.workers[worker % self.workers.len()]
    }

    /// Sums up one counter over all workers.
    pub fn sum(&self, counter: impl Fn(&WorkerMeters) -> &AtomicU64) -> u64 {
        self.workers.iter().map(|worker| counter(worker).load(Ordering::Relaxed)).sum()
    }

    /// The counters of a backend, created at first use.
    pub fn backend(&self, service: &ServiceName, backend: &BackendName) -> Arc<BackendMeters> {
        let mut backends = self.backends.lock();
        if let Some(found) = backends.iter().find(|m| m.service == *service && m.backend == *backend) {
            return Arc::clone(found);
        }
        let meters = Arc::new(BackendMeters::new(service, backend, self.workers.len()));
        backends.push(Arc::clone(&meters));
        meters
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_a_place() {
        for code in CODES {
            assert_eq!(CODES[usize::from(CODE_INDEX[usize::from(code)])], code);
        }
        assert_eq!(CODES[usize::from(CODE_INDEX[299])], 200);
        assert_eq!(CODES[usize::from(CODE_INDEX[0])], 500);
    }

    #[test]
    fn a_warning_is_rate_limited_and_counts_those_left_out() {
        let meters = BackendMeters::new(&"app".parse().unwrap(), &"blue".parse().unwrap(), 2);
        let said: Vec<_> = [0, 5, 9_999, 10_000, 10_001].map(|now| meters.may_warn(now)).to_vec();
        assert_eq!(said, [Some(0), None, None, Some(2), None]);
    }

    #[test]
    fn a_histogram_is_cumulative() {
        let meters = BackendMeters::new(&"app".parse().unwrap(), &"blue".parse().unwrap(), 2);
        meters.lane(0).exchange(0, 200, Duration::from_millis(1));
        meters.lane(1).exchange(0, 200, Duration::from_millis(3));
        meters.lane(1).exchange(7, 777, Duration::from_secs(100));
        let reading = meters.read();
        assert_eq!(reading.requests, vec![("GET", 200, 2), ("OTHER", 700, 1)]);
        assert_eq!(reading.duration.cumulative[1], 1);
        assert_eq!(reading.duration.cumulative[3], 2);
        assert_eq!(reading.duration.cumulative[BOUNDS_US.len()], 3);
        assert!((reading.duration.sum - 100.004).abs() < 1e-9);
    }
}
