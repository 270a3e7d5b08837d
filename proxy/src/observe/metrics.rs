//! The Prometheus text. Most values are derived at the scrape from the switchboard and the data path's counters, so
//! that no gauge can be stale; only rare events have their own metrics.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use prometheus::proto::{Bucket, Counter, Gauge, Histogram, LabelPair, Metric, MetricFamily, MetricType};
use prometheus::{HistogramOpts, HistogramVec, IntCounterVec, IntGauge, Opts, Registry, TextEncoder};
use uh_protocol::{BackendName, ServiceName};
use uh_switching::RoutingView;

use super::broken::Broken;
use super::buffered::Buffered;
use super::http2::{DIRECTIONS, ERROR_CODES, GO_AWAY_REASONS};
use super::meters::{BOUNDS_US, HistogramReading, Meters, RESCUE_RESULTS, RETRY_REASONS};
use super::previous::{ACTION_RESULTS, ASKED_RESULTS};
use super::stuck::Stuck;
use crate::config::Service;
use crate::state::writer::StateWriter;

/// Buckets for the swap, which takes microseconds.
const SWAP_BUCKETS: [f64; 8] = [1e-6, 2.5e-6, 1e-5, 2.5e-5, 1e-4, 1e-3, 1e-2, 1e-1];

/// Buckets for drains: from immediate to the longest useful wait.
const DRAIN_BUCKETS: [f64; 9] = [0.01, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0];

/// Client connections rejected or evicted since the start.
#[derive(Debug, Clone)]
pub(crate) struct ClientCounts {
    /// Rejected, by reason.
    pub refused: Vec<(&'static str, u64)>,
    /// Idle ones evicted for new ones.
    pub evicted: u64,
    /// Requests rejected because of their address.
    pub requests_refused: u64,
    /// Clients whose requests were forgotten by their rate limit too early.
    pub rates_evicted: u64,
    /// Bytes of buffered requests: where, and how many.
    pub buffered: [(&'static str, u64); 2],
}

/// Returns the routing, for a scrape.
pub(crate) type Routing = Box<dyn Fn() -> RoutingView<Service> + Send + Sync>;

/// Returns the rejected and evicted client connections, for a scrape.
pub(crate) type Clients = Box<dyn Fn() -> ClientCounts + Send + Sync>;

/// Makes the Prometheus text.
pub(crate) struct Metrics {
    routing: Routing,
    meters: Arc<Meters>,
    writer: Arc<StateWriter>,
    clients: Clients,
    tls: Option<ReadTls>,
    acme: Option<ReadAcme>,
    trials: ReadTrials,
    events: Registry,
    switches: IntCounterVec,
    swap: HistogramVec,
    drains: HistogramVec,
    waiting: IntGauge,
}

/// A waiting drain, counted for as long as this lives.
pub(crate) struct WaitingDrain<'a>(&'a IntGauge);

impl Drop for WaitingDrain<'_> {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// How a switch ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SwitchResult {
    /// Traffic has moved.
    Switched,
    /// It was already active.
    Unchanged,
    /// It was refused.
    Refused,
}

impl SwitchResult {
    fn label(self) -> &'static str {
        match self {
            Self::Switched => "switched",
            Self::Unchanged => "unchanged",
            Self::Refused => "refused",
        }
    }
}

impl Metrics {
    /// The metrics of this process.
    ///
    /// # Errors
    /// A metric has an invalid definition.
    pub(crate) fn new(
        routing: Routing,
        meters: Arc<Meters>,
        writer: Arc<StateWriter>,
        clients: Clients,
        tls: Option<ReadTls>,
        acme: Option<ReadAcme>,
        trials: ReadTrials,
    ) -> prometheus::Result<Self> {
        let switches = IntCounterVec::new(
            Opts::new("uh_proxy_switches_total", "Requested switches, by result."),
            &["service", "from", "to", "result"],
        )?;
        let histogram = |name: &str, help: &str, buckets: &[f64]| {
            HistogramOpts::new(name, help).buckets(buckets.to_vec())
        };
        let swap = HistogramVec::new(
            histogram(
                "uh_proxy_switch_duration_seconds",
                "Time to move traffic to the new backend.",
                &SWAP_BUCKETS,
            ),
            &["service"],
        )?;
        let drains = HistogramVec::new(
            histogram("uh_proxy_drain_duration_seconds", "Duration of drains.", &DRAIN_BUCKETS),
            &["service", "backend"],
        )?;
        let waiting = IntGauge::new("uh_proxy_drains_waiting", "Drains in progress.")?;
        let events = Registry::new();
        events.register(Box::new(waiting.clone()))?;
        events.register(Box::new(switches.clone()))?;
        events.register(Box::new(swap.clone()))?;
        events.register(Box::new(drains.clone()))?;
        Ok(Self {
            routing,
            meters,
            writer,
            clients,
            tls,
            acme,
            trials,
            events,
            switches,
            swap,
            drains,
            waiting,
        })
    }

    /// Counts a switch. `from` and `to` are names of backends that exist.
    pub(crate) fn switched(
        &self,
        service: &ServiceName,
        from: &BackendName,
        to: &BackendName,
        result: SwitchResult,
        swap_took: Duration,
    ) {
        let labels = [service.as_str(), from.as_str(), to.as_str(), result.label()];
        self.switches.with_label_values(&labels).inc();
        if result == SwitchResult::Switched {
            self.swap.with_label_values(&[service.as_str()]).observe(swap_took.as_secs_f64());
        }
    }

    /// Counts a drain that begins to wait. `None`: there are `most` already.
    pub(crate) fn drain_waits(&self, most: i64) -> Option<WaitingDrain<'_>> {
        self.waiting.inc();
        let place = WaitingDrain(&self.waiting);
        (self.waiting.get() <= most).then_some(place)
    }

    /// Counts a drain.
    pub(crate) fn drained(&self, service: &ServiceName, backend: &BackendName, took: Duration) {
        self.drains.with_label_values(&[service.as_str(), backend.as_str()]).observe(took.as_secs_f64());
    }

    /// The text of a scrape.
    ///
    /// # Errors
    /// If the encoder fails, which it shouldn't.
    pub(crate) fn text(&self) -> prometheus::Result<String> {
        let mut families = self.events.gather();
        let routing = (self.routing)();
        families.extend(self.process(routing.generation));
        families.extend(self.backends(&routing));
        families.extend(self.tls.iter().flat_map(|read| tls_families(&read())));
        families.extend(self.acme.iter().flat_map(|read| acme_families(&read())));
        families.extend(trial_families(&(self.trials)()));
        families.retain(|family| !family.get_metric().is_empty());
        families.sort_by(|a, b| a.name().cmp(b.name()));
        TextEncoder::new().encode_to_string(&families)
    }

    fn process(&self, in_force: u64) -> Vec<MetricFamily> {
        let clients = (self.clients)();
        let open = self.meters.sum(|worker| &worker.client_open);
        let active = self.meters.sum(|worker| &worker.client_active).min(open);
        let mut connections =
            Family::gauge("client_connections", "Open client connections, by whether they carry a request.");
        connections.add(&[("state", "active")], active as f64);
        connections.add(&[("state", "idle")], (open - active) as f64);
        let counter = |name, help, value: u64| {
            let mut family = Family::counter(name, help);
            family.add(&[], value as f64);
            family.done()
        };
        let mut refused =
            Family::counter("client_connections_refused_total", "Client connections rejected, by reason.");
        for (reason, count) in clients.refused {
            refused.add(&[("reason", reason)], count as f64);
        }
        let mut buffered =
            Family::gauge("request_buffer_bytes", "Bytes of buffered requests, by where they are.");
        for (place, bytes) in clients.buffered {
            buffered.add(&[("place", place)], bytes as f64);
        }
        let mut families = self.http2();
        families.push(buffered.done());
        families.push(counter(
            "requests_refused_total",
            "HTTP/2 requests rejected because too many were in flight from their address.",
            clients.requests_refused,
        ));
        families.push(counter(
            "rate_limit_evictions_total",
            "Clients forgotten by their rate limit while their requests still counted, to make room for others.",
            clients.rates_evicted,
        ));
        let mut persisted = Family::gauge("state_persisted", "Whether the current routing is saved to disk.");
        persisted.add(&[], f64::from(u8::from(self.writer.is_persisted())));
        let mut generation =
            Family::gauge("generation", "Generation of the current routing; increases with every change.");
        generation.add(&[], in_force as f64);
        let mut build = Family::gauge("build_info", "Always 1; the version is the label.");
        build.add(&[("version", env!("CARGO_PKG_VERSION"))], 1.0);
        families.extend([
            connections.done(),
            refused.done(),
            counter(
                "client_connections_accepted_total",
                "Client connections accepted.",
                self.meters.sum(|w| &w.accepted),
            ),
            counter(
                "client_connections_evicted_total",
                "Idle client connections closed to make room for others.",
                clients.evicted,
            ),
            counter(
                "unrouted_requests_total",
                "Requests answered by uh-proxy itself before a backend was picked.",
                self.meters.sum(|w| &w.unrouted),
            ),
            counter(
                "access_log_lines_lost_total",
                "Access log lines dropped because they couldn't be written in time.",
                self.meters.sum(|w| &w.log_lines_lost),
            ),
            persisted.done(),
            generation.done(),
            build.done(),
        ]);
        families
    }

    fn http2(&self) -> Vec<MetricFamily> {
        let mut connections = Family::gauge("http2_connections", "Open HTTP/2 client connections.");
        connections.add(&[], self.meters.sum(|worker| &worker.http2.connections) as f64);
        let mut streams = Family::counter("http2_streams_total", "HTTP/2 streams opened by clients.");
        streams.add(&[], self.meters.sum(|worker| &worker.http2.streams) as f64);
        let mut resets =
            Family::counter("http2_resets_total", "HTTP/2 streams reset, by sender and error code.");
        for (at, direction) in DIRECTIONS.into_iter().enumerate() {
            for (code, label) in ERROR_CODES.into_iter().enumerate() {
                let count = self.meters.sum(|worker| worker.http2.resets(at, code));
                if count > 0 {
                    resets.add(&[("code", label), ("direction", direction)], count as f64);
                }
            }
        }
        let mut ended =
            Family::counter("http2_goaways_total", "HTTP/2 connections ended by uh-proxy, by reason.");
        for (at, reason) in GO_AWAY_REASONS.into_iter().enumerate() {
            let count = self.meters.sum(|worker| worker.http2.go_aways(at));
            ended.add(&[("reason", reason)], count as f64);
        }
        [connections, streams, resets, ended].map(Family::done).into()
    }

    fn backends(&self, routing: &RoutingView<Service>) -> Vec<MetricFamily> {
        let mut in_flight =
            Family::gauge("backend_requests_in_flight", "Requests in flight, without tunnels.");
        let mut tunnels = Family::gauge("backend_tunnels", "Open tunnels (upgraded connections).");
        let mut connections = Family::gauge(
            "backend_connections",
            "Open backend connections, by whether they carry a request.",
        );
        let mut active = Family::gauge("backend_active", "Whether the backend receives new requests.");
        let mut withdrawn = Family::gauge(
            "backend_withdrawn",
            "Whether the backend is withdrawn: nothing can switch to it until it is registered again.",
        );
        let mut split_weight = Family::gauge(
            "split_weight",
            "Share of the service's clients that a split sends to the backend, from 0 to 1.",
        );
        let mut healthy = Family::gauge("backend_healthy", "Whether the backend passes its probes.");
        let mut last_switch =
            Family::gauge("last_switch_timestamp_seconds", "When the active backend last changed.");
        let mut maintenance = Family::gauge("maintenance", "Whether the service is in maintenance.");
        let mut requests = Family::counter("requests_total", "Finished requests, by status code and method.");
        let mut duration = Family::histogram(
            "request_duration_seconds",
            "Time from the request head to the last byte of the response.",
        );
        let mut connect =
            Family::histogram("upstream_connect_duration_seconds", "Time to open a backend connection.");
        let mut retries = Family::counter("retries_total", "Retries, by reason.");
        let mut refused = Family::counter(
            "retry_budget_exhausted_total",
            "Retries skipped because the retry budget was used up.",
        );
        let mut failed_open = Family::counter(
            "backend_fail_open_total",
            "Attempts on a backend whose endpoints all fail their probes.",
        );
        let mut cut = Family::counter("drain_cut_total", "Requests cut by a drain or at shutdown.");
        let mut broken = Family::counter(
            "exchanges_broken_total",
            "Requests broken by the backend, by reason; counted when they break.",
        );
        let mut overdue = Family::counter(
            "exchanges_overdue_total",
            "Requests that waited longer than timeouts.overdue for a response head; counted while they wait.",
        );
        let mut previous = Family::counter(
            "previous_asked_total",
            "Requests asked of the backend after it was replaced (previous_on_404), by result.",
        );
        let mut actions = Family::counter(
            "previous_actions_total",
            "Server actions that the active backend did not know, by what happened to them (previous_for_actions).",
        );
        let mut named = Family::counter(
            "previous_named_total",
            "Requests that named the deployment id of the backend after it was replaced (deployment_id).",
        );
        let mut previewed = Family::counter(
            "preview_requests_total",
            "Requests with a preview's token that were sent to the backend.",
        );
        let mut rescued = Family::counter(
            "rescued_requests_total",
            "Requests that failed on the backend as the new side of a split and were asked of the old side, by its answer.",
        );
        let mut limited =
            Family::counter("rate_limited_total", "Requests rejected because their client made too many.");
        let mut buffering = Family::counter(
            "request_buffering_total",
            "Requests that were to be buffered, by where they were, or why they were streamed.",
        );
        let mut sticky = Family::counter(
            "sticky_total",
            "Requests of a sticky service, by whether they reached the endpoint that their client had.",
        );
        let mut compressed = Family::counter("compressed_responses_total", "Compressed responses.");
        let mut skipped = Family::counter(
            "compression_skipped_total",
            "Responses not compressed because too many were being compressed.",
        );
        let mut bytes_in =
            Family::counter("compression_input_bytes_total", "Bytes of compressed responses, before.");
        let mut bytes_out =
            Family::counter("compression_output_bytes_total", "Bytes of compressed responses, after.");
        for view in &routing.services {
            let state = &view.state;
            let service = state.config.name.as_str();
            maintenance.add(&[("service", service)], f64::from(u8::from(state.maintenance.is_some())));
            if let Some(at) = state.last_switch {
                last_switch.add(&[("service", service)], at.as_millisecond() as f64 / 1000.0);
            }
            for view in &view.backends {
                let (backend, holding) = (&view.backend, view.holding);
                let meters = self.meters.backend(&state.config.name, &backend.name);
                let reading = meters.read();
                let counts = meters.connections(view.idle);
                let labels = [("service", service), ("backend", backend.name.as_str())];
                let with = |name: &'static str, value: &'static str| [labels[0], labels[1], (name, value)];
                in_flight.add(&labels, holding.requests as f64);
                tunnels.add(&labels, holding.tunnels as f64);
                connections.add(&with("state", "active"), counts.active as f64);
                connections.add(&with("state", "idle"), counts.idle as f64);
                active.add(&labels, f64::from(u8::from(state.is_active(&backend.name))));
                let split = state.split_to(&backend.name);
                split_weight.add(&labels, split.map_or(0.0, |split| split.assignment.weight.share()));
                withdrawn.add(&labels, f64::from(u8::from(state.is_withdrawn(&backend.name))));
                healthy.add(&labels, f64::from(u8::from(view.health.is_good())));
                for (method, code, count) in &reading.requests {
                    let code = code.to_string();
                    requests.add(&[labels[0], labels[1], ("code", &code), ("method", method)], *count as f64);
                }
                duration.add_histogram(&labels, &reading.duration);
                connect.add_histogram(&labels, &reading.connect);
                for (reason, count) in RETRY_REASONS.iter().zip(reading.retries) {
                    retries.add(&with("reason", reason), count as f64);
                }
                refused.add(&labels, reading.retries_refused as f64);
                failed_open.add(&labels, reading.failed_open as f64);
                cut.add(&labels, reading.cut as f64);
                for (how, count) in Broken::ALL.iter().zip(reading.broken) {
                    broken.add(&with("reason", how.as_str()), count as f64);
                }
                overdue.add(&labels, reading.overdue as f64);
                for (result, count) in ASKED_RESULTS.iter().zip(reading.previous.asked) {
                    previous.add(&with("result", result), count as f64);
                }
                if state.config.rules.any(|settings| settings.previous.actions) {
                    for (result, count) in ACTION_RESULTS.iter().zip(reading.previous.actions) {
                        actions.add(&with("result", result), count as f64);
                    }
                }
                if state.config.rules.any(|settings| settings.previous.named.is_some()) {
                    named.add(&labels, reading.previous.named as f64);
                }
                previewed.add(&labels, reading.previewed as f64);
                if state.config.split.rescue {
                    for (result, count) in RESCUE_RESULTS.iter().zip(reading.rescued) {
                        rescued.add(&with("result", result), count as f64);
                    }
                }
                if state.config.rules.any(|settings| settings.rate.is_some()) {
                    limited.add(&labels, reading.rate_limited as f64);
                }
                if state.config.rules.any(|settings| settings.buffer.is_some()) {
                    for (result, count) in Buffered::ALL.iter().zip(reading.buffering) {
                        buffering.add(&with("result", result.as_str()), count as f64);
                    }
                }
                if state.config.sticky.is_some() {
                    for (result, count) in Stuck::ALL.iter().zip(reading.stuck) {
                        sticky.add(&with("result", result.as_str()), count as f64);
                    }
                }
                if state.config.rules.any(|settings| settings.compress.is_some()) {
                    let compression = reading.compression;
                    compressed.add(&labels, compression.responses as f64);
                    skipped.add(&labels, compression.skipped as f64);
                    bytes_in.add(&labels, compression.bytes_in as f64);
                    bytes_out.add(&labels, compression.bytes_out as f64);
                }
            }
        }
        [
            in_flight,
            tunnels,
            connections,
            active,
            withdrawn,
            split_weight,
            healthy,
            last_switch,
            maintenance,
            requests,
            duration,
            connect,
            retries,
            refused,
            failed_open,
            cut,
            broken,
            overdue,
            previous,
            actions,
            named,
            previewed,
            rescued,
            limited,
            buffering,
            sticky,
            compressed,
            skipped,
            bytes_in,
            bytes_out,
        ]
        .map(Family::done)
        .into()
    }
}

/// Reads what TLS has counted.
pub(crate) type ReadTls = Box<dyn Fn() -> TlsCounts + Send + Sync>;

/// What TLS has counted since the start, and what it serves.
#[derive(Debug, Default)]
pub(crate) struct TlsCounts {
    /// Complete handshakes: whether a session was resumed, the version, and how many.
    pub complete: Vec<(&'static str, &'static str, u64)>,
    /// Failed ones: why, and how many.
    pub failed: Vec<(&'static str, u64)>,
    /// Those in progress.
    pub in_progress: u64,
    /// When certificates expire, by name, in seconds since 1970.
    pub expiries: BTreeMap<String, i64>,
    /// Failed attempts to load a changed certificate.
    pub reload_failures: u64,
}

fn tls_families(counts: &TlsCounts) -> [MetricFamily; 5] {
    let mut done = Family::counter(
        "tls_handshakes_total",
        "Completed TLS handshakes, by version and by whether a session was resumed.",
    );
    for (kind, version, count) in &counts.complete {
        done.add(&[("result", kind), ("version", version)], *count as f64);
    }
    let mut failed = Family::counter("tls_handshakes_failed_total", "Failed TLS handshakes, by reason.");
    for (reason, count) in &counts.failed {
        failed.add(&[("reason", reason)], *count as f64);
    }
    let mut in_progress = Family::gauge("tls_handshakes_in_progress", "TLS handshakes in progress.");
    in_progress.add(&[], counts.in_progress as f64);
    let mut expiry = Family::gauge(
        "tls_certificate_expiry_timestamp_seconds",
        "Expiry of the certificate being served, in seconds since 1970, by its first host.",
    );
    for (name, at) in &counts.expiries {
        expiry.add(&[("name", name)], *at as f64);
    }
    let mut reloads = Family::counter(
        "tls_certificate_reload_failures_total",
        "Failed attempts to load a changed certificate. The previous one is still served.",
    );
    reloads.add(&[], counts.reload_failures as f64);
    [done, failed, in_progress, expiry, reloads].map(Family::done)
}

/// Reads what ACME has done and plans.
pub(crate) type ReadAcme = Box<dyn Fn() -> AcmeCounts + Send + Sync>;

/// What ACME has done since the start, and what it plans.
#[derive(Debug, Default)]
pub(crate) struct AcmeCounts {
    /// Attempts: how they ended, and how many.
    pub orders: Vec<(&'static str, u64)>,
    /// Each certificate: its first host, when it is to be tried next, in seconds since 1970, and its failures in a row.
    pub sets: Vec<(String, i64, u32)>,
}

fn acme_families(counts: &AcmeCounts) -> [MetricFamily; 3] {
    let mut next = Family::gauge(
        "acme_next_try_timestamp_seconds",
        "When a certificate is to be renewed or tried again, in seconds since 1970, by its first host.",
    );
    let mut failures = Family::gauge(
        "acme_failures",
        "Failed attempts to get a certificate since the last success, by its first host.",
    );
    for (name, next_try, failed) in &counts.sets {
        next.add(&[("name", name)], *next_try as f64);
        failures.add(&[("name", name)], f64::from(*failed));
    }
    let mut orders = Family::counter("acme_orders_total", "Attempts to get a certificate, by result.");
    // Without hosts, ACME is off.
    for (result, count) in counts.orders.iter().filter(|_| !counts.sets.is_empty()) {
        orders.add(&[("result", result)], *count as f64);
    }
    [next, failures, orders].map(Family::done)
}

/// Reads the trials, for a scrape.
pub(crate) type ReadTrials = Box<dyn Fn() -> Vec<TrialReading> + Send + Sync>;

/// One trial, at a scrape.
#[derive(Debug, Clone)]
pub(crate) struct TrialReading {
    /// The service.
    pub service: ServiceName,
    /// The backend on trial.
    pub backend: BackendName,
    /// By side and kind.
    pub failures: Vec<(&'static str, &'static str, u64)>,
    /// By test.
    pub ln_evidence: Vec<(&'static str, f64)>,
    /// 0: undecided, 1: suspicious, 2: bad.
    pub state: u8,
}

fn trial_families(trials: &[TrialReading]) -> [MetricFamily; 3] {
    let mut failures = Family::counter(
        "trial_failures_total",
        "Bad requests in the current or last trial, by side and kind.",
    );
    let mut evidence = Family::gauge(
        "trial_log_evidence",
        "Natural logarithm of the evidence that the backend on trial is worse, by test.",
    );
    let mut state =
        Family::gauge("trial_state", "What the trial thinks: 0 undecided, 1 suspicious, 2 worse.");
    for trial in trials {
        let of = [("service", trial.service.as_str()), ("backend", trial.backend.as_str())];
        for (side, kind, count) in &trial.failures {
            failures.add(&[of[0], of[1], ("side", side), ("kind", kind)], *count as f64);
        }
        for (test, ln) in &trial.ln_evidence {
            evidence.add(&[of[0], of[1], ("test", test)], *ln);
        }
        state.add(&of, f64::from(trial.state));
    }
    [failures, evidence, state].map(Family::done)
}

/// A metric family in the making.
struct Family {
    kind: MetricType,
    family: MetricFamily,
    metrics: Vec<Metric>,
}

impl Family {
    fn new(name: &str, help: &str, kind: MetricType) -> Self {
        let mut family = MetricFamily::default();
        family.set_name(format!("uh_proxy_{name}"));
        family.set_help(help.to_owned());
        family.set_field_type(kind);
        Self { kind, family, metrics: Vec::new() }
    }

    fn gauge(name: &str, help: &str) -> Self {
        Self::new(name, help, MetricType::GAUGE)
    }

    fn counter(name: &str, help: &str) -> Self {
        Self::new(name, help, MetricType::COUNTER)
    }

    fn histogram(name: &str, help: &str) -> Self {
        Self::new(name, help, MetricType::HISTOGRAM)
    }

    fn add(&mut self, labels: &[(&str, &str)], value: f64) {
        let mut metric = labelled(labels);
        if self.kind == MetricType::COUNTER {
            let mut counter = Counter::default();
            counter.set_value(value);
            metric.set_counter(counter);
        } else {
            let mut gauge = Gauge::default();
            gauge.set_value(value);
            metric.set_gauge(gauge);
        }
        self.metrics.push(metric);
    }

    fn add_histogram(&mut self, labels: &[(&str, &str)], reading: &HistogramReading) {
        let bucket = |(bound, count): (&u64, &u64)| {
            let mut bucket = Bucket::default();
            bucket.set_upper_bound(Duration::from_micros(*bound).as_secs_f64());
            bucket.set_cumulative_count(*count);
            bucket
        };
        let mut histogram = Histogram::default();
        histogram.set_bucket(BOUNDS_US.iter().zip(&reading.cumulative).map(bucket).collect());
        histogram.set_sample_count(reading.cumulative[BOUNDS_US.len()]);
        histogram.set_sample_sum(reading.sum);
        let mut metric = labelled(labels);
        metric.set_histogram(histogram);
        self.metrics.push(metric);
    }

    fn done(mut self) -> MetricFamily {
        self.family.set_metric(self.metrics);
        self.family
    }
}

fn labelled(labels: &[(&str, &str)]) -> Metric {
    let pair = |(name, value): &(&str, &str)| {
        let mut pair = LabelPair::default();
        pair.set_name((*name).to_owned());
        pair.set_value((*value).to_owned());
        pair
    };
    Metric::from_label(labels.iter().map(pair).collect())
}
