//! Counters, and their Prometheus text.

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use hyper::StatusCode;

use crate::drain::Drain;

/// The counters of the request path.
#[derive(Debug)]
pub(crate) struct ShimMetrics {
    drain: Arc<Drain>,
    /// By the first digit of the status; 0 is for any other.
    responses: [AtomicU64; 6],
    /// Exchanges that the app didn't complete.
    broken: AtomicUsize,
    /// Connections to the app that were opened.
    opened: AtomicU64,
    /// Requests that were sent again on another connection.
    resent: AtomicU64,
}

impl ShimMetrics {
    pub(crate) fn new(drain: Arc<Drain>) -> Self {
        Self {
            drain,
            responses: Default::default(),
            broken: AtomicUsize::new(0),
            opened: AtomicU64::new(0),
            resent: AtomicU64::new(0),
        }
    }

    pub(crate) fn count_response(&self, status: StatusCode) {
        let class = usize::from(status.as_u16() / 100);
        let counter = self.responses.get(class).unwrap_or(&self.responses[0]);
        counter.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn count_broken(&self) {
        self.broken.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn count_opened(&self) {
        self.opened.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn count_resent(&self) {
        self.resent.fetch_add(1, Ordering::Relaxed);
    }

    /// How many exchanges the app didn't complete since the start.
    pub(crate) fn broken(&self) -> usize {
        self.broken.load(Ordering::Relaxed)
    }

    /// In the Prometheus text format.
    pub(crate) fn render(&self) -> String {
        let mut text = String::with_capacity(2_048);
        let exchanges = self.drain.in_flight() - self.drain.tunnels();
        let broken = self.broken() as u64;
        let (opened, resent) = (self.opened.load(Ordering::Relaxed), self.resent.load(Ordering::Relaxed));
        let draining = u64::from(self.drain.has_started());
        for (name, kind, help, value) in [
            ("requests_in_flight", "gauge", "Requests whose response isn't complete.", exchanges as u64),
            ("tunnels", "gauge", "Open WebSockets.", self.drain.tunnels() as u64),
            (
                "client_connections",
                "gauge",
                "Client connections, including idle ones.",
                self.clients() as u64,
            ),
            ("draining", "gauge", "1 once the shim was asked to stop.", draining),
            ("app_connections_opened_total", "counter", "Connections opened to the app.", opened),
            ("resent_total", "counter", "Requests retried after the app closed an idle connection.", resent),
            ("broken_total", "counter", "Requests that the app didn't complete.", broken),
        ] {
            let _ = writeln!(text, "# HELP app_shim_{name} {help}\n# TYPE app_shim_{name} {kind}");
            let _ = writeln!(text, "app_shim_{name} {value}");
        }
        let _ = writeln!(text, "# HELP app_shim_responses_total Responses by status class.");
        let _ = writeln!(text, "# TYPE app_shim_responses_total counter");
        for (class, count) in self.responses.iter().enumerate().skip(1) {
            let count = count.load(Ordering::Relaxed);
            let _ = writeln!(text, "app_shim_responses_total{{code=\"{class}xx\"}} {count}");
        }
        let version = env!("CARGO_PKG_VERSION");
        let _ = writeln!(text, "# HELP app_shim_build_info Always 1.\n# TYPE app_shim_build_info gauge");
        let _ = writeln!(text, "app_shim_build_info{{version=\"{version}\"}} 1");
        text
    }

    /// Tunnels count as work too, and so does the listener until the drain.
    fn clients(&self) -> usize {
        let listener = usize::from(!self.drain.has_started());
        self.drain.connections().saturating_sub(self.drain.tunnels() + listener)
    }
}
